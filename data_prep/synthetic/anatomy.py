"""From traits and pose to polygons: where every part of a bird lies, before it is scaled and placed in the frame.

World units: the trunk's half-length is 1; x runs forward (the bird faces right), y runs down. Fills are painted in
order, later ones over earlier ones; inks (patterns, feather lines) only change the colour slot of pixels that belong to
one of their parts.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data_prep.synthetic import patterns
from data_prep.synthetic.geometry import Frame, Points, bend, ellipse, frame, normals, ribbon, smooth


class Fill(NamedTuple):
    """A polygon that belongs to a part and shows a colour slot."""

    part: str
    slot: str
    points: Points


class Ink(NamedTuple):
    """Polygons that recolour whatever belongs to one of `parts`."""

    parts: tuple[str, ...]
    slot: str
    polygons: list[Points]


class Pose(NamedTuple):
    """Angles in degrees: body and tail relative to the habit of the shape, head relative to level."""

    body: float
    head: float
    tail: float
    stride: float


class Anatomy(NamedTuple):
    """All polygons of one bird, and where its feet stand (world units)."""

    fills: list[Fill]
    inks: list[Ink]
    feet: Points


class Habit(NamedTuple):
    """Proportions of one of CUB's 14 bird shapes, in trunk half-lengths and degrees."""

    depth: float  # trunk half-height
    tilt: float  # front raised by
    neck: float
    neck_angle: float  # above the horizontal
    head: float  # radius
    leg: float
    tail: float
    tail_angle: float  # tail raised by


HABITS: dict[str, Habit] = {
    "perching-like": Habit(0.64, 28, 0.12, 52, 0.52, 0.50, 1.05, 0),
    "duck-like": Habit(0.60, 5, 0.50, 68, 0.47, 0.30, 0.50, 12),
    "gull-like": Habit(0.52, 8, 0.22, 52, 0.44, 0.50, 0.75, -2),
    "pigeon-like": Habit(0.68, 18, 0.34, 62, 0.37, 0.38, 0.95, -4),
    "owl-like": Habit(0.74, 68, 0.00, 80, 0.66, 0.30, 0.60, 8),
    "hawk-like": Habit(0.62, 54, 0.10, 66, 0.46, 0.50, 1.00, 4),
    "hummingbird-like": Habit(0.46, 42, 0.12, 46, 0.44, 0.16, 0.75, -6),
    "swallow-like": Habit(0.44, 20, 0.06, 32, 0.43, 0.22, 1.10, 2),
    "tree-clinging-like": Habit(0.54, 70, 0.10, 68, 0.46, 0.30, 0.90, 6),
    "long-legged-like": Habit(0.54, 24, 1.20, 74, 0.37, 1.60, 0.45, 0),
    "sandpiper-like": Habit(0.52, 14, 0.38, 58, 0.40, 0.95, 0.50, 4),
    "chicken-like-marsh": Habit(0.70, 16, 0.40, 64, 0.40, 0.80, 0.48, 42),
    "upland-ground-like": Habit(0.76, 24, 0.36, 66, 0.38, 0.62, 0.85, 6),
    "upright-perching_water-like": Habit(0.52, 62, 0.70, 78, 0.39, 0.26, 0.70, 4),
}

# Small birds have large heads and eyes for their bodies; (head factor, eye radius in head radii).
ALLOMETRY = {
    "very_small_(3_-_5_in)": (1.22, 0.37),
    "small_(5_-_9_in)": (1.11, 0.33),
    "medium_(9_-_16_in)": (1.01, 0.29),
    "large_(16_-_32_in)": (0.92, 0.255),
    "very_large_(32_-_72_in)": (0.84, 0.225),
}

_BILL_LENGTHS = {"shorter_than_head": 0.95, "about_the_same_as_head": 1.65, "longer_than_head": 2.7}  # head radii


def build(traits: Mapping[str, str], pose: Pose) -> Anatomy:
    """Polygons of the bird that has these traits, in this pose.

    Args:
        traits: trait -> value in CUB's words, see `plumage.TRAIT_VALUES`.
        pose: body, head and tail angles.

    Returns:
        Fills in painting order, inks, and the (2, 2) positions of the far and the near foot.
    """
    habit = HABITS[traits["shape"]]
    trunk = frame((0, 0), habit.tilt + pose.body)
    head_factor, eye_radius = ALLOMETRY[traits["size"]]
    head_radius = habit.head * head_factor
    neck_base = trunk.at((0.66, -0.30 * habit.depth))
    reach = habit.neck + 0.5 * head_radius
    direction = math.radians(habit.neck_angle + 0.5 * pose.body)
    head_center = neck_base + reach * np.array([math.cos(direction), -math.sin(direction)])
    head = frame(head_center, pose.head, side=-1)  # second axis points up: heads are easier to think of that way

    legs, feet = _legs(trunk, habit, pose)
    tail_fills, tail_inks = _tail(trunk, habit, traits, pose)
    wing_fills, wing_inks = _wing(trunk, habit, traits)
    trunk_fills, trunk_inks = _trunk(trunk, habit, traits)
    head_fills, head_inks = _head(head, head_radius, eye_radius, traits)
    beak_fills, beak_inks = _beak(head, head_radius, traits)
    fills = legs + tail_fills + trunk_fills + _neck(trunk, habit, neck_base, head, head_radius) + wing_fills
    fills += head_fills + beak_fills + _eye(head, head_radius, eye_radius)
    return Anatomy(fills, trunk_inks + wing_inks + tail_inks + head_inks + beak_inks, feet)


def _legs(trunk: Frame, habit: Habit, pose: Pose) -> tuple[list[Fill], Points]:
    fills, feet = [], []
    for side, hip, swing in (("far", (0.10, 0.72), 1.0), ("near", (-0.14, 0.78), -1.0)):
        top = trunk.at((hip[0], hip[1] * habit.depth))
        foot = top + np.array([0.10 + 0.008 * swing * pose.stride * habit.leg, habit.leg + 0.12])
        ankle = top + 0.5 * (foot - top) + np.array([-0.12 * habit.leg - 0.03, 0])
        shin = ribbon(np.stack([top, ankle, foot]), [0.17, 0.105, 0.095])
        toes = [ribbon(np.stack([foot, foot + np.array(tip)]), [0.10, 0.06]) for tip in _TOES]
        fills += [Fill(f"{side} leg", f"leg_{side}", polygon) for polygon in [shin, *toes]]
        feet.append(foot)
    return fills, np.stack(feet)


_TOES = [(0.30, 0.05), (0.20, 0.11), (-0.18, 0.05)]


def _tail(trunk: Frame, habit: Habit, traits: Mapping[str, str], pose: Pose) -> tuple[list[Fill], list[Ink]]:
    origin = trunk.at((-0.72, -0.06))
    angle = habit.tilt + pose.body - habit.tail_angle - pose.tail
    # Points away from the body; the second axis is the tail's lower side.
    backwards = frame(origin, angle)
    tail = Frame(origin, -backwards.forward, backwards.side)
    length, base = habit.tail + 0.25, 0.24 * habit.depth / 0.6
    shape = traits["tail_shape"]
    fan = np.radians(np.linspace(-30, 30, 9))
    outlines = {
        "squared_tail": [(0, -base), (length, -0.30), (length, 0.30), (0, base)],
        "rounded_tail": [(0, -base), (0.8 * length, -0.31)]
        + [(0.8 * length + 0.30 * math.cos(a), 0.31 * math.sin(a)) for a in np.linspace(-1.4, 1.4, 9)]
        + [(0.8 * length, 0.31), (0, base)],
        "pointed_tail": [(0, -base), (0.45 * length, -0.26), (1.2 * length, 0), (0.45 * length, 0.26), (0, base)],
        "notched_tail": [(0, -base), (length, -0.33), (0.80 * length, 0.0), (length, 0.33), (0, base)],
        "forked_tail": [
            (0, -base),
            (0.5 * length, -0.27),
            (1.25 * length, -0.46),
            (0.55 * length, 0.0),
            (1.25 * length, 0.46),
            (0.5 * length, 0.27),
            (0, base),
        ],
        "fan-shaped_tail": [(0, -base), *(1.05 * length * np.stack([np.cos(fan), np.sin(fan)], 1)), (0, base)],
    }
    outline = np.array(outlines[shape], float)
    # The lower part of the fan is seen from below: pull every upper point down to the dividing line.
    under = np.stack([outline[:, 0], np.maximum(outline[:, 1], 0.05)], 1)
    fills = [Fill("tail", "upper_tail", tail.at(outline)), Fill("under tail", "under_tail", tail.at(under))]
    feathers = [tail.at(ribbon([(0.3, q * 0.4), (1.05 * length, q)], 0.035)) for q in (-0.2, -0.1)]
    inks = [Ink(("tail",), "tail_dark", feathers)]
    inks += [Ink(("under tail",), "under_tail_dark", [tail.at(ribbon([(0.2, 0.05), (1.2 * length, 0.05)], 0.05))])]
    drawn = patterns.tail(traits["tail_pattern"], length)
    return fills, inks + [Ink(("tail",), "tail_ink", [tail.at(p) for p in drawn])] * bool(drawn)


def _trunk(trunk: Frame, habit: Habit, traits: Mapping[str, str]) -> tuple[list[Fill], list[Ink]]:
    b = habit.depth

    def outline(start: float, end: float, steps: int) -> Points:
        angle = np.linspace(start, end, steps) * np.pi
        u, v = np.cos(angle), np.sin(angle) * (1 + 0.12 * np.cos(angle))
        return np.stack([u, b * v], 1)

    belly = outline(-1, 1, 40)
    breast = np.concatenate([outline(-0.28, 0.42, 18), bend((0.22, 0.85 * b), (0.42, 0.1 * b), (0.55, -0.55 * b))])
    back = np.concatenate([outline(-0.20, -1.0, 22), bend((-0.95, 0), (-0.1, -0.40 * b), (0.80, -0.35 * b))])
    fills = [
        Fill("belly", "belly", trunk.at(belly)),
        Fill("breast", "breast", trunk.at(breast)),
        Fill("back", "back", trunk.at(back)),
    ]
    inks = []
    for part in ("belly", "breast", "back"):
        drawn = patterns.trunk(part, traits[f"{part}_pattern"], b)
        if drawn:
            inks.append(Ink((part,), f"{part}_ink", [trunk.at(p) for p in drawn]))
    return fills, inks


def _neck(trunk: Frame, habit: Habit, base: Points, head: Frame, head_radius: float) -> list[Fill]:
    start = trunk.at((0.46, 0.0))
    end = head.origin
    spine = bend(start, base + 0.10 * trunk.forward, end, steps=12)
    normal = normals(spine)  # to the right of the direction: towards the front of an upward neck
    half = np.linspace(0.66 * habit.depth, 0.74 * head_radius, 12) * (1 - 0.32 * min(habit.neck, 1) * _WAIST)
    front, rear = spine + normal * half[:, None], spine - normal * half[:, None]
    split = spine - normal * (0.02 * half[:, None])
    throat_from = 6
    return [
        Fill("breast", "breast", np.concatenate([front[: throat_from + 1], split[: throat_from + 1][::-1]])),
        Fill("throat", "throat", np.concatenate([front[throat_from:], split[throat_from:][::-1]])),
        Fill("nape", "nape", np.concatenate([split[2:], rear[2:][::-1]])),
    ]


_WAIST = np.sin(np.linspace(0, np.pi, 12))


def _wing(trunk: Frame, habit: Habit, traits: Mapping[str, str]) -> tuple[list[Fill], list[Ink]]:
    b = habit.depth
    tip, lower, blunt = {
        "rounded-wings": (-0.74, 0.52, True),
        "pointed-wings": (-1.12, 0.46, False),
        "broad-wings": (-0.92, 0.70, True),
        "tapered-wings": (-1.32, 0.26, False),
        "long-wings": (-1.72, 0.42, False),
    }[traits["wing_shape"]]
    shoulder = [(0.50, 0.10 * b), (0.46, -0.30 * b), (0.10, -0.50 * b)]
    end = [(tip, -0.22 * b), (tip - 0.04, 0.16 * b), (0.6 * tip, 0.8 * lower * b)] if blunt else [(tip, -0.02 * b)] * 2
    trailing = [] if blunt else [(0.45 * tip, 0.72 * lower * b)]
    outline = smooth(
        [*shoulder, (0.55 * tip, -0.46 * b), *end, *trailing, (-0.08, lower * b), (0.34, 0.72 * lower * b)]
    )
    fills = [Fill("near wing", "wing", trunk.at(outline))]
    feathers = []
    for k in range(3):
        start = (0.05 - 0.1 * k, (0.75 - 0.4 * k) * lower * b)
        control = (0.4 * tip, (0.55 - 0.4 * k) * lower * b)
        feathers.append(ribbon(bend(start, control, (0.98 * tip, 0.06 * b - 0.06 * k)), 0.04))
    rim = ribbon(np.concatenate([outline, outline[:1]]), 0.055)
    inks = []
    drawn = patterns.wing(traits["wing_pattern"], b, tip)
    if drawn:
        inks.append(Ink(("near wing",), "wing_ink", [trunk.at(p) for p in drawn]))
    return fills, [*inks, Ink(("near wing",), "wing_dark", [trunk.at(p) for p in [*feathers, rim]])]


def _head(head: Frame, r: float, eye: float, traits: Mapping[str, str]) -> tuple[list[Fill], list[Ink]]:
    def arc(start: float, end: float) -> Points:
        angle = np.radians(np.linspace(start, end, 12))
        return np.stack([1.04 * np.cos(angle), np.sin(angle)], 1)

    regions = {
        "face": ellipse((0, 0), 1.04, 1.0),
        "nape": np.concatenate([arc(126, 236), bend((-0.42, -0.72), (-0.28, 0.0), (-0.56, 0.62))]),
        "throat": np.concatenate([arc(-18, -124), bend((-0.40, -0.60), (0.15, -0.20), (0.98, -0.16))]),
        "forehead": np.concatenate([arc(3, 72), bend((0.26, 0.90), (0.30, 0.40), (0.99, 0.04))]),
        "crown": np.concatenate([arc(68, 134), bend((-0.64, 0.60), (-0.1, 0.42), (0.36, 0.58))]),
    }
    fills = [Fill(part, part, head.at(r * region)) for part, region in regions.items()]
    if traits["head_pattern"] == "crested":
        crest = smooth(
            [(0.42, 0.80), (-0.15, 1.30), (-1.15, 1.72), (-1.15, 1.72), (-0.72, 0.98), (-0.62, 0.55)], steps=5
        )
        fills.append(Fill("crown", "crown", head.at(r * crest)))
    drawn = patterns.head(traits["head_pattern"], eye)
    return fills, [Ink(_HEAD_PARTS, "head_ink", [head.at(r * p) for p in drawn])] * bool(drawn)


_HEAD_PARTS = ("face", "crown", "forehead", "throat", "nape")


def _beak(head: Frame, r: float, traits: Mapping[str, str]) -> tuple[list[Fill], list[Ink]]:
    length = _BILL_LENGTHS[traits["bill_length"]]
    s = np.linspace(0, 1, 11)
    taper = 1 - s
    center, half = 0 * s, 0.25 * taper**0.8
    hook: list[tuple[float, float]] = []
    match traits["bill_shape"]:
        case "cone":
            half = 0.44 * taper
        case "dagger":
            half = 0.27 * taper**0.9
        case "needle":
            half = 0.085 * (1 - 0.5 * s)
        case "curved_(up_or_down)":
            center, half = -0.42 * length * s**2, 0.22 * (1 - 0.85 * s)
        case "hooked":
            center, half = -0.16 * s**2, 0.36 * (1 - s**3) + 0.03
            hook = [(1.05, -0.28), (0.97, -0.56)]
        case "hooked_seabird":
            center, half = 0.06 * s, 0.20 - 0.05 * s
            hook = [(1.06, 0.05), (1.01, -0.38)]
        case "spatulate":
            half = 0.22 - 0.30 * s + 0.36 * s**2
            hook = [(1.10, 0.14), (1.13, -0.02), (1.08, -0.18)]
        case "specialized":
            center, half = 0.12 * np.sin(np.pi * s) - 0.24 * s**2, 0.60 * (1 - s**2.2) + 0.02
    along = 0.86 + length * s
    upper, lower = np.stack([along, 0.02 + center + half], 1), np.stack([along, 0.02 + center - half], 1)
    tip = np.array([(0.86 + length * x, y) for x, y in hook]).reshape(-1, 2)
    if hook:  # the hook grows out of the upper half: end the lower half before it
        lower = lower[:-2]
    gape = ribbon(np.stack([along[:-1], (0.02 + center - 0.1 * half)[:-1]], 1), 0.09)
    return [Fill("beak", "bill", head.at(r * np.concatenate([upper, tip, lower[::-1]])))], [
        Ink(("beak",), "bill_dark", [head.at(r * gape)])
    ]


def _eye(head: Frame, r: float, eye: float) -> list[Fill]:
    center = np.array([0.36, 0.16])
    return [
        Fill("near eye", "eye_rim", head.at(r * ellipse(center, 1.14 * eye))),
        Fill("near eye", "eye", head.at(r * ellipse(center, eye))),
        Fill("near eye", "pupil", head.at(r * ellipse(center + 0.05 * eye, 0.50 * eye))),
        Fill("near eye", "glint", head.at(r * ellipse(center + np.array([-0.30, 0.38]) * eye, 0.20 * eye, steps=10))),
    ]
