"""The cheap answers of a sweep: the nearest class of every sample, in one pass over the features."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from experiments.cli.command import UserError
from experiments.sweep_attackability.inputs import Problem, read_labels
from experiments.sweep_attackability.options import NEAREST_COLUMNS
from spectra_jax.array_files import SourceError
from spectra_jax.logging import Console
from spectra_jax.names import readable_class
from spectra_jax.perturbations.nearest_class import nearest_and_predicted
from spectra_jax.sweep_files import write_tables
from spectra_jax.sweep_sources import blocks, check_floats

NEAREST = "nearest.parquet"
# Numbers of a block of features.
_NUMBERS_AT_ONCE = 1 << 24
# What a pair by projection costs, and the attributes that flip a sample alone, in products of the head with one sample.
# Measured on random heads of 200 x 312 and 1,000 x 768; on an accelerator (an H200, 200 x 312 and 1,000 x 512) a sample
# among many is multiplied in no time, so that a pair costs more of them.
_PRODUCTS_A_PAIR, _PRODUCTS_A_SAMPLE = 7.0, 400.0
_PRODUCTS_A_PAIR_ON_ACCELERATOR, _SAMPLES_ON_ACCELERATOR = 20.0, 1 << 13
# Bytes of a pair in compressed Parquet.
_BYTES = {"projection": 11.4, "boundary": 5.7, "pinv": 5.7}


class Nearest(NamedTuple):
    """The nearest other class of every sample, or of those that were asked about.

    Attributes:
        samples: (N,) which ones.
        labels: (N,), or None.
        predicted: (N,) classes.
        target: (N,) the nearest other class; -1 where none can be reached.
        distance: (N,) to it, inf where there is none.
        attackability: (N,) ||e|| / distance.
        fingerprint: of the input.
        seconds: it took.
    """

    samples: np.ndarray
    labels: np.ndarray | None
    predicted: np.ndarray
    target: np.ndarray
    distance: np.ndarray
    attackability: np.ndarray
    fingerprint: str
    seconds: float


def find_nearest(problem: Problem, *, console: Console, rows: tuple[int, int] | None = None) -> Nearest:
    """Reads the features once, as they are stored, and answers block by block.

    Args:
        problem: what is asked about.
        console: told about progress.
        rows: first sample and one past the last; all by default.

    Raises:
        UserError: a feature is NaN or infinite, a label is no class, or a file cannot be read; the message says where.
    """
    began = time.monotonic()
    digest = hashlib.sha256()
    for array in (problem.head.weights, problem.head.bias):
        digest.update(b"none" if array is None else np.asarray(array).tobytes())
    parts: list[tuple[np.ndarray, ...]] = []
    first, last = rows or (0, problem.features.shape[0])
    try:
        with console.progress("nearest classes", last - first, unit="samples") as task:
            for start, block, answer in _answers(problem, digest, first, last):
                if np.isnan(answer[2]).any():
                    check_floats(block, start=start, dtype=problem.head.weights.dtype, title=problem.features.title)
                    raise UserError(f"{problem.features.title}: the logits of some samples are beyond float32.")
                parts.append(answer)
                task.update(start + len(block) - first)
        labels = None
        if problem.labels is not None:
            labels = read_labels(problem, first, last)
            digest.update(labels.tobytes())
    except SourceError as error:
        raise UserError(str(error)) from error
    predicted, target, distance, attackability = (np.concatenate(part) for part in zip(*parts, strict=True))
    seconds = time.monotonic() - began
    samples = np.arange(first, last, dtype=np.int64)
    return Nearest(samples, labels, predicted, target, distance, attackability, digest.hexdigest(), seconds)


def _answers(
    problem: Problem, digest: Any, first: int, last: int
) -> Iterator[tuple[int, np.ndarray, tuple[np.ndarray, ...]]]:
    """(first sample, rows, answers) of each block; all blocks have one size, so that one program does."""
    count, width = last - first, problem.features.shape[1]
    num_blocks = -(-count * width // _NUMBERS_AT_ONCE)
    size, exact = -(-count // num_blocks), False

    def read(start: int, stop: int) -> np.ndarray:
        rows = _working(problem.features.read(start, stop), problem.head.weights.dtype)
        digest.update(np.ascontiguousarray(rows).view(np.uint8))
        return rows

    spans = [(first + start, first + stop) for start, stop in blocks(count, size)]
    for (start, _), rows in zip(spans, _read_ahead(read, spans), strict=True):
        filled = rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
        found, predicted, twins = nearest_and_predicted(problem.head, filled, exact=exact)
        if not exact and bool(twins):  # compiled only for heads that need it
            exact = True
            found, predicted, _ = nearest_and_predicted(problem.head, filled, exact=True)
        leaves = (predicted, found.target, found.distance, found.attackability)
        yield start, rows, tuple(np.asarray(leaf)[: len(rows)] for leaf in leaves)


def _read_ahead(read: Callable[[int, int], np.ndarray], spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The rows of each span, the next of which are read while the caller works on these."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead: deque[Future[np.ndarray]] = deque()
        for span in spans:
            ahead.append(reader.submit(read, *span))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _working(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Half precision and the head's own type as they are, anything else in that type."""
    half = rows.dtype.itemsize == 2 and rows.dtype.kind not in "iu"
    return rows if half or rows.dtype == dtype else rows.astype(dtype)


def sample_ids(problem: Problem, samples: np.ndarray) -> pa.Array:
    """What these samples are called, texts."""
    # Arrow writes numbers out ten times as fast as NumPy.
    return pa.array(samples).cast(pa.string()) if problem.ids is None else pa.array(problem.ids[samples])


def write_nearest(problem: Problem, found: Nearest, folder: Path) -> None:
    """Writes nearest.parquet: `nearest_table`."""
    write_tables(folder / NEAREST, [nearest_table(problem, found)], {"input": found.fingerprint})


def nearest_table(problem: Problem, found: Nearest) -> pa.Table:
    """A row per sample; names as they are in the input."""
    names = pa.array([*problem.class_names])

    def named(classes: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(classes, pa.int32(), mask=classes < 0), names)

    count = len(found.predicted)
    columns = (
        pa.array(found.samples),
        sample_ids(problem, found.samples),
        pa.nulls(count, pa.int32()) if found.labels is None else pa.array(found.labels),
        pa.array(found.predicted),
        named(found.predicted),
        pa.array(found.target, mask=found.target < 0),
        named(found.target),
        pa.array(found.distance),
        pa.array(found.attackability),
    )
    further = {name: pa.array(ids[found.samples]) for name, ids in problem.further_ids.items()}
    return pa.table(dict(zip(NEAREST_COLUMNS, columns, strict=True)) | further)


class Cost(NamedTuple):
    """What all pairs would take: rough, within a factor of a few.

    Attributes:
        pairs: how many there are.
        seconds: on this machine.
        gigabytes: on the disk.
    """

    pairs: int
    seconds: float
    gigabytes: float


def estimate_cost(problem: Problem, methods: tuple[str, ...]) -> Cost:
    """From the time that the head takes for one sample here, measured now."""
    count, num_classes = problem.features.shape[0], problem.head.weights.shape[0]
    on_cpu = jax.default_backend() == "cpu"
    a_pair = (_PRODUCTS_A_PAIR if on_cpu else _PRODUCTS_A_PAIR_ON_ACCELERATOR) if "projection" in methods else 0
    pairs = count * num_classes
    products = _PRODUCTS_A_SAMPLE * count + a_pair * pairs
    seconds = products * _product_seconds(problem.head.weights, alone=on_cpu) / jax.local_device_count()
    return Cost(pairs, max(seconds, 1.0), pairs * sum(_BYTES[method] for method in methods) / 1e9)


def _product_seconds(weights: jax.Array, *, alone: bool) -> float:
    """Of the head with one sample, alone or among many."""
    if alone:
        rows, sample = np.asarray(weights), np.ones(weights.shape[1], weights.dtype)
        product = np.empty(len(rows), weights.dtype)
        return _fastest(lambda: np.matmul(rows, sample, out=product))
    samples = jnp.ones((_SAMPLES_ON_ACCELERATOR, weights.shape[1]), weights.dtype)
    multiply = jax.jit(lambda samples, rows: jnp.matmul(samples, rows.T, precision=jax.lax.Precision.HIGHEST))
    jax.block_until_ready(multiply(samples, weights))  # compiled
    return _fastest(lambda: jax.block_until_ready(multiply(samples, weights))) / _SAMPLES_ON_ACCELERATOR


def _fastest(call: Callable[[], object]) -> float:
    def seconds() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return min(seconds() for _ in range(20))


class ClassRow(NamedTuple):
    """How one class does.

    Attributes:
        name: of the class.
        samples: labelled so, or named so where there are no labels.
        attackability, distance: medians.
        nearest: the class that most of them are nearest to.
        share: of them.
    """

    name: str
    samples: int
    attackability: float
    distance: float
    nearest: str
    share: float


def class_rows(problem: Problem, found: Nearest) -> list[ClassRow]:
    """The classes that have samples, the most attackable first."""
    own = found.predicted if found.labels is None else found.labels
    order = np.argsort(own, kind="stable")
    classes, starts = np.unique(own[order], return_index=True)
    rows = []
    for name, members in zip(classes, np.split(order, starts[1:]), strict=True):
        targets = found.target[members]
        counts = np.bincount(targets[targets >= 0], minlength=1)
        nearest = readable_class(problem.class_names[counts.argmax()]) if counts.any() else "none"
        rows.append(
            ClassRow(
                readable_class(problem.class_names[name]),
                len(members),
                float(np.median(found.attackability[members])),
                float(np.median(found.distance[members])),
                nearest,
                float(counts.max() / len(members)),
            )
        )
    return sorted(rows, key=lambda row: -row.attackability)
