"""Pictures as the page needs them: read on demand, small ones for the grid, PNG for the rest."""

import functools
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

THUMBNAIL = 96  # pixels
_KEPT = 4096  # thumbnails of 3 kB


class Pictures(NamedTuple):
    """Pictures by number, with what is known about them.

    Attributes:
        read: numbers (k,) -> (k, h, w, 3) at the size that the model sees.
        labels: (N,) class of each.
    """

    read: Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k h w 3"]]
    labels: Int[np.ndarray, " N"]

    def one(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """A single picture."""
        return self.read(np.array([number]))[0]


class Thumbnails:
    """Small pictures, made as they are asked for."""

    def __init__(self, pictures: Pictures):
        self.get = functools.lru_cache(_KEPT)(functools.partial(_thumbnail, pictures))


def _thumbnail(pictures: Pictures, number: int) -> bytes:
    image = Image.fromarray(pictures.one(number))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def as_png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def to_bytes(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in [0, 1] on 256 levels."""
    return np.round(np.clip(np.asarray(image, float), 0, 1) * 255).astype(np.uint8)


class Difference(NamedTuple):
    """What changed in a picture.

    Attributes:
        pixels: 128 where nothing changed.
        factor: by which the change is amplified.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    factor: float


def difference(before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]) -> Difference:
    """The change, amplified so that the largest one is the most that can be shown, but never made smaller."""
    change = after.astype(float) - before
    largest = np.abs(change).max()
    factor = max(1.0, 127 / largest) if largest else 1.0
    return Difference(np.round(128 + np.clip(factor * change, -128, 127)).astype(np.uint8), float(factor))
