"""The exact minimal change that makes the target win: projection onto its decision region."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_mutable
from spectra_jax.perturbations.active_set import (
    FULL,
    INFEASIBLE,
    OPTIMAL,
    ActiveSet,
    difference_product,
    solve_active_set,
)
from spectra_jax.perturbations.geometry import (
    HIGHEST,
    centred,
    gap_rounding,
    gram_matrix,
    head_logits,
    logit_gaps,
    safe_norm,
    safe_sqrt,
    squared_distances,
)
from spectra_jax.perturbations.rare import where_rare
from spectra_jax.types import Head

# Trained and random heads at 100-200 classes have 2 to 17 active rivals; pairs that need more are
# re-solved with as many slots as they can ever use.
_USUAL_CAPACITY = 32
# Pairs of a sweep solved side by side: enough to fill a machine, little enough to stay in memory.
_PAIRS_AT_ONCE = 16_384


class ProjectionResult(NamedTuple):
    """The nearest point of a decision region, with its evidence.

    Attributes:
        delta: (n,) smallest change; inf where the region is empty.
        norm: its Euclidean length; inf where the region is empty, NaN where this precision cannot tell (rivals
            that depend on each other up to rounding; float64 settles it).
        multipliers: (c,) Lagrange multipliers, delta = sum_k multipliers_k (w_target - w_k); positive only
            for the rivals that bound the region at this point. For an empty region: the certificate,
            non-negative with sum_k multipliers_k (w_target - w_k) = 0 and a positive sum of gaps.
        feasible: whether the target can win by the margin at all.
        kkt_residual: largest violation of the optimality conditions, relative to ||attributes|| + ||delta||:
            constraint violation as a distance, negative multipliers, complementarity. For an empty region:
            the length of the certificate's combination relative to its terms.
    """

    delta: Float[Array, "n"]
    norm: Float[Array, ""]
    multipliers: Float[Array, "c"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]


class _Solution(NamedTuple):
    """What the search found: multipliers, which rivals are active, the status and how to solve on them."""

    multipliers: Float[Array, "c"]
    active: Bool[Array, "c"]
    status: Int[Array, ""]
    usual: ActiveSet


def projection_perturbation(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""] | int,
    *,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> ProjectionResult:
    """Smallest change (Euclidean) after which `target` beats EVERY other class by `margin`.

    argmin ||delta|| subject to (w_j - w_k).(e + delta) + b_j - b_k >= margin for all k, solved exactly by a
    dual active-set method. With margin 0 the point lies on the region's boundary, a tie; ask for a small
    margin to be classified as the target. The answer scales with e and W.

    Derivatives of any order with respect to weights, bias, attributes and margin come from the
    implicit-function theorem on the active constraints; where the active set changes, it is one-sided.

    In float32 the norm is good to about 1e-6 relative on ordinary heads. Rivals whose facets meet at less than
    5e-3 radians count as one there, which costs up to 1e-3 relative; use float64 where such heads matter.

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
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    logits = head_logits(head, attributes)
    gaps = logit_gaps(logits, target, margin)
    rows = centred(head.weights)
    rows = rows if mutable is None else jnp.where(mutable[None, :], rows, 0)

    fixed = jax.lax.stop_gradient
    gram, squares = fixed(gram_matrix(head.weights, mutable)), fixed(squared_distances(head.weights, mutable))
    rank = min(head.weights.shape[1], head.weights.shape[0] - 1)
    rounding = fixed(gap_rounding(logits, target, margin))
    solution = _search(gram, squares, fixed(gaps), rounding, target, rank=rank)
    feasible = solution.status == OPTIMAL
    empty = solution.status == INFEASIBLE

    # The search fixes WHICH rivals are active. Solving for the multipliers on them is the smooth part.
    active = solution.active & feasible
    heights = jnp.where(active, gaps, 0)

    def combine(multipliers):
        return rows[target] * jnp.sum(multipliers) - jnp.matmul(multipliers, rows, precision=HIGHEST)

    def lead(change):
        return jnp.sum(rows[target] * change) - jnp.matmul(rows, change, precision=HIGHEST)

    def active_product(multipliers):
        product = lead(combine(jnp.where(active, multipliers, 0)))
        return jnp.where(active, product, multipliers)

    multipliers = jax.lax.custom_linear_solve(
        active_product,
        heights,
        solve=lambda product, right: _solve_on_active(gram, target, solution, product, right, rank=rank),
        symmetric=True,
    )
    delta = combine(multipliers)
    norm = safe_norm(delta)

    lengths = jnp.where(gaps == -jnp.inf, 0, jnp.sqrt(squares[target]))
    slack = jnp.where(lengths > 0, (lead(delta) - gaps) / jnp.where(lengths > 0, lengths, 1), 0)
    push = multipliers * lengths
    # min(slack, push) = 0 says it all: no rival is ahead, no multiplier is negative, one of the two is 0.
    violations = jnp.abs(jnp.minimum(slack, push))
    scale = safe_norm(attributes) + norm
    residual = jnp.max(violations) / jnp.where(scale > 0, scale, 1)
    # "Never a wrong number": an answer that rounding has spoilt (near-dependent rivals in float32) is NaN. What the
    # rounding of the logits themselves explains is no such thing.
    excess = violations - 64 * rounding / jnp.where(lengths > 0, lengths, jnp.inf)
    feasible = feasible & (jnp.max(excess) <= 1e-2 * norm)
    certificate = solution.multipliers
    terms = jnp.sum(certificate * lengths)
    certificate_residual = safe_norm(combine(certificate)) / jnp.where(terms > 0, terms, 1)
    return ProjectionResult(
        delta=jnp.where(feasible, delta, jnp.where(empty, jnp.inf, jnp.nan)),
        norm=jnp.where(feasible, norm, jnp.where(empty, jnp.inf, jnp.nan)),
        multipliers=jnp.where(empty, certificate, multipliers),
        feasible=feasible,
        kkt_residual=fixed(jnp.where(feasible, residual, jnp.where(empty, certificate_residual, jnp.nan))),
    )


def projection_norms(
    head: Head,
    logits: Float[Array, "b c"],
    margin: Float[Array, ""],
    *,
    mutable: Bool[Array, "n"] | None = None,
) -> Float[Array, "b c"]:
    """||projection_perturbation|| for all samples and targets, from the Gram matrix alone.

    The squared norm is the dual objective at the optimal multipliers, whose error is the square of theirs;
    by the envelope theorem its first derivative with the multipliers held fixed is exact. For second
    derivatives use `projection_perturbation`.

    Returns:
        (b, c); 0 for the predicted class, inf where the target's region is empty, NaN where this precision cannot tell.
    """
    num_classes, num_attributes = head.weights.shape
    gram, squares = gram_matrix(head.weights, mutable), squared_distances(head.weights, mutable)
    fixed, rank = jax.lax.stop_gradient, min(num_attributes, num_classes - 1)

    def one_pair(logits, target):
        gaps = logit_gaps(logits, target, margin)
        rounding = fixed(gap_rounding(logits, target, margin))
        solution = _search(fixed(gram), fixed(squares), fixed(gaps), rounding, target, rank=rank)
        multipliers = fixed(solution.multipliers)
        feasible = solution.status == OPTIMAL
        product = difference_product(gram, target, multipliers)
        dual = jnp.sum(multipliers * (2 * jnp.where(gaps == -jnp.inf, 0, gaps) - product))
        norm = safe_sqrt(jnp.where(feasible, jnp.maximum(dual, 0), 0))
        return jnp.where(feasible, norm, jnp.where(solution.status == INFEASIBLE, jnp.inf, jnp.nan))

    classes = jnp.arange(num_classes, dtype=jnp.int32)

    def one_sample(logits):
        return jax.vmap(one_pair, in_axes=(None, 0))(logits, classes)

    norms = jax.lax.map(one_sample, logits, batch_size=max(1, _PAIRS_AT_ONCE // num_classes))
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(classes[None, :] == predicted[:, None], 0, norms)


def _search(gram, squares, gaps, rounding, target, *, rank: int) -> _Solution:
    """Active set of one pair, re-solved with full capacity in the rare case that the usual one overflows."""
    num_classes = gram.shape[0]
    capacity = min(rank, _USUAL_CAPACITY)
    max_steps = 64 + 8 * rank
    usual = solve_active_set(
        gram, squares[target], gaps, rounding, target, capacity=capacity, complete=capacity == rank, max_steps=max_steps
    )

    def outcome(result: ActiveSet):
        occupied = (result.slots[:, None] == jnp.arange(num_classes, dtype=jnp.int32)[None, :]) & result.used[:, None]
        return result.multipliers, jnp.any(occupied, axis=0), result.status

    def wide(shared, pair):
        gram, squares = shared
        gaps, rounding, target = pair
        return outcome(
            solve_active_set(
                gram, squares[target], gaps, rounding, target, capacity=rank, complete=True, max_steps=max_steps
            )
        )

    multipliers, active, status = outcome(usual)
    if capacity < rank:
        multipliers, active, status = where_rare(
            usual.status == FULL, wide, (multipliers, active, status), (gram, squares), (gaps, rounding, target)
        )
    return _Solution(multipliers, active, status, usual)


def _solve_on_active(gram, target, solution: _Solution, product, right, *, rank: int):
    """Solves product(x) = right on the active rivals, refined against the true product."""
    usual = solution.usual

    def approximate(right):
        held = jnp.matmul(usual.inverse, jnp.where(usual.used, right[usual.slots], 0), precision=HIGHEST)
        return jnp.where(solution.active, 0, right).at[usual.slots].add(jnp.where(usual.used, held, 0))

    def wide(shared, member):
        target, active, right = member
        differences = shared[target, target] - shared[target][:, None] - shared[target][None, :] + shared
        both = active[:, None] & active[None, :]
        return jnp.linalg.solve(jnp.where(both, differences, jnp.eye(len(active), dtype=shared.dtype)), right)

    def inverse(right):
        answer = approximate(right)
        if usual.used.shape[0] < rank:
            answer = where_rare(usual.status == FULL, wide, answer, gram, (target, solution.active, right))
        return answer

    answer = inverse(right)
    for _ in range(2):  # each pass squares away the rounding of the inverse built up step by step
        answer = answer + inverse(right - product(answer))
    return answer
