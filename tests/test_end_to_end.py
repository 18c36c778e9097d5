"""The main job on a small drawn data set: every file it promises, figures that agree with each other, and a rerun."""

import json

import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments import invert, quickstart
from experiments._folder import UserError
from experiments._run import load_run
from spectra_jax import head_logits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart run of the smallest model on four classes of drawn birds: every line is reached, nothing is good."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        patch.setattr(quickstart._run, "use_compilation_cache", lambda: None)
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
                 "test/attackability_mean", "test/attackability_median"):  # fmt: skip
        assert np.isfinite(summary[name]), name
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
    assert {p: p.stat().st_mtime_ns for p in stored} == stored


def test_invert_takes_classes_by_name_and_suggests_near_ones(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(invert._run, "use_compilation_cache", lambda: None)
    names = load_run(folder / "run").info.class_names
    base = ["--run-dir", str(folder / "run"), "--num-pairs", "2", "--batch-size", "2", "--quiet"]
    out = tmp_path / "out"
    assert invert.main([*base, "--out", str(out), "--source", names[0], "--targets", names[1].lower()]) == 0
    with np.load(out / "counterfactuals.npz") as found:
        assert np.all(found["label"] == 0) and np.all(found["target"] == 1)
    assert read_summary(out)["invert/num_pairs"] == len((out / "metrics.jsonl").read_text().splitlines())
    with pytest.raises(UserError, match=names[0]):
        invert.main([*base, "--out", str(tmp_path / "other"), "--source", names[0][:-1] + "x"])
    with pytest.raises(UserError, match="folder of a training run"):
        invert.main([*base, "--out", str(folder / "run")])
    with pytest.raises(UserError, match="only"):
        invert.main([*base, "--out", str(tmp_path / "many"), "--num-pairs", "1000"])
