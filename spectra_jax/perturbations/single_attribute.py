"""Change one attribute only (Section 2.5.1, Eq. 1-4)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.buckets import in_buckets
from spectra_jax.checks import as_problem, check_margin, check_mutable, check_scale, is_concrete
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.envelope import choose_attributes
from spectra_jax.perturbations.geometry import relative_logits
from spectra_jax.perturbations.problem import Problem, make_problem
from spectra_jax.switches import public
from spectra_jax.types import Head

# (target, rival) crossings of a few samples in memory at once.
_CROSSINGS_AT_ONCE = 2_000_000


class SingleAttributeResult(NamedTuple):
    """Per attribute f, the values t for which e + t 1_f is classified as the target.

    Attributes:
        delta: (n,) the feasible t nearest zero; inf where there is none.
        lower: (n,) lower end of the feasible interval, -inf if unbounded.
        upper: (n,) upper end, inf if unbounded; lower > upper marks an empty interval.
        feasible: (n,) whether changing this attribute alone can reach the target.
    """

    delta: Float[Array, " n"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    feasible: Bool[Array, " n"]


@public()
def single_attribute_perturbations(
    head: Head, attributes: Float[Array, " n"], target: Int[Array, ""] | int, *, margin: float | Float[Array, ""] = 0.0
) -> SingleAttributeResult:
    """Smallest change of each single attribute that makes `target` win by `margin` (Section 2.5.1, Eq. 1-4).

    Along e + t 1_f every logit is a straight line in t, so the target wins on an interval: rivals with a
    smaller slope bound t from below, rivals with a larger slope from above, and a rival with the same
    slope that is ahead makes the attribute infeasible.

    The magnitudes mean little across attributes of different spread: to compare attributes, rank them by |delta|
    over each attribute's standard deviation.

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
    return feasible_intervals(make_problem(head, attributes, target, margin=margin))


@jax.jit
def feasible_intervals(problem: Problem) -> SingleAttributeResult:
    """`single_attribute_perturbations` of a problem; every attribute counts as mutable."""
    # A class that is masked by its bias never wins, and no number can be compared with its offsets.
    masked, weights = problem.is_masked & problem.is_finite, problem.head.weights
    lower, upper = _intervals(jnp.where(masked, 0, problem.offsets), weights[problem.target][None, :] - weights)
    lower, upper = jnp.where(masked, jnp.inf, lower), jnp.where(masked, -jnp.inf, upper)
    feasible = (lower <= upper) & (lower < jnp.inf)
    unknown = jnp.isnan(lower) | jnp.isnan(upper)  # a NaN input is no proof that the target cannot be reached
    nothing = jnp.where(unknown, jnp.nan, jnp.inf)
    return SingleAttributeResult(
        delta=jnp.where(feasible, formulas.nearest_to_zero(lower, upper), nothing),
        lower=lower,
        upper=upper,
        feasible=feasible,
    )


def _intervals(
    offsets: Float[Array, " c"], slopes: Float[Array, "c n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The t of each attribute at which the target leads every rival; its own offset is -inf and bounds nothing."""
    asked = (offsets != -jnp.inf)[:, None]
    lower, upper = formulas.interval(jnp.where(asked, offsets[:, None], 0), slopes)
    return jnp.max(jnp.where(asked, lower, -jnp.inf), axis=0), jnp.min(jnp.where(asked, upper, jnp.inf), axis=0)


class BestSingleAttributes(NamedTuple):
    """The single attribute that needs the smallest change, for every sample and target.

    Attributes:
        delta: (b, c) the signed change, inf where no single attribute reaches the target, NaN where a logit of the
            sample is NaN or inf.
        attribute: (b, c) int32 its index, -1 where none does.
    """

    delta: Float[Array, "b c"]
    attribute: Int[Array, "b c"]


@in_buckets
@public(rows="attributes")
def best_single_attributes(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    margin: float | Float[Array, ""] = 0.0,
    scale: Float[Array, " n"] | None = None,
    mutable: Bool[Array, " n"] | None = None,
) -> BestSingleAttributes:
    """For every sample and target, the single attribute that needs the smallest change (Section 2.5.1).

    The classes that any change of one attribute can reach are those on the upper envelope of c straight lines; it
    is walked from one corner to the next, which costs O(c) per corner instead of O(c^2) for all intervals. The
    answers are those of `single_attribute_perturbations`, rounding included; among attributes that are equal to the
    last digit, the lowest index wins.

    Derivatives of delta with respect to weights, bias, attributes and margin are those of the chosen attribute's
    interval end, one-sided where the choice changes.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        margin: required lead over every other class, in logits.
        scale: (n,) positive unit of each attribute, for example its standard deviation on the training set: the best
            attribute is then the one with the smallest |delta| / scale. delta itself stays in attribute units.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        BestSingleAttributes.

    Raises:
        ValueError: shapes do not match, margin negative, scale not positive.
    """
    head, attributes = as_problem(head, attributes, ndim=2)
    check_margin(margin)
    check_mutable(head, mutable)
    check_scale(head, scale)
    margin_is_zero = float(margin) == 0 if is_concrete(margin) else None
    margin = jnp.asarray(margin, attributes.dtype)
    return _best_of_all(head, attributes, margin, scale, mutable, margin_is_zero=margin_is_zero)


@functools.partial(jax.jit, static_argnames="margin_is_zero")  # eagerly its loops would be compiled at every call
def _best_of_all(
    head: Head, attributes: Array, margin: Array, scale: Array | None, mutable: Array | None,
    *, margin_is_zero: bool | None,
) -> BestSingleAttributes:  # fmt: skip
    dtype = attributes.dtype
    weights, logits = head.weights, relative_logits(head, attributes)
    unit = jnp.ones(weights.shape[1], dtype) if scale is None else jnp.asarray(scale, dtype)
    unit = unit if mutable is None else jnp.where(mutable, unit, 0)

    # A class masked by a bias of -inf never gets anywhere; any other number that is none spoils the whole sample.
    sound = jnp.isfinite(jnp.max(logits, axis=-1, keepdims=True)) & jnp.all(jnp.isfinite(weights))
    choice = choose_attributes(
        *stop_gradient((weights, jnp.where(sound, logits, 0), margin, unit)), margin_is_zero=margin_is_zero
    )
    choice = jnp.where(sound, choice, -1)
    delta = jax.lax.map(
        lambda sample: _nearest_on(weights, sample[0], sample[1], margin),
        (logits, choice),
        batch_size=max(1, _CROSSINGS_AT_ONCE // weights.shape[0] ** 2),
    )
    return BestSingleAttributes(jnp.where(choice >= 0, delta, jnp.where(sound, jnp.inf, jnp.nan)), choice)


def _nearest_on(
    weights: Float[Array, "c n"], logits: Float[Array, " c"], choice: Int[Array, " c"], margin: Float[Array, ""]
) -> Float[Array, " c"]:
    """For each target the t nearest 0 at which it wins along its chosen attribute; any number where that is -1."""

    def one_target(target, weights, chosen):
        offsets = jnp.where(chosen, formulas.offsets(logits, target, margin), 0)  # infinite where a class is masked
        lower, upper = _intervals(offsets, (weights[target] - weights)[:, None])
        # lower may exceed upper by a rounding error where lines meet in one point.
        return formulas.nearest_to_zero(lower[0], upper[0])

    targets = jnp.arange(weights.shape[0], dtype=jnp.int32)
    return jax.vmap(one_target)(targets, weights.T[jnp.maximum(choice, 0)], choice >= 0)
