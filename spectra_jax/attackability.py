"""Attackability: the length of an attribute vector relative to its distance to a class change (Eq. 5, 6)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectra_jax.buckets import in_buckets
from spectra_jax.checks import as_problem, check_choice
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.all_pairs import METHODS, all_pairs_norms
from spectra_jax.perturbations.geometry import safe_norm
from spectra_jax.perturbations.nearest_class import nearest_class
from spectra_jax.perturbations.nearest_target import nearest_target
from spectra_jax.switches import public
from spectra_jax.types import Head

# Bootstrap draws held in memory together: 32 MB of doubles.
_RESAMPLED_AT_ONCE = 4_000_000
# Of fewer values the largest tenth says nothing about the tail.
_LEAST_FOR_TAIL = 40


@in_buckets
@public(rows="attributes")
def attackability(
    head: Head, attributes: Float[Array, "b n"], *, method: str = "boundary", block_size: int | None = None
) -> Float[Array, " b"]:
    """Sample attackability max_k ||e|| / ||delta_k|| over the classes k other than the predicted one (Eq. 5).

    The nearest exit of a convex region is through one facet, so "boundary" gives the exact answer in
    closed form and "projection" the same one at greater cost. "pinv" is the paper's own; with no bias and
    rank(C W) = n (more classes than attributes) it is 1 whatever the model, see `pinv_perturbation`.

    It is measured in feature space and says nothing about how easily the encoder moves e. A claim of
    robustness also needs an input-space attack.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        method: "boundary", "projection" or "pinv".
        block_size: samples that "boundary" processes at once, which bounds its memory, see `nearest_class`; the other
            methods hold a (b, c) table and do not accept it.

    Returns:
        (b,) dimensionless, unchanged when e or W is rescaled; inf for a sample on a boundary, 0 where no
        other class can be reached.

    Raises:
        ValueError: shapes do not match, unknown method, block_size below 1 or given with another method.
    """
    check_choice("method", method, METHODS)
    if method == "boundary":
        return nearest_class(head, attributes, block_size=block_size).attackability
    if block_size is not None:
        raise ValueError(f'block_size is {block_size} with method "{method}"; expected None: omit it')
    head, attributes = as_problem(head, attributes, ndim=2)
    found = nearest_target(all_pairs_norms(head, attributes, method=method))
    nearest = jnp.where(found.num_unresolved > 0, jnp.nan, found.distance)  # the nearest may be one of those
    return formulas.attackability(nearest, safe_norm(attributes))


def attackability_summary(
    values: Float[np.ndarray | Array, " N"], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """The paper's Model Attackability (Eq. 6) and the statistics to read beside it, on the host.

    The mean has no interval because none would be honest. Margins usually have positive density at 0: values above x
    are then as frequent as 1 / x, the population mean is infinite, and the mean of N samples grows with log N and
    depends on the few that happen to lie next to a boundary. top_1_percent_share and tail_index show this: the mean is
    infinite if the tail index is <= 1, the variance if it is <= 2. Compare models by the median or by relative_margin.

    Samples on a boundary have infinite attackability. They are counted in num_infinite and excluded from mean, maximum,
    tail_index and top_1_percent_share; the quantiles count them as largest and relative_margin as 0. Samples of
    attackability 0, which cannot reach any other class, have no finite relative margin: they are counted in num_zero
    and excluded from it.

    Args:
        values: (N,) from `attackability`, N >= 1.
        num_resamples: bootstrap resamples for each interval.
        seed: seed of the resampling; the same seed gives the same intervals.

    Returns:
        mean (Eq. 6), without an interval; median and relative_margin (mean of 1 / value, i.e. of ||delta|| / ||e||),
        each with its 95 % percentile bootstrap interval NAME_low and NAME_high (NaN for fewer than two values);
        quantile_05, quantile_25, quantile_75, quantile_95, quantile_99; maximum; top_1_percent_share of the sum, held
        by the ceil(N / 100) largest values; tail_index by Hill's estimator on the largest tenth, k values, with a
        relative standard error of about 1 / sqrt(k), NaN for fewer than 40 values; num_samples, num_infinite and
        num_zero. Other entries are inf or NaN only where nothing finite is left.

    Raises:
        ValueError: values not (N,), empty, NaN or negative.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"values has shape {values.shape}; expected (N,), one attackability per sample, N >= 1: flatten it"
        )
    if not (values >= 0).all():
        raise ValueError("values contains NaN or negative numbers; expected ratios of norms: remove unresolved samples")
    finite, positive = values[np.isfinite(values)], values[values > 0]
    ordered = np.sort(finite)[::-1]
    summary = {
        "maximum": ordered[0] if finite.size else np.inf,
        "top_1_percent_share": top_share(ordered),
        "tail_index": tail_index(ordered),
        "num_samples": values.size,
        "num_infinite": values.size - finite.size,
        "num_zero": values.size - positive.size,
    }
    for percent in (5, 25, 75, 95, 99):
        summary[f"quantile_{percent:02d}"] = _quantile(values, percent / 100)
    summary["mean"] = finite.mean() if finite.size else np.inf
    summary["median"] = _quantile(values)
    summary["relative_margin"] = (1 / positive).mean() if positive.size else np.nan
    statistics: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
        "median": (_quantile, values),
        "relative_margin": (np.mean, 1 / positive),
    }
    for name, (statistic, sample) in statistics.items():
        summary[f"{name}_low"], summary[f"{name}_high"] = _interval(sample, statistic, num_resamples, seed)
    return {name: float(value) for name, value in summary.items()}


def top_share(ordered: np.ndarray) -> float:
    """Share of the sum that the ceil(N / 100) first of finite values in descending order hold."""
    total = ordered.sum()
    return ordered[: -(-ordered.size // 100)].sum() / total if total > 0 else np.nan


def tail_index(ordered: np.ndarray) -> float:
    """Hill's (1975) estimate of a in P(value > x) ~ x^-a, from finite values in descending order."""
    size = -(-ordered.size // 10)
    if ordered.size < _LEAST_FOR_TAIL or ordered[size] == 0:
        return np.nan
    excess = np.log(ordered[:size] / ordered[size]).sum()
    return size / excess if excess > 0 else np.inf


def _quantile(values: np.ndarray, level: float = 0.5, axis: int | None = None) -> np.ndarray:
    """np.quantile that ranks inf last instead of turning inf - inf into NaN."""
    largest = np.finfo(np.float64).max
    quantile = np.quantile(np.minimum(values, largest), level, axis=axis)
    return np.where(quantile > np.max(values, initial=0, where=np.isfinite(values)), np.inf, quantile)


def _interval(sample: np.ndarray, statistic: Callable[..., Any], num_resamples: int, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap  # as long an import as all of JAX; attackability itself does without

    if sample.size < 2:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):  # SciPy also computes a standard error, inf - inf where medians are infinite
        resampled = bootstrap(
            (sample,),
            statistic,
            n_resamples=num_resamples,
            batch=max(1, _RESAMPLED_AT_ONCE // sample.size),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    return float(_quantile(resampled, 0.025)), float(_quantile(resampled, 0.975))
