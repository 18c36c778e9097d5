"""The exact minimal change that makes the target win: projection onto its decision region."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.batching import over_members
from spectra_jax.perturbations.exact import max_slots
from spectra_jax.perturbations.geometry import safe_norm
from spectra_jax.perturbations.lanes import scatter_slots
from spectra_jax.perturbations.pair_search import Solutions, search_pairs, shared_by_pairs
from spectra_jax.perturbations.problem import Problem, absent, make_problem
from spectra_jax.perturbations.smooth import nearest_on
from spectra_jax.switches import public
from spectra_jax.types import Head, Status


class ProjectionResult(NamedTuple):
    """The nearest point of a decision region, with its evidence.

    Attributes:
        delta: (n,) smallest change; inf where the region is empty.
        norm: its Euclidean length; inf where the region is empty, NaN where it is unresolved, see `status`.
        multipliers: (c,) Lagrange multipliers, delta = sum_k multipliers_k (w_target - w_k); positive only
            for the rivals that bound the region at this point. For an empty region: the certificate,
            non-negative with sum_k multipliers_k (w_target - w_k) = 0 and a positive sum of offsets.
        feasible: whether the target can win by the margin at all.
        kkt_residual: largest violation of the optimality conditions, relative to ||attributes|| + ||delta||:
            constraint violation as a distance, negative multipliers, complementarity. For an empty region:
            the length of the certificate's combination relative to its terms.
        status: () a `Status`: SOLVED; INFEASIBLE for an empty region; UNRESOLVED where even float64 cannot tell (facets
            that meet at less than 3e-7 radians, regions out of reach but not provably empty); NOT_FINITE where an
            input is NaN or infinite.
    """

    delta: Float[Array, " n"]
    norm: Float[Array, ""]
    multipliers: Float[Array, " c"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]
    status: Int[Array, ""]


@public()
def projection_perturbation(
    head: Head,
    attributes: Float[Array, " n"],
    target: Int[Array, ""] | int,
    *,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
) -> ProjectionResult:
    """Smallest change (Euclidean) after which `target` beats EVERY other class by `margin`.

    argmin ||delta|| subject to (w_j - w_k).(e + delta) + b_j - b_k >= margin for all k, solved exactly by a
    dual active-set method. With margin 0 the point lies on the region's boundary, a tie; ask for a small
    margin to be classified as the target. The answer scales with e and W.

    Derivatives of any order with respect to weights, bias, attributes and margin come from the
    implicit-function theorem on the active constraints; where the active set changes, they are one-sided. With more
    than 64 active rivals the change is as exact as ever, but multipliers and derivatives are NaN.

    Pairs that float32 cannot settle (classes with nearly equal weights, rivals that nearly depend on each other, empty
    regions) are solved in float64 on the same device, so the norm has a relative error of at most 1e-4 in every case,
    and about 1e-6 on ordinary heads.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        ProjectionResult. A target that already wins by the margin has delta 0.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative.
    """
    return project(make_problem(head, attributes, target, margin=margin, mutable=mutable))


@jax.jit  # op by op it would be hundreds of programs, and the loops among them compiled anew at every call
def project(problem: Problem) -> ProjectionResult:
    """`projection_perturbation` of a problem without ranges."""
    found = _search(problem)
    status = problem.status(found.status)
    feasible, empty = status == Status.SOLVED, status == Status.INFEASIBLE

    rivals = found.proof
    point = nearest_on(
        problem.weights,
        problem.offsets,
        problem.target,
        ends=jnp.zeros_like(problem.attributes),
        free=jnp.ones(len(problem.attributes), bool),
        slots=rivals.slots,
        multipliers=jnp.where(feasible, rivals.multipliers, 0),
        inverse=rivals.whole.inverse,
        delta=rivals.whole.delta,
        known=found.exactly,
    )
    norm = safe_norm(point.delta)
    multipliers = jnp.where(empty, rivals.multipliers, point.multipliers)
    return ProjectionResult(
        delta=jnp.where(feasible, point.delta, absent(status)),
        norm=jnp.where(feasible, norm, absent(status)),
        multipliers=problem.factor * scatter_slots(rivals.slots[None], multipliers[None], len(problem.offsets))[0],
        feasible=feasible,
        # That of a certificate is relative already.
        kkt_residual=jnp.where(empty, jax.lax.stop_gradient(found.residual), problem.residual(found.residual, norm)),
        status=status,
    )


def _search(problem: Problem) -> Solutions:
    """The active rivals of one sample and target; all vmapped ones are searched together."""

    def search(head_and_mutable, members):
        logits, attributes, targets, margins = members
        samples = jnp.arange(len(targets), dtype=jnp.int32)
        shared, num_slots = shared_by_pairs(*head_and_mutable), max_slots(head_and_mutable[0])
        return search_pairs(shared, logits, attributes, margins, samples, targets, num_slots=num_slots)

    members = (problem.logits, problem.attributes, problem.target, problem.margin)
    return over_members(search)(*jax.lax.stop_gradient(((problem.head, problem.mutable), members)))
