"""Adversarial training: the attack inside the step, the step itself, and that its models are harder to flip."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_tools import CONFIG, EndlessBatches, examples, make_problem

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.runs import loading
from experiments.runs.folder import METRICS
from experiments.train.__main__ import main
from spectra_jax.losses import consistency_loss, loss_terms
from spectra_jax.models import build_model
from spectra_jax.sharding import data_mesh, place_batch, replicate, replicated
from spectra_jax.training import (
    attack_images,
    fit,
    forward,
    make_optimizer,
    make_train_step,
)
from spectra_jax.types import Batch, Head

RADII = {"l2": 1.0, "linf": 0.1}
MADRY = {norm: dataclasses.replace(CONFIG, adversarial_radius=r, adversarial_norm=norm) for norm, r in RADII.items()}
TRADES = dataclasses.replace(MADRY["l2"], lambda_consistency=1.0)
NORMS = pytest.mark.parametrize("norm", ["l2", "linf"])


def length(change, norm):
    flat = np.asarray(change).reshape(len(change), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.linalg.norm(flat, axis=1)


def curved_loss(images):
    """Neither linear nor monotone, so that steps and projections all matter; 0 in the last image."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=images.shape[1:]), images.dtype)
    loss = jnp.tanh(0.1 * jnp.sum(weights[None] * images**2, axis=(1, 2, 3)))
    return jnp.where(jnp.arange(len(images)) < len(images) - 1, loss, 0)


@functools.partial(jax.jit, static_argnames=("loss_fn", "norm", "radius", "steps"))
def attacked(images, key, *, loss_fn=curved_loss, norm="l2", radius=1.0, steps=5):
    return attack_images(loss_fn, images, key, radius=radius, norm=norm, steps=steps)


@NORMS
@pytest.mark.parametrize("steps", [1, 5])
def test_attack_stays_in_its_ball_and_in_the_images_range_and_raises_the_loss(norm, steps):
    images = jnp.asarray(np.random.default_rng(0).choice([0, 0.02, 0.5, 1], (6, 8, 8, 3)), jnp.float32)
    found = attacked(images, jax.random.key(0), norm=norm, radius=RADII[norm], steps=steps)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert found.min() >= 0 and found.max() <= 1
    changes = length(found - images, norm)
    assert (changes <= RADII[norm] * (1 + 1e-5)).all() and (changes[:-1] > 0.3 * RADII[norm]).all()
    before, after = np.asarray(curved_loss(images)), np.asarray(curved_loss(found))
    assert (after[:-1] > before[:-1]).all()


@NORMS
def test_attack_finds_the_worst_image_of_a_linear_loss(norm):
    """Around the middle of the range nothing is cut off, so the best change is known in closed form."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 3)), jnp.float32)
    images = jnp.full((4, 8, 8, 3), 0.5)
    found = attack_images(
        lambda x: 1e-25 * jnp.sum(weights[None] * x, axis=(1, 2, 3)),  # its square is 0 in float32
        images,
        jax.random.key(3),
        radius=RADII[norm],
        norm=norm,
        steps=8,
    )
    gain = jnp.sum(weights[None] * (found - images), axis=(1, 2, 3))
    best = jnp.abs(weights).sum() if norm == "linf" else jnp.linalg.norm(weights)
    # In the ball of L2, part of the random start across the best direction is left at the end.
    assert (gain <= RADII[norm] * best * (1 + 1e-5)).all()
    assert (gain >= RADII[norm] * best * (0.97 if norm == "l2" else 1 - 1e-5)).all()


@NORMS
def test_attack_is_a_function_of_its_key(norm):
    images = jnp.full((2, 8, 8, 3), 0.5)
    once, again, other = (
        attacked(images, jax.random.key(k), norm=norm, radius=RADII[norm], steps=1) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert (length(once - other, "linf") > 0).all()
    # The last image has no gradient: what is left of it is the random start, which is not the image itself.
    assert length(once - images, norm)[-1] > 0


def test_no_gradient_leaves_the_attack():
    images = jnp.full((2, 8, 8, 3), 0.5)

    def outer(scale, images):
        return jnp.sum(
            attack_images(
                lambda x: scale * jnp.sum(jnp.square(x), axis=(1, 2, 3)), images, jax.random.key(0), radius=1.0, steps=2
            )
        )

    for gradient in jax.grad(outer, argnums=(0, 1))(jnp.float32(2), images):
        np.testing.assert_array_equal(gradient, 0)


@functools.cache
def compiled_step(config, devices=1):
    model, optimizer, _ = make_problem(config)
    return make_train_step(model, optimizer, config, sharding=replicated(data_mesh(jax.devices()[:devices])))


def stepped(config, state, batch, devices=1):
    mesh = data_mesh(jax.devices()[:devices])
    return compiled_step(config, devices)(replicate(jax.tree.map(jnp.copy, state), mesh), place_batch(batch, mesh))


def test_radius_zero_is_plain_training_to_the_last_bit():
    _, _, state = make_problem()
    batch = examples(16)
    off = dataclasses.replace(CONFIG, adversarial_norm="linf", adversarial_steps=7)
    plain, plain_metrics = stepped(CONFIG, state, batch)
    same, metrics = stepped(off, state, batch)
    assert metrics.keys() == plain_metrics.keys()
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vanishing_radius_tends_to_plain_training():
    _, _, state = make_problem()
    batch = examples(16)
    tiny = dataclasses.replace(MADRY["l2"], adversarial_radius=1e-6)
    np.testing.assert_allclose(
        stepped(tiny, state, batch)[1]["gradient_norm"], stepped(CONFIG, state, batch)[1]["gradient_norm"], rtol=1e-4
    )


def inner_attack(model, params, batch, config, key, loss_fn):
    """The attack of a step, made outside of it."""
    return attack_images(
        loss_fn,
        jnp.asarray(batch.inputs),
        key,
        radius=config.adversarial_radius,
        norm=config.adversarial_norm,
        steps=config.adversarial_steps,
    )


@NORMS
def test_step_is_the_gradient_at_the_attacked_images(norm):
    """The gradient of the loss at fixed attacked images: none flows through how they were found."""
    config = MADRY[norm]
    model, _, state = make_problem(config)
    batch = examples(16)

    def class_loss(images):
        logits = forward(model, state.params, images)[1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch.labels)[:, None], axis=1)[:, 0]

    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 2)
    found = inner_attack(model, state.params, batch, config, key, class_loss)

    def loss(params, images):
        return loss_terms(
            model.head(params),
            model.encode(params, images),
            jnp.asarray(batch.attributes),
            jnp.asarray(batch.labels),
            label_smoothing=config.label_smoothing,
        ).total

    expected, gradient = jax.value_and_grad(loss)(state.params, found)
    norm_of_gradient = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    _, metrics = stepped(config, state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm_of_gradient, rtol=1e-4)
    assert metrics["class_loss"] > stepped(CONFIG, state, batch)[1]["class_loss"]
    assert "consistency_loss" not in metrics


def test_trades_keeps_the_given_images_and_adds_the_divergence():
    _, _, state = make_problem(TRADES)
    batch = examples(16)
    _, plain = stepped(CONFIG, state, batch)
    _, metrics = stepped(TRADES, state, batch)
    for name in ("class_loss", "attribute_loss", "class_accuracy"):
        np.testing.assert_allclose(metrics[name], plain[name], rtol=1e-6)
    assert metrics["consistency_loss"] > 0
    np.testing.assert_allclose(metrics["loss"], plain["loss"] + metrics["consistency_loss"], rtol=1e-5)


def test_consistency_loss_is_the_divergence_of_the_probabilities():
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (one, other))
    expected = np.sum(p * np.log(p / q), axis=1)
    np.testing.assert_allclose(consistency_loss(jnp.asarray(one), jnp.asarray(other)), expected.mean(), rtol=1e-5)
    valid = jnp.asarray([True, True, False, True, False])
    one[2], other[4] = np.nan, np.inf
    masked, gradient = jax.value_and_grad(lambda q: consistency_loss(jnp.asarray(one), q, valid=valid))(
        jnp.asarray(other)
    )
    np.testing.assert_allclose(masked, expected[[0, 1, 3]].mean(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    head, labels = Head(jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)), jnp.asarray([0, 1, 2, 3, 0])
    with pytest.raises(ValueError, match="attacked_logits is None"):
        loss_terms(head, jnp.ones((5, 4)), jnp.ones((5, 4)), labels, lambda_consistency=1.0)


@pytest.mark.parametrize("config", [*MADRY.values(), TRADES], ids=["l2", "linf", "trades"])
def test_padded_rows_change_nothing(config):
    _, _, state = make_problem(config)
    batch = examples(11)
    padded = Batch(*(np.concatenate([leaf, np.zeros_like(leaf[:5])]) for leaf in batch))
    dark = padded._replace(inputs=padded.inputs.copy())
    padded.inputs[11:] = 0.25
    _, one = stepped(config, state, padded)
    _, other = stepped(config, state, dark)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (virtual) devices")
def test_four_devices_take_the_step_of_one():
    _, _, state = make_problem(TRADES)
    batch = examples(16)
    one, four = (stepped(TRADES, state, batch, devices) for devices in (1, 4))
    for name in ("loss", "consistency_loss", "gradient_norm"):
        np.testing.assert_allclose(one[1][name], four[1][name], rtol=1e-4)
    for a, b in zip(*(jax.tree.leaves(state.params) for state, _ in (one, four)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_stopped_and_resumed_training_is_the_uninterrupted_one():
    config = MADRY["l2"]

    def life(state, progress, num_steps):
        return fit(
            state,
            compiled_step(config),
            EndlessBatches(examples(64), 16),
            num_steps=num_steps,
            steps_per_epoch=4,
            progress=progress,
            save=lambda state, progress: saved.append((jax.tree.map(jnp.copy, state), progress)),
        )

    saved = []
    whole, _ = life(make_problem(config)[2], None, 12)
    life(make_problem(config)[2], None, 5)
    pieces, _ = life(*saved[-1], 12)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A tiny data set in CUB's layout."""
    folder = tmp_path_factory.mktemp("birds") / "tiny"
    return generate(folder, num_classes=4, images_per_class=8, image_size=48, workers=1, progress=False)


def test_frozen_backbones_have_no_images_to_attack(tmp_path, birds):
    model = dataclasses.replace(
        build_model("cnn", num_attributes=6, num_classes=4, widths=(8, 8, 8, 8), grid=1), frozen_backbone=True
    )
    with pytest.raises(ValueError, match=r"adversarial_radius=1 needs images.*'cnn' is frozen"):
        make_train_step(model, make_optimizer(model, CONFIG, 10), MADRY["l2"])
    arguments = ["--model", "efficientnet_lite0", "--data-dir", str(birds), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="needs images, but the backbone of 'efficientnet_lite0' is frozen"):
        main([*arguments, "--adversarial-radius", "1", "--image-size", "32", "--quiet"])


def test_command_line_trains_against_attacks_and_its_folder_says_so(tmp_path, birds):
    options = ["--model", "linear", "--image-size", "16", "--batch-size", "8", "--epochs", "2", "--quiet"]
    options += ["--data-dir", str(birds), "--run-dir", str(tmp_path / "run"), "--log-every", "1"]
    attack = ["--adversarial-radius", "0.5", "--adversarial-steps", "2", "--lambda-consistency", "0.5"]
    assert main([*options, *attack]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert all(record["consistency_loss"] >= 0 for record in records if record["split"] == "train")
    config = loading.load_run(tmp_path / "run").config
    assert (config.adversarial_radius, config.adversarial_steps, config.lambda_consistency) == (0.5, 2, 0.5)
    with pytest.raises(UserError, match=r"train.adversarial_radius: 0.5 there, 1.0 now"):
        main([*options, *attack, "--adversarial-radius", "1"])


def trained(config, num_steps=150):
    _, _, state = make_problem(config, num_steps=num_steps)
    state, _ = fit(
        state, compiled_step(config), EndlessBatches(examples(256), 16), num_steps=num_steps, steps_per_epoch=16
    )
    return state.params


@NORMS
def test_foolbox_finds_the_robust_model_harder_to_flip(norm):
    """The judge is somebody else's attack."""
    foolbox = pytest.importorskip("foolbox")
    model, _, _ = make_problem()
    test = examples(64, seed=1)
    attack = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm](steps=20, random_start=False)
    accuracy = {}
    for name, config in (("plain", CONFIG), ("robust", MADRY[norm])):
        params = trained(config)
        judged = foolbox.models.JAXModel(lambda images, params=params: forward(model, params, images)[1], bounds=(0, 1))
        _, _, flipped = attack(judged, jnp.asarray(test.inputs), jnp.asarray(test.labels), epsilons=RADII[norm])
        clean = np.asarray(judged(jnp.asarray(test.inputs))).argmax(axis=1) == test.labels
        assert clean.mean() > 0.9
        accuracy[name] = 1 - np.asarray(flipped).mean()
    assert accuracy["robust"] > accuracy["plain"] + 0.1, accuracy
