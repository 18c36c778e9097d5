"""Change one attribute only (Section 2.5.1, Eq. 1-4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, as_problem, check_margin
from spectra_jax.perturbations.geometry import head_logits, logit_gaps
from spectra_jax.types import Head


class SingleAttributeResult(NamedTuple):
    """Per attribute f, the values t for which e + t 1_f is classified as the target.

    Attributes:
        delta: (n,) the feasible t nearest zero; inf where there is none.
        lower: (n,) lower end of the feasible interval, -inf if unbounded.
        upper: (n,) upper end, inf if unbounded; lower > upper marks an empty interval.
        feasible: (n,) whether changing this attribute alone can reach the target.
    """

    delta: Float[Array, "n"]
    lower: Float[Array, "n"]
    upper: Float[Array, "n"]
    feasible: Bool[Array, "n"]


def single_attribute_perturbations(
    head: Head, attributes: Float[Array, "n"], target: Int[Array, ""] | int, *, margin: float | Float[Array, ""] = 0.0
) -> SingleAttributeResult:
    """Smallest change of each single attribute that makes `target` win by `margin` (Section 2.5.1, Eq. 1-4).

    Along e + t 1_f every logit is a straight line in t, so the target wins on an interval: rivals with a
    smaller slope bound t from below, rivals with a larger slope from above, and a rival with the same
    slope that is ahead makes the attribute infeasible.

    The magnitudes mean little across attributes of different spread: rank by |delta| over each
    attribute's standard deviation when comparing attributes.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        margin: required lead over every other class, in logits.

    Returns:
        SingleAttributeResult, in attribute units.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    gaps = logit_gaps(head_logits(head, attributes), target, margin)
    return _feasible_intervals(head.weights, gaps, target)


def _feasible_intervals(
    weights: Float[Array, "c n"], gaps: Float[Array, "c"], target: Int[Array, ""]
) -> SingleAttributeResult:
    slopes = weights[target][None, :] - weights
    rival = (jnp.arange(weights.shape[0], dtype=target.dtype) != target)[:, None]
    rising, falling, parallel = (slopes > 0) & rival, (slopes < 0) & rival, (slopes == 0) & rival
    crossing = jnp.where(rival, gaps[:, None], 0) / jnp.where(rising | falling, slopes, 1)
    lower = jnp.max(jnp.where(rising, crossing, -jnp.inf), axis=0)
    upper = jnp.min(jnp.where(falling, crossing, jnp.inf), axis=0)
    blocked = jnp.any(parallel & (gaps[:, None] > 0), axis=0)
    feasible = (lower <= upper) & ~blocked
    nearest = jnp.minimum(jnp.maximum(lower, 0), upper)
    unknown = jnp.isnan(lower) | jnp.isnan(upper)  # a NaN input is no proof that the target cannot be reached
    delta = jnp.where(feasible, nearest, jnp.where(unknown, jnp.nan, jnp.inf))
    return SingleAttributeResult(delta, lower, upper, feasible)


def best_single_attributes(
    head: Head, attributes: Float[Array, "b n"], *, margin: float | Float[Array, ""] = 0.0
) -> tuple[Float[Array, "b c"], Int[Array, "b c"]]:
    """For every sample and target, the single attribute that needs the smallest change (Section 2.5.1).

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        margin: required lead over every other class, in logits.

    Returns:
        delta (b, c): the signed change, inf where no single attribute reaches the target.
        attribute (b, c) int32: its index, -1 where none does.

    Raises:
        ValueError: shapes do not match, margin negative.
    """
    head, attributes = as_problem(head, attributes, ndim=2)
    check_margin(margin)
    margin = jnp.asarray(margin, attributes.dtype)
    classes = jnp.arange(head.weights.shape[0], dtype=jnp.int32)

    def one_pair(logits, target):
        result = _feasible_intervals(head.weights, logit_gaps(logits, target, margin), target)
        best = jnp.argmin(jnp.abs(result.delta))
        return result.delta[best], jnp.where(result.feasible[best], best, -1).astype(jnp.int32)

    # One sample at a time: all its (target, rival, attribute) crossings already fill the machine.
    def one_sample(logits):
        return jax.vmap(one_pair, in_axes=(None, 0))(logits, classes)

    return jax.lax.map(one_sample, head_logits(head, attributes))
