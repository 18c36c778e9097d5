"""CUB-200-2011's own words: 312 attributes in 28 groups, 15 parts, 4 certainties; and how each colour word looks."""

COLORS = ["blue", "brown", "iridescent", "purple", "rufous", "grey", "yellow", "olive"]
COLORS += ["green", "pink", "orange", "black", "white", "red", "buff"]
_EYE_COLORS = [color for color in COLORS if color != "iridescent"]  # CUB asks for no iridescent eye
PATTERNS = ["solid", "spotted", "striped", "multi-colored"]

# Group name without its "has_" -> values, in the order of the official attributes.txt.
GROUPS: dict[str, list[str]] = {
    "bill_shape": (
        [
            "curved_(up_or_down)",
            "dagger",
            "hooked",
            "needle",
            "hooked_seabird",
            "spatulate",
            "all-purpose",
            "cone",
            "specialized",
        ]
    ),
    "wing_color": COLORS,
    "upperparts_color": COLORS,
    "underparts_color": COLORS,
    "breast_pattern": PATTERNS,
    "back_color": COLORS,
    "tail_shape": ["forked_tail", "rounded_tail", "notched_tail", "fan-shaped_tail", "pointed_tail", "squared_tail"],
    "upper_tail_color": COLORS,
    "head_pattern": (
        [
            "spotted",
            "malar",
            "crested",
            "masked",
            "unique_pattern",
            "eyebrow",
            "eyering",
            "plain",
            "eyeline",
            "striped",
            "capped",
        ]
    ),
    "breast_color": COLORS,
    "throat_color": COLORS,
    "eye_color": _EYE_COLORS,
    "bill_length": ["about_the_same_as_head", "longer_than_head", "shorter_than_head"],
    "forehead_color": COLORS,
    "under_tail_color": COLORS,
    "nape_color": COLORS,
    "belly_color": COLORS,
    "wing_shape": ["rounded-wings", "pointed-wings", "broad-wings", "tapered-wings", "long-wings"],
    "size": [
        "large_(16_-_32_in)",
        "small_(5_-_9_in)",
        "very_large_(32_-_72_in)",
        "medium_(9_-_16_in)",
        "very_small_(3_-_5_in)",
    ],
    "shape": [
        "upright-perching_water-like",
        "chicken-like-marsh",
        "long-legged-like",
        "duck-like",
        "owl-like",
        "gull-like",
        "hummingbird-like",
        "pigeon-like",
        "tree-clinging-like",
        "hawk-like",
        "sandpiper-like",
        "upland-ground-like",
        "swallow-like",
        "perching-like",
    ],
    "back_pattern": PATTERNS,
    "tail_pattern": PATTERNS,
    "belly_pattern": PATTERNS,
    "primary_color": COLORS,
    "leg_color": COLORS,
    "bill_color": COLORS,
    "crown_color": COLORS,
    "wing_pattern": PATTERNS,
}

ATTRIBUTE_NAMES = [f"has_{group}::{value}" for group, values in GROUPS.items() for value in values]
ATTRIBUTE_INDEX = {name: index for index, name in enumerate(ATTRIBUTE_NAMES)}  # 0-based, as everywhere in spectra_jax

CERTAINTIES = ["not visible", "guessing", "probably", "definitely"]

# The official parts/parts.txt; ids are 1-based there and in the part masks.
PARTS = [
    "back",
    "beak",
    "belly",
    "breast",
    "crown",
    "forehead",
    "left eye",
    "left leg",
    "left wing",
    "nape",
    "right eye",
    "right leg",
    "right wing",
    "tail",
    "throat",
]
# Two regions that CUB does not name as parts but that a mask must tell apart.
EXTRA_PARTS = ["face", "under tail"]
PART_IDS = {name: index + 1 for index, name in enumerate(PARTS + EXTRA_PARTS)}

# sRGB of each colour word. "iridescent" is drawn as a hue gradient around this teal, see drawing.py.
RGB: dict[str, tuple[int, int, int]] = {
    "blue": (44, 92, 205),
    "brown": (108, 68, 38),
    "iridescent": (30, 130, 140),
    "purple": (132, 52, 170),
    "rufous": (176, 76, 34),
    "grey": (134, 137, 142),
    "yellow": (246, 212, 44),
    "olive": (112, 112, 42),
    "green": (48, 150, 62),
    "pink": (243, 150, 182),
    "orange": (243, 134, 26),
    "black": (30, 30, 34),
    "white": (243, 243, 240),
    "red": (208, 28, 42),
    "buff": (226, 192, 138),
}
