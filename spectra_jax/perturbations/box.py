"""The exact minimal change that makes the target win while every attribute stays in its range.

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k for every rival k,   low <= delta <= high

`dual_path` finds in float64 which rivals bind and which attributes are held at an end of their range; the equations of
that pattern carry the derivatives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_mutable, check_ranges
from spectra_jax.perturbations.batching import over_members
from spectra_jax.perturbations.dual_path import Answers
from spectra_jax.perturbations.exact import exact_pairs, max_slots
from spectra_jax.perturbations.geometry import (
    HIGHEST,
    has_answer,
    logit_gaps,
    of_unit_size,
    relative_logits,
    safe_norm,
    squared_distances,
)
from spectra_jax.perturbations.lanes import INFEASIBLE, OPTIMAL, scatter_slots
from spectra_jax.perturbations.smooth import nearest_on
from spectra_jax.switches import public
from spectra_jax.types import Head

# Rivals that are active at once in nearly all problems of some hundred classes and attributes.
_USUAL_ACTIVE = 32


class BoxResult(NamedTuple):
    """The nearest point of a decision region within given ranges, with its evidence.

    Attributes:
        delta: (n,) smallest change; inf where there is none.
        norm: its Euclidean length; inf where there is none, NaN where an input is NaN or float64 cannot tell.
        multipliers: (c,) of the rivals; positive only for those that bind.
        bound_multipliers: (n,) positive for an attribute held up by its lower end, negative for one held down by its
            upper end, 0 for a free one: delta = sum_k multipliers_k (w_target - w_k) + bound_multipliers on the
            attributes that may change. Where there is no such point, the two are the certificate of that instead: on
            the attributes that may change the sum is 0, and the constraints, so weighted, contradict each other. An
            immutable attribute outside its range is a certificate of its own: 1 where it is too low, -1 where it is too
            high, and 0 everywhere else.
        feasible: whether the target can win by the margin within the ranges.
        kkt_residual: largest violation of the optimality conditions, relative to ||attributes|| + ||delta||; see
            `ProjectionResult`. Without an answer: the length of the certificate's sum, which should be 0, relative to
            its terms; NaN where nothing is told.
    """

    delta: Float[Array, "n"]
    norm: Float[Array, ""]
    multipliers: Float[Array, "c"]
    bound_multipliers: Float[Array, "n"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]


@public()
def box_perturbation(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""] | int,
    *,
    lower: Float[Array, "n"] | None = None,
    upper: Float[Array, "n"] | None = None,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> BoxResult:
    """Smallest change (Euclidean) after which `target` wins by `margin` and lower <= attributes + delta <= upper.

    The answer is exact up to rounding and comes with its evidence, as that of `projection_perturbation`, to which it
    is equal where no range binds; an answer that cannot be verified in this precision is NaN. Derivatives with
    respect to weights, bias, attributes, margin and ranges are those of the constraints that bind.

    A sample that lies outside its ranges is moved into them, also if it is the target class already.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        lower: (n,) smallest value of each attribute after the change; -inf or None for no end.
        upper: (n,) largest value; inf or None for no end.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default. One that may not and lies outside its range
            leaves no answer.

    Returns:
        BoxResult.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, lower above upper or NaN.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    lower, upper = check_ranges(head, lower, upper)
    return _project(head, attributes, target, margin, lower, upper, mutable)


@jax.jit  # op by op it would be hundreds of programs, and the loops among them compiled anew at every call
def _project(head, attributes, target, margin, lower, upper, mutable) -> BoxResult:
    low, high = lower - attributes, upper - attributes
    outside = jnp.zeros_like(low)
    if mutable is not None:
        # Held where they are: their own range can then only be met or not.
        outside = jnp.where(mutable, 0, (low > 0).astype(low.dtype) - (high < 0).astype(low.dtype))
        low, high = jnp.where(mutable, low, 0), jnp.where(mutable, high, 0)
    return project_into_box(head, attributes, target, margin, low, high, outside)


def project_into_box(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""],
    margin: Float[Array, ""],
    low: Float[Array, "n"],
    high: Float[Array, "n"],
    outside: Float[Array, "n"],
) -> BoxResult:
    """The shortest delta in [low, high] after which the target wins by the margin.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) of one sample.
        target: class index.
        margin: required lead, in logits.
        low: (n,) smallest change of each attribute, at most high.
        high: (n,) largest change.
        outside: (n,) not 0 for attributes that are held where their range forbids it, which leaves no answer: 1 where
            they are too low, -1 where too high.

    Returns:
        BoxResult.
    """
    head, margin, scale = of_unit_size(head, margin)
    possible = ~jnp.any(outside != 0)
    found = search_ranges(head, squared_distances(head.weights), attributes, target, margin, low, high, possible)
    result = from_evidence(head, attributes, target, margin, low, high, outside, found)
    return result._replace(multipliers=scale * result.multipliers)


def search_ranges(
    head: Head,
    squares: Float[Array, "c c"],
    attributes: Float[Array, "n"],
    target: Int[Array, ""],
    margin: Float[Array, ""],
    low: Float[Array, "n"],
    high: Float[Array, "n"],
    possible: Bool[Array, ""],
) -> Answers:
    """What the exact search finds for one sample, target and set of ranges; all vmapped ones are searched together.

    Args:
        head, attributes, target, margin, low, high: see `project_into_box`; the weights of size 1.
        squares: (c, c) squared distances of the rows.
        possible: whether to search at all.

    Returns:
        Answers with evidence, of one problem; not differentiable.
    """

    def search(shared, members):
        (head, squares), (attributes, targets, margins, low, high, waiting) = shared, members
        samples = jnp.arange(len(targets), dtype=jnp.int32)
        return exact_pairs(
            *(head, squares, attributes, margins, samples, targets, waiting, (low, high)),
            usual=_USUAL_ACTIVE,
            num_slots=max_slots(head),
        )

    told = has_answer(head, attributes, target, margin) & jnp.all((low < jnp.inf) & (high > -jnp.inf))
    members = (attributes, target, margin, low, high, told & possible)
    return over_members(search)(*jax.lax.stop_gradient(((head, squares), members)))


def from_evidence(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""],
    margin: Float[Array, ""],
    low: Float[Array, "n"],
    high: Float[Array, "n"],
    outside: Float[Array, "n"],
    found: Answers,
) -> BoxResult:
    """The differentiable answer that the search's evidence stands for; see `project_into_box`."""
    fixed = jax.lax.stop_gradient
    logits = relative_logits(head, attributes[None])[0]
    # No finite change lifts a class masked by a bias of -inf.
    masked = fixed(logits[target] == -jnp.inf) & jnp.all(fixed(logits) < jnp.inf)
    held_out = fixed(jnp.any(outside != 0))
    feasible, empty = found.status == OPTIMAL, (found.status == INFEASIBLE) | held_out | masked
    rivals = found.proof
    free = rivals.whole.place == 0
    ends = jnp.where(rivals.whole.place > 0, high, low)
    point = nearest_on(
        head.weights,
        logit_gaps(logits, target, margin),
        target,
        ends=jnp.where(free | ~feasible, 0, ends),
        free=free,
        slots=rivals.slots,
        multipliers=jnp.where(feasible, rivals.multipliers, 0),
        inverse=rivals.whole.inverse,
        delta=rivals.whole.delta,
        known=jnp.asarray(True),
    )
    norm = safe_norm(point.delta)
    size = fixed(safe_norm(attributes) + norm)
    residual = jnp.where(held_out | masked, 0, found.residual / jnp.where(empty | (size == 0), 1, size))

    # Evidence of an empty problem: an attribute held outside its range, or the search's own multipliers with whatever
    # ends of the ranges their rows lean on.
    certificate = jnp.where(found.status == INFEASIBLE, rivals.multipliers, 0)
    sum_of_rows = jnp.matmul(
        certificate, fixed(head.weights[target][None, :] - head.weights[rivals.slots]), precision=HIGHEST
    )
    leant_on = jnp.isfinite(jnp.where(sum_of_rows > 0, high, low))
    leaning = jnp.where(held_out, fixed(outside), jnp.where(leant_on, -sum_of_rows, 0))
    multipliers = jnp.where(empty, certificate, point.multipliers)
    nothing = jnp.where(empty, jnp.inf, jnp.nan)
    return BoxResult(
        delta=jnp.where(feasible, point.delta, nothing),
        norm=jnp.where(feasible, norm, nothing),
        multipliers=scatter_slots(rivals.slots[None], multipliers[None], len(logits))[0],
        bound_multipliers=jnp.where(empty, leaning, jnp.where(free, 0, point.delta - point.pull)),
        feasible=feasible,
        kkt_residual=fixed(residual),
    )
