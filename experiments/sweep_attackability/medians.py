"""Exact medians over all pairs of a sweep, in memory that does not grow with their number."""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import duckdb
import numpy as np

# Pairs whose distances DuckDB holds at once: about half a gigabyte.
_PAIRS_AT_ONCE = 1 << 26
# In place of infinity, whose difference with itself has no value: more than any distance.
_FAR = 1e300
# The files of a partition hold NaN as null.
_BY_CLASS = """
    select {of} as source, target, count(*) as pairs, median(least(norm::double, {far})) as middle
    from read_parquet(?) where method = ? and norm is not null and {of} >= ? and {of} < ? group by all
"""


def class_medians(
    files: Sequence[Path], *, of: str, method: str, num_classes: int, num_pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Median distance from the samples of each class to each class, by DuckDB.

    Args:
        files: of pairs.
        of: what makes the class of a sample, "label" or "predicted".
        method: whose distances.
        num_classes: of the head.
        num_pairs: in the files, of the method; with many the classes are taken in several passes.

    Returns:
        (c, c) float64, NaN where no distance is known and inf where a middle one is; (c, c) how many are known.
    """
    middles = np.full((num_classes, num_classes), np.nan)
    counts = np.zeros((num_classes, num_classes), np.int64)
    passes = min(num_classes, -(-num_pairs // _PAIRS_AT_ONCE))
    bounds = np.linspace(0, num_classes, passes + 1).astype(int).tolist()
    with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
        for first, last in itertools.pairwise(bounds):
            query = _BY_CLASS.format(of=of, far=_FAR)
            found = database.execute(query, [[str(file) for file in files], method, first, last]).fetchnumpy()
            place = found["source"], found["target"]
            middles[place] = np.where(found["middle"] >= _FAR / 4, np.inf, found["middle"])
            counts[place] = found["pairs"]
    return middles, counts


def median(parts: Callable[[], Iterable[np.ndarray]]) -> float:
    """Median of non-negative float32 numbers, digit by digit: read as integers, their bits are in the same order.

    Args:
        parts: called once a pass, four times; yields arrays of numbers, inf allowed, NaN not; the same ones each time.

    Returns:
        As np.median, the mean of the two middle numbers where their number is even; NaN for none.
    """

    def counted(digits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return sum((np.bincount(digits(part.view(np.uint32)), minlength=1 << 16) for part in parts()), np.zeros(1))

    coarse = counted(lambda bits: bits >> 16).cumsum()
    if not coarse[-1]:
        return np.nan

    def ranked(rank: float) -> float:
        """The number of this rank, counted from 0."""
        high = np.searchsorted(coarse, rank, side="right")
        fine = counted(lambda bits: bits[bits >> 16 == high] & 0xFFFF).cumsum()
        low = np.searchsorted(fine, rank - (coarse[high - 1] if high else 0), side="right")
        return float(np.uint32(high << 16 | low).view(np.float32))

    lower, upper = ranked((coarse[-1] - 1) // 2), ranked(coarse[-1] // 2)
    return lower + (upper - lower) / 2 if upper > lower else lower
