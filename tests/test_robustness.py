"""The comparison under Foolbox's attacks: what the figures mean, and the command from runs to report."""

import dataclasses
import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments.attacks.options import AttackConfig
from experiments.cli.command import UserError
from experiments.runs import folder as run_folder
from experiments.runs import store
from experiments.train.__main__ import main as train

bridge = pytest.importorskip("experiments.attacks.foolbox", reason="needs the extra 'bench'", exc_type=ImportError)

from experiments.robustness import __main__ as robustness  # noqa: E402  (they import foolbox)
from experiments.robustness import canary  # noqa: E402  (they import foolbox)
from experiments.robustness import measure as attacking  # noqa: E402  (they import foolbox)
from experiments.robustness.measure import Attacked, attacks, compare, figures  # noqa: E402
from experiments.robustness.page import crossing_words, verdict  # noqa: E402

CONFIG = AttackConfig(num_images=4, l2_radii=(1.0, 2.0), linf_levels=(8.0,), pgd_steps=2, ddn_steps=3, carlini_steps=0)


def attacked(correct, ddn, *, l2=None, linf=None, carlini=np.inf, certified=None) -> Attacked:
    count = len(correct)
    correct = np.asarray(correct)
    return Attacked(
        places=np.arange(count),
        labels=np.zeros(count, int),
        correct=correct,
        l2_flipped=np.zeros((count, 2), bool) if l2 is None else np.asarray(l2, bool),
        linf_flipped=np.zeros((count, 1), bool) if linf is None else np.asarray(linf, bool),
        ddn=np.asarray(ddn, float),
        carlini=np.where(correct, carlini, 0.0),
        nearest=np.where(correct, np.inf, 0.0),
        boundary=np.where(correct, np.inf, 0.0),
        certified=np.zeros(count) if certified is None else np.asarray(certified, float),
        attackability=np.arange(count, dtype=float),
        originals=np.zeros((count, 4, 4, 3)),
        pictures=np.zeros((count, 4, 4, 3)),
        named_after=np.ones(count, int),
        seconds=np.ones(count),
    )


def test_figures_count_the_worst_attack_and_keep_failures_in_the_denominator():
    one = attacked(
        [True, True, True, False],
        [0.5, 1.5, np.inf, 0],
        l2=[[0, 1], [1, 1], [0, 1], [0, 0]],
        linf=[[1], [0], [0], [0]],
    )
    values = figures(one, CONFIG)
    assert values["clean_accuracy"] == 0.75
    assert values["l2_pgd_accuracy_at_1"] == 0.5  # two correct images that it does not flip, of four
    assert values["l2_accuracy_at_1"] == 0.25  # DDN flips the first within 1, PGD the second
    assert values["l2_accuracy_at_2"] == 0
    assert values["linf_accuracy_at_8"] == 0.5
    assert values["smallest_l2_median"] == values["ddn_l2_median"] == 1.5  # of the three correct ones
    assert values["smallest_l2_median_low"] == 0.5 and values["smallest_l2_median_high"] == np.inf
    assert "carlini_l2_median" not in values
    assert values["clean_accuracy_low"] < 0.75 < values["clean_accuracy_high"]
    nearer = figures(attacked([True], [2.0], carlini=1.2), dataclasses.replace(CONFIG, carlini_steps=5))
    assert nearer["smallest_l2_median"] == nearer["carlini_l2_median"] == 1.2
    assert np.isnan(figures(attacked([False], [0.0]), CONFIG)["smallest_l2_median"])


def test_what_is_proven_stands_beside_what_was_attacked():
    one = attacked([True, True, False, True], [0.5, 1.5, 0, 3.0], l2=[[1, 1], [0, 1], [0, 0], [0, 0]],
                   certified=[0.4, 1.2, 0, 2.5])  # fmt: skip
    values = figures(one, CONFIG)
    assert values["certified_accuracy_at_1"] == 0.5 and values["certified_accuracy_at_2"] == 0.25
    assert values["certified_l2_median"] == 1.2
    assert values["certificates_crossed"] == 0 and values["certificates_attacked"] == 3 * 6
    assert values["attackability_rank_correlation"] == 1  # made to rise with the distance
    assert crossing_words({"one": values}) == "0 of 18 attacks found an image below its certified distance."
    # Shorter than the certificate by DDN, and flipped by PGD within it.
    wrong = attacked([True, True], [0.3, 3.0], l2=[[0, 0], [1, 1]], certified=[0.4, 1.2])
    assert figures(wrong, CONFIG)["certificates_crossed"] == 2
    assert "certified_l2_median" not in figures(attacked([True], [1.0]), CONFIG)
    assert "Nothing is proven" in crossing_words({"one": figures(attacked([True], [1.0]), CONFIG)})


def test_differences_are_paired_and_put_into_words():
    plain = attacked([True] * 40, [0.5] * 20 + [1.5] * 20)
    better = attacked([True] * 40, [1.5] * 40)
    values = compare(plain, better, CONFIG)
    assert values["l2_accuracy_at_1_difference"] == 0.5
    assert 0.3 < values["l2_accuracy_at_1_difference_low"] < 0.5 < values["l2_accuracy_at_1_difference_high"] < 0.7
    # Nobody holds at 2 and everybody at 8 grey levels: image by image the same, so the interval has no width.
    assert values["l2_accuracy_at_2_difference_low"] == values["linf_accuracy_at_8_difference_high"] == 0
    text = verdict("better", "plain", values, CONFIG)
    assert "more images hold at L2 1; no clear difference at L2 2, L∞ 8/255" in text
    assert "fewer hold at L2 1" in verdict("worse", "plain", compare(better, plain, CONFIG), CONFIG)


def test_the_broken_attack_is_not_used():
    made = attacks(AttackConfig())
    assert set(made) == {"ddn", "l2_pgd", "linf_pgd", "carlini", "nearest"}
    assert not {"carlini", "boundary"} & set(attacks(CONFIG))
    assert "boundary" in attacks(dataclasses.replace(CONFIG, boundary_steps=3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_images": 0}, "--num-images 0: expected 1 or more"),
        ({"l2_radii": (1.0, 0.5)}, "--l2-radii .*increasing order"),
        ({"linf_levels": ()}, "--linf-levels"),
        ({"carlini_steps": -1}, "--carlini-steps -1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        AttackConfig(**wrong)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain and a robust linear model of tiny birds."""
    root = tmp_path_factory.mktemp("runs")
    birds = generate(root / "birds", num_classes=4, images_per_class=12, image_size=48, workers=1, progress=False)
    options = ["--model", "linear", "--image-size", "12", "--batch-size", "8", "--epochs", "4", "--quiet"]
    certified = ["--model", "lipschitz_cnn", "--model-options", "stem=[4]", "widths=[48]", "blocks=[1]", "features=16"]
    robust = ["--adversarial-radius", "0.5", "--adversarial-steps", "1"]
    for name, more in (("plain", []), ("robust", robust), ("lipschitz", certified)):
        assert train([*options, *more, "--data-dir", str(birds), "--run-dir", str(root / name)]) == 0
    return root


def run_it(runs, out, *names, **more):
    options = ["--num-images", "6", "--batch-size", "4", "--pgd-steps", "3", "--ddn-steps", "5", "--carlini-steps", "3"]
    options += ["--l2-radii", "0.2", "1", "--linf-levels", "8", "--quiet"]
    folders = [str(runs / name) for name in names]
    return robustness.main(["--run-dirs", *folders, "--out", str(out), *options, *more.get("extra", [])])


def test_command_compares_runs_and_goes_on_where_it_stopped(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made: list[str] = []
    write_arrays = store.write_arrays

    def stop_at_third(path, **arrays):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(path.name)
        write_arrays(path, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            run_it(runs, out, "plain", "robust")
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "attacks").glob("*.npz")}
    assert set(kept) == set(made) and len(made) == 3
    assert run_it(runs, out, "plain", "robust", "lipschitz") == 0
    after = {path.name: path.stat().st_mtime_ns for path in (out / "attacks").glob("*.npz")}
    assert {name: after[name] for name in kept} == kept and len(after) > 3

    summary = json.loads((out / run_folder.SUMMARY).read_text())
    for name in ("plain", "robust", "lipschitz"):
        values = {key.removeprefix(f"{name}/"): value for key, value in summary.items() if key.startswith(f"{name}/")}
        assert values["num_images"] == 6
        assert values["clean_accuracy"] >= values["l2_accuracy_at_0.2"] >= values["l2_accuracy_at_1"]
        assert values["l2_pgd_accuracy_at_1"] >= values["l2_accuracy_at_1"]
        carlini, smallest, ddn = (
            np.inf if (median := values[f"{attack}_l2_median"]) is None else median  # JSON has no infinity
            for attack in ("carlini", "smallest", "ddn")
        )
        assert carlini >= smallest <= ddn
    assert "robust/l2_accuracy_at_1_difference" in summary and "plain/l2_accuracy_at_1_difference" not in summary
    page = (out / "report.html").read_text()
    for words in ("Accuracy under attack", "robust against plain", "L2FMNAttack", "Clean accuracy"):
        assert words in page
    table = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["plain", "robust", "lipschitz"]
    assert summary["lipschitz/certificates_crossed"] == 0
    assert 0 <= summary["lipschitz/certified_accuracy_at_0.2"] <= summary["lipschitz/l2_accuracy_at_0.2"]
    assert "robust/transfer_accuracy" in summary and "plain/certified_accuracy_at_1" not in summary
    assert "attacks found an image below its certified distance" in page and "Certificates, and what" in page
    assert "CANARY" in page and "no installable package" in page
    for name in ("plain", "robust", "lipschitz"):
        assert summary[f"{name}/canary/accuracy"] == summary[f"{name}/clean_accuracy"]
        assert summary[f"{name}/canary/mr"] == 1 and summary[f"{name}/canary/adms"] is None  # DDN flips all
        assert summary[f"{name}/canary_as_coded/aed"] < summary[f"{name}/canary/aed"]  # / (N / 2) for / sqrt(N)
        for figure in ("acamc_a", "acamc_t"):
            assert 0 <= summary[f"{name}/canary/{figure}"] <= 1 + 1e-6
        assert summary[f"{name}/canary/act"] > 0 and summary[f"{name}/canary/aqn"] == summary["plain/canary/aqn"]
    assert 0 <= summary["plain/canary/otr"] <= 1
    for reading in ("canary", "canary_as_coded") if importlib.util.find_spec("numpyro") else ():
        scores = [summary[f"{name}/{reading}/score"] for name in ("plain", "robust", "lipschitz")]
        assert min(scores) == 0 and max(scores) == 1


def test_attacks_of_a_run_are_those_of_foolbox(runs, tmp_path):
    """The flags of the command, found again by hand."""
    from experiments.runs import loading
    from spectra_jax.logging import Console

    config = AttackConfig(num_images=5, l2_radii=(0.3,), linf_levels=(8.0,), pgd_steps=3, ddn_steps=20, carlini_steps=0)
    run = loading.load_run(runs / "plain")
    one = attacking.attack_run(run, config, tmp_path, name="plain", console=Console(quiet=True))
    model = bridge.foolbox_model(run)
    np.testing.assert_array_equal(one.labels, loading.load_test_split(runs / "plain").labels[one.places])
    named = np.asarray(model(one.originals)).argmax(axis=-1)
    np.testing.assert_array_equal(one.correct, named == one.labels)
    lengths = np.linalg.norm((one.pictures - one.originals).reshape(5, -1), axis=1)
    flipped = one.correct & np.isfinite(one.ddn)
    assert flipped.any()
    np.testing.assert_allclose(one.ddn[flipped], lengths[flipped], rtol=1e-5)
    after = np.asarray(model(one.pictures)).argmax(axis=-1)
    np.testing.assert_array_equal(after, one.named_after)
    assert (after[flipped] != one.labels[flipped]).all()
    assert (one.ddn[~one.correct] == 0).all() and not one.l2_flipped[~one.correct].any()


def test_figures_of_a_model_by_hand():
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).astype(np.float32)
    found = canary.model_figures(jnp.asarray(logits), jnp.asarray([0, 1, 1, 2], jnp.int32))
    # Class 0: precision 1/2, recall 1; class 1: precision 1, recall 1/2; class 2: both 1.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["accuracy"] == 0.75 and found["confidence"] == pytest.approx((0.5 + 0.8 + 0.3 + 0.6) / 4, rel=1e-5)


def test_the_score_is_1_for_the_run_that_the_attack_did_best_on():
    pytest.importorskip("numpyro", reason="needs the extra 'canary'")
    columns = [*canary.EFFECT, *canary.ATTENTION, canary.OTHERS, *canary.VISIBILITY]

    def row(effect: float, visibility: float) -> dict[str, float]:
        seen = dict.fromkeys((name for name, _ in canary.VISIBILITY), visibility)
        values = {name: effect for name, _ in columns} | seen | {"acamc_a": np.nan, "acamc_t": 1 - effect / 2}
        return {
            start + name: value
            for start in ("canary/", "canary_as_coded/")
            for name, value in values.items()
            if not (start == "canary_as_coded/" and name == "acamc_t")
        } | {"canary_as_coded/acamc_t": np.nan}

    found = {"weak": row(0.9, 0.001), "middle": row(0.5, 0.02), "strong": row(0.1, 0.09)}
    canary.add_scores(found)
    for start in ("canary/", "canary_as_coded/"):
        scores = [found[name][f"{start}score"] for name in ("weak", "middle", "strong")]
        assert scores[0] == 1 and scores[2] == 0 and 0 < scores[1] < 1
    failed = {name: {key: np.nan if key.split("/")[1] in dict(canary.VISIBILITY) else value
                     for key, value in values.items()} for name, values in found.items()}  # fmt: skip
    canary.add_scores(failed)
    assert failed["weak"]["canary/score"] == 1
    nothing = {name: dict.fromkeys(values, np.nan) for name, values in found.items()}
    canary.add_scores(nothing)
    assert np.isnan(nothing["weak"]["canary/score"])
    alone = {"one": row(0.9, 0.001)}
    canary.add_scores(alone)
    assert np.isnan(alone["one"]["canary/score"])


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"--names: 1 given; expected 2"):
        run_it(runs, tmp_path / "out", "plain", "robust", extra=["--names", "a"])
    with pytest.raises(UserError, match="plain, plain are not distinct; give each run its own name"):
        run_it(runs, tmp_path / "out", "plain", "plain")
    with pytest.raises(UserError, match="not a run folder"):
        run_it(runs, tmp_path / "out", "birds")
    assert not (tmp_path / "out").exists()
