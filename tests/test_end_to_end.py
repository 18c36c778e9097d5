"""The main job on a small drawn data set: every file it promises, figures that agree with each other, and a rerun."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.counterfactuals.find import Counterfactuals, choose_pairs, pair_metrics, pair_options
from experiments.counterfactuals.options import PairConfig
from experiments.invert import __main__ as invert
from experiments.quickstart import __main__ as quickstart
from experiments.reporting import pages
from experiments.runs.loading import load_run, load_test_split
from spectra_jax import InversionConfig, head_logits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart run of the smallest model on four classes of drawn birds: every line is reached, nothing is good."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        birds = generate(folder / "birds", num_classes=4, images_per_class=16, workers=1, progress=False)
        command = [
            *("--data-dir", str(birds), "--run-dir", str(folder / "run"), "--model", "linear"),
            *("--epochs", "2", "--num-pairs", "6", "--batch-size", "4", "--quiet"),
        ]
        assert quickstart.main(command) == 0
        yield folder, command


def read_summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_run_folder_is_complete_and_its_figures_agree(finished):
    folder, _ = finished
    run_dir = folder / "run"
    for name in ("config.json", "metrics.jsonl", "summary.json", "report.html", "norms.npz", "head.npz", "checkpoints"):
        assert (run_dir / name).exists(), name
    summary = read_summary(run_dir)
    assert summary["invert/num_pairs"] == 6
    assert summary["invert/success_rate"] == summary["invert/num_success"] / 6
    for name in ("test/class_accuracy", "test/attribute_balanced_accuracy", "test/attribute_map", "seconds",
                 "test/attackability_mean", "test/attackability_median", "test/attackability_quantile_05",
                 "test/relative_margin_mean"):  # fmt: skip
        assert np.isfinite(summary[name]), name
    assert "test/attackability_mean_low" not in summary and 0 < summary["test/attackability_top_1_percent_share"] <= 1
    for name in ("attackability_median", "relative_margin_mean"):
        assert summary[f"test/{name}_low"] <= summary[f"test/{name}"] <= summary[f"test/{name}_high"]
    page = (run_dir / "report.html").read_text()
    assert page.count("95 % interval") >= 2 and "the top 1 % of the samples account for" in page
    with np.load(run_dir / "norms.npz") as norms:
        boundary, projection = norms["boundary"], norms["projection"]
    assert np.all(boundary <= projection * (1 + 1e-5) + 1e-6)
    with np.load(run_dir / "test_attributes.npz") as stored:
        attributes, labels = stored["attributes"], stored["labels"]
    run = load_run(run_dir)
    logits = np.asarray(head_logits(run.model.head(run.params), attributes))
    assert summary["test/class_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_success_is_what_the_model_says_of_the_stored_image(finished):
    folder, _ = finished
    run = load_run(folder / "run")
    parts = [np.load(path) for path in sorted((folder / "run" / "counterfactuals").glob("pairs-*.npz"))]
    assert sum(len(part["index"]) for part in parts) == 6
    for part in parts:
        logits = head_logits(run.model.head(run.params), run.model.encode(run.params, part["results"]))
        named = np.asarray(logits).argmax(-1) == part["target"]
        assert np.all(named[part["success"]])
        assert np.all(part["target"] != part["predicted"])
        originals = run.dataset.images("test", part["index"], image_size=run.config.image_size)
        np.testing.assert_array_equal(part["images"], originals)


def test_report_holds_every_pair_and_loads_nothing_from_outside(finished):
    folder, _ = finished
    page = (folder / "run" / "report.html").read_text()
    assert page.count("Original") >= 6
    assert 'src="http' not in page and "@import" not in page


def test_repeating_the_command_changes_no_result(finished):
    folder, command = finished
    before = read_summary(folder / "run")
    stored = {p: p.stat().st_mtime_ns for p in (folder / "run" / "counterfactuals").glob("pairs-*.npz")}
    assert quickstart.main(command) == 0
    after = read_summary(folder / "run")
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert after["seconds"] > before["seconds"] > before["train/seconds"] > 0
    assert {p: p.stat().st_mtime_ns for p in stored} == stored


def test_invert_takes_classes_by_name_and_suggests_near_ones(finished, tmp_path, monkeypatch):
    folder, _ = finished
    names = load_run(folder / "run").info.class_names
    base = ["--run-dir", str(folder / "run"), "--num-pairs", "2", "--batch-size", "2", "--quiet"]
    out = tmp_path / "out"
    assert invert.main([*base, "--out", str(out), "--source", names[0], "--targets", names[1].lower()]) == 0
    with np.load(out / "counterfactuals.npz") as found:
        assert np.all(found["label"] == 0) and np.all(found["target"] == 1)
        canary = read_summary(out)
        known = found["predicted"] == found["label"]
        change = (found["results"] - found["images"] / 255)[known].reshape(known.sum(), -1)
        lengths = np.linalg.norm(change, axis=1) / np.sqrt(change.shape[1])
        np.testing.assert_allclose(canary["canary/aed"], lengths.mean() if known.any() else np.nan, rtol=1e-4)
    assert "CANARY" in (out / "report.html").read_text()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert read_summary(out)["invert/num_pairs"] == len(records)
    assert all(
        pages.MEASURED.keys() - record.keys() == {"certified_l2"} for record in records
    )  # of this model: nothing
    with pytest.raises(UserError, match=names[0]):
        invert.main([*base, "--out", str(tmp_path / "other"), "--source", names[0][:-1] + "x"])
    with pytest.raises(UserError, match="folder of a training run"):
        invert.main([*base, "--out", str(folder / "run")])
    with pytest.raises(UserError, match="only"):
        invert.main([*base, "--out", str(out), "--num-pairs", "1000"])
    assert (out / "counterfactuals.npz").exists()


def test_pairs_of_another_model_are_not_used_again(finished):
    folder, _ = finished
    run = load_run(folder / "run")
    attributes, labels, _ = load_test_split(folder / "run")
    options = pair_options(run, PairConfig(), 0, attributes, labels)
    assert pair_options(load_run(folder / "run"), PairConfig(), 0, attributes, labels) == options
    other = run._replace(params=jax.tree.map(lambda leaf: leaf * 1.001, run.params))
    longer = run._replace(config=dataclasses.replace(run.config, epochs=3))
    for changed in (
        pair_options(other, PairConfig(), 0, attributes, labels),
        pair_options(longer, PairConfig(), 0, attributes, labels),
        pair_options(run, PairConfig(), 0, attributes + 1, labels),
        pair_options(run, PairConfig(), 1, attributes, labels),
    ):
        assert changed != options


def test_fixed_target_is_asked_of_images_that_are_not_classified_so(finished):
    folder, _ = finished
    run = load_run(folder / "run")
    attributes, labels, _ = load_test_split(folder / "run")
    predicted = np.asarray(head_logits(run.model.head(run.params), attributes)).argmax(-1)
    for k, name in enumerate(run.info.class_names):
        left = int((predicted != k).sum())
        index, target = choose_pairs(run, attributes, labels, PairConfig(num_pairs=left, targets=name), seed=0)
        assert set(index) == set(np.flatnonzero(predicted != k)) and set(target) == {k}
        with pytest.raises(UserError, match=f"only {left} images that are not classified as {name}"):
            choose_pairs(run, attributes, labels, PairConfig(num_pairs=left + 1, targets=name), seed=0)
    same = np.repeat(attributes[predicted == predicted[0]][:1], len(labels), axis=0)
    with pytest.raises(UserError, match="There are no images that are not classified as"):
        config = PairConfig(num_pairs=1, targets=run.info.class_names[predicted[0]])
        choose_pairs(run, same, labels, config, seed=0)


def test_figures_count_failures_in_rates_and_successes_in_medians(finished):
    folder, _ = finished
    parts = sorted((folder / "run" / "counterfactuals").glob("pairs-*.npz"))
    stored = [dict(np.load(path)) for path in parts]
    found = Counterfactuals(**{name: np.concatenate([part[name] for part in stored]) for name in stored[0]})
    won = np.array([True, False, True, False, False, True])
    found = dataclasses.replace(
        found, success=won, psnr=np.array([30.0, 1, 32, 1, 1, 40]), num_steps=np.array([3, 200] * 3)
    )
    run = load_run(folder / "run")
    measured = pair_metrics(run.model.head(run.params), found, found.before.std(axis=0))
    figures = pages.inversion_figures(found, measured)
    assert figures["invert/success_rate"] == 0.5 and figures["invert/psnr_median"] == 32
    assert figures["invert/steps_median"] == 3
    ratio = [np.linalg.norm(found.results[k] - found.images[k] / np.float32(255)) / np.linalg.norm(found.requested[k])
             for k in np.flatnonzero(won)]  # fmt: skip
    assert figures["invert/noise_ratio_requested_median"] == pytest.approx(np.median(ratio), rel=1e-5)
    none = pages.inversion_figures(dataclasses.replace(found, success=np.zeros(6, bool)), measured)
    assert none["invert/success_rate"] == 0 and np.isnan(none["invert/psnr_median"])


def test_every_pair_carries_what_changed_in_it(finished):
    folder, _ = finished
    run = load_run(folder / "run")
    with np.load(sorted((folder / "run" / "counterfactuals").glob("pairs-*.npz"))[0]) as part:
        found = Counterfactuals(**part)
    spread = found.before.std(axis=0)
    measured = pair_metrics(run.model.head(run.params), found, spread)
    change = found.results - found.images / np.float32(255)
    np.testing.assert_allclose(measured["l2"], np.linalg.norm(change.reshape(4, -1), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(
        np.hypot(measured["low_frequency_l2"], measured["high_frequency_l2"]), measured["l2"], rtol=1e-5
    )
    np.testing.assert_allclose(measured["pixels_changed"], measured["l0"] / change[0, ..., 0].size)
    assert np.all(measured["class_after"][found.success] == found.target[found.success])
    np.testing.assert_array_equal(measured["class_changed"], measured["class_after"] != found.predicted)
    realised = (found.after - found.before) / spread
    for row, size in enumerate(np.abs(found.requested / spread)):
        share = np.abs(realised[row, np.argsort(-size)[:10]]).sum() / np.abs(realised[row]).sum()
        assert measured["attribute_share"][row] == pytest.approx(share, rel=1e-4)
    impossible = dataclasses.replace(found, requested=np.full_like(found.requested, np.inf))
    broken = pair_metrics(run.model.head(run.params), impossible, spread)
    assert np.isnan([broken["attribute_cosine"], broken["attribute_share"]]).all() and np.isfinite(broken["l2"]).all()
    summary = read_summary(folder / "run")
    assert {f"invert/{name}_median" for name in pages.MEASURED} - {"invert/certified_l2_median"} <= summary.keys()


def test_margins_count_ties_as_zero_and_pass_over_the_unresolved():
    norms = np.array([[0, 0, 3], [2, 0, np.nan], [np.inf, 0, np.inf]])
    predicted, lengths = np.array([0, 1, 1]), np.array([1.0, 4.0, 1.0])
    np.testing.assert_array_equal(pages.relative_margins(norms, lengths, predicted), [0, 0.5, np.inf])
    other = np.array([[0, 0, 6], [np.inf, 0, 1], [1, 0, 1]])
    assert pages.ratio_median(other, norms, predicted) == 2  # of 1 (a tie), 2 and inf (only the other cannot)


def test_none_of_something_is_refused(tmp_path):
    for option in ("--epochs", "--num-pairs", "--batch-size"):
        with pytest.raises(UserError, match=f"{option} 0: expected 1 or more"):
            quickstart.main([option, "0", "--run-dir", str(tmp_path / "run")])


def test_a_request_that_the_search_would_not_look_at_is_refused():
    with pytest.raises(UserError, match="only considers the class"):
        PairConfig(request="single", inversion=InversionConfig(method="nearest"))
