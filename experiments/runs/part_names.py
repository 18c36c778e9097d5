"""Which parts of the object an attribute is about, by its name."""

from typing import Any

from spectra_jax.data import DatasetInfo

# Of CUB: attribute group, without "has_" and its last word, to part names. Groups of the whole bird (size, shape,
# primary colour) have no part.
PARTS = {
    "back": ("back",),
    "belly": ("belly",),
    "bill": ("beak",),
    "breast": ("breast",),
    "crown": ("crown",),
    "eye": ("left eye", "right eye"),
    "forehead": ("forehead",),
    "head": ("crown", "forehead", "nape"),
    "leg": ("left leg", "right leg"),
    "nape": ("nape",),
    "tail": ("tail",),
    "throat": ("throat",),
    "under_tail": ("tail",),
    "underparts": ("belly", "breast"),
    "upper_tail": ("tail",),
    "upperparts": ("back",),
    "wing": ("left wing", "right wing"),
}


def group_of(attribute: str) -> str:
    """The group of an attribute's name: "has_nape_color::purple" -> "has_nape_color"."""
    return attribute.partition("::")[0]


def part_names(attribute: str) -> tuple[str, ...]:
    """The parts an attribute is about, by its group: "has_nape_color::purple" -> ("nape",); () for the whole bird."""
    words = group_of(attribute).removeprefix("has_").split("_")
    return PARTS.get("_".join(words[:-1]), ())


def regions_of(info: DatasetInfo) -> dict[str, Any]:
    """The options `regions` and `attribute_regions` of "part_cnn" for a data set.

    Raises:
        ValueError: the data have no part points, or no attribute names a part of them.
    """
    if not info.part_names:
        raise ValueError(f"model 'part_cnn' needs part points, but {info.name} has none: choose another --model")
    about = [
        tuple(info.part_names.index(part) for part in part_names(attribute) if part in info.part_names)
        for attribute in info.attribute_names
    ]
    regions = sorted({parts for parts in about if parts})
    if not regions:
        raise ValueError(
            f"no attribute of {info.name} is about one of its parts ({', '.join(info.part_names)}); expected names "
            "such as has_nape_color::purple: choose another --model"
        )
    return {
        "regions": tuple(regions),
        "attribute_regions": tuple(regions.index(parts) if parts else -1 for parts in about),
    }
