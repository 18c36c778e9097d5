"""What a bird looks like, in words: class prototypes that differ visibly, and individuals that vary around them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from data_prep.synthetic.vocabulary import COLORS, GROUPS, PATTERNS, RGB

T = TypeVar("T")
Traits = dict[str, str]
Deal = Callable[[str, Sequence[str]], str]  # (deck, its cards) -> the next card

# Parts with a colour group of their own in CUB.
COLORED = ["back", "wing", "upper_tail", "under_tail", "breast", "belly", "throat", "nape", "crown", "forehead"]
COLORED += ["bill", "leg", "eye"]
PATTERNED = ["back", "wing", "tail", "breast", "belly"]
DERIVED_GROUPS = ("upperparts_color", "underparts_color", "primary_color")  # follow from what is drawn
VISIBLE_GROUPS = [group for group in GROUPS if group not in DERIVED_GROUPS]
# Traits that are drawn but that CUB has no words for: the side of the face, and the second colour of each pattern.
HIDDEN_TRAITS = ["face_color", "head_ink", *(f"{part}_ink" for part in PATTERNED)]
TRAIT_VALUES: dict[str, list[str]] = {group: GROUPS[group] for group in VISIBLE_GROUPS} | dict.fromkeys(
    HIDDEN_TRAITS, COLORS
)
FAMILY = 2  # classes of one build and mostly the same plumage
MIN_DIFFERENCES = 5  # visible groups in which any two class prototypes differ
BUILD = ["shape", "size", "bill_shape", "bill_length", "tail_shape", "wing_shape"]
MIN_BUILD_DIFFERENCES = 2  # of those, where classes have nothing else

_SIZES = [
    "very_small_(3_-_5_in)",
    "small_(5_-_9_in)",
    "medium_(9_-_16_in)",
    "large_(16_-_32_in)",
    "very_large_(32_-_72_in)",
]
_NOUNS = {
    "perching-like": ["Finch", "Warbler", "Bunting", "Thrush", "Sparrow", "Tanager", "Starling"],
    "duck-like": ["Duck", "Teal", "Pochard"],
    "gull-like": ["Gull", "Petrel", "Kittiwake"],
    "pigeon-like": ["Pigeon", "Dove"],
    "owl-like": ["Owl", "Owlet"],
    "hawk-like": ["Hawk", "Kite", "Falcon"],
    "hummingbird-like": ["Hummingbird", "Sunangel"],
    "swallow-like": ["Swallow", "Martin"],
    "tree-clinging-like": ["Woodpecker", "Treecreeper"],
    "long-legged-like": ["Heron", "Egret"],
    "sandpiper-like": ["Sandpiper", "Plover"],
    "chicken-like-marsh": ["Rail", "Crake"],
    "upland-ground-like": ["Quail", "Grouse"],
    "upright-perching_water-like": ["Cormorant", "Guillemot"],
}
_BILLS = {
    "duck-like": "spatulate",
    "owl-like": "hooked",
    "hawk-like": "hooked",
    "hummingbird-like": "needle",
    "gull-like": "hooked_seabird",
    "long-legged-like": "dagger",
    "sandpiper-like": "needle",
    "upright-perching_water-like": "hooked_seabird",
}
_WORDS = {
    "nape": "naped",
    "crown": "crowned",
    "throat": "throated",
    "breast": "breasted",
    "belly": "bellied",
    "back": "backed",
    "wing": "winged",
    "upper_tail": "tailed",
    "forehead": "fronted",
    "bill": "billed",
    "leg": "legged",
    "eye": "eyed",
}
_UPPER = [*COLORS, "brown", "grey", "black", "olive", "blue", "rufous"]
_UNDER = [*COLORS, "white", "buff", "yellow", "white", "grey", "rufous"]
_ACCENTED = ["nape", "crown", "throat", "breast", "belly", "wing", "back", "upper_tail", "under_tail"]
_SHAPES = [*GROUPS["shape"], *["perching-like"] * 2]


class BirdClass(NamedTuple):
    """One synthetic species: its name (without the number) and its prototype."""

    name: str
    traits: Traits


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """A uniform choice that depends only on the generator's integer stream."""
    return choices[int(rng.integers(len(choices)))]


def lab(color: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour word, for judging contrast."""
    rgb = np.array(RGB[color]) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-4))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


_CONTRAST = {(a, b): float(np.linalg.norm(lab(a) - lab(b))) for a in COLORS for b in COLORS}


def _ink(rng: np.random.Generator, against: Sequence[str], liked: Sequence[str] = ()) -> str:
    """A colour that stands out against others: one of `liked` if possible, else the best of black, white and more."""
    good = [color for color in liked if min(_CONTRAST[color, other] for other in against) > 38]
    if good:
        return pick(rng, good)
    return max(
        ["black", "white", "buff", "yellow"], key=lambda color: min(_CONTRAST[color, other] for other in against)
    )


def sample_classes(num_classes: int, seed: int, *, independent: bool = False) -> list[BirdClass]:
    """Draws the class prototypes; any two differ in at least `MIN_DIFFERENCES` visible attribute groups.

    Args:
        num_classes: how many.
        seed: of the whole data set.
        independent: a class is a build and no plumage (see `sample_individual`): any two differ in at least
            `MIN_BUILD_DIFFERENCES` groups of `BUILD`, and there are no close relatives.

    Returns:
        Classes in order; a longer list with the same seed starts with the shorter one.
    """
    rng = np.random.default_rng([seed, 101])
    decks: dict[str, list[str]] = {}

    def deal(deck: str, cards: Sequence[str]) -> str:
        """The next card of a shuffled deck, so that every colour and shape turns up equally often."""
        if not decks.get(deck):
            decks[deck] = [cards[i] for i in rng.permutation(len(cards))]
        return decks[deck].pop()

    species, groups, least = (
        (_build, BUILD, MIN_BUILD_DIFFERENCES) if independent else (_species, VISIBLE_GROUPS, MIN_DIFFERENCES)
    )
    classes: list[BirdClass] = []
    while len(classes) < num_classes:
        new = species(rng, deal, classes)
        if new and all(num_differences(new.traits, other.traits, groups) >= least for other in classes):
            classes.append(new)
    return classes


def _species(rng: np.random.Generator, deal: Deal, classes: Sequence[BirdClass]) -> BirdClass | None:
    """The next class by its plumage; None where no name is left for it."""
    if len(classes) % FAMILY:  # close relatives make classes that differ only in a few places
        head = classes[len(classes) // FAMILY * FAMILY]
        traits, accents = _relative(rng, deal, head.traits)
        noun = head.name.rsplit("_", 1)[1]
    else:
        traits, accents = _prototype(rng, deal, force=None if classes else ("nape", "purple"))
        noun = pick(rng, _NOUNS[traits["shape"]]) if classes else "Finch"
    told = [part for part in accents if part in _WORDS] + [part for part in _WORDS if part not in accents]
    return _named((f"{traits[f'{part}_color']}_{_WORDS[part]}_{noun}" for part in told), traits, classes)


def _build(rng: np.random.Generator, deal: Deal, classes: Sequence[BirdClass]) -> BirdClass | None:
    """The next class by its build alone, such as a "Forked_tail_Finch"; None where no name is left for it."""
    traits, _ = _prototype(rng, deal, force=None)
    noun, tail = pick(rng, _NOUNS[traits["shape"]]), traits["tail_shape"].replace("-", "_")
    wings, size = traits["wing_shape"].replace("-", "_"), traits["size"].partition("_(")[0]
    return _named((f"{tail}_{noun}", f"{wings}_{tail}_{noun}", f"{size}_{wings}_{tail}_{noun}"), traits, classes)


def _named(names: Iterable[str], traits: Traits, classes: Sequence[BirdClass]) -> BirdClass | None:
    """A class under the first of these names that is not taken, after what stands out first."""
    taken = {other.name for other in classes}
    capitalized = (name[0].upper() + name[1:] for name in names)
    name = next((name for name in capitalized if name not in taken), None)
    return BirdClass(name, traits) if name else None


def num_differences(a: Traits, b: Traits, groups: Sequence[str] = VISIBLE_GROUPS) -> int:
    """Number of attribute groups in which two birds differ."""
    return sum(a[group] != b[group] for group in groups)


def _prototype(rng: np.random.Generator, deal: Deal, *, force: tuple[str, str] | None) -> tuple[Traits, list[str]]:
    upper, under = deal("upper", _UPPER), deal("under", _UNDER)
    if _CONTRAST[upper, under] < 25:
        under = _ink(rng, [upper], ["white", "buff", "yellow", "grey"])
    dark = pick(rng, [upper, upper, "black", "brown", "grey", deal("third", COLORS)])
    color = dict.fromkeys(["back", "wing", "nape", "crown"], upper) | dict.fromkeys(
        ["throat", "breast", "belly"], under
    )
    color |= {"wing": dark, "upper_tail": pick(rng, [upper, dark]), "under_tail": pick(rng, [under, under, dark])}
    accents = []
    for number in range(3):
        part, accent = force if force and number == 0 else (deal("part", _ACCENTED), deal("accent", COLORS))
        if part not in accents and _CONTRAST[color[part], accent] > 20:
            color[part] = accent
            accents.append(part)
    head_pattern = deal("head", GROUPS["head_pattern"])
    color["forehead"] = color["face"] = color["crown"]
    if head_pattern == "capped":
        color["face"] = color["throat"]
        if _CONTRAST[color["face"], color["crown"]] < 38:
            color["crown"] = color["forehead"] = _ink(rng, [color["face"]], ["black", "rufous", "red", "blue"])
    elif rng.random() < 0.35:
        color["forehead"] = deal("forehead", COLORS)
        accents.append("forehead")
    color["bill"] = pick(rng, ["black", "grey", "yellow", "orange", "red", deal("bill", COLORS)])
    color["leg"] = pick(rng, ["black", "grey", "orange", "pink", "yellow", deal("leg", COLORS)])
    color["eye"] = pick(rng, ["black", "brown", "yellow", "red", deal("eye", GROUPS["eye_color"])])
    traits = {f"{part}_color": value for part, value in color.items()}

    shape = "perching-like" if force else deal("shape", _SHAPES)
    bill = _BILLS[shape] if shape in _BILLS and rng.random() < 0.6 else deal("bill_shape", GROUPS["bill_shape"])
    lengths = {"cone": [2], "hooked": [2], "all-purpose": [2, 2, 0], "needle": [0, 1], "dagger": [0, 1, 2]}.get(
        bill, [0, 1, 2]
    )
    traits |= {
        "shape": shape,
        "size": deal("size", _SIZES),
        "bill_shape": bill,
        "bill_length": GROUPS["bill_length"][pick(rng, lengths)],
        "tail_shape": deal("tail_shape", GROUPS["tail_shape"]),
        "wing_shape": deal("wing_shape", GROUPS["wing_shape"]),
        "head_pattern": head_pattern,
    }
    for part in PATTERNED:
        traits[f"{part}_pattern"] = pick(rng, ["solid", deal(f"{part}_pattern", PATTERNS)])
    _choose_inks(rng, traits, liked=["white", "black", upper, under])
    return traits, accents


def _choose_inks(rng: np.random.Generator, traits: Traits, *, liked: Sequence[str], only: str | None = None) -> None:
    """Gives every pattern (or that of one part) a second colour that stands out."""
    for part in PATTERNED:
        if only in (None, part):
            base = traits["upper_tail_color" if part == "tail" else f"{part}_color"]
            traits[f"{part}_ink"] = _ink(rng, [base], liked)
    if only in (None, "head"):
        head = [traits["face_color"], traits["crown_color"]]
        traits["head_ink"] = _ink(rng, head[:1] if traits["head_pattern"] == "capped" else head, ["black", "white"])


def _relative(rng: np.random.Generator, deal: Deal, prototype: Traits) -> tuple[Traits, list[str]]:
    """Another species of the same build: two other accents, another head and two details changed."""
    traits = dict(prototype)
    accents: list[str] = []
    while len(accents) < 2:
        part, color = deal("part", _ACCENTED), deal("accent", COLORS)
        if part not in accents and _CONTRAST[traits[f"{part}_color"], color] > 25:
            accents.append(part)
            traits[f"{part}_color"] = color
    traits["head_pattern"] = deal("head", [p for p in GROUPS["head_pattern"] if p != "capped"])
    traits["forehead_color"] = traits["face_color"] = traits["crown_color"]
    detail = pick(rng, ["tail_shape", "wing_shape", "bill_color", "leg_color"])
    for group in (f"{pick(rng, PATTERNED)}_pattern", detail):
        traits[group] = pick(rng, [value for value in GROUPS[group] if value != traits[group]])
    _choose_inks(rng, traits, liked=["white", "black", traits["back_color"], traits["belly_color"]])
    return traits, accents


def sample_individual(prototype: Traits, rng: np.random.Generator, *, independent: bool = False) -> Traits:
    """A bird of the class: the prototype, with a small chance of another value for every colour, pattern and the size.

    So no attribute is a function of the class alone, and none is tied to the others more than nature would.

    Args:
        prototype: of the class.
        rng: of the image.
        independent: every colour, pattern and marking of the head is drawn uniformly, whatever the class and the other
            parts have, so that nothing but the part itself tells its attributes. What remains tied is what the words
            mean: a cap is crown and forehead, and a pattern has a second colour that can be told from the first.
    """
    traits = dict(prototype)
    recolor, repattern = (1.0, 1.0) if independent else (_RECOLOR, _REPATTERN)
    inks = COLORS if independent else [value for key, value in prototype.items() if key.endswith("_ink")]
    if independent:
        traits["head_pattern"] = pick(rng, GROUPS["head_pattern"])
    for part in COLORED:
        if rng.random() < recolor:
            traits[f"{part}_color"] = pick(rng, GROUPS[f"{part}_color"])
    if traits["head_pattern"] == "capped":  # the cap is crown and forehead, and stands out against the side of the face
        if _CONTRAST[traits["crown_color"], traits["face_color"]] < 38:
            if independent:
                traits["face_color"] = _ink(rng, [traits["crown_color"]], COLORS)
            else:
                traits["crown_color"] = prototype["crown_color"]
        traits["forehead_color"] = traits["crown_color"]
    elif traits["crown_color"] != prototype["crown_color"]:  # nothing but a cap does
        traits["face_color"] = traits["crown_color"]
    for part in PATTERNED:
        if rng.random() < repattern:
            traits[f"{part}_pattern"] = pick(rng, PATTERNS)
    if rng.random() < _RESIZE:
        size = _SIZES.index(traits["size"]) + (1 if rng.random() < 0.5 else -1)
        traits["size"] = _SIZES[min(max(size, 0), len(_SIZES) - 1)]
    for part in (*PATTERNED, "head"):
        color = f"{ {'tail': 'upper_tail', 'head': 'face'}.get(part, part) }_color"
        if independent or _CONTRAST[traits[color], traits[f"{part}_ink"]] < 38:
            _choose_inks(rng, traits, liked=inks, only=part)
    return traits


_RECOLOR, _REPATTERN, _RESIZE = 0.06, 0.05, 0.15  # chances for each part, each pattern and the size of an individual
