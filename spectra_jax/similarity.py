"""Structural similarity (SSIM) from dm-pix, with its Gaussian window as two banded matrix products."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectra_jax.checks import as_unit_scale
from spectra_jax.switches import public

WINDOW = 11
_SIGMA = 1.5


@public(rows="images")
def ssim(images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"]) -> Float[Array, " b"]:
    """Mean SSIM of each image with its reference (Wang, Bovik, Sheikh and Simoncelli 2004).

    Gaussian window of 11 pixels and sigma 1.5, population covariance, averaged over channels: scikit-image's
    structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False). dm-pix computes it; only
    the window filter is replaced, by matrix products that are several times faster than its convolutions. In float32 it
    agrees to 1e-6 on photographs and to 3e-5 on images without texture, whose tiny variances are lost in rounding.

    Args:
        images, reference: (b, h, w, channels) in [0, 1], at least 11 pixels per side.

    Returns:
        (b,) in [-1, 1]; 1 for identical images, where the gradient is finite too. In float32 for images of half
        precision.

    Raises:
        ValueError: shapes differ, images not on the scale of [0, 1], or an image is smaller than the window, where
            dm-pix would return nonsense.
    """
    if jnp.shape(images) != jnp.shape(reference) or jnp.ndim(images) != 4:
        raise ValueError(
            f"images is {jnp.shape(images)} and reference {jnp.shape(reference)}; expected one (b, h, w, channels)"
        )
    images, reference = as_unit_scale("images", images), as_unit_scale("reference", reference)
    height, width = images.shape[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(f"images is {height}x{width} pixels; expected at least {WINDOW}x{WINDOW} for SSIM")
    rows, columns = (jnp.asarray(_window_matrix(size), images.dtype) for size in (height, width))

    def filter_window(values):
        return jnp.einsum("ih,bhwk,jw->bijk", rows, values, columns, precision=jax.lax.Precision.HIGHEST)

    # dm-pix compares float64 images with a float32 constant, an error under strict promotion that is not of our making.
    with jax.numpy_dtype_promotion("standard"):
        return dm_pix.ssim(images, reference, filter_fn=filter_window)


def _window_matrix(size: int) -> np.ndarray:
    """(size - 10, size) matrix whose rows slide the normalised Gaussian window over the valid positions."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * np.square(offsets / _SIGMA))
    matrix = np.zeros((size - WINDOW + 1, size))
    for start in range(len(matrix)):
        matrix[start, start : start + WINDOW] = window / window.sum()
    return matrix
