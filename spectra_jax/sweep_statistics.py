"""Exact medians of more numbers than fit into memory, many groups at once.

The k-th smallest of non-negative floating-point numbers is found digit by digit: read as integers, their bits are
in the same order as the numbers. Each pass over the data counts how many numbers of a group share the digits found so
far and have each possible next digit. Memory depends on the number of groups, never on how many numbers there are.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

# Counters held at once: 64 MB.
_COUNTERS = 1 << 23
# Half the width of a distribution-free 95 % interval of a median, in ranks: 0.98 sqrt(N).
_HALF_WIDTH = 0.98

Chunks = Callable[[], Iterable[tuple[NDArray[np.integer], NDArray[np.floating]]]]


def count_groups(chunks: Chunks, num_groups: int) -> NDArray[np.int64]:
    """How many numbers each group has.

    Args:
        chunks: see `select`.
        num_groups: groups are 0 ... num_groups - 1.
    """
    counts = np.zeros(num_groups, np.int64)
    for groups, _ in chunks():
        counts += np.bincount(groups, minlength=num_groups)
    return counts


def select(chunks: Chunks, ranks: NDArray[np.integer]) -> NDArray[np.floating]:
    """The number of each group that has the given rank, exactly.

    Args:
        chunks: called once a pass; yields (groups (k,), values (k,)): non-negative float32 or float64 numbers, inf
            allowed, NaN not. Every call yields the same ones.
        ranks: (G,) 0 for the smallest number of the group; -1 where nothing is asked for.

    Returns:
        (G,) float64; NaN where the rank is negative.
    """
    ranks = np.array(ranks, np.int64)
    wanted, bits = ranks >= 0, _bits(chunks)
    digit = max(1, min(16, (_COUNTERS // max(len(ranks), 1)).bit_length() - 1))
    unsigned = np.dtype(f"u{bits // 8}")
    prefix = np.zeros(len(ranks), unsigned)
    remaining = bits
    while remaining:
        digit = min(digit, remaining)
        counts = np.zeros((len(ranks), 1 << digit), np.int64)
        for groups, values in chunks():
            keys = np.abs(values).view(unsigned)
            # Numbers that share the digits found so far; all of them in the first pass, where a shift by every bit is
            # not defined.
            same = wanted[groups] if remaining == bits else wanted[groups] & (keys >> remaining == prefix[groups])
            digits = (keys[same] >> (remaining - digit)) & ((1 << digit) - 1)
            np.add.at(counts.reshape(-1), groups[same].astype(np.int64) << digit | digits.astype(np.int64), 1)
        below = np.cumsum(counts, axis=1)
        found = np.minimum((below <= ranks[:, None]).sum(axis=1), (1 << digit) - 1)
        ranks = ranks - np.where(found > 0, below[np.arange(len(ranks)), np.maximum(found - 1, 0)], 0)
        prefix = prefix << unsigned.type(digit) | found.astype(unsigned)
        remaining -= digit
    return np.where(wanted, prefix.view(f"f{bits // 8}").astype(np.float64), np.nan)


def medians(chunks: Chunks, counts: NDArray[np.integer]) -> NDArray[np.floating]:
    """Median of each group, as np.median: the mean of the two middle numbers where their number is even.

    Args:
        chunks: see `select`.
        counts: (G,) from `count_groups`.

    Returns:
        (G,) float64; NaN for an empty group, inf where a middle number is.
    """
    lower = select(chunks, (counts - 1) // 2)
    even = (counts > 0) & (counts % 2 == 0)
    if not even.any():
        return lower
    # The next number up is the same one again, or the smallest larger one: one more pass finds both.
    upto, larger = np.zeros(len(counts), np.int64), np.full(len(counts), np.inf)
    for groups, values in chunks():
        above = values > lower[groups]
        upto += np.bincount(groups[~above], minlength=len(counts))
        np.minimum.at(larger, groups[above], values[above].astype(np.float64))
    upper = np.where(even & (upto <= counts // 2), larger, lower)
    return lower + np.where(upper > lower, (upper - lower) / 2, 0)


def median_interval_ranks(count: int) -> tuple[int, int]:
    """Ranks of the two numbers between which the median of the population lies, 19 times of 20.

    From the binomial distribution of how many numbers lie below the median; it needs no assumption on them.
    """
    half = _HALF_WIDTH * count**0.5
    return max(0, int(np.floor((count - 1) / 2 - half))), min(count - 1, int(np.ceil((count - 1) / 2 + half)))


def _bits(chunks: Chunks) -> int:
    return next((values.dtype.itemsize * 8 for _, values in chunks()), 32)


class Moments:
    """Mean and standard deviation of each column of a stream of rows (Chan's parallel formula), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: NDArray[np.float64] = np.zeros(())
        self._squares: NDArray[np.float64] = np.zeros(())

    def add(self, rows: NDArray[np.floating]) -> None:
        """Takes in rows (k, ...)."""
        if not len(rows):
            return
        mean = rows.mean(axis=0, dtype=np.float64)
        squares = np.square(rows - mean).sum(axis=0, dtype=np.float64)
        total, shift = self.count + len(rows), mean - self._mean
        self._squares = self._squares + squares + np.square(shift) * (self.count * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self.count = total

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of each column; NaN for no rows."""
        return self._mean if self.count else np.full_like(self._mean, np.nan)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Population standard deviation of each column; NaN for no rows."""
        return np.sqrt(self._squares / self.count) if self.count else np.full_like(self._squares, np.nan)
