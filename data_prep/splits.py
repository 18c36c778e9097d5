"""Shares of classes: which images are held out of each, and how many of its images have an attribute."""

import collections
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def held_out(
    names: Sequence[str], classes: Int[np.ndarray, " N"], rows: Iterable[int], *, fraction: float, seed: int
) -> Bool[np.ndarray, " N"]:
    """The same share of each class, at least one of it and never all of it.

    Which ones is decided by a hash of seed and name, so it depends on no random generator's version.

    Args:
        names: (N,) unique, such as file names.
        classes: (N,) their classes.
        rows: those to draw from.
        fraction: the share; 0 draws none.
        seed: of the draw.
    """
    chosen = np.zeros(len(names), bool)
    by_class: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        by_class[int(classes[row])].append(row)
    for members in by_class.values():
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        ranked = sorted(members, key=lambda row: hashlib.sha256(f"{seed}/{names[row]}".encode()).digest())
        chosen[ranked[: count if fraction > 0 else 0]] = True
    return chosen


def class_shares(
    values: Float[np.ndarray, "N n"], classes: Int[np.ndarray, " N"], *, num_classes: int
) -> Float[np.ndarray, "c n"]:
    """Mean of the rows of each class, in percent; 0 for a class without rows."""
    sums = np.zeros((num_classes, values.shape[1]))
    np.add.at(sums, classes, values)
    return 100 * sums / np.maximum(np.bincount(classes, minlength=num_classes), 1)[:, None]
