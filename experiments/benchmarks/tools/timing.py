"""Timing several functions fairly: warmed up, in turns, with their spread."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Key = TypeVar("Key", str, tuple[str, int])


class Timing(NamedTuple):
    """Seconds of repeated calls: the median, and the smallest and largest."""

    median: float
    low: float
    high: float

    def per(self, count: int) -> "Timing":
        """Seconds of one of `count` equal parts."""
        return Timing(self.median / count, self.low / count, self.high / count)

    def text(self, unit: float = 1e-6) -> str:
        """median (low - high) in multiples of `unit` seconds."""
        return f"{self.median / unit:,.4g} ({self.low / unit:,.4g} - {self.high / unit:,.4g})"


def interleaved(calls: dict[Key, Callable[[], Any]], *, repeats: int) -> dict[Key, Timing]:
    """Times every call `repeats` times, taking turns, so that a busy moment of the machine hits all alike.

    Args:
        calls: functions without arguments; JAX results are waited for. Each is called once more before, to compile.
        repeats: timed calls of each.

    Returns:
        Timing of one call by name.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return {name: Timing(float(np.median(each)), min(each), max(each)) for name, each in seconds.items()}
