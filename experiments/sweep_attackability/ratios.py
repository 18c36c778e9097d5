"""Statistics of the attackability of all samples; every figure is exact."""

import numpy as np

from spectra_jax.attackability import tail_index, top_share

# Half the width of a distribution-free 95 % interval of a median, in ranks: 0.98 sqrt(N).
_HALF_WIDTH = 0.98
# Of a normal distribution: half the width of a 95 % interval.
_NORMAL = 1.96


def ratios(values: np.ndarray) -> dict[str, float]:
    """Attackability (Eq. 5, 6) and relative margin: mean, median, quantiles, 95 % intervals; names of summary.json.

    Of the mean attackability there is no interval: see `attackability_summary`. A quantile is the value of the lower
    rank.

    Args:
        values: (N,) attackability of the samples, NaN where it is unresolved.
    """
    known = np.sort(values[~np.isnan(values)]).astype(np.float64)
    count, finite = len(known), known[np.isfinite(known)]
    low, high = median_interval_ranks(count)

    def ranked(rank: int) -> float:
        return known[rank] if count else np.nan

    def quantile(percent: int) -> float:
        return ranked(int(percent / 100 * (count - 1)))

    lower, upper = ranked((count - 1) // 2), ranked(count // 2)
    median = lower + (upper - lower) / 2 if upper > lower else lower  # inf - inf is NaN
    least = quantile(1)
    return {
        "sweep/attackability_mean": float(finite.mean()) if finite.size else np.inf,
        "sweep/attackability_top_1_percent_share": float(top_share(finite[::-1])),
        "sweep/attackability_tail_index": float(tail_index(finite[::-1])),
        "sweep/attackability_median": float(median),
        "sweep/attackability_median_low": float(ranked(low)),
        "sweep/attackability_median_high": float(ranked(high)),
        **{f"sweep/attackability_quantile_{percent:02d}": float(quantile(percent)) for percent in (5, 25, 75, 95, 99)},
        **_mean("sweep/relative_margin_mean", 1 / known[known > 0]),
        "sweep/relative_margin_median": float(1 / median) if median else np.inf,
        "sweep/relative_margin_quantile_99": float(1 / least) if least else np.inf,
        "sweep/samples_on_a_boundary": count - len(finite),
        "sweep/samples_beyond_reach": int((known == 0).sum()),
        "sweep/samples_unresolved": len(values) - count,
    }


def median_interval_ranks(count: int) -> tuple[int, int]:
    """Ranks of the two numbers between which the median of the population lies, 19 times of 20.

    From the binomial distribution of how many numbers lie below the median; it needs no assumption on them.
    """
    half = _HALF_WIDTH * count**0.5
    return max(0, int(np.floor((count - 1) / 2 - half))), min(count - 1, int(np.ceil((count - 1) / 2 + half)))


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean and its 95 % interval by the central limit theorem."""
    mean = float(values.mean()) if values.size else np.nan
    half = _NORMAL * float(values.std(ddof=1)) / values.size**0.5 if values.size > 1 else np.nan
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
