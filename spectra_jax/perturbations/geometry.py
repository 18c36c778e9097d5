"""What every perturbation is made of: logits, logit gaps and distances between class weight vectors.

Only differences of weight rows ever matter, so rows are centred first: without it, a common offset of
the rows would swamp their differences in float32. Products run at full precision because TF32 or
bfloat16, the default on GPU and TPU, would silently spoil a solver.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import check_attributes
from spectra_jax.types import Head

HIGHEST = jax.lax.Precision.HIGHEST


def head_logits(head: Head, attributes: Float[Array, "... n"]) -> Float[Array, "... c"]:
    """Class logits W e + b.

    Args:
        head: weights (c, n) and optional bias (c,).
        attributes: (..., n) unnormalised attribute values.

    Returns:
        (..., c).

    Raises:
        ValueError: the widths do not match.
    """
    check_attributes(head, attributes)
    logits = jnp.einsum("...n,cn->...c", attributes, head.weights, precision=HIGHEST)
    return logits if head.bias is None else logits + jnp.broadcast_to(head.bias, logits.shape)


def centred(weights: Float[Array, "c n"]) -> Float[Array, "c n"]:
    """Weights minus their mean row: the same row differences with the least rounding."""
    return weights - jnp.mean(weights, axis=0, keepdims=True)


def gram_matrix(weights: Float[Array, "c n"], mutable: Bool[Array, "n"] | None = None) -> Float[Array, "c c"]:
    """Inner products of the centred weight rows, restricted to the attributes that may change."""
    rows = centred(weights)
    if mutable is not None:
        rows = jnp.where(mutable[None, :], rows, 0)
    return jnp.matmul(rows, rows.T, precision=HIGHEST)


def squared_distances(weights: Float[Array, "c n"], mutable: Bool[Array, "n"] | None = None) -> Float[Array, "c c"]:
    """Squared distances ||w_j - w_k||^2 between all rows, over the attributes that may change.

    Taken from the differences themselves: K_jj - 2 K_jk + K_kk loses all digits for nearly equal rows.
    """
    rows = weights if mutable is None else jnp.where(mutable[None, :], weights, 0)
    return jax.lax.map(lambda row: jnp.sum(jnp.square(row[None, :] - rows), axis=-1), rows)


def logit_gaps(logits: Float[Array, "c"], target: Int[Array, ""], margin: Float[Array, ""]) -> Float[Array, "c"]:
    """How much each rival is ahead of the target, l_k - l_target + margin; -inf for the target itself.

    The target wins by the margin exactly where every gap is <= 0.
    """
    rivals = jnp.arange(logits.shape[0], dtype=target.dtype) != target
    return jnp.where(rivals, logits - logits[target] + margin, -jnp.inf)


def gap_rounding(logits: Float[Array, "c"], target: Int[Array, ""], margin: Float[Array, ""]) -> Float[Array, "c"]:
    """Rounding error to expect in each of `logit_gaps`: that of the numbers it is the difference of.

    Each rival has its own, so that one class that is far behind, or masked by a large negative bias, does not blur
    the others.
    """
    return float(jnp.finfo(logits.dtype).eps) * (jnp.abs(logits) + jnp.abs(logits[target]) + margin)


def safe_norm(vectors: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Euclidean norm over the last axis whose gradient at zero is zero rather than NaN."""
    squares = jnp.sum(jnp.square(vectors), axis=-1)
    return safe_sqrt(squares)


def safe_sqrt(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose gradient at zero is zero rather than infinite; NaN stays NaN."""
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))
