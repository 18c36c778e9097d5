"""The measurements of each picture: where its change lies, which colour it takes, how fine it is."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from skimage.color import rgb2lab

from data_prep.synthetic.vocabulary import RGB
from experiments.paper_claims.images import CHUNK, Singles, pictures_of
from experiments.paper_claims.regions import Regions
from experiments.paper_claims.statistics import cosine, percentile_of
from experiments.runs.loading import LoadedRun
from experiments.runs.part_names import group_of
from spectra_jax import energy_lift, frequency_split, pointing_hit


def place_measures(
    run: LoadedRun, regions: Regions, index: Any, attribute: Any, pictures: Callable[[np.ndarray], Any]
) -> dict[str, np.ndarray]:
    """Where changes are: lift at the part, elsewhere on the bird and at another part, and pointing; NaN without a part.

    Args:
        run: whose test pictures were changed.
        regions: of the pictures.
        index, attribute: (p,) picture and column.
        pictures: rows -> originals and changed pictures, (k, h, w, 3) in [0, 1].
    """
    places = {"": regions.own, "_elsewhere": regions.elsewhere, "_swapped": regions.swapped}
    columns: dict[str, list[np.ndarray]] = {
        f"{what}{place}": [] for what in ("lift", "hit", "area") for place in places
    }
    lift, hit = jax.jit(energy_lift), jax.jit(pointing_hit)
    for start in range(0, len(index), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(index)))
        wrapped = np.resize(rows, CHUNK)
        original, after = pictures(wrapped)
        for place, region_of in places.items():
            masks = [region_of(int(index[row]), run.info.attribute_names[int(attribute[row])]) for row in rows]
            region = np.zeros((CHUNK, *original.shape[1:3]), bool)
            known = np.array([mask is not None for mask in masks])
            for row, mask in enumerate(masks):
                if mask is not None:
                    region[row] = mask
            found = lift(after, original, jnp.asarray(region))
            pointed = np.asarray(hit(after, original, jnp.asarray(region)), np.float64)
            for what, values in (("lift", found.lift), ("hit", pointed), ("area", found.area)):
                kept = np.asarray(values, np.float64)[: len(rows)]
                columns[f"{what}{place}"].append(np.where(known, kept, np.nan))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def colour_scores(
    before: np.ndarray, after: np.ndarray, region: np.ndarray, word: str, sign: int
) -> tuple[float, float, float]:
    """Whether the mean colour of a region moved towards a colour word, or towards its complement where it was to fall.

    Colours are CIELAB. The complement of (L, a, b) is (100 - L, -a, -b).

    Args:
        before, after: (h, w, 3) in [0, 1].
        region: (h, w) booleans, not empty.
        word: of `data_prep.synthetic.vocabulary.RGB`.
        sign: +1 towards the word, -1 towards its complement.

    Returns:
        Cosine of the shift with the direction from the present colour to the word's; the mean cosine with those of all
        other words; and the mean of the first one over all rotations of the shift's hue. NaN where nothing moved.
    """
    own, new = (rgb2lab(np.asarray(picture, np.float64)[region][None])[0].mean(axis=0) for picture in (before, after))
    shift = new - own

    def direction(name: str) -> np.ndarray:
        lab = rgb2lab(np.array(RGB[name], np.float64)[None, None] / 255)[0, 0]
        return (lab if sign > 0 else np.array([100, 0, 0]) - lab) - own

    wanted = direction(word)
    others = np.array([cosine(shift, direction(name)) for name in RGB if name not in (word, "iridescent")])
    # Turning hue by every angle averages a and b away: what is left is the share of lightness.
    length = np.linalg.norm(shift) * np.linalg.norm(wanted)
    lightness = shift[0] * wanted[0] / length if length > 0 else float("nan")
    return float(cosine(shift, wanted)), float(others.mean()), float(lightness)


def measure_singles(run: LoadedRun, regions: Regions, singles: Singles, spread: np.ndarray) -> dict[str, np.ndarray]:
    """(p,) columns of every measure of the single-attribute pictures; NaN where one is not defined."""
    names, pictures = run.info.attribute_names, functools.partial(pictures_of, run, singles)
    columns = place_measures(run, regions, singles.index, singles.attribute, pictures)
    count = len(singles.index)
    for name in ("toward", "others", "rotated", "percentile", "fine", "length"):
        columns[name] = np.full(count, np.nan)
    unit = np.where(spread > 0, spread, np.inf)
    moved = (singles.after - singles.before) / unit * singles.sign[:, None]
    columns["achieved"] = moved[np.arange(count), singles.attribute]
    columns["ratio"] = columns["achieved"] * spread[singles.attribute] / np.abs(singles.requested)
    split = jax.jit(frequency_split)
    for start in range(0, count, CHUNK):
        rows = np.arange(start, min(start + CHUNK, count))
        before, after = pictures(np.resize(rows, CHUNK))
        parts = split(after, before)
        low, high = (np.square(np.asarray(part, np.float64))[: len(rows)] for part in parts)
        columns["length"][rows] = np.sqrt(low + high)
        columns["fine"][rows] = np.divide(high, low + high, out=np.full(len(rows), np.nan), where=low + high > 0)
        for place, row in enumerate(rows):
            columns["percentile"][row] = percentile_of(moved[row], int(singles.attribute[row]))
            name = names[int(singles.attribute[row])]
            word = name.partition("::")[2]
            if not group_of(name).endswith("_color") or word not in RGB or word == "iridescent":
                continue
            region = regions.own(int(singles.index[row]), name)
            if region is not None:
                scores = colour_scores(
                    np.asarray(before[place]), np.asarray(after[place]), region, word, int(singles.sign[row])
                )
                columns["toward"][row], columns["others"][row], columns["rotated"][row] = scores
    return columns


def named_attributes(requested: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(p,) the attribute that each request changes most, in standard deviations."""
    size = np.where(np.isfinite(requested), np.abs(requested), 0)
    return (size / np.where(spread > 0, spread, np.inf)).argmax(axis=-1)
