"""Training killed at any moment and started again ends as if nothing had happened; run folders say what they are."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from training_tools import examples

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.runs import folder as run_folder
from experiments.runs import loading
from experiments.train.__main__ import main
from spectra_jax.features import SAVE_SECONDS, FeatureSet, cached_features, fingerprint, standardization
from spectra_jax.logging import Console, read_metrics
from spectra_jax.models import build_model
from spectra_jax.types import Batch

HERE = Path(__file__).resolve().parent
OPTIONS = ("--model", "linear", "--image-size", "16", "--batch-size", "8", "--epochs", "40", "--log-every", "3")
OFTEN = ("--checkpoint-every", "1", "--evaluate-every", "5", "--quiet")


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """A tiny data set in CUB's layout."""
    folder = tmp_path_factory.mktemp("birds") / "tiny"
    return generate(folder, num_classes=4, images_per_class=12, image_size=48, workers=1, progress=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def launch(cache, run_dir, birds, *, number=0, lines=0, delay=0.0) -> subprocess.CompletedProcess:
    command = [sys.executable, str(HERE / "resume_worker.py"), str(number), str(lines), str(delay), str(run_dir)]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "SPECTRA_JAX_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    return subprocess.run(
        [*command, *OPTIONS, *OFTEN[:-1], "--data-dir", str(birds)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def without_timings(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in ("seconds", "train/seconds")}


def test_killed_run_ends_like_an_uninterrupted_one(tmp_path, cache, birds, monkeypatch):
    whole = launch(cache, tmp_path / "whole", birds)
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(0)
    for first, last, number in ((1, 12, 9), (14, 26, 9), (28, 36, 9), (38, 38, 2)):
        died = launch(
            cache,
            tmp_path / "killed",
            birds,
            number=number,
            lines=rng.randint(first, last),
            delay=rng.uniform(0, 0.05),
        )
        expected = -signal.SIGKILL if number == 9 else 130
        assert died.returncode == expected, (died.returncode, died.stderr)
    assert "repeat the command to continue" in died.stderr
    assert not (tmp_path / "killed" / run_folder.SUMMARY).exists()
    resumed = launch(cache, tmp_path / "killed", birds)
    assert resumed.returncode == 0 and "resuming" in resumed.stderr, resumed.stderr

    lines = (tmp_path / "killed" / run_folder.METRICS).read_text().splitlines()
    records = [without_timings(json.loads(line)) for line in lines]
    assert records == [without_timings(record) for record in read_metrics(tmp_path / "whole" / run_folder.METRICS)]
    assert len({(record["step"], record["split"]) for record in records}) == len(records)
    summaries = [json.loads((tmp_path / name / run_folder.SUMMARY).read_text()) for name in ("whole", "killed")]
    assert without_timings(summaries[0]) == without_timings(summaries[1])
    assert {"test/class_accuracy", "test/attribute_map", "test/attackability_median", "train/seconds"} <= set(
        summaries[0]
    )

    monkeypatch.setenv("SPECTRA_JAX_CACHE", str(cache))
    assert all(0 < summary["train/seconds"] < summary["seconds"] for summary in summaries)
    runs = [loading.load_run(tmp_path / name) for name in ("whole", "killed")]
    for a, b in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs[0].config.image_size == 16 and runs[0].info.num_classes == 4 and runs[0].step == runs[1].step
    encoded = runs[0].model.encode(runs[0].params, np.zeros((1, 16, 16, 3), np.float32))
    assert encoded.shape == (1, runs[0].info.num_attributes)

    # The same folder does not take another run, and a finished one is finished.
    arguments = ["--run-dir", str(tmp_path / "whole"), *OPTIONS, *OFTEN, "--data-dir", str(birds)]
    with pytest.raises(UserError, match=r"train.seed: 0 there, 1 now\n.*resume, or choose another --run-dir"):
        main([*arguments, "--seed", "1"])
    assert main(arguments) == 0
    assert len(read_metrics(tmp_path / "whole" / run_folder.METRICS)) == len(records)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not empty .thesis.tex.*not a run folder"):
        run_folder.RunFolder(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match="is a file"):
        run_folder.RunFolder(tmp_path / "thesis.tex", {"seed": 0})
    with pytest.raises(UserError, match=r"no config\.json"):
        loading.load_run(tmp_path)


def test_config_of_something_else_is_refused(tmp_path):
    for text in ('{"architecture": "gpt"}', "[1, 2]", "not JSON"):
        (tmp_path / run_folder.CONFIG).write_text(text)
        for read in (lambda path: run_folder.RunFolder(path, {"seed": 0}), loading.load_run):
            with pytest.raises(UserError, match=r"config\.json"):
                read(tmp_path)
        assert (tmp_path / run_folder.CONFIG).read_text() == text


def test_one_process_decides_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.jax, "process_index", lambda: 1)
    (tmp_path / "half made by process 0").touch()
    run_folder.RunFolder(tmp_path, {"seed": 0}).close()
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(run_folder, "any_process", lambda flag: True)
    with pytest.raises(UserError, match="Process 0 refuses"):
        run_folder.RunFolder(tmp_path, {"seed": 0})


def make_results(path, options, names=(run_folder.SUMMARY,)):
    with run_folder.owned_folder(path, "a script", options):
        for name in names:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).touch()


def listing(path):
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def test_results_are_kept_for_the_same_options_and_made_again_for_others(tmp_path):
    path = tmp_path / "out"
    make_results(path, {"seed": 0}, run_folder.RESULTS)
    (path / "notes.txt").touch()
    before = listing(path)
    with run_folder.owned_folder(path, "a script", {"seed": 0}):
        assert listing(path) == before
    with run_folder.owned_folder(path, "a script", {"seed": 1}):
        assert listing(path) == {run_folder.CONFIG, run_folder.LOCK, "notes.txt"}
    assert run_folder.read_json(path / run_folder.CONFIG) == {"made_by": "a script", "options": {"seed": 1}}


def test_only_checkpoints_are_deleted_from_the_folder_of_checkpoints(tmp_path):
    ours = ("checkpoints/5/_CHECKPOINT_METADATA", "checkpoints/5/params/data")
    theirs = (
        "checkpoints/best/params",
        "checkpoints/7/notes.txt",
        "checkpoints/notes.txt",
        "checkpoints-damaged/2/rest",
    )
    make_results(tmp_path / "out", {"seed": 0})
    for name in (*ours, *theirs):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "out" / name).touch()
    with run_folder.owned_folder(tmp_path / "out", "a script", {"seed": 1}):
        left = {name for name in listing(tmp_path / "out") if (tmp_path / "out" / name).is_file()}
    assert left == {run_folder.CONFIG, run_folder.LOCK, *theirs}


@pytest.mark.parametrize("config", ['{"architecture": "gpt"}', '{"made_by": "another script"}', "[]", "nonsense", None])
def test_folder_of_a_stranger_survives(tmp_path, config):
    (tmp_path / "weights.bin").touch()
    (tmp_path / "report.html").touch()
    if config is not None:
        (tmp_path / run_folder.CONFIG).write_text(config)
    before = listing(tmp_path)
    with (
        pytest.raises(UserError, match=r"config\.json"),
        run_folder.owned_folder(tmp_path, "a script", {"seed": 0}),
    ):
        pytest.fail("entered")
    assert listing(tmp_path) == before


def test_results_are_written_by_one_process_at_a_time(tmp_path):
    make_results(tmp_path / "out", {"seed": 0})
    with run_folder.owned_folder(tmp_path / "out", "a script", {"seed": 0}):
        before = listing(tmp_path)
        with (
            pytest.raises(UserError, match="Another process is writing"),
            run_folder.owned_folder(tmp_path / "out", "a script", {"seed": 1}),
        ):
            pytest.fail("entered")
        assert listing(tmp_path) == before


def test_folder_is_held_by_one_run_at_a_time(tmp_path):
    held = run_folder.RunFolder(tmp_path / "run", {"seed": 0})
    with pytest.raises(UserError, match="Another process is training"):
        run_folder.RunFolder(tmp_path / "run", {"seed": 0})
    held.close()
    run_folder.RunFolder(tmp_path / "run", {"seed": 0}).close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg"], "vgg.*choose one of linear, cnn"),
        (["--log-every", "0"], "--log-every 0: .*1 or more"),
        (["--evaluate-every", "-1"], "--evaluate-every -1: .*0 for only at the end"),
        (["--checkpoint-every", "nan"], "--checkpoint-every nan"),
        (["--model=cnn", "--data-dir", "no/such/place"], "no/such/place.*synthetic birds"),
    ],
)
def test_wrong_input_is_explained_at_the_edge(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main([*arguments, "--run-dir", str(tmp_path / "run")])


def test_no_interval_means_only_at_the_end(tmp_path, birds):
    options = [*OPTIONS[:-4], "--epochs", "3", "--checkpoint-every", "0", "--evaluate-every", "0", "--quiet"]
    assert main([*options, "--run-dir", str(tmp_path / "run"), "--data-dir", str(birds)]) == 0
    records = read_metrics(tmp_path / "run" / run_folder.METRICS)
    assert [record["epoch"] for record in records if record["split"] == "validation"] == [3]
    assert [path.name for path in (tmp_path / "run" / run_folder.CHECKPOINTS).iterdir()] == [str(records[-1]["step"])]
    assert [loading.every(epochs, 10) for epochs in (0, 0.01, 0.5, 2)] == [0, 1, 5, 20]


def test_model_options_are_parsed():
    parsed = loading.parse_options(("depth=34", "norm=group", "head_bias=True", "widths=[8, 8]", "dropout_rate=0.5"))
    assert parsed == {"depth": 34, "norm": "group", "head_bias": True, "widths": (8, 8), "dropout_rate": 0.5}
    with pytest.raises(UserError, match=r"depth34.*name=value"):
        loading.parse_options(("depth34",))


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SPECTRA_JAX_CACHE", "/somewhere")
    assert loading.cache_dir() == Path("/somewhere")
    monkeypatch.delenv("SPECTRA_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert loading.cache_dir() == Path("/elsewhere/spectra_jax")


class OnePass:
    """Batches of one pass that can fail on the way, like a killed process."""

    def __init__(self, data: Batch, *, fail_at: int | None = None):
        self.data, self.fail_at, self.position, self.num_batches = data, fail_at, 0, 5

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.num_batches:
            raise StopIteration
        if self.position == self.fail_at:
            raise InterruptedError
        rows = slice(4 * self.position, 4 * self.position + 4)
        self.position += 1
        return Batch(*(leaf[rows] for leaf in self.data))

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def test_features_are_computed_once_and_go_on_after_an_interruption(tmp_path, monkeypatch):
    model = build_model("linear", num_attributes=6, num_classes=4)
    params = model.init(jax.random.key(0), (8, 8, 3))
    data = examples(20)
    data.valid[18:] = False
    path = tmp_path / "deep" / "train.npz"
    monkeypatch.setattr("spectra_jax.features.SAVE_SECONDS", -1.0)
    with pytest.raises(InterruptedError):
        cached_features(model, params, OnePass(data, fail_at=3), path)
    resumed = OnePass(data)
    resumed.set_state = lambda state: OnePass.set_state(resumed, state) or setattr(resumed, "was", state["position"])
    features = cached_features(model, params, resumed, path, console=Console(quiet=True))
    assert resumed.was == 3 and [file.name for file in path.parent.iterdir()] == ["train.npz"]
    np.testing.assert_allclose(features.inputs, model.features(params, data.inputs[:18]), rtol=1e-6)
    np.testing.assert_array_equal(features.labels, data.labels[:18])
    again = cached_features(model, params, OnePass(data, fail_at=0), path)
    np.testing.assert_array_equal(again.inputs, features.inputs)
    path.write_bytes(path.read_bytes()[:500])  # damaged: computed again
    np.testing.assert_array_equal(cached_features(model, params, OnePass(data), path).inputs, features.inputs)
    mean, std = standardization(FeatureSet.concatenate([features, features]).inputs)
    np.testing.assert_allclose(mean, features.inputs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, features.inputs.std(0), rtol=1e-4)
    assert SAVE_SECONDS > 0


def test_feature_fingerprint_depends_on_weights_and_facts():
    model = build_model("cnn", num_attributes=6, num_classes=4, widths=(8, 8, 8, 8), grid=1)
    init = jax.jit(model.init, static_argnums=1)
    one, two = (init(jax.random.key(seed), (8, 8, 3)) for seed in (0, 1))
    names = {
        fingerprint(model, one, "data", 8),
        fingerprint(model, two, "data", 8),
        fingerprint(model, one, "other", 8),
    }
    assert len(names) == 3 and fingerprint(model, one, "data", 8) in names
