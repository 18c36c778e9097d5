"""Which pixels an attribute depends on (Section 2.4)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectra_jax.checks import at_least_float32, check_images, is_concrete
from spectra_jax.switches import public


@public(rows="images")
def activation_map(
    encode_fn: Callable[[Float[Array, "b h w k"]], Float[Array, "b n"]],
    images: Float[Array, "b h w k"],
    attribute: int | Int[Array, ""],
    *,
    top_k: int | None = 500,
) -> Float[Array, "b h w"]:
    """Magnitude of d e_f / d x at each pixel, kept for the `top_k` strongest pixels (Section 2.4).

    A gradient says where an infinitesimal change acts, not where the evidence is: read it together with a measure that
    actually changes pixels.

    Args:
        encode_fn: images -> attributes (b, n).
        images: (b, h, w, channels) in [0, 1].
        attribute: index f of the attribute.
        top_k: pixels to keep per image, the paper's 500 by default; None keeps all. Ties keep the first.

    Returns:
        (b, h, w), the largest absolute derivative over channels; 0 at pixels not kept; in float32 for images of half
        precision.

    Raises:
        ValueError: images not (b, h, w, channels) in [0, 1], attribute out of range, top_k not positive.
    """
    check_images(images)
    num_attributes = jax.eval_shape(encode_fn, images).shape[-1]
    if not jnp.issubdtype(jnp.result_type(attribute), jnp.integer) or jnp.ndim(attribute) != 0:
        raise ValueError(f"attribute is {attribute}; expected one integer index")
    if is_concrete(attribute) and not 0 <= int(attribute) < num_attributes:
        raise ValueError(f"attribute is {attribute}; expected an index from 0 to {num_attributes - 1}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None for all pixels")
    index = jnp.asarray(attribute, jnp.int32)  # a small type cannot count to the number of attributes
    gradient = at_least_float32(jax.grad(lambda pixels: jnp.sum(encode_fn(pixels)[:, index]))(images))
    strength = jnp.max(jnp.abs(gradient), axis=-1)
    pixels = strength.reshape(len(images), -1)
    if top_k is None or top_k >= pixels.shape[1]:
        return strength
    values, places = jax.lax.top_k(pixels, top_k)
    kept = jax.vmap(lambda row, place, value: row.at[place].set(value))(jnp.zeros_like(pixels), places, values)
    return kept.reshape(strength.shape)
