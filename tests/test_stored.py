"""Run folders that were edited or damaged: every script says in one sentence what is wrong, and never a traceback."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cub_folder import write_cub_folder

from experiments.cli.command import UserError
from experiments.invert import __main__ as invert
from experiments.reconstruct import __main__ as reconstruct
from experiments.runs.loading import load_run
from experiments.runs.stored import read_records, read_summary
from experiments.saliency import __main__ as saliency
from experiments.sweep_attackability import __main__ as sweep_attackability
from experiments.train import __main__ as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a finished run, the command that trained it)."""
    folder = tmp_path_factory.mktemp("stored")
    birds = write_cub_folder(folder / "birds", per_class=4)
    command = ["--model", "linear", "--epochs", "1", "--image-size", "12", "--data-dir", str(birds), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        assert train.main([*command, "--run-dir", str(folder / "run")]) == 0
        yield folder / "run", command


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


READERS = {"invert": invert, "saliency": saliency, "reconstruct": reconstruct, "sweep": sweep_attackability}


def refused(run_dir: Path, scripts: str, message: str) -> None:
    for script in (READERS[name] for name in scripts.split()):
        with pytest.raises(UserError, match=message) as error:
            script.main(["--run-dir", str(run_dir), "--out", str(run_dir.parent / "out"), "--quiet"])
        assert "\n" not in str(error.value)


def edit(path: Path, *keys, value) -> None:
    document = holder = json.loads(path.read_text())
    for key in keys[:-1]:
        holder = holder[key]
    if value is edit:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    path.write_text(json.dumps(document))


CONFIGS = {
    "without run": (("run",), edit, "was not written by a training run"),
    "run is null": (("run",), None, "was not written by a training run"),
    "without train": (("run", "train"), edit, r'missing required key\(s\): "train"'),
    "train is a list": (("run", "train"), [1], "value of key 'train' .* is not a dict"),
    "without data": (("run", "data"), edit, r'missing required key\(s\): "data"'),
    "without prepared": (("prepared",), edit, r'missing required key\(s\): "prepared"'),
    "prepared is null": (("prepared",), None, "value of key 'prepared' of dict is not an instance of str"),
    "prepared is a number": (("prepared",), 3, "value of key 'prepared' of dict is not an instance of str"),
    "unknown setting": (("run", "train", "wings"), 2, "another version: this one does not know wings"),
    "seed is text": (("run", "train", "seed"), "x", "seed: str is not an instance of int"),
    "seed is huge": (("run", "train", "seed"), 2**64, "seed is"),
    "options of numbers": (("run", "train", "model_options"), [1], "model_options: item 0 of tuple"),
    "epochs is null": (("run", "train", "epochs"), None, "epochs: None is not an instance of int"),
    "negative rate": (("run", "train", "learning_rate"), -1, "learning_rate is -1; expected a finite number"),
    "unknown form": (("run", "train", "stability_form"), "cubic", "stability_form: str is not any of"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_edited_config_is_named(run_dir, kind):
    keys, value, message = CONFIGS[kind]
    edit(run_dir / "config.json", *keys, value=value)
    refused(run_dir, "invert saliency reconstruct sweep", message)


def test_a_config_of_another_model_or_other_data_is_named(run_dir, tmp_path):
    edit(run_dir / "config.json", "run", "train", "image_size", value=16)
    refused(run_dir, "invert saliency reconstruct", "does not fit the model that its config.json names, linear")
    edit(run_dir / "config.json", "run", "train", "model", value="conv")
    refused(run_dir, "invert", "conv")
    (tmp_path / "other").mkdir()
    edit(run_dir / "config.json", "prepared", value=str(tmp_path / "other"))
    refused(run_dir, "invert saliency reconstruct", "other is not the data set [0-9a-f]+ that .*run was trained on")
    edit(run_dir / "config.json", "run", "data", value="other")
    refused(run_dir, "invert saliency reconstruct sweep", "prepared data .*other cannot be read .*repeat the training")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"run": {"train"'])
def test_a_config_that_is_no_json_object_is_named(run_dir, content):
    (run_dir / "config.json").write_bytes(content)
    refused(run_dir, "invert sweep", r"config\.json (is not valid JSON|was not written by a training run)")


def test_files_that_are_something_else(run_dir, trained):
    (run_dir / "config.json").unlink()
    (run_dir / "config.json").mkdir()
    refused(run_dir, "invert sweep", r"config\.json is not valid JSON \(\[Errno 21\] Is a directory")
    shutil.rmtree(run_dir)
    refused(run_dir, "invert sweep", "is not a run folder")
    shutil.copytree(trained[0], run_dir)
    (run_dir / "test_attributes.npz").unlink()
    os.mkfifo(run_dir / "test_attributes.npz")  # opening it would wait for ever
    refused(run_dir, "invert saliency sweep", "it is a folder or a pipe")


@pytest.mark.parametrize("change", ["cut", "empty", "objects", "no labels", "nan", "other images", "labels beyond"])
def test_damaged_arrays_are_named(run_dir, change):
    path = run_dir / "test_attributes.npz"
    with np.load(path) as stored:
        attributes, labels = stored["attributes"], stored["labels"]
    if change == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif change == "empty":
        path.write_bytes(b"")
    else:
        arrays = {
            "objects": {"attributes": attributes.astype(object), "labels": labels},
            "no labels": {"attributes": attributes},
            "nan": {"attributes": attributes * np.nan, "labels": labels},
            "other images": {"attributes": attributes[:-1], "labels": labels[:-1]},
            "labels beyond": {"attributes": attributes, "labels": labels + 3},
        }[change]
        np.savez(path, **arrays)
    messages = {"no labels": "no array 'labels'", "nan": "nan in row 0", "other images": "as in its data"}
    message = messages.get(change, "")
    refused(run_dir, "invert saliency", rf"{message}.*repeat the training command")


def test_a_head_that_does_not_fit_the_attributes_is_named(run_dir):
    with np.load(run_dir / "head.npz") as stored:
        weights = stored["weights"]
    np.savez(run_dir / "head.npz", weights=weights[:, :-1])
    refused(run_dir, "invert saliency sweep", r"head\.npz: weights has shape \(3, 5\); expected \(classes, 6\)")
    np.savez(run_dir / "head.npz", weights=weights * np.inf)
    refused(run_dir, "invert saliency sweep", r"head\.npz: weights holds .*Did the training diverge")


# A damaged checkpoint leaves orbax's other reads without an event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints_that_are_gone_or_damaged_are_named(run_dir):
    for file in (run_dir / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    refused(run_dir, "invert saliency reconstruct", "No checkpoint in .* can be read")
    shutil.rmtree(run_dir / "checkpoints")
    refused(run_dir, "invert saliency reconstruct", "checkpoints is gone")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": "long", "train/seconds": 1}', '{"seconds": 1}'])
def test_a_damaged_summary_is_named_and_made_anew_by_the_training_command(run_dir, trained, content):
    (run_dir / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json"):
        read_summary(run_dir)
    assert train.main([*trained[1], "--run-dir", str(run_dir)]) == 0
    assert read_summary(run_dir)["seconds"] > 0


@pytest.mark.parametrize(
    "content", ["{\n", "[1]\n", '{"step": []}\n', '{"epoch": "x"}\n', '{"split": 1}\n', "\x00\n", None]
)
def test_damaged_metrics_are_named_before_training_goes_on(run_dir, trained, content):
    path = run_dir / "metrics.jsonl"
    kept = path.read_text()
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content + kept, encoding="utf-8")
    for read in (lambda: read_records(run_dir), lambda: train.main([*trained[1], "--run-dir", str(run_dir)])):
        with pytest.raises(UserError, match=r"metrics\.jsonl .*(line 1|Is a directory|value of key|split: )"):
            read()


def test_damaged_prepared_data_are_prepared_anew_or_named(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRA_JAX_CACHE", str(tmp_path / "cache"))
    command = [*trained[1], "--run-dir", str(tmp_path / "run")]
    assert train.main(command) == 0
    manifest = next((tmp_path / "cache" / "prepared").glob("*/manifest.json"))
    for content in ("", "[1]", '{"absent": 3}'):
        manifest.write_text(content)
        assert train.main(command) == 0
        assert json.loads(manifest.read_text())
    metadata = next((tmp_path / "cache" / "prepared").glob("*/*/*/metadata.json"))
    metadata.write_bytes(b"[" * metadata.stat().st_size)  # of the size that the manifest promises
    with pytest.raises(UserError, match=r"The prepared data .* cannot be read .*delete them and repeat"):
        train.main(command)


def test_a_run_of_a_relative_cache_is_read_from_elsewhere(trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SPECTRA_JAX_CACHE", "cache")
    assert train.main([*trained[1], "--run-dir", "run"]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert load_run(tmp_path / "here" / "run").info.num_classes == 3


def test_links_that_lead_nowhere_are_no_folder_to_write(trained, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"link cannot be made \(it is a broken symbolic link"):
        train.main([*trained[1], "--run-dir", str(tmp_path / "link")])
    with pytest.raises(UserError, match=r"link cannot be made \(it is a broken symbolic link"):
        saliency.main(["--run-dir", str(trained[0]), "--out", str(tmp_path / "link"), "--quiet"])
