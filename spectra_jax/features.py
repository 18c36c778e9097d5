"""Features of a frozen backbone, computed once per split and kept on disk."""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float, Int

from spectra_jax.logging import Console
from spectra_jax.models import Model, Params
from spectra_jax.types import AnyBatch

SAVE_SECONDS = 20.0


class FeatureSet(NamedTuple):
    """A split seen through a frozen backbone.

    Attributes:
        inputs: (N, f) features.
        attributes: (N, n) in {0, 1}.
        labels: (N,).
    """

    inputs: Float[np.ndarray, "N f"]
    attributes: Float[np.ndarray, "N n"]
    labels: Int[np.ndarray, " N"]

    @staticmethod
    def concatenate(parts: Iterable["FeatureSet"]) -> "FeatureSet":
        """Several splits as one."""
        return FeatureSet(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


class ResumableSplit(Protocol):
    """What `cached_features` reads: batches of one pass over a split, see `spectra_jax.data.BatchIterator`."""

    @property
    def num_batches(self) -> int | None: ...
    def __iter__(self) -> Iterator[AnyBatch]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def fingerprint(model: Model, params: Params, *facts: Any) -> str:
    """A name for the features of this backbone, its weights and `facts` (data, image size)."""
    digest = hashlib.sha256(repr((model.name, model.backbone, facts)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["backbone"]):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:20]


def cached_features(
    model: Model,
    params: Params,
    batches: ResumableSplit,
    path: Path,
    *,
    place: Callable[[AnyBatch], AnyBatch] = lambda batch: batch,
    console: Console | None = None,
    title: str = "features",
) -> FeatureSet:
    """The features of all `batches`, read from `path` or computed and stored there.

    An interrupted computation goes on where it was last saved, at most `SAVE_SECONDS` earlier. Files appear whole. The
    caller chooses a `path` that says what the features depend on, see `fingerprint`.

    Args:
        model: its backbone is applied.
        params: its parameters.
        batches: one pass over the split in a fixed order.
        path: an .npz file.
        place: moves a batch to the devices.
        console: shows progress, rate and time left.
        title: what the progress is called.

    Returns:
        One row for each valid row of the batches.
    """
    path = Path(path)
    stored = _load(path)
    if stored is not None:
        return stored.features
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.npz")
    rows: list[FeatureSet] = []
    done = 0
    started = _load(partial)
    if started is not None:
        rows, done = [started.features], started.state["done"]
        batches.set_state(started.state["batches"])
    apply = jax.jit(model.features)
    saved = time.monotonic()
    total = batches.num_batches or 0
    with (console or Console(quiet=True)).progress(title, total, start=done, unit="batches") as task:
        for batch in batches:
            valid = np.asarray(batch.valid)
            features = np.asarray(apply(params, place(batch).inputs))[: len(valid)][valid]
            rows.append(FeatureSet(features, np.asarray(batch.attributes)[valid], np.asarray(batch.labels)[valid]))
            done += 1
            task.update(done)
            if time.monotonic() - saved > SAVE_SECONDS:
                rows = [FeatureSet.concatenate(rows)]
                _save(partial, rows[0], {"done": done, "batches": batches.get_state()})
                saved = time.monotonic()
    result = FeatureSet.concatenate(rows)
    _save(path, result, {})
    partial.unlink(missing_ok=True)
    return result


def standardization(features: Float[np.ndarray, "N f"]) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Mean and standard deviation of each feature, for `Model.with_feature_statistics`."""
    wide = features.astype(np.float64)
    return wide.mean(axis=0).astype(np.float32), wide.std(axis=0).astype(np.float32)


class _Stored(NamedTuple):
    features: FeatureSet
    state: dict[str, Any]


def _save(path: Path, features: FeatureSet, state: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **features._asdict(), state=np.array(json.dumps(state)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _load(path: Path) -> _Stored | None:
    """None where there is no file, or a damaged one: what is in it can be computed again."""
    try:
        # Opened here because np.load leaves a damaged file open.
        with open(path, "rb") as file, np.load(file) as stored:
            features = FeatureSet(*(stored[name] for name in FeatureSet._fields))
            return _Stored(features, json.loads(str(stored["state"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
