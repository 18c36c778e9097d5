"""Exact medians over all pairs of a sweep, in memory that does not grow with their number."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from experiments.cli.command import UserError

# Pairs whose distances DuckDB holds at once: about half a gigabyte.
_PAIRS_AT_ONCE = 1 << 26
# In place of infinity, whose difference with itself has no value: more than any distance.
_FAR = 1e308
_SCHEMA = pa.schema({"source": pa.int32(), "target": pa.int32(), "norm": pa.float64()})
_QUERY = "select source, target, count(*) as pairs, median(least(norm, ?)) as middle from rows group by all"

Parts = Callable[[], Iterable[tuple[np.ndarray, ...]]]


class _Piece(NamedTuple):
    """Classes of samples, and targets, that are taken together; each from the first to one before the last."""

    first: int
    last: int
    first_target: int
    last_target: int


def class_medians(parts: Parts, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median distance from the samples of each class to each class, by DuckDB.

    Args:
        parts: called once a pass; yields (classes, targets, distances) of pairs, the same ones each time. A distance of
            NaN is unknown and left out.
        sizes: (c,) samples of each class. With many the pairs are taken in several passes.

    Returns:
        (c, c) float64, NaN where no distance is known and inf where a middle one is; (c, c) how many are known.

    Raises:
        UserError: DuckDB could not go on, for want of memory for example.
    """
    num_classes = len(sizes)
    middles, counts = np.full((num_classes, num_classes), np.nan), np.zeros((num_classes, num_classes), np.int64)
    with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
        for piece in _pieces(sizes):
            rows = pa.RecordBatchReader.from_batches(_SCHEMA, _batches(parts, piece))
            try:
                database.register("rows", rows)
                found = database.execute(_QUERY, [_FAR]).fetchnumpy()
            except duckdb.Error as error:
                raise UserError(
                    f"The medians over all pairs cannot be computed ({error}). The pairs are kept: repeat the command."
                ) from error
            place = found["source"], found["target"]
            middles[place] = np.where(found["middle"] >= _FAR / 4, np.inf, found["middle"])
            counts[place] = found["pairs"]
    return middles, counts


def _batches(parts: Parts, piece: _Piece) -> Iterator[pa.RecordBatch]:
    for source, target, norm in parts():
        asked = (source >= piece.first) & (source < piece.last) & ~np.isnan(norm)
        asked &= (target >= piece.first_target) & (target < piece.last_target)
        columns = source[asked].astype(np.int32), target[asked].astype(np.int32), norm[asked].astype(np.float64)
        yield pa.record_batch([pa.array(column) for column in columns], schema=_SCHEMA)


def _pieces(sizes: np.ndarray) -> Iterator[_Piece]:
    """Classes that have at most so many pairs together; a class that has more alone is cut by targets."""
    num_classes, first = len(sizes), 0
    while first < num_classes:
        last = first + 1
        while last < num_classes and sizes[first : last + 1].sum() * num_classes <= _PAIRS_AT_ONCE:
            last += 1
        width = num_classes
        if sizes[first] * num_classes > _PAIRS_AT_ONCE:
            width = max(1, _PAIRS_AT_ONCE // int(sizes[first]))
        for target in range(0, num_classes, width):
            yield _Piece(first, last, target, min(target + width, num_classes))
        first = last


def median(parts: Callable[[], Iterable[np.ndarray]]) -> float:
    """Median of non-negative float32 numbers, digit by digit: read as integers, their bits are in the same order.

    Args:
        parts: called once a pass, up to three times; yields arrays of numbers, +0 and inf allowed, NaN and -0 not; the
            same ones each time.

    Returns:
        The mean of the two middle numbers where their number is even, inf where the larger one is; NaN for none.
    """

    def counted(digits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return sum((np.bincount(digits(part.view(np.uint32)), minlength=1 << 16) for part in parts()), np.zeros(1))

    coarse = counted(lambda bits: bits >> 16).cumsum()
    count = coarse[-1]
    if not count:
        return np.nan

    def ranked(rank: float) -> float:
        """The number of this rank, counted from 0."""
        high = np.searchsorted(coarse, rank, side="right")
        fine = counted(lambda bits: bits[bits >> 16 == high] & 0xFFFF).cumsum()
        low = np.searchsorted(fine, rank - (coarse[high - 1] if high else 0), side="right")
        return float(np.uint32(high << 16 | low).view(np.float32))

    lower = ranked((count - 1) // 2)
    upper = lower if count % 2 else ranked(count // 2)
    return lower + (upper - lower) / 2 if upper > lower else lower
