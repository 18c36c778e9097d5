"""Distances for every (sample, target) pair at once, by any of the three methods."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectra_jax.buckets import in_buckets
from spectra_jax.checks import as_problem, check_array, check_choice, check_margin, check_mutable
from spectra_jax.perturbations.all_projections import projection_norms
from spectra_jax.perturbations.boundary import boundary_norms
from spectra_jax.perturbations.geometry import head_logits, of_unit_size, relative_logits, squared_distances
from spectra_jax.perturbations.pinv import pinv_norms
from spectra_jax.switches import public
from spectra_jax.types import Head

METHODS = ("boundary", "pinv", "projection")


@in_buckets
@public(rows="attributes")
def all_pairs_norms(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    method: str = "projection",
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
    logits: Float[Array, "b c"] | None = None,
) -> Float[Array, "b c"]:
    """Length of the counterfactual of every sample for every target class.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        method: "projection" (exact: the target wins), "boundary" (it beats the predicted class; a lower
            bound) or "pinv" (the paper's all-way tie; an upper bound at margin 0 where that tie exists: no bias, or
            rank(C W) = c - 1).
        margin: required lead, in logits.
        mutable: (n,) attributes that may change; "boundary" and "projection" only.
        logits: (b, c) to use in place of W e + b. The paper treats them as a free parameter in training
            (Section 3.1); pass stop_gradient(logits) to differentiate through the weights' geometry alone.

    Returns:
        (b, c) in attribute units; 0 at the predicted class, inf where the target cannot be reached, NaN where an
        input is NaN or float64 cannot tell (see `ProjectionResult`).

    Raises:
        ValueError: shapes do not match, unknown method, margin negative, mutable with "pinv".
    """
    head, attributes = as_problem(head, attributes, ndim=2)
    check_choice("method", method, METHODS)
    check_margin(margin)
    check_mutable(head, mutable)
    if method == "pinv" and mutable is not None:
        raise ValueError('mutable is given with method="pinv"; expected None there: use "boundary" or "projection"')
    if logits is not None:
        check_array("logits", logits)
        wanted = (attributes.shape[0], head.weights.shape[0])
        if logits.shape != wanted:
            raise ValueError(f"logits has shape {logits.shape}; expected {wanted}, one row per sample")
        logits = jnp.asarray(logits, attributes.dtype)
    return _norms(head, attributes, jnp.asarray(margin, attributes.dtype), mutable, logits, method=method)


@functools.partial(jax.jit, static_argnames="method")  # eagerly its loops would be compiled at every call
def _norms(
    head: Head, attributes: Array, margin: Array, mutable: Array | None, logits: Array | None, *, method: str
) -> Array:
    head, margin, factor = of_unit_size(head, margin)
    own_logits = logits is None
    if logits is None:  # exact differences cost about twenty matrix products; the all-way tie has no use for them
        logits = head_logits(head, attributes) if method == "pinv" else relative_logits(head, attributes)
    else:
        logits = logits * factor
    if method == "pinv":
        return pinv_norms(head, logits, margin, own_logits=own_logits)
    if method == "boundary":
        return boundary_norms(squared_distances(head.weights, mutable), logits, margin)
    return projection_norms(head, logits, attributes if own_logits else None, margin, mutable=mutable)
