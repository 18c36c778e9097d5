"""The exact minimal change that makes the target win: projection onto its decision region."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, as_problem, check_margin, check_mutable
from spectra_jax.perturbations.active_set import INFEASIBLE, OPTIMAL, make_regions
from spectra_jax.perturbations.batching import over_members, where_rare
from spectra_jax.perturbations.geometry import (
    HIGHEST,
    centred,
    gap_rounding,
    gram_matrix,
    logit_gaps,
    relative_logits,
    safe_norm,
    squared_distances,
)
from spectra_jax.perturbations.pair_queue import Solutions, solve_pairs
from spectra_jax.types import Head

# Trained and random heads at 100-200 classes have 2 to 17 active rivals; pairs with more than this many are solved
# on one after another.
_USUAL_ACTIVE = 32


class ProjectionResult(NamedTuple):
    """The nearest point of a decision region, with its evidence.

    Attributes:
        delta: (n,) smallest change; inf where the region is empty.
        norm: its Euclidean length; inf where the region is empty, NaN where this precision cannot tell (rivals
            that depend on each other up to rounding; float64 settles most of these).
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
    return _project(head, attributes, target, margin, mutable)


@jax.jit  # op by op it would be hundreds of programs, and the loops among them compiled anew at every call
def _project(head: Head, attributes: Array, target: Array, margin: Array, mutable: Array | None) -> ProjectionResult:
    logits = relative_logits(head, attributes[None])[0]
    gaps = logit_gaps(logits, target, margin)
    rows = _centred(head, mutable)

    fixed = jax.lax.stop_gradient
    gram, squares = fixed(gram_matrix(head.weights, mutable)), fixed(squared_distances(head.weights, mutable))
    rank = min(head.weights.shape[1], head.weights.shape[0] - 1)
    rounding = fixed(gap_rounding(logits, target, margin))
    search = over_members(lambda shared, members: _search_pairs(*shared, *members, rank=rank))
    found = search((fixed(rows), gram, squares), (fixed(logits), target, fixed(margin)))
    feasible, empty = found.status == OPTIMAL, found.status == INFEASIBLE

    # The search fixes WHICH rivals are active. Solving for the multipliers on them is the smooth part.
    active = (found.multipliers > 0) & feasible
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
        solve=lambda product, right: _solve_on_active(gram, target, active, product, right, rank=rank),
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
    certificate = found.multipliers
    terms = jnp.sum(certificate * lengths)
    certificate_residual = safe_norm(combine(certificate)) / jnp.where(terms > 0, terms, 1)
    return ProjectionResult(
        delta=jnp.where(feasible, delta, jnp.where(empty, jnp.inf, jnp.nan)),
        norm=jnp.where(feasible, norm, jnp.where(empty, jnp.inf, jnp.nan)),
        multipliers=jnp.where(empty, certificate, multipliers),
        feasible=feasible,
        kkt_residual=fixed(jnp.where(feasible, residual, jnp.where(empty, certificate_residual, jnp.nan))),
    )


class AllPairsResult(NamedTuple):
    """`projection_perturbation` of every sample for every target, without the changes themselves.

    Attributes:
        norms: (b, c) as `all_pairs_norms` gives them.
        feasible: (b, c) whether the target can win by the margin at all; the predicted class counts as feasible.
        num_active: (b, c) rivals that bound the region at the nearest point, or make up an empty one's certificate.
        kkt_residual: (b, c) as in `ProjectionResult`.
    """

    norms: Float[Array, "b c"]
    feasible: Bool[Array, "b c"]
    num_active: Int[Array, "b c"]
    kkt_residual: Float[Array, "b c"]


def all_pairs_projection(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> AllPairsResult:
    """Length of the smallest change of every sample for every target, with the evidence for it.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        AllPairsResult.

    Raises:
        ValueError: shapes do not match, margin negative.
    """
    head, attributes = as_problem(head, attributes, ndim=2)
    check_margin(margin)
    check_mutable(head, mutable)
    return _project_all(head, attributes, jnp.asarray(margin, attributes.dtype), mutable)


@jax.jit
def _project_all(head: Head, attributes: Array, margin: Array, mutable: Array | None) -> AllPairsResult:
    logits = relative_logits(head, attributes)
    rank = min(head.weights.shape[1], head.weights.shape[0] - 1)
    found = _all_targets(
        _centred(head, mutable),
        gram_matrix(head.weights, mutable),
        squared_distances(head.weights, mutable),
        logits,
        margin,
        rank=rank,
        want_multipliers=False,
    )
    predicted = _is_predicted(logits)
    scale = safe_norm(attributes)[:, None] + jnp.where(jnp.isfinite(found.norm), found.norm, 0)
    # The residual of an optimum is a distance; that of a certificate is relative already.
    relative = jnp.where(found.status == INFEASIBLE, 1, jnp.where(scale > 0, scale, 1))
    return AllPairsResult(
        norms=jnp.where(predicted, 0, found.norm),
        feasible=predicted | (found.status == OPTIMAL),
        num_active=jnp.where(predicted, 0, found.num_active),
        kkt_residual=jnp.where(predicted, 0, found.residual / relative),
    )


@jax.jit
def projection_norms(
    head: Head,
    logits: Float[Array, "b c"],
    margin: Float[Array, ""],
    *,
    mutable: Bool[Array, "n"] | None = None,
) -> Float[Array, "b c"]:
    """||projection_perturbation|| for all samples and targets, from the Gram matrix alone.

    By the envelope theorem the first derivative of the squared norm is that of the dual objective with the multipliers
    held fixed. For second derivatives use `projection_perturbation`.

    Returns:
        (b, c); 0 for the predicted class, inf where the target's region is empty, NaN where this precision cannot tell.
    """
    rank = min(head.weights.shape[1], head.weights.shape[0] - 1)
    gram = gram_matrix(head.weights, mutable)
    squares = jax.lax.stop_gradient(squared_distances(head.weights, mutable))
    rows = jax.lax.stop_gradient(_centred(head, mutable))
    norms = _norms(rank, rows, gram, squares, logits, margin)
    return jnp.where(_is_predicted(logits), 0, norms)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _norms(rank, rows, gram, squares, logits, margin):
    return _all_targets(rows, gram, squares, logits, margin, rank=rank, want_multipliers=False).norm


@_norms.defjvp
def _norms_jvp(rank, primals, tangents):
    _, gram_dot, _, logits_dot, margin_dot = tangents
    found = _all_targets(*primals, rank=rank, want_multipliers=True)
    feasible = found.status == OPTIMAL
    assert found.multipliers is not None
    multipliers = jnp.where(feasible[..., None], found.multipliers, 0)
    # ||delta||^2 = 2 lambda . h - v^T K v with v = lambda - sum(lambda) at the target.
    total = jnp.sum(multipliers, axis=-1)
    signed = multipliers - total[..., None] * jnp.eye(total.shape[1], dtype=total.dtype)[None]
    heights_dot = jnp.einsum("bjk,bk->bj", signed, logits_dot, precision=HIGHEST) + total * margin_dot
    product_dot = jnp.sum(jnp.einsum("bjk,km->bjm", signed, gram_dot, precision=HIGHEST) * signed, axis=-1)
    moving = feasible & (found.norm > 0)
    change = (heights_dot - product_dot / 2) / jnp.where(moving, found.norm, 1)
    return found.norm, jnp.where(moving, change, 0)


def _is_predicted(logits: Float[Array, "b c"]) -> Bool[Array, "b c"]:
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return classes[None, :] == jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]


def _centred(head: Head, mutable: Bool[Array, "n"] | None) -> Float[Array, "c n"]:
    rows = centred(head.weights)
    return rows if mutable is None else jnp.where(mutable[None, :], rows, 0)


def _all_targets(rows, gram, squares, logits, margin, *, rank: int, want_multipliers: bool) -> Solutions:
    """Solutions with leading axes (b, c)."""
    num_samples, num_classes = logits.shape
    pairs = jnp.arange(num_samples * num_classes, dtype=jnp.int32)
    regions = make_regions(rows, gram, squares, logits, jnp.broadcast_to(margin, num_samples))
    found = solve_pairs(
        regions, pairs // num_classes, pairs % num_classes, rank=rank, want_multipliers=want_multipliers
    )
    return jax.tree.map(lambda leaf: leaf.reshape(num_samples, num_classes, *leaf.shape[1:]), found)


def _search_pairs(rows, gram, squares, logits, targets, margins, *, rank: int) -> Solutions:
    """Each row of logits with its own target."""
    samples = jnp.arange(len(targets), dtype=jnp.int32)
    regions = make_regions(rows, gram, squares, logits, margins)
    return solve_pairs(regions, samples, targets, rank=rank, want_multipliers=True)


def _solve_on_active(gram, target, active, product, right, *, rank: int):
    """Solves product(x) = right on the active rivals, refined against the true product."""
    num_slots = min(rank, _USUAL_ACTIVE)
    slots = jnp.nonzero(active, size=num_slots, fill_value=0)[0].astype(jnp.int32)
    used = jnp.arange(num_slots, dtype=jnp.int32) < jnp.sum(active, dtype=jnp.int32)

    def differences(shared, target, rivals, mask):
        own = shared[target, rivals]
        matrix = shared[target, target] - own[:, None] - own[None, :] + shared[rivals[:, None], rivals[None, :]]
        return jnp.where(mask[:, None] & mask[None, :], matrix, jnp.eye(len(rivals), dtype=shared.dtype))

    def few(right):
        held = jnp.linalg.solve(differences(gram, target, slots, used), jnp.where(used, right[slots], 0))
        return jnp.where(active, 0, right).at[slots].add(jnp.where(used, held, 0))

    def wide(shared, member):
        target, active, right = member
        return jnp.linalg.solve(differences(shared, target, jnp.arange(len(active), dtype=jnp.int32), active), right)

    def inverse(right):
        answer = few(right)
        if num_slots < rank:
            answer = where_rare(jnp.sum(active) > num_slots, wide, answer, gram, (target, active, right))
        return answer

    answer = inverse(right)
    for _ in range(2):  # each pass squares away the rounding of the solution before
        answer = answer + inverse(right - product(answer))
    return answer
