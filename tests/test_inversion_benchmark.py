"""The figures of the inversion benchmark that are worked out from others."""

import numpy as np
import pytest

pytest.importorskip("foolbox", reason="the benchmark compares with Foolbox")

from data_prep.synthetic_birds import generate
from experiments.benchmarks.inversion.__main__ import main
from experiments.benchmarks.inversion.figures import compaction, method_figures, optimality
from experiments.cli.command import UserError
from experiments.train import __main__ as train

pytestmark = pytest.mark.slow


def test_lanes_are_counted_as_they_are_refilled():
    # Two lanes: 5 beside 1 + 1 + 2, then in lockstep max(5, 1) + max(1, 2).
    assert compaction(np.array([5, 1, 1, 2]), 4, 2) == {
        "lanes": 2, "batch_steps_refilled": 5, "batch_steps_lockstep": 7
    }  # fmt: skip
    batches = compaction(np.array([5, 1, 1, 2]), 2, 2)  # handed over two by two: nothing to refill with
    assert batches["batch_steps_refilled"] == batches["batch_steps_lockstep"] == 7


def test_failures_count_as_infinitely_far():
    rows = {
        "success": np.array([True, True, False, False]), "survives_plain": np.array([True, False, True, False]),
        "survives_written": np.array([True, True, True, False]), "l2": np.array([1.0, 2, 0, 0]),
        "l2_written": np.array([1.5, 2.5, 0.5, 0]), "linf": np.array([0.1, 0.2, 0, 0]),
        "ssim": np.array([0.9, 0.8, 1, 1]), "seconds": np.full(4, 0.5),
        "forward": np.arange(4), "backward": np.arange(4),
    }  # fmt: skip
    figures = method_figures(rows)
    assert figures["success"] == 0.5 and figures["ms_a_pair"] == 500
    assert np.isinf(figures["l2_median"]) and figures["ssim_median"] == pytest.approx(0.85)
    assert figures["survives_plain"] == 0.5 and figures["survives_written"] == 1.0


def test_optimality_is_the_share_of_the_area_above_the_curve():
    # Radius 4 ends the best curve; above it lie 3 + 2 + 0, above the method's 2 + 0 + 0.
    assert optimality(np.array([2.0, 4, np.inf]), np.array([1.0, 2, 4])) == pytest.approx(2 / 5)
    assert optimality(np.array([1.0, 2, 4]), np.array([1.0, 2, 4])) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--ours", "nearest", "choose from 'spectra_jax nearest'"),
        ("--peers", "dnn-20", "expected one of ddn-STEPS"),
        ("--peers", "fmn-100@256", "only advlib_ddn, alma can keep to levels"),
        ("--peers", "sdf-3", "add --untargeted"),
        ("--peers", "ddn-20:0", "from 1 to --pairs 200"),
        ("--ours", "spectra_jax adam", "must be there"),
    ],
)
def test_misspelt_methods_are_named(tmp_path, option, value, message):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        main(["--run-dir", str(tmp_path), "--out", str(tmp_path / "out"), option, value])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trainings of the smallest model on the same drawn birds."""
    folder = tmp_path_factory.mktemp("inversion-benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        birds = generate(folder / "birds", num_classes=3, images_per_class=12, workers=1, progress=False)
        for seed in ("0", "1"):
            command = ["--model", "linear", "--data-dir", str(birds), "--run-dir", str(folder / seed), "--epochs", "1"]
            assert train.main([*command, "--seed", seed, "--quiet"]) == 0
        yield folder


def test_results_of_another_run_in_the_same_folder_are_not_taken_over(runs, capsys):
    def lengths(run, out):
        before = set((runs / out / "attacks").glob("*.npz"))
        options = ["--pairs", "4", "--batch-size", "4", "--ours", "spectra_jax nearest", "--peers", "ddn-2"]
        assert main(["--run-dir", str(runs / run), "--out", str(runs / out), *options]) == 0
        files = sorted(set((runs / out / "attacks").glob("*.npz")) - before)
        return {file.name.rpartition("-")[0]: np.load(file)["l2"] for file in files}

    first, other = lengths("0", "out"), lengths("1", "fresh")
    second = lengths("1", "out")
    assert len(first) == 2 and first.keys() == second.keys()
    for name, expected in other.items():
        np.testing.assert_array_equal(second[name], expected)
        assert (first[name] != expected).any()
    capsys.readouterr()
