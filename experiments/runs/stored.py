"""Reads the files of a run folder, each through a schema; edited or damaged files are refused in one sentence."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar, get_type_hints

import numpy as np
from jaxtyping import Float, Int
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from experiments.cli.command import UserError, check_run_folder
from experiments.runs.folder import CONFIG, METRICS, SUMMARY, read_config, read_json
from experiments.runs.store import write_arrays
from spectra_jax import Head
from spectra_jax.array_files import SourceError
from spectra_jax.data import Dataset, open_dataset
from spectra_jax.logging import read_metrics
from spectra_jax.sweep_sources import check_floats, check_labels, open_features, open_labels, read_head
from spectra_jax.training import TrainConfig

ATTRIBUTES, HEAD = "test_attributes.npz", "head.npz"
_Numbers = dict[str, float | None]
_T = TypeVar("_T")


class _Identity(TypedDict):
    train: dict[str, Any]
    data: str


class _Config(TypedDict):
    run: _Identity
    prepared: str


@dataclass(frozen=True)
class RunConfig:
    """The config.json of a run folder.

    Attributes:
        train: how the model is trained.
        data: name of the prepared data set.
        prepared: where it lay.
    """

    train: TrainConfig
    data: str
    prepared: Path


def read_run_config(run_dir: Path) -> RunConfig:
    """The config.json of a run folder.

    Raises:
        UserError: it is not a run folder, or its config.json was edited or comes from another version.
    """
    path = run_dir / CONFIG
    check_run_folder(run_dir)
    stored = read_config(run_dir)
    known = {name: stored[name] for name in get_type_hints(_Config) if name in stored}
    config = _checked(path, known, _Config)
    train = config["run"]["train"]
    hints = {field.name: get_type_hints(TrainConfig)[field.name] for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(train.keys() - hints.keys())
    if unknown:
        raise UserError(f"{run_dir} was trained by another version: this one does not know {', '.join(unknown)}.")
    values = {
        name: _checked(path, tuple(value) if isinstance(value, list) else value, hints[name], f"{name}: ")
        for name, value in train.items()
    }
    try:
        return RunConfig(TrainConfig(**values), config["run"]["data"], Path(config["prepared"]))
    except (ValueError, OverflowError) as error:
        raise _edited(path, str(error)) from error


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The figures in the summary.json of a run that has finished training.

    Raises:
        UserError: it is missing or not what training writes.
    """
    path = run_dir / SUMMARY
    try:
        summary = _checked(path, read_json(path), _Numbers)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: training has not finished. Repeat its command.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): repeat the training command.") from None
    missing = [name for name in ("seconds", "train/seconds") if not isinstance(summary.get(name), int | float)]
    if missing:
        raise UserError(f"{path} lacks the number {' and '.join(missing)}: repeat the training command.")
    return summary


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a folder's metrics.jsonl; none where there is no such file.

    Raises:
        UserError: a line of it is no record.
    """
    path = run_dir / METRICS
    try:
        records = read_metrics(path)
        for record in records:
            _checked(path, {name: value for name, value in record.items() if name != "split"}, _Numbers)
            _checked(path, record.get("split", ""), str, "split: ")
        return records
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): repair or delete it.") from None


class TestSplit(NamedTuple):
    """What a finished training knows of the test split: row i is image i of the split, in its stored order.

    Attributes:
        attributes: (N, n) unnormalised attributes that the trained encoder sees.
        labels: (N,) true classes.
        head: the trained classifier on them.
    """

    attributes: Float[np.ndarray, "N n"]
    labels: Int[np.ndarray, " N"]
    head: Head


def write_test_split(run_dir: Path, split: TestSplit) -> None:
    """Writes test_attributes.npz and head.npz."""
    write_arrays(run_dir / ATTRIBUTES, attributes=split.attributes, labels=split.labels)
    write_arrays(run_dir / HEAD, **{name: value for name, value in split.head._asdict().items() if value is not None})


def read_test_split(run_dir: Path) -> TestSplit:
    """What `write_test_split` left.

    Raises:
        UserError: training has not finished, or one of the files is damaged or does not fit the others.
    """
    path, head_path = run_dir / ATTRIBUTES, run_dir / HEAD
    for needed in (path, head_path):
        if not needed.exists():
            raise UserError(f"{needed} is missing: training has not finished. Repeat its command.")
    try:
        features = open_features(path, "attributes")
        head, _ = read_head(head_path, width=features.shape[1], dtype=np.float32)
        num_samples, num_classes = features.shape[0], len(head.weights)
        labels = open_labels(path, num_classes=num_classes, name="labels")
        assert labels is not None
        if labels.shape != (num_samples,) or not num_samples:
            raise SourceError(f"{path} has {labels.shape[0]} labels; expected {num_samples}, one per sample.")
        rows = check_floats(features.read(0, num_samples), start=0, dtype=np.float32, title=features.title)
        named = labels.read(0, num_samples)
        check_labels(named, start=0, num_classes=num_classes, title=labels.title)
        return TestSplit(rows, named, head)
    except SourceError as error:
        raise UserError(f"{str(error).rstrip('.')}. Delete that file and repeat the training command.") from error


def open_prepared(path: Path) -> Dataset:
    """The data set that a run was trained on.

    Raises:
        UserError: it is damaged or none.
    """
    try:
        return open_dataset(path)
    except Exception as error:  # what TFDS raises for a damaged folder is not documented
        reason = str(error).partition("\n")[0]
        raise UserError(f"The prepared data {path} cannot be read ({reason}): delete them and repeat the training "
                        "command.") from error  # fmt: skip


def _checked(path: Path, value: Any, schema: type[_T], what: str = "") -> _T:
    try:
        return check_type(value, schema, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise _edited(path, f"{what}{reason}") from None


def _edited(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not as training wrote it ({reason}): it was edited or damaged. Restore it or retrain.")
