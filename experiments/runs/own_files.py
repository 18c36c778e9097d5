"""The files of your own model: function, head, names and images."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from spectra_jax import Head
from spectra_jax.array_files import SourceError
from spectra_jax.sweep_sources import read_head

_EXPECTED = "expected an .npz with `images` (N, side, side, 3), 8-bit or floats in [0, 1]."


def read_own_head(path: Path, width: int) -> Head:
    """The head of a file, on `width` attributes.

    Raises:
        UserError: there is none that fits.
    """
    try:
        head, _ = read_head(path, width=width, dtype=np.float32)
    except SourceError as error:
        raise UserError(f"--head: {error}") from error
    return jax.tree.map(jnp.asarray, head)


def load_function(name: str) -> Callable[[Any], Any]:
    """The function of "package.module:function", or of an object there: "package.module:model.encode".

    Raises:
        UserError: there is none, or it cannot be called.
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the module is somebody's program: it can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--encoder {name}: {module_name} cannot be imported ({reason}). Only the current folder ({os.getcwd()}) "
            "and those in PYTHONPATH are searched."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"--encoder {name}: there is no {part!r} in {getattr(found, '__name__', found)}.")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"--encoder {name} is of type {type(found).__name__}; expected a function of images.")
    return found


def read_names(kind: str, path: Path | None, count: int) -> tuple[str, ...]:
    """Names from a text file, or numbers in their place.

    Raises:
        UserError: another number of names than there are.
    """
    if path is None:
        return tuple(f"{kind} {number}" for number in range(count))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--{kind}-names {path} cannot be read ({error}); expected text, one name per line.") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count:
        raise UserError(f"--{kind}-names {path} has {len(names)} names; expected {count}, one per line.")
    return names


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """8-bit images (N, side, side, 3) of an .npz file, and labels (N,) if they are there.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        stored = np.load(path)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"--images {path} is a single array of shape {stored.shape}; {_EXPECTED}")
        with stored as arrays:
            if "images" not in arrays.files:
                held = ", ".join(f"`{name}`" for name in arrays.files) or "nothing"
                raise UserError(f"--images {path} holds {held}; {_EXPECTED}")
            pixels, labels = arrays["images"], arrays["labels"] if "labels" in arrays.files else None
    except (OSError, ValueError) as error:
        raise UserError(f"--images {path} cannot be read ({error}); {_EXPECTED}") from error
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels) or pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"{path}: images has shape {pixels.shape}; expected (N, side, side, 3).")
    if pixels.dtype != np.uint8:
        if np.issubdtype(pixels.dtype, np.floating) and not np.isfinite(pixels).all():
            raise UserError(f"{path}: images contains NaN or infinite values; remove or repair these images.")
        if not (np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(f"{path}: images are {pixels.dtype} outside [0, 1]; expected 8-bit or floats in [0, 1].")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if labels is not None and (labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"{path}: labels has shape {labels.shape} and type {labels.dtype}; expected ({len(pixels)},) integers, the "
            "class of each image."
        )
    return pixels, labels
