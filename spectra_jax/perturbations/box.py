"""The exact minimal change that makes the target win while every attribute stays in its range.

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k for every rival k,   low <= delta <= high

`dual_path` finds in float64 which rivals bind and which attributes are held at an end of their range; the equations of
that pattern carry the derivatives.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.answers import Answers
from spectra_jax.perturbations.batching import over_members
from spectra_jax.perturbations.exact import exact_pairs, max_slots
from spectra_jax.perturbations.geometry import HIGHEST, safe_norm, squared_distances
from spectra_jax.perturbations.lanes import scatter_slots
from spectra_jax.perturbations.problem import Problem, absent, make_problem
from spectra_jax.perturbations.result import RestrictedResult
from spectra_jax.perturbations.smooth import nearest_on
from spectra_jax.switches import public
from spectra_jax.types import Head, Status

# Rivals that are active at once in nearly all problems of some hundred classes and attributes.
_USUAL_ACTIVE = 32


@public()
def box_perturbation(
    head: Head,
    attributes: Float[Array, " n"],
    target: Int[Array, ""] | int,
    *,
    lower: Float[Array, " n"] | None = None,
    upper: Float[Array, " n"] | None = None,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
) -> RestrictedResult:
    """Smallest change (Euclidean) after which `target` wins by `margin` and lower <= attributes + delta <= upper.

    The answer is exact up to rounding and comes with its evidence, like that of `projection_perturbation`, which it
    equals where no range binds; an answer that cannot be verified is NaN and UNRESOLVED. Derivatives with
    respect to weights, bias, attributes, margin and ranges are those of the constraints that bind.

    A sample that lies outside its ranges is moved into them, even if it is already of the target class.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        lower: (n,) smallest value of each attribute after the change; -inf or None for no end.
        upper: (n,) largest value; inf or None for no end.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default. With an immutable attribute outside its range
            there is no answer.

    Returns:
        RestrictedResult; the lower bound equals the norm, because there is nothing to choose.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, lower above upper or NaN.
    """
    return _project(make_problem(head, attributes, target, margin=margin, mutable=mutable, ranges=(lower, upper)))


@jax.jit  # op by op it would be hundreds of programs, and the loops among them compiled anew at every call
def _project(problem: Problem) -> RestrictedResult:
    possible = ~jnp.any(problem.limits.outside != 0)
    return from_evidence(problem, search_ranges(problem, squared_distances(problem.head.weights), possible))


def search_ranges(problem: Problem, squares: Float[Array, "c c"], possible: Bool[Array, ""]) -> Answers:
    """What the exact search finds within the problem's ranges; all vmapped problems are searched together.

    Args:
        problem: with ranges.
        squares: (c, c) squared distances of the rows of its weights.
        possible: whether to search at all.

    Returns:
        Answers with evidence; not differentiable.
    """

    def search(shared, members):
        (head, squares), (attributes, targets, margins, low, high, waiting) = shared, members
        samples = jnp.arange(len(targets), dtype=jnp.int32)
        return exact_pairs(
            *(head, squares, attributes, margins, samples, targets, waiting),
            ranges=(low, high),
            usual=_USUAL_ACTIVE,
            num_slots=max_slots(head),
        )

    low, high, _ = problem.limits
    members = (problem.attributes, problem.target, problem.margin, low, high, problem.is_open & possible)
    return over_members(search)(*stop_gradient(((problem.head, squares), members)))


def from_evidence(problem: Problem, found: Answers) -> RestrictedResult:
    """The differentiable answer that the evidence of `search_ranges` stands for."""
    ranges = problem.limits
    held_outside = stop_gradient(jnp.any(ranges.outside != 0))
    status = problem.status(jnp.where(held_outside, Status.INFEASIBLE, found.status))
    feasible, empty = status == Status.SOLVED, status == Status.INFEASIBLE
    rivals = found.proof
    free = rivals.whole.place == 0
    ends = jnp.where(rivals.whole.place > 0, ranges.high, ranges.low)
    point = nearest_on(
        problem.head.weights,
        problem.offsets,
        problem.target,
        ends=jnp.where(free | ~feasible, 0, ends),
        free=free,
        slots=rivals.slots,
        multipliers=jnp.where(feasible, rivals.multipliers, 0),
        inverse=rivals.whole.inverse,
        delta=rivals.whole.delta,
        known=jnp.asarray(True),
    )
    norm = safe_norm(point.delta)

    # Evidence of an empty problem: an attribute held outside its range, or the search's own multipliers with whatever
    # ends of the ranges their normals lean on.
    searched = found.status == Status.INFEASIBLE
    certificate = jnp.where(searched, rivals.multipliers, 0)
    combined = jnp.matmul(certificate, stop_gradient(problem.normals(rivals.slots)), precision=HIGHEST)
    leant_on = jnp.isfinite(jnp.where(combined > 0, ranges.high, ranges.low))
    leaning = jnp.where(held_outside, stop_gradient(ranges.outside), jnp.where(leant_on, -combined, 0))
    multipliers = jnp.where(empty, certificate, point.multipliers)
    residual = jnp.where(searched, stop_gradient(found.residual), problem.residual(found.residual, norm))
    told = jnp.where(feasible, norm, absent(status))
    return RestrictedResult(
        delta=jnp.where(feasible, point.delta, absent(status)),
        norm=told,
        lower_bound=stop_gradient(told),
        status=status,
        multipliers=problem.factor * scatter_slots(rivals.slots[None], multipliers[None], len(problem.offsets))[0],
        bound_multipliers=jnp.where(empty, leaning, jnp.where(free, 0, point.delta - point.pull)),
        chosen=jnp.zeros(free.shape, bool),
        kkt_residual=jnp.where(empty & ~searched, 0, residual),
    )
