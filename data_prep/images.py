"""Reads image files of any kind that Pillow supports as upright 8-bit RGB, and encodes what is stored."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_prep.problems import DataError

MAX_PIXELS = 50_000_000  # CUB's photographs have 250,000
_ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held


def load(path: Path) -> Image.Image:
    """Decodes the whole file, which is what finds a truncated one.

    Raises:
        DataError: naming the file that is missing, damaged or too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,}, as more "
                    "takes long and much memory: make it smaller"
                )
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; it was there when the folder was listed") from error
    except DataError:
        raise
    except Exception as error:  # a damaged file can fail in any way inside a decoder; all of them mean the same here
        raise DataError(f"{path}: not a whole image file ({error}); expected a JPEG or PNG that decodes") from error


def encoded(path: Path, image: Image.Image) -> bytes:
    """The file's own bytes where it is an RGB JPEG or PNG; otherwise (grayscale, palette, ...) an RGB PNG, lossless."""
    if image.mode == "RGB" and image.format in ("JPEG", "PNG") and "transparency" not in image.info:
        return path.read_bytes()
    return _saved(rgb(path, image), "PNG")


def encoded_upright(path: Path, image: Image.Image) -> bytes:
    """As `encoded`, and turned as its EXIF orientation says; a turned JPEG is written as one of quality 95."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return encoded(path, image)
    turned = ImageOps.exif_transpose(image)
    return as_jpeg(rgb(path, turned)) if image.format == "JPEG" else _saved(rgb(path, turned), "PNG")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what `encoded_upright` shows."""
    sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else image.size


def as_jpeg(image: Image.Image) -> bytes:
    """An RGB image as JPEG of quality 95 without chroma subsampling, so that a 224 px model loses nothing visible."""
    return _saved(image, "JPEG", quality=95, subsampling=0)


def rgb(path: Path, image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB: transparent pixels on white, 16 bits of grey divided by 257.

    Raises:
        DataError: for floating-point or 32-bit pixels, which have no scale of their own.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{path}: grey values from {grey.min()} to {grey.max()}; expected 0 to 65535: rescale them")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels, of which no range is known; expected 8 or 16 bits: convert it")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
