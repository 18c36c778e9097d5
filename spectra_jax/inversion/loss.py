"""What an inversion lowers (Section 2.6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from spectra_jax import similarity


def inversion_loss(
    attributes: Float[Array, "b n"],
    wanted: Float[Array, "b n"],
    images: Float[Array, "b h w k"],
    originals: Float[Array, "b h w k"],
    *,
    ssim_weight: float,
) -> Float[Array, " b"]:
    """MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)) of each sample.

    Args:
        attributes, wanted: (b, n) phi(x') and e + delta, or both as changes of phi(x).
        images, originals: (b, h, w, channels) x' and x.
        ssim_weight: lambda; 0 leaves SSIM out, which small images do not have.

    Returns:
        (b,).
    """
    loss = jnp.mean(jnp.square(attributes - wanted), axis=-1)
    return loss + ssim_weight * (1 - similarity.ssim(images, originals)) if ssim_weight > 0 else loss
