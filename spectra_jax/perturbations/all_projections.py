"""Lengths of the exact minimal changes for all samples and targets at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.buckets import in_buckets
from spectra_jax.checks import as_problem, check_margin, check_mutable
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import (
    HIGHEST,
    are_finite,
    gram_matrix,
    is_predicted,
    of_unit_size,
    relative_logits,
    safe_norm,
)
from spectra_jax.perturbations.lanes import scatter_slots
from spectra_jax.perturbations.pair_search import Solutions, search_pairs, shared_by_pairs
from spectra_jax.switches import public
from spectra_jax.types import Head, Status


class AllPairsResult(NamedTuple):
    """`projection_perturbation` of every sample for every target, without the changes themselves.

    Attributes:
        norms: (b, c) as `all_pairs_norms` gives them.
        num_active: (b, c) rivals that bound the region at the nearest point, or make up an empty one's certificate.
        kkt_residual: (b, c) as in `ProjectionResult`.
        status: (b, c) as in `ProjectionResult`; SOLVED for the predicted class.
    """

    norms: Float[Array, "b c"]
    num_active: Int[Array, "b c"]
    kkt_residual: Float[Array, "b c"]
    status: Int[Array, "b c"]

    @property
    def feasible(self) -> Bool[Array, "b c"]:
        """Whether the target can win by the margin at all."""
        return self.status == Status.SOLVED


@in_buckets
@public(rows="attributes")
def all_pairs_projection(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
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
    head, margin, _ = of_unit_size(head, margin)
    logits = relative_logits(head, attributes)
    found = _all_targets(head, logits, attributes, margin, mutable)
    predicted = is_predicted(logits)
    relative = formulas.relative_residual(found.residual, safe_norm(attributes)[:, None], found.norm)
    status = jnp.where(predicted, Status.SOLVED, found.status)
    return AllPairsResult(
        norms=jnp.where(predicted, 0, found.norm),
        num_active=jnp.where(predicted, 0, found.num_active),
        # The residual of an optimum is a distance; that of a certificate is relative already.
        kkt_residual=jnp.where(predicted, 0, jnp.where(found.status == Status.INFEASIBLE, found.residual, relative)),
        status=jnp.where(are_finite(head, attributes, margin)[:, None], status, Status.NOT_FINITE),
    )


@jax.jit
def projection_norms(
    head: Head,
    logits: Float[Array, "b c"],
    attributes: Float[Array, "b n"] | None,
    margin: Float[Array, ""],
    *,
    mutable: Bool[Array, " n"] | None = None,
) -> Float[Array, "b c"]:
    """||projection_perturbation|| for all samples and targets.

    By the envelope theorem the first derivative of the squared norm is that of the dual objective with the multipliers
    kept as they are. For second derivatives use `projection_perturbation`.

    Args:
        head: weights (c, n), optional bias (c,).
        logits: (b, c), up to a number common to each sample.
        attributes: (b, n) that they were computed from; None where the logits are what is given.
        margin: required lead, in logits.
        mutable: (n,) attributes that may change.

    Returns:
        (b, c); 0 for the predicted class, inf where the target's region is empty, NaN where it is unresolved.
    """
    predicted = is_predicted(logits)
    gram = gram_matrix(head.weights, mutable)
    norms = _norms(jax.lax.stop_gradient((head, attributes, mutable)), gram, logits, margin)
    return jnp.where(predicted, 0, norms)


@jax.custom_jvp
def _norms(problem, gram, logits, margin):
    head, attributes, mutable = problem
    return _all_targets(head, logits, attributes, margin, mutable).norm


@_norms.defjvp
def _norms_jvp(primals, tangents):
    (head, attributes, mutable), _, logits, margin = primals
    _, gram_dot, logits_dot, margin_dot = tangents
    found = _all_targets(head, logits, attributes, margin, mutable, want_multipliers=True)
    feasible = found.status == Status.SOLVED
    rivals = found.proof
    slots, multipliers = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (rivals.slots, rivals.multipliers))
    multipliers = scatter_slots(slots, multipliers, logits.shape[1]).reshape(*feasible.shape, logits.shape[1])
    multipliers = jnp.where(feasible[..., None], multipliers, 0)
    # ||delta||^2 = 2 lambda . h - v^T K v with v = lambda - sum(lambda) at the target.
    total = jnp.sum(multipliers, axis=-1)
    signed = multipliers - total[..., None] * jnp.eye(total.shape[1], dtype=total.dtype)[None]
    offsets_dot = jnp.einsum("bjk,bk->bj", signed, logits_dot, precision=HIGHEST) + total * margin_dot
    product_dot = jnp.sum(jnp.einsum("bjk,km->bjm", signed, gram_dot, precision=HIGHEST) * signed, axis=-1)
    moving = feasible & (found.norm > 0)
    change = (offsets_dot - product_dot / 2) / jnp.where(moving, found.norm, 1)
    return found.norm, jnp.where(moving, change, 0)


def _all_targets(head, logits, attributes, margin, mutable, *, want_multipliers: bool = False) -> Solutions:
    """Solutions with leading axes (b, c)."""

    @jax.custom_batching.sequential_vmap
    def search(head, logits, attributes, margin, mutable):
        num_samples, num_classes = logits.shape
        pairs = jnp.arange(num_samples * num_classes, dtype=jnp.int32)
        found = search_pairs(
            shared_by_pairs(head, mutable),
            logits,
            attributes,
            jnp.broadcast_to(margin, num_samples),
            pairs // num_classes,
            pairs % num_classes,
            num_slots=min(head.weights.shape[1], num_classes - 1) + 1 if want_multipliers else None,
            want_pattern=False,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(num_samples, num_classes, *leaf.shape[1:]), found)

    return search(*jax.lax.stop_gradient((head, logits, attributes, margin, mutable)))
