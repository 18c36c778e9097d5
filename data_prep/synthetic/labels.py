"""The 312 labels of a drawn bird: which attributes are present, which could be seen, and how sure the labeller was."""

from collections.abc import Mapping

import numpy as np

from data_prep.synthetic.plumage import PATTERNED, Traits
from data_prep.synthetic.vocabulary import ATTRIBUTE_INDEX, ATTRIBUTE_NAMES, GROUPS

NUM_ATTRIBUTES = len(ATTRIBUTE_NAMES)
GROUP_OF = np.repeat(
    np.arange(len(GROUPS)), [len(values) for values in GROUPS.values()]
)  # group number of every attribute
# Which regions a group speaks about; it can be judged as long as one of them can be seen. () = always.
GROUP_REGIONS: dict[str, tuple[str, ...]] = {
    "bill_shape": ("beak",),
    "wing_color": ("wing",),
    "upperparts_color": ("back", "wing"),
    "underparts_color": ("belly", "breast"),
    "breast_pattern": ("breast",),
    "back_color": ("back",),
    "tail_shape": ("tail",),
    "upper_tail_color": ("tail",),
    "head_pattern": ("face",),
    "breast_color": ("breast",),
    "throat_color": ("throat",),
    "eye_color": ("iris",),
    "bill_length": ("beak",),
    "forehead_color": ("forehead",),
    "under_tail_color": ("under tail",),
    "nape_color": ("nape",),
    "belly_color": ("belly",),
    "wing_shape": ("wing",),
    "size": (),
    "shape": (),
    "back_pattern": ("back",),
    "tail_pattern": ("tail",),
    "belly_pattern": ("belly",),
    "primary_color": (),
    "leg_color": ("leg",),
    "bill_color": ("beak",),
    "crown_color": ("crown",),
    "wing_pattern": ("wing",),
}


def present_values(traits: Traits, primary_color: str) -> dict[str, set[str]]:
    """Group -> values that hold for a bird with these traits; a pattern's second colour is a colour of its part too."""
    values = {group: {traits[group]} for group in GROUPS if group in traits}
    for part in PATTERNED:
        if traits[f"{part}_pattern"] != "solid":
            values["upper_tail_color" if part == "tail" else f"{part}_color"].add(traits[f"{part}_ink"])
    values["upperparts_color"] = {traits["back_color"], traits["wing_color"]}
    values["underparts_color"] = {traits["belly_color"], traits["breast_color"]}
    values["primary_color"] = {primary_color}
    return values


def attribute_labels(traits: Traits, primary_color: str, visible: Mapping[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the 312 attributes are present, and which could be seen.

    Args:
        traits: of the drawn bird.
        primary_color: the colour with the largest drawn area.
        visible: region -> whether enough of it can be seen.

    Returns:
        (312,) bool present, never true where the region is hidden, and (312,) bool seen.
    """
    present = np.zeros(NUM_ATTRIBUTES, bool)
    for group, values in present_values(traits, primary_color).items():
        for value in values:
            present[ATTRIBUTE_INDEX[f"has_{group}::{value}"]] = True
    groups_seen = [not regions or any(visible[region] for region in regions) for regions in GROUP_REGIONS.values()]
    seen = np.array(groups_seen)[GROUP_OF]
    return present & seen, seen


def certainties(seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Certainty ids 1-4 of the 312 labels, one per group: 1 where nothing could be seen, mostly 4 elsewhere."""
    draw = rng.random(len(GROUPS))
    sure = np.select([draw < 0.04, draw < 0.20], [2, 3], 4)[GROUP_OF]
    return np.where(seen, sure, 1)


def flip_labels(
    present: np.ndarray, seen: np.ndarray, certainty: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Labels with mistakes where the labeller is unsure: probability `noise` (probably) or 2 x `noise` (guessing)."""
    chance = np.select([certainty == 3, certainty == 2], [noise, 2 * noise], 0.0)
    return np.where(seen & (rng.random(NUM_ATTRIBUTES) < chance), ~present, present)


def class_percentages(present: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """How often an attribute is said to be present in a class, weighted by certainty - 1 (so unseen does not count).

    Args:
        present: (images, 312) bool.
        certainty: (images, 312) ids 1-4.

    Returns:
        (312,) percentages 0-100; 0 where nobody ever saw the part.
    """
    weight = certainty.astype(float) - 1
    return 100 * (weight * present).sum(0) / np.maximum(weight.sum(0), 1)
