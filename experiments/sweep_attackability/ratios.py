"""What the attackability of all samples says in numbers, read a part at a time; every figure is exact."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spectra_jax.attackability import tail_size
from spectra_jax.sweep_statistics import Chunks, Moments, count_groups, median_interval_ranks, medians, select

# Of a normal distribution: half the width of a 95 % interval.
_NORMAL = 1.96


def ratios(parts: Callable[[], Iterable[np.ndarray]], num_samples: int) -> dict[str, float]:
    """Attackability (Eq. 5, 6) and relative margin: mean, median, quantiles, 95 % intervals; names of summary.json.

    Of the mean attackability there is no interval: see `attackability_summary`.

    Args:
        parts: called once a pass; yields the attackability of some samples, NaN where it is unresolved.
        num_samples: of all parts.
    """

    def values() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in parts():
            known = part[~np.isnan(part)]
            yield np.zeros(len(known), np.int32), known

    count = int(count_groups(values, 1)[0])
    low, high = median_interval_ranks(count)
    ranks = {"low": low, "high": high}
    ranks |= {f"{percent:02d}": int(percent / 100 * (count - 1)) for percent in (1, 5, 25, 75, 95, 99)}

    def repeated() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for group, ratios in values():
            for rank in range(len(ranks)):
                yield group + np.int32(rank), ratios

    order = dict.fromkeys(ranks, np.nan)
    if count:
        order = dict(zip(ranks, select(repeated, np.array(list(ranks.values()))), strict=True))
    median = float(medians(values, np.array([count]))[0])
    ratio, margin = Moments(), Moments()
    infinite = 0
    for _, ratios in values():
        ratio.add(ratios[np.isfinite(ratios)])
        margin.add(1 / ratios[ratios > 0].astype(np.float64))
        infinite += int(np.isposinf(ratios).sum())
    result = {
        "sweep/attackability_mean": float(ratio.mean) if ratio.count else np.inf,
        **_tail(values, ratio),
        "sweep/attackability_median": median,
        "sweep/attackability_median_low": order["low"],
        "sweep/attackability_median_high": order["high"],
        **{f"sweep/attackability_quantile_{name}": order[name] for name in ("05", "25", "75", "95", "99")},
        **_mean("sweep/relative_margin_mean", margin),
        "sweep/relative_margin_median": 1 / median if median else np.inf,
        "sweep/relative_margin_quantile_99": 1 / order["01"] if order["01"] else np.inf,
        "sweep/samples_on_a_boundary": infinite,
        "sweep/samples_beyond_reach": count - margin.count,
        "sweep/samples_unresolved": num_samples - count,
    }
    return {name: float(value) for name, value in result.items()}


def _tail(values: Chunks, finite: Moments) -> dict[str, float]:
    """What the mean attackability hangs on: the share of the top 1 % and the tail index, of the finite values."""
    top, tail = -(-finite.count // 100), tail_size(finite.count)
    wanted = np.array([finite.count - top, finite.count - tail - 1 if tail else -1])

    def twice() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for group, ratios in values():
            for each in range(2):
                yield group + np.int32(each), ratios

    least, beyond = select(twice, wanted) if finite.count else (np.nan, np.nan)
    count, total, excess = 0, 0.0, 0.0
    for _, ratios in values():
        known = ratios[np.isfinite(ratios)].astype(np.float64)
        count += int((known > least).sum())
        total += float(known[known > least].sum())
        if beyond > 0:
            excess += float(np.log(known[known > beyond] / beyond).sum())
    share = (total + (top - count) * least) / (finite.count * float(finite.mean)) if finite.mean > 0 else np.nan
    index = tail / excess if excess > 0 else np.inf
    return {
        "sweep/attackability_top_1_percent_share": share,
        "sweep/attackability_tail_index": index if beyond > 0 else np.nan,
    }


def _mean(name: str, moments: Moments) -> dict[str, float]:
    """The mean and its 95 % interval by the central limit theorem."""
    if not moments.count:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    mean = float(moments.mean)
    half = _NORMAL * float(moments.deviation) / max(moments.count - 1, 1) ** 0.5 if moments.count > 1 else np.nan
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
