"""The input of a sweep, a run folder or any features and head, opened and checked."""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.cli.command import UserError
from experiments.sweep_attackability.options import InputConfig
from spectra_jax import Head
from spectra_jax.array_files import Rows, SourceError, listing
from spectra_jax.array_sources import open_arrays
from spectra_jax.sweep_sources import (
    ID_NAMES,
    NONE,
    blocks,
    check_floats,
    check_labels,
    open_features,
    open_labels,
    read_head,
)

_SCANNED_BYTES = 1 << 25


class Problem(NamedTuple):
    """The input of a sweep.

    Attributes:
        features: (N, n).
        labels: (N,), or None.
        head: in the type to compute in.
        class_names: (c,).
        attribute_names: (n,).
        title: what it is, for the report.
        head_title: where the head comes from.
        sources: which array of which file is what.
        ids: (N,) what the samples are called, or None for their rows.
        further_ids: (N,) each, by the name of its column: what is carried along.
    """

    features: Rows
    labels: Rows | None
    head: Head
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    title: str
    head_title: str
    sources: str
    ids: np.ndarray | None = None
    further_ids: Mapping[str, np.ndarray] = MappingProxyType({})

    def id_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """(stop - start,) each: the ids of some samples by the name of their column, none where they have no ids."""
        every = ({} if self.ids is None else {"id": self.ids}) | dict(self.further_ids)
        return {name: ids[start:stop] for name, ids in every.items()}

    def id_digest(self, start: int, stop: int) -> str:
        """Of the ids of some samples, and of what their columns are called."""
        digest = hashlib.sha256()
        for name, ids in self.id_columns(start, stop).items():
            digest.update(repr((name, ids.dtype.str)).encode())
            digest.update(np.ascontiguousarray(ids).view(np.uint8).data)
        return digest.hexdigest()


def open_problem(config: InputConfig, precision: str) -> Problem:
    """Opens the input; reads the head and nothing else.

    Raises:
        UserError: it is not one that can be swept.
    """
    config.check()
    try:
        problem = _from_run(config, precision) if config.run_dir is not None else _from_files(config, precision)
    except SourceError as error:
        raise UserError(str(error)) from error
    if problem.features.shape[0] < 1:
        raise UserError(f"{problem.features.title} holds no samples.")
    if problem.labels is not None and problem.labels.shape[0] != problem.features.shape[0]:
        raise UserError(
            f"{problem.labels.title} has {problem.labels.shape[0]} labels; expected {problem.features.shape[0]}, one "
            f"per sample of {problem.features.title}."
        )
    columns = [_read_ids(problem.features, name) for name in config.id_name]
    if config.ids is not None:
        lines = np.asarray(_read_lines("--ids", config.ids))
        columns.insert(0, _as_ids(lines, problem.features, f"--ids {config.ids}"))
    elif not columns:
        known = open_arrays(problem.features.path)
        columns = [_read_ids(problem.features, name) for name in ID_NAMES if name in known][:1]
    further = config.id_name if config.ids is not None else config.id_name[1:]
    return problem._replace(
        ids=columns[0] if columns else None, further_ids=dict(zip(further, columns[1:], strict=True))
    )


def _read_ids(features: Rows, name: str) -> np.ndarray:
    """A column beside the features."""
    arrays, title = open_arrays(features.path), f"{features.path}: {name}"
    if name not in arrays:
        raise UserError(f"{features.path} has no array {name!r}. {listing(arrays)}")
    try:
        ids = arrays[name].read(0, arrays[name].shape[0])
    except (SourceError, IndexError) as error:
        raise UserError(f"{title} cannot be read ({error}); expected one text or integer per sample.") from error
    return _as_ids(ids.astype(str) if ids.dtype.kind == "O" else ids, features, title)  # texts of a Parquet file


def _as_ids(ids: np.ndarray, features: Rows, title: str) -> np.ndarray:
    """Texts, one for each sample."""
    if ids.shape != features.shape[:1] or ids.dtype.kind not in "iuU":
        raise UserError(
            f"{title} has {ids.size} entries of type {ids.dtype}; expected {features.shape[0]}, one text or integer "
            "per sample."
        )
    return ids.astype(str)


def _from_run(config: InputConfig, precision: str) -> Problem:
    from experiments.runs.stored import open_prepared, read_run_config

    assert config.run_dir is not None
    run_dir, path = config.run_dir, config.run_dir / "test_attributes.npz"
    prepared = read_run_config(run_dir).prepared
    if not path.exists() or not (run_dir / "head.npz").exists():
        raise UserError(f"{path} or head.npz is missing: training has not finished. Repeat its command.")
    config = dataclasses.replace(config, features=path, head=run_dir / "head.npz")
    problem = _from_files(config, precision)
    if prepared.is_dir() and (config.class_names, config.attribute_names) == (None, None):
        info = open_prepared(prepared).info
        if (info.num_classes, info.num_attributes) == np.shape(problem.head.weights):
            problem = problem._replace(class_names=info.class_names, attribute_names=info.attribute_names)
    return problem._replace(title=f"test split of {run_dir.name}")


def _from_files(config: InputConfig, precision: str) -> Problem:
    assert config.features is not None and config.head is not None
    if config.head_bias is not None and not config.bias:
        raise UserError(f"--head-bias {config.head_bias} and --no-bias contradict each other: give only one of them.")
    features = open_features(config.features, config.feature_name)
    head, head_title = read_head(
        config.head,
        width=features.shape[1],
        dtype=precision,
        weight=config.head_weight,
        bias=config.head_bias if config.bias else NONE,
        transposed=config.head_transposed,
    )
    num_classes = head.weights.shape[0]
    if config.labels is None:
        labels = open_labels(
            config.features, num_classes=num_classes, name=config.label_name, features=features, ids=config.id_name
        )
    else:
        labels = open_labels(config.labels, num_classes=num_classes, name=config.label_name)
    names = [
        _read_names(path, kind, count)
        for path, kind, count in zip(
            (config.class_names, config.attribute_names), ("class", "attribute"), head.weights.shape, strict=True
        )
    ]
    label_title = "none" if labels is None else f"{labels.title} {labels.shape}"
    sources = f"features: {features.title} {features.shape}; labels: {label_title}; head: {head_title}"
    return Problem(features, labels, head, names[0], names[1], str(config.features), head_title, sources)


def _read_names(path: Path | None, kind: str, count: int) -> tuple[str, ...]:
    if path is None:
        return tuple(f"{kind} {i}" for i in range(count))
    names = tuple(_read_lines(f"--{kind}-names", path))
    if len(names) != count:
        raise UserError(f"--{kind}-names {path} has {len(names)} lines; expected {count}, one per {kind}.")
    return names


def _read_lines(option: str, path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from error


def mutable_mask(problem: Problem, immutable: Sequence[str]) -> np.ndarray | None:
    """(n,) attributes that may change; None for all.

    Raises:
        UserError: there is no such attribute, or none is left.
    """
    if not immutable:
        return None
    mask = np.ones(len(problem.attribute_names), bool)
    for name in immutable:
        places = [i for i, known in enumerate(problem.attribute_names) if known == name]
        if not places and name.isdecimal() and int(name) < len(mask):
            places = [int(name)]
        if not places:
            near = difflib.get_close_matches(name, problem.attribute_names, 3, 0.4)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise UserError(f"--immutable {name}: expected an attribute or an index from 0 to {len(mask) - 1}.{hint}")
        mask[places] = False
    if not mask.any():
        raise UserError("--immutable leaves no attribute that may change.")
    return mask


class Scan(NamedTuple):
    """What one pass over the input found.

    Attributes:
        fingerprint: of every number of features, labels and head.
        spread: (n,) standard deviation of each attribute.
    """

    fingerprint: str
    spread: np.ndarray


def scan(problem: Problem, precision: str) -> Scan:
    """Reads the whole input once: every mistake in it is found before any work is done.

    Raises:
        UserError: a feature is NaN or infinite, a label is no class, or a file cannot be read; the message says where.
    """
    from sklearn.preprocessing import StandardScaler  # as long an import as all of JAX

    features, labels, head = problem.features, problem.labels, problem.head
    count, width = features.shape
    digest, moments = hashlib.sha256(repr((count, width, labels is not None)).encode()), StandardScaler()
    for array in (head.weights, head.bias):
        digest.update(b"none" if array is None else np.asarray(array).tobytes())
    try:
        for start, stop in blocks(count, max(1, _SCANNED_BYTES // (8 * width))):
            rows = check_floats(features.read(start, stop), start=start, dtype=precision, title=features.title)
            moments.partial_fit(rows)
            digest.update(np.ascontiguousarray(rows).data)
            if labels is not None:
                digest.update(read_labels(problem, start, stop).data)
    except SourceError as error:
        raise UserError(str(error)) from error
    return Scan(digest.hexdigest(), np.sqrt(moments.var_))


def read_labels(problem: Problem, start: int, stop: int) -> np.ndarray:
    """Labels of the samples from `start` to `stop`, checked; the problem has some."""
    labels = problem.labels
    assert labels is not None
    num_classes = problem.head.weights.shape[0]
    return check_labels(labels.read(start, stop), start=start, num_classes=num_classes, title=labels.title)
