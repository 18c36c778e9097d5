"""What every perturbation is made of: logits, their differences, and distances between class weight vectors.

Only differences of weight rows ever matter, so rows are centred first: without it, a common offset of
the rows would swamp their differences in float32. Products run at full precision because TF32 or
bfloat16, the default on GPU and TPU, would silently spoil a solver.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectra_jax.checks import at_least_float32, check_attributes
from spectra_jax.switches import public
from spectra_jax.types import Head

HIGHEST = jax.lax.Precision.HIGHEST


@public(rows="attributes")
def head_logits(head: Head, attributes: Float[Array, "... n"]) -> Float[Array, "... c"]:
    """Class logits W e + b.

    Args:
        head: weights (c, n) and optional bias (c,).
        attributes: (..., n) unnormalised attribute values.

    Returns:
        (..., c), in float32 for half precision.

    Raises:
        ValueError: the widths do not match.
    """
    check_attributes(head, attributes)
    head, attributes = at_least_float32((head, attributes))
    logits = jnp.einsum("...n,cn->...c", attributes, head.weights, precision=HIGHEST)
    return logits if head.bias is None else logits + jnp.broadcast_to(head.bias, logits.shape)


def relative_logits(head: Head, attributes: Float[Array, "b n"]) -> Float[Array, "b c"]:
    """Class logits less the largest of each sample, every difference good to the last digits of its own type.

    A sample next to a boundary has two logits that agree in most digits. Their difference decides its distance, and
    taken from rounded logits it keeps as few digits as are left; that of two classes of equal weights is not even 0,
    as the order of a sum depends on its place in a matrix. Here products are summed exactly: weights and attributes
    are cut into slices of so few bits that each product of slices is an integer below 2^24, or 2^53 in float64 (Ozaki,
    Ogita, Oishi and Rump 2012). Smaller types take the plain difference.

    Args:
        head: weights (c, n) and optional bias (c,).
        attributes: (b, n) unnormalised attribute values.

    Returns:
        (b, c), 0 at the largest; differentiable as the plain difference.
    """
    plain = head_logits(head, attributes)
    plain = plain - jnp.max(plain, axis=-1, keepdims=True)
    if plain.dtype not in (jnp.float32, jnp.float64):
        return plain
    exact = _exact_differences(*jax.lax.stop_gradient((head, attributes)))
    # The value of the one with the derivative of the other; -inf, a class that never wins, has none.
    return jnp.where(jnp.isfinite(plain), exact + (plain - jax.lax.stop_gradient(plain)), exact)


def _exact_differences(head: Head, attributes: Float[Array, "b n"]) -> Float[Array, "b c"]:
    digits = jnp.finfo(attributes.dtype).nmant + 1
    num_bits = (digits - (attributes.shape[-1] - 1).bit_length()) // 2
    num_slices = -(-(digits + 10) // num_bits)  # ten more bits than a number has, below the largest of each row
    left, right = _slices(attributes, num_bits, num_slices), _slices(head.weights, num_bits, num_slices)
    high = jnp.zeros((len(attributes), len(head.weights)), attributes.dtype)
    low = high
    # Slice i holds the bits below 2^(-i num_bits): those products that matter least come first.
    for order in reversed(range(num_slices)):
        for i in range(order + 1):
            high, low = _add(high, low, jnp.matmul(left[i], right[order - i].T, precision=HIGHEST))
    if head.bias is not None:
        high, low = _add(high, low, jnp.broadcast_to(head.bias, high.shape))
    best = jnp.argmax(high, axis=-1)[:, None]
    top_high, top_low = jnp.take_along_axis(high, best, 1), jnp.take_along_axis(low, best, 1)
    # A class masked by a bias of -inf stays so; the rounding of an infinite sum is NaN and means nothing.
    difference = (high - top_high) + jnp.where(jnp.isfinite(high), low - top_low, 0)
    return difference - jnp.max(difference, axis=-1, keepdims=True)


def _slices(rows: Float[Array, "r n"], num_bits: int, num_slices: int) -> list[Float[Array, "r n"]]:
    """Parts of `num_bits` bits that add up to the rows, on a grid common to each row."""
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1))
    parts = []
    for number in range(1, num_slices + 1):
        grid = exponent - number * num_bits
        part = jnp.ldexp(jnp.round(jnp.ldexp(rows, -grid)), grid)
        rows = rows - part
        parts.append(part)
    return parts


def _add(high: Array, low: Array, term: Array) -> tuple[Array, Array]:
    """high + low + term as a sum and its rounding error (Knuth's two-sum)."""
    total = high + term
    seen = total - high
    return total, low + ((high - (total - seen)) + (term - seen))


def of_unit_size(head: Head, margin: Float[Array, "..."]) -> tuple[Head, Float[Array, "..."], Float[Array, ""]]:
    """The same head and margin, times a power of two that brings the largest weight between 1/2 and 1.

    No distance changes, and squares of weights as small as 1e-20 or as large as 1e19 stay what float32 can hold.

    Returns:
        The head, the margin, and the factor; multipliers of the scaled problem times the factor are those of the given
        one.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(head.weights)))
    _, exponent = jnp.frexp(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1))
    limit = -jnp.finfo(largest.dtype).minexp
    factor = jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -limit, limit))
    bias = None if head.bias is None else head.bias * factor
    return Head(head.weights * factor, bias), margin * factor, factor


def is_predicted(logits: Float[Array, "b c"]) -> Bool[Array, "b c"]:
    """Marks the class with the largest logit of each sample, the first among equals."""
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return classes[None, :] == jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]


def are_finite(head: Head, attributes: Float[Array, "... n"], margin: Float[Array, ""]) -> Bool[Array, "..."]:
    """Whether everything that a sample's answers depend on is a number; a bias of -inf only masks its class."""
    head, attributes, margin = jax.lax.stop_gradient((head, attributes, margin))
    of_all = jnp.all(jnp.isfinite(head.weights)) & (margin < jnp.inf)
    if head.bias is not None:
        of_all = of_all & jnp.all(head.bias < jnp.inf)
    return of_all & jnp.all(jnp.isfinite(attributes), axis=-1)


def centred(weights: Float[Array, "c n"]) -> Float[Array, "c n"]:
    """Weights minus their mean row: the same row differences with the least rounding."""
    return weights - jnp.mean(weights, axis=0, keepdims=True)


def gram_matrix(weights: Float[Array, "c n"], mutable: Bool[Array, " n"] | None = None) -> Float[Array, "c c"]:
    """Inner products of the centred weight rows, restricted to the attributes that may change."""
    rows = centred(weights)
    if mutable is not None:
        rows = jnp.where(mutable[None, :], rows, 0)
    return jnp.matmul(rows, rows.T, precision=HIGHEST)


def squared_distances(weights: Float[Array, "c n"], mutable: Bool[Array, " n"] | None = None) -> Float[Array, "c c"]:
    """Squared distances ||w_j - w_k||^2 between all rows, over the attributes that may change.

    Taken from the differences themselves: K_jj - 2 K_jk + K_kk loses all digits for nearly equal rows.
    """
    rows = weights if mutable is None else jnp.where(mutable[None, :], weights, 0)
    return jax.lax.map(lambda row: jnp.sum(jnp.square(row[None, :] - rows), axis=-1), rows)


def safe_norm(vectors: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Euclidean norm over the last axis whose gradient at zero is zero rather than NaN."""
    squares = jnp.sum(jnp.square(vectors), axis=-1)
    return safe_sqrt(squares)


def safe_sqrt(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose gradient at zero is zero rather than infinite; NaN stays NaN."""
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))
