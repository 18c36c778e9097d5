"""Where an attribute's part of the object is in a picture, and how much of a change or map falls there."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, maximum_filter

from experiments.runs.part_names import part_names
from spectra_jax import localization
from spectra_jax.data import DatasetInfo

RADIUS = 0.1  # of a part's disc, in units of the geometric mean of the sides of the object's box
_SHOWN_SIDE = 448


class PartDiscs(NamedTuple):
    """The discs around an attribute's part in one picture.

    Attributes:
        names: of the parts that are visible.
        centres: (k, 2) x, y in pixels of the picture.
        radius: in pixels.
        inside: (h, w) whether a pixel lies in a disc.
    """

    names: tuple[str, ...]
    centres: np.ndarray
    radius: float
    inside: np.ndarray


def part_discs(info: DatasetInfo, example: dict[str, Any], attribute: str, size: int) -> PartDiscs | None:
    """The discs of an attribute's visible parts in the picture resized to `size` x `size` pixels.

    Args:
        info: names the parts and says whether pictures are cut to the object's box.
        example: from `Dataset.example`.
        attribute: its name.
        size: side of the picture that the model sees.

    Returns:
        None where the attribute is about the whole object, or no such part is visible.
    """
    found = [
        (name, example["parts"][info.part_names.index(name), :2])
        for name in part_names(attribute)
        if name in info.part_names and example["parts"][info.part_names.index(name), 2] > 0
    ]
    if not found:
        return None
    scale, radius = disc_scale(info, example, size)
    centres, shown = np.stack([place for _, place in found]) * scale, np.ones((1, len(found)), bool)
    inside = localization.draw_discs(centres[None], shown, np.array([radius]), height=size, width=size)[0]
    return PartDiscs(tuple(name for name, _ in found), centres, radius, inside)


def disc_scale(info: DatasetInfo, example: dict[str, Any], size: int) -> tuple[np.ndarray, float]:
    """(2,) pixels of the resized picture per pixel of the stored one, x and y, and the radius of its discs."""
    sides = np.asarray(example["image"].shape[1::-1], float)
    box = sides if info.image_kind == "box" else example["box"][2:]
    scale = size / sides
    return scale, RADIUS * float(np.sqrt(np.prod(box * scale)))


def lift(weights: np.ndarray, inside: np.ndarray) -> float:
    """Share of `weights` inside the discs over their share of the area: 1 is what chance gives, NaN for no weight.

    Args:
        weights: (h, w) of the pixels, at least 0: the energy of a change, or 1 where a map keeps a pixel.
        inside: (h, w) booleans.
    """
    return float(localization.lift_of(np.asarray(weights, float)[None], inside[None]).lift[0])


def marked(image: np.ndarray, strength: np.ndarray, discs: PartDiscs | None) -> np.ndarray:
    """The picture, dimmed and enlarged, with the pixels of positive strength in bright colours and rings around parts.

    Args:
        image: (h, w, 3) uint8.
        strength: (h, w); 0 where a pixel is not marked, brighter marks for larger values. In pictures above 100 pixels,
            a mark covers the pixel's eight neighbours too: it would be hard to see otherwise.
        discs: None draws no ring.
    """
    height, width = image.shape[:2]
    shown = strength / max(float(strength.max()), np.finfo(np.float32).tiny)
    if max(height, width) > 100:
        shown = maximum_filter(shown, 3)
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    colours = 255 * colormaps["autumn"](np.sqrt(shown))[..., :3]
    picture = np.where(shown[..., None] > 0, colours, 0.5 * (0.6 * grey + 0.4 * image)).astype(np.uint8)
    return _with_rings(picture, discs)


def heat(image: np.ndarray, energy: np.ndarray, discs: PartDiscs | None) -> np.ndarray:
    """The picture, dimmed and enlarged, with the places in bright colours where a change's energy is concentrated.

    Colour starts at the mean density of the energy and is full at four times that: a change spread evenly shows none.

    Args:
        image: (h, w, 3) uint8.
        energy: (h, w), at least 0.
        discs: None draws no ring.
    """
    smooth = gaussian_filter(np.asarray(energy, np.float64), max(energy.shape) / 80)
    density = smooth / max(float(smooth.mean()), np.finfo(np.float64).tiny)
    shown = np.clip((density - 1) / 3, 0, 1)[..., None]
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    picture = (1 - 0.75 * shown) * 0.6 * grey + 0.75 * shown * 255 * colormaps["autumn"](shown[..., 0])[..., :3]
    return _with_rings(picture.astype(np.uint8), discs)


def _with_rings(picture: np.ndarray, discs: PartDiscs | None) -> np.ndarray:
    """Enlarges a small picture by a whole factor and draws the discs' outlines."""
    factor = max(1, round(_SHOWN_SIDE / max(picture.shape[:2])))
    large = Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))
    if discs is not None:
        draw = ImageDraw.Draw(large)
        for x, y in discs.centres * factor:
            for radius, colour, width in ((discs.radius * factor + 1, "black", 4), (discs.radius * factor, "white", 2)):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return np.asarray(large)
