"""Turns photographs into the encoded bytes that are stored."""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_prep.cub_tables import CubError

MAX_PIXELS = 50_000_000  # CUB's photographs have 250,000


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
    image = _load(path)
    return StoredImage(_encoded(path, image), (0, 0), (1, 1), clip_box(path, box, image.size))


def box_crop(path: Path, box: Float[np.ndarray, "4"]) -> StoredImage:
    """The photograph cut to its box (outwards to whole pixels, inside the frame) at its own resolution.

    It is encoded again as JPEG of quality 95 without chroma subsampling, so that a 224 px model loses nothing visible.
    """
    image = _load(path)
    x, y, width, height = clip_box(path, box, image.size)
    left, top = math.floor(x), math.floor(y)
    crop = image.crop((left, top, math.ceil(x + width), math.ceil(y + height))).convert("RGB")
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=95, subsampling=0)
    return StoredImage(buffer.getvalue(), (left, top), (1, 1), (x, y, width, height))


def ready_made_crop(path: Path, box: Float[np.ndarray, "4"]) -> StoredImage:
    """A file that already shows the box and nothing else, resized to any size; stored as it is."""
    image = _load(path)
    x, y, width, height = (float(value) for value in box)
    return StoredImage(
        _encoded(path, image), (x, y), (image.width / width, image.height / height), (x, y, width, height)
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


def _load(path: Path) -> Image.Image:
    """Decodes the whole file, which is what finds a truncated one."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CubError(
                    f"{path}: {image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,}, as more "
                    "takes long and much memory: make it smaller"
                )
            image.load()
            return image
    except FileNotFoundError as error:
        raise CubError(f"{path}: missing; it was there when the folder was listed") from error
    except CubError:
        raise
    except Exception as error:  # a damaged file can fail in any way inside a decoder; all of them mean the same here
        raise CubError(f"{path}: not a whole image file ({error}); expected a JPEG or PNG that decodes") from error


def _encoded(path: Path, image: Image.Image) -> bytes:
    """The file's own bytes where it is an RGB JPEG or PNG; otherwise (grayscale, palette, ...) an RGB PNG, lossless."""
    if image.mode == "RGB" and image.format in ("JPEG", "PNG"):
        return path.read_bytes()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
