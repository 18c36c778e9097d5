"""Rates and medians with their 95 % intervals."""

import numpy as np
from scipy.stats import binomtest, bootstrap

from experiments.reporting.pages import median

RESAMPLES = 2000


def rate(name: str, successes: int, attempts: int) -> dict[str, float]:
    """A share of attempts with its 95 % Wilson interval."""
    interval = binomtest(successes, attempts).proportion_ci(method="wilson")
    return {name: successes / attempts, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def median_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """A median with its 95 % percentile bootstrap interval; NaN where there are too few values."""
    values = np.asarray(values, np.float64)
    low = high = float("nan")
    if len(values) > 1:
        interval = bootstrap(
            (values,), np.median, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {name: median(values), f"{name}_low": low, f"{name}_high": high}
