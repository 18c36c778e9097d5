"""Arrays to pictures inside the page: 8-bit conversion, data URIs and signed difference pictures."""

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# Larger pictures are photographs whose lossless size would dominate the page; smaller ones stay exact.
LARGEST_PNG_SIDE = 128
_THUMBNAIL_SIDE = 64
_TOLERANCE = 1e-3


class Picture8(NamedTuple):
    """An 8-bit picture and how many of its values had to be drawn grey because they were not finite."""

    pixels: NDArray[np.uint8]
    num_not_finite: int


class Difference(NamedTuple):
    """Counterfactual minus original, drawn around grey.

    Attributes:
        pixels: (h, w, 3) uint8: 128 + 255 * amplification * difference, clipped.
        amplification: the factor.
        largest: largest absolute difference of a channel, in [0, 1].
    """

    pixels: NDArray[np.uint8]
    amplification: int
    largest: float


def to_float(image: ArrayLike) -> NDArray[np.float32]:
    """An image as (h, w, 3) or (h, w, 1) floats; the range and shape are checked, non-finite values kept.

    Raises:
        ValueError: for another shape, or values outside [0, 1] (floats) or of a type other than float, uint8 or bool.
    """
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"an image must be (h, w, 3), (h, w, 1) or (h, w) with h, w > 0, got shape {np.shape(image)}")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind not in "fb":
        raise ValueError(f"an image must be floats in [0, 1] or uint8, got {array.dtype}")
    array = np.asarray(array, np.float32)
    finite = array[np.isfinite(array)]
    if finite.size and (finite.min() < -_TOLERANCE or finite.max() > 1 + _TOLERANCE):
        low, high = finite.min(), finite.max()
        raise ValueError(f"image values must lie in [0, 1], got [{low:.4g}, {high:.4g}]; divide 0-255 floats by 255")
    return array


def to_uint8(image: ArrayLike) -> Picture8:
    """An image rounded to 8 bits; values that are not finite become mid grey and are counted."""
    array = to_float(image)
    bad = ~np.isfinite(array)
    pixels = np.rint(np.clip(np.where(bad, 0.5, array), 0, 1) * 255).astype(np.uint8)
    return Picture8(pixels, int(bad.sum()))


def difference_picture(
    original: ArrayLike, counterfactual: ArrayLike, *, amplification: int | None = None
) -> Difference:
    """The signed change of each channel around grey: brighter where the counterfactual is brighter.

    Args:
        original: (h, w, 3).
        counterfactual: same shape; values that are not finite are drawn as no change.
        amplification: a factor, or None for the largest of 1, 2, 5, 10, ... 500 that leaves 99 % of values unclipped.

    Returns:
        The picture, its factor, and the largest change.
    """
    before, after = to_float(original), to_float(counterfactual)
    if before.shape != after.shape:
        raise ValueError(f"original {before.shape} and counterfactual {after.shape} differ in shape")
    change = np.nan_to_num(after - before, nan=0.0, posinf=0.0, neginf=0.0)
    if amplification is None:
        typical = max(float(np.quantile(np.abs(change), 0.99)), 1e-9)
        steps = (1, 2, 5, 10, 20, 50, 100, 200, 500)
        amplification = max((a for a in steps if a * typical <= 0.5), default=1) if change.any() else 1
    pixels = np.rint(np.clip(128 + 255 * amplification * change, 0, 255)).astype(np.uint8)
    return Difference(pixels, amplification, float(np.abs(change).max()))


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture shrunk to at most 64 pixels per side."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
    small = np.asarray(picture)
    return small.reshape(*small.shape[:2], -1)


def image_format(pixels: NDArray[np.uint8]) -> str:
    """ "png" for small pictures, "jpeg" for larger ones."""
    return "png" if max(pixels.shape[:2]) <= LARGEST_PNG_SIDE else "jpeg"


def data_uri(pixels: NDArray[np.uint8], *, format: str = "auto") -> str:
    """A uint8 (h, w, 3) or (h, w, 1) picture as a data URI.

    Args:
        pixels: the picture.
        format: "png" (exact), "jpeg" (quality 92, full colour resolution) or "auto" (see `image_format`).
    """
    if format == "auto":
        format = image_format(pixels)
    if format not in ("png", "jpeg"):
        raise ValueError(f'format must be "auto", "png" or "jpeg", got {format!r}')
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    if format == "png":
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=92, subsampling=0)
    return f"data:image/{format};base64,{base64.b64encode(file.getvalue()).decode()}"
