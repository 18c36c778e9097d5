"""The cited systems: each formula against values known otherwise, and the command from a run to its table."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.optimize import minimize

import spectra_jax as sj
from data_prep.synthetic_birds import generate
from experiments.cited_systems import apicella, cf_cbm, concept_space, measure, sarkar, shukla
from experiments.cited_systems.__main__ import main as cited_systems
from experiments.cli.command import UserError
from experiments.train.__main__ import main as train
from spectra_jax.inversion.encoder import lead_of

SIDE, LATENTS, CLASSES = 12, 6, 4
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(SIDE * SIDE * 3, LATENTS)))[0].T.astype(np.float32)
WEIGHTS = RNG.normal(size=(CLASSES, SIDE * SIDE * 3)).astype(np.float32)


class Plane(NamedTuple):
    """A subject whose decoder and classifier are linear, so that every gradient is a known matrix."""

    def to_latents(self, images):
        return (images.reshape(len(images), -1) - 0.5) @ BASIS.T

    def draw(self, latents):
        return (0.5 + latents @ BASIS).reshape(len(latents), SIDE, SIDE, 3)

    def judge(self, images, targets):
        logits = self.logits(images)
        return logits, lead_of(sj.Head(jnp.eye(CLASSES)), logits, targets)

    def logits(self, images):
        return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS.T


SUBJECT = Plane()
LATENT = jnp.asarray(RNG.normal(size=(5, LATENTS)), jnp.float32)
IMAGES = SUBJECT.draw(LATENT)
SEEN = WEIGHTS @ BASIS.T  # (c, d) the classifier as a function of the latents
NAMED = np.asarray(LATENT @ SEEN.T).argmax(axis=1)
TARGETS = jnp.asarray((NAMED + 1) % CLASSES, jnp.int32)


def test_relevance_of_a_linear_classifier_is_latent_times_weight_and_adds_up_to_the_logit():
    found = np.asarray(apicella.relevance(SUBJECT, LATENT, TARGETS))
    np.testing.assert_allclose(found, np.asarray(LATENT) * SEEN[np.asarray(TARGETS)], atol=1e-5)
    logits = np.asarray(LATENT @ SEEN.T)[np.arange(5), np.asarray(TARGETS)]
    np.testing.assert_allclose(found.sum(axis=1), logits, atol=1e-4)


def test_deletion_takes_the_first_latents_of_the_order_away():
    order = jnp.asarray(np.stack([RNG.permutation(LATENTS) for _ in range(5)]), jnp.int32)
    curve = apicella.deletion_curve(SUBJECT, LATENT, TARGETS, order, (0.0, 0.5, 1.0))
    half = np.asarray(LATENT).copy()
    for row in range(5):
        half[row, np.asarray(order)[row, :3]] = 0
    for column, latents in enumerate((np.asarray(LATENT), half, np.zeros_like(half))):
        chances = np.exp(latents @ SEEN.T)
        expected = (chances / chances.sum(axis=1, keepdims=True))[np.arange(5), np.asarray(TARGETS)]
        np.testing.assert_allclose(curve[:, column], expected, rtol=1e-4)


def test_apicella_moves_the_most_relevant_latents_alone_and_stops_at_the_target(monkeypatch):
    monkeypatch.setattr(apicella, "SHARE", 0.5)
    answer = apicella.search(SUBJECT, margin=0.1, max_steps=200)(IMAGES, TARGETS)
    moved = np.abs(np.asarray(SUBJECT.to_latents(answer) - LATENT)) > 1e-4
    size = np.abs(np.asarray(LATENT) * SEEN[NAMED])
    assert np.all(moved.sum(axis=1) <= 3)
    assert np.all((size >= np.sort(size, axis=1)[:, 3:4] - 1e-5) | ~moved)
    assert np.all(SUBJECT.judge(answer, TARGETS)[1].by(0.1)) and moved.any()


def test_shukla_finds_the_target_nearly_as_near_as_any_image_of_the_decoder():
    answer = shukla.search(SUBJECT, margin=0.1, max_steps=300)(IMAGES, TARGETS)
    assert np.all(SUBJECT.judge(answer, TARGETS)[1].by(0.1))
    found = np.linalg.norm(np.asarray(SUBJECT.to_latents(answer) - LATENT), axis=1)
    for row in range(5):
        target = int(TARGETS[row])
        rivals = [k for k in range(CLASSES) if k != target]
        leads = SEEN[target] - SEEN[rivals]
        offset = leads @ np.asarray(LATENT[row], np.float64) - 0.1
        constraint = {"type": "ineq", "fun": lambda change, leads=leads, offset=offset: leads @ change + offset}
        best = minimize(lambda change: change @ change, np.zeros(LATENTS), constraints=[constraint], method="SLSQP")
        assert best.success and np.sqrt(best.fun) * 0.999 <= found[row] <= 2 * np.sqrt(best.fun) + 0.1


def concepts(k=3, f=4):
    rng = np.random.default_rng(1)
    shapes = {"mean": (f,), "std": (f,), "encoder": (f, k), "encoder_bias": (k,), "decoder": (k, LATENTS),
              "decoder_bias": (LATENTS,), "classifier": (CLASSES, k), "classifier_bias": (CLASSES,)}  # fmt: skip
    return {name: rng.uniform(0.5, 1.5, size=shape) for name, shape in shapes.items()}


def test_losses_of_the_concepts_are_the_hand_computed_ones():
    maps, rng = concepts(), np.random.default_rng(2)
    features, latents, logits = (rng.normal(size=(6, width)) for width in (4, LATENTS, CLASSES))
    found = sarkar.losses(
        sarkar.Concepts(**{name: jnp.asarray(value, jnp.float32) for name, value in maps.items()}),
        *(jnp.asarray(part, jnp.float32) for part in (features, latents, logits)),
    )
    hidden = (features - maps["mean"]) / maps["std"] @ maps["encoder"] + maps["encoder_bias"]
    fidelity = np.mean((hidden @ maps["classifier"].T + maps["classifier_bias"] - logits) ** 2)
    reconstruction = np.mean((hidden @ maps["decoder"] + maps["decoder_bias"] - latents) ** 2)
    sparsity = np.mean(np.abs(hidden))
    np.testing.assert_allclose(found, (fidelity, reconstruction, sparsity), rtol=1e-5)
    np.testing.assert_allclose(found.total("as defined"), fidelity + reconstruction + 0.01 * sparsity, rtol=1e-5)
    np.testing.assert_allclose(found.total("as coded"), fidelity, rtol=1e-5)


def test_only_the_losses_as_defined_learn_to_draw(monkeypatch):
    monkeypatch.setattr(sarkar, "CONCEPTS", 8)
    rng = np.random.default_rng(3)
    features = rng.normal(2, 3, size=(200, 4)).astype(np.float32)
    latents, logits = (features @ rng.normal(0, 0.1, (4, width)).astype(np.float32) for width in (LATENTS, CLASSES))
    for reading in sarkar.READINGS:
        learnt = sarkar.train(features, latents, logits, reading=reading, seed=0)
        found = sarkar.losses(learnt, *(jnp.asarray(part) for part in (features, latents, logits)))
        assert found.fidelity < 0.05 * np.mean(logits**2)
        assert (found.reconstruction < 0.05 * np.mean(latents**2)) == (reading == "as defined")


def test_losses_of_cf_cbm_are_the_hand_computed_ones(monkeypatch):
    monkeypatch.setattr(cf_cbm, "LATENTS", 3)
    params = cf_cbm.init(jax.random.key(1), num_features=4, num_concepts=6, num_classes=CLASSES)
    rng = np.random.default_rng(4)
    features, noise = rng.normal(size=(7, 4)), rng.normal(size=(2, 7, 3))
    concepts, labels = rng.integers(0, 2, (7, 6)), rng.integers(0, CLASSES, 7)
    targets = rng.integers(0, CLASSES, 7)
    arrays = (features, concepts, labels, targets, noise)
    kinds = (jnp.float32, jnp.float32, jnp.int32, jnp.int32, jnp.float32)
    found = cf_cbm.losses(params, *(jnp.asarray(part, kind) for part, kind in zip(arrays, kinds, strict=True)))

    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def linear(layer, rows):
        return rows @ layer["weights"] + layer["bias"]

    def network(layers, rows):
        hidden = linear(layers["hidden"], rows)
        return linear(layers["out"], np.where(hidden > 0, hidden, 0.01 * hidden))

    def gaussian(name, rows):
        return network(plain[name]["mean"], rows), np.exp(network(plain[name]["log_variance"], rows) / 2)

    def seen(latents):
        return special.expit(4 * network(plain["concepts"], latents))

    def entropy(logits, wanted):
        return -np.mean(special.log_softmax(logits, axis=1)[np.arange(len(wanted)), wanted])

    def kl(p, q):  # E_p[log p - log q] by Gauss-Hermite quadrature, exact for the quadratic that it is
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        points = p[0] + p[1] * nodes[:, None, None]
        ratio = stats.norm.logpdf(points, *p) - stats.norm.logpdf(points, *q)
        return np.mean(np.tensordot(weights / weights.sum(), ratio, axes=1))

    encoded = gaussian("encoder", features)
    latents = encoded[0] + encoded[1] * noise[0]
    named = linear(plain["task"], seen(encoded[0]))
    given = np.hstack([latents, seen(latents), named])
    posterior, prior = gaussian("posterior", np.hstack([given, np.eye(CLASSES)[targets]])), gaussian("prior", given)
    changed = posterior[0] + posterior[1] * noise[1]
    standard = np.zeros_like(latents), np.ones_like(latents)
    expected = (
        -np.mean(stats.bernoulli.logpmf(concepts, seen(encoded[0]))),
        -np.mean(stats.bernoulli.logpmf(concepts, seen(latents))),
        entropy(named, labels),
        entropy(linear(plain["task"], seen(changed)), targets),
        kl(standard, encoded),
        kl(prior, posterior),
        kl(standard, prior),
        np.mean(np.sqrt(np.sum((latents - changed) ** 2, axis=1))),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    weights = (1, 1, 0.1, 0.02, 0.2, 0.2, 0.2, 0.03)
    np.testing.assert_allclose(found.total, np.dot(weights, expected), rtol=1e-5)
    after = cf_cbm.counterfactual(params, jnp.asarray(features, jnp.float32), jnp.asarray(targets, jnp.int32))
    likely = np.hstack([encoded[0], seen(encoded[0]), named, np.eye(CLASSES)[targets]])
    np.testing.assert_allclose(after[0], seen(encoded[0]), rtol=1e-5)
    np.testing.assert_allclose(after[1], seen(gaussian("posterior", likely)[0]), rtol=1e-5)


def test_cf_cbm_learns_to_name_and_to_change_what_it_sees(monkeypatch):
    monkeypatch.setattr(cf_cbm, "STEPS", 400)
    rng = np.random.default_rng(5)
    prototypes = rng.integers(0, 2, (CLASSES, 12)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 300)
    features = prototypes[labels] + 0.3 * rng.normal(size=(300, 12)).astype(np.float32)
    split = cf_cbm.Split(features, prototypes[labels], labels)
    params = cf_cbm.train(*split, num_classes=CLASSES, seed=0)
    assert min(cf_cbm.accuracy(params, split).values()) > 0.9
    targets = (labels[:40] + 1) % CLASSES
    questions, answers = concept_space.ask(params, features[:40], targets, split, margin=0.2)
    found = concept_space.compare(questions, answers, split)
    assert set(found) == set(concept_space.TITLES) and found["cf_cbm"]["valid"] > 0.9
    assert found["projection"]["valid"] == 1 and found["box"]["inside"] == 1
    assert found["projection"]["length"] <= found["box"]["length"] + 1e-5
    assert found["projection"]["length"] <= found["few"]["length"] + 1e-5
    assert found["few"]["changed"] <= concept_space.FEW and found["real_concepts"]["off_manifold"] == 0


def test_figures_of_concepts_are_the_counted_ones():
    head = sj.Head(jnp.asarray([[1.0, 0, 0], [0, 1, 0]]))
    before = np.array([[0.9, 0.1, 0.2], [0.9, 0.1, 0.6], [0.2, 0.8, 0.1]], np.float32)
    questions = concept_space.Concepts(head, before, np.array([1, 1, 1]), np.array([True, True, False]))
    after = np.array([[0.4, 0.8, 0.21], [0.9, 1.2, 0.6], [0.0, 0.0, 0.0]], np.float32)
    training = cf_cbm.Split(np.zeros((2, 1)), np.array([[0, 1, 1], [1, 0, 0]], np.float32), np.array([1, 0]))
    found = concept_space.figures(questions, after, training)
    assert found["pairs"] == 2 and found["valid"] == 1 and found["inside"] == 0.5
    lengths = np.sqrt(0.5**2 + 0.7**2 + 0.01**2), 1.1
    assert found["length"] == pytest.approx(np.median(lengths), abs=1e-6)
    assert found["changed"] == 1.5 and found["flipped"] == 1.5 and found["off_manifold"] == 1
    missing = concept_space.figures(questions, np.full_like(after, np.nan), training)
    assert missing["valid"] == missing["inside"] == 0 and "length" not in missing


def test_the_nearest_real_image_is_one_of_the_target_class():
    features, labels = np.array([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]]), np.array([0, 1, 1])
    found = measure.nearest_real(measure.Witness(None, features, labels), np.zeros((3, 2)), np.array([0, 1, 2]))
    np.testing.assert_allclose(found, [0.0, 5.0, np.nan])


def test_figures_count_failures_in_shares_and_leave_them_out_of_distances():
    measured = {name: np.full(4, np.nan) for name in (*measure.SHARES, *measure.MEDIANS)}
    measured |= {"valid": np.array([True, True, True, False]), "l2": np.array([1.0, 2.0, 3.0, 100.0]),
                 "seconds": np.array([1.0, 1.0, 1.0, 5.0])}  # fmt: skip
    found = measure.figures(measured)
    assert (found["valid"], found["l2"], found["seconds"]) == (0.75, 2.0, 1.0)
    assert measure.figures(measured, is_control=True)["l2"] == 2.5
    assert found["valid_low"] < 0.75 < found["valid_high"] and "witness_agrees" not in found and "lift" not in found


@pytest.mark.slow
def test_the_command_compares_all_systems_and_searches_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRA_JAX_CACHE", str(tmp_path / "cache"))
    birds = generate(tmp_path / "tiny", num_classes=4, images_per_class=12, image_size=48, workers=1, progress=False)
    for seed in (0, 1):
        options = ["--model", "linear", "--image-size", "16", "--batch-size", "8", "--epochs", "6", "--quiet"]
        run_dir = ["--data-dir", str(birds), "--run-dir", str(tmp_path / f"run{seed}"), "--seed", str(seed)]
        assert train([*options, *run_dir]) == 0
    arguments = ["--run-dir", str(tmp_path / "run0"), "--out", str(tmp_path / "out"), "--num-pairs", "6", "--quiet",
                 "--batch-size", "4", "--max-steps", "20", "--autoencoder.steps", "30"]  # fmt: skip
    witness = ["--witness-dir", str(tmp_path / "run1")]
    assert cited_systems([*arguments, *witness]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for system in ("apicella", "sarkar", "shukla", "paper_loop", "nearest", "manifold"):
        assert 0 <= summary[f"{system}/valid"] <= 1 and summary[f"{system}/pairs"] == 6
    assert summary["nearest/valid"] == 1 and summary["nearest/l2"] > 0
    assert summary["real/on_manifold"] > 0 and 5 < summary["autoencoder/psnr"] < 60
    table = (tmp_path / "out" / "table.md").read_text()
    assert summary["concepts/projection/valid"] == 1 and 0 <= summary["concepts/cf_cbm/valid"] <= 1
    assert table.count("\n| ") == 17 and "Apicella" in (tmp_path / "out" / "report.html").read_text()

    def fail(*_, **__):
        raise AssertionError("searched again")

    for module in (apicella, sarkar, shukla):
        monkeypatch.setattr(module, "search", fail)
    assert cited_systems(arguments) == 0  # without a witness: its columns alone are missing
    again = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert again["shukla/l2"] == summary["shukla/l2"] and "shukla/witness_agrees" not in again
    with pytest.raises(UserError, match="expected another network"):
        cited_systems([*arguments, "--witness-dir", str(tmp_path / "run0")])
