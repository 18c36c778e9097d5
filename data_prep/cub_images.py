"""Turns photographs into the encoded bytes that are stored."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_prep.cub_tables import CubError
from data_prep.images import as_jpeg, encoded, load, rgb


class StoredImage(NamedTuple):
    """One encoded RGB image and how it maps to the full frame: stored = (frame - offset) * scale.

    Attributes:
        encoded: bytes of a JPEG or PNG file.
        offset: (x, y) of the stored image's corner in pixels of the full frame.
        scale: stored pixels for each pixel of the full frame, (x, y).
        box: x, y, width, height in pixels of the full frame, clipped to the frame where that is known.
    """

    encoded: bytes
    offset: tuple[float, float]
    scale: tuple[float, float]
    box: tuple[float, float, float, float]


def full_frame(path: Path, box: Float[np.ndarray, "4"]) -> StoredImage:
    """The photograph as it is."""
    image = load(path)
    return StoredImage(encoded(path, image), (0, 0), (1, 1), clip_box(path, box, image.size))


def box_crop(path: Path, box: Float[np.ndarray, "4"]) -> StoredImage:
    """The photograph cut to its box (outwards to whole pixels, inside the frame) at its own resolution."""
    image = load(path)
    x, y, width, height = clip_box(path, box, image.size)
    left, top = math.floor(x), math.floor(y)
    crop = rgb(path, image.crop((left, top, math.ceil(x + width), math.ceil(y + height))))
    return StoredImage(as_jpeg(crop), (left, top), (1, 1), (x, y, width, height))


def ready_made_crop(path: Path, box: Float[np.ndarray, "4"]) -> StoredImage:
    """A file that already shows the box and nothing else, resized to any size; stored as it is."""
    image = load(path)
    x, y, width, height = (float(value) for value in box)
    return StoredImage(
        encoded(path, image), (x, y), (image.width / width, image.height / height), (x, y, width, height)
    )


def clip_box(path: Path, box: Float[np.ndarray, "4"], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box (x, y, width, height) clipped to a frame of `size` (width, height) pixels.

    Raises:
        CubError: where nothing of the box is inside.
    """
    left, top = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
    right, bottom = min(float(box[0] + box[2]), size[0]), min(float(box[1] + box[3]), size[1])
    if right - left < 1 or bottom - top < 1:
        shown = " ".join(f"{value:g}" for value in box)
        raise CubError(f"{path}: the box {shown} (x y width height) misses the image of {size[0]}x{size[1]} pixels")
    return left, top, right - left, bottom - top
