"""From a specification to a picture: a pure function that paints label maps with PIL and turns them into colours.

Two maps are painted three times too large: which part a pixel belongs to, and which colour slot it shows. Changing a
colour therefore changes only the palette, and every other pixel of the picture stays as it was.
"""

import colorsys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic import anatomy, labels, scenery
from data_prep.synthetic.geometry import Points
from data_prep.synthetic.plumage import PATTERNED, Traits
from data_prep.synthetic.scenery import Scene
from data_prep.synthetic.vocabulary import PART_IDS, PARTS, RGB

OVERSAMPLING = 3
_SHADES = {
    "wing_dark": 0.66,
    "tail_dark": 0.72,
    "under_tail_dark": 0.66,
    "bill_dark": 0.55,
    "leg_near": 1.0,
    "leg_far": 0.72,
}
_FIXED = {"pupil": (14, 14, 16), "glint": (250, 250, 250), "eye_rim": (40, 36, 34)}
# Colour slot -> the trait that names its colour.
_PLAIN = ["back", "wing", "upper_tail", "under_tail", "breast", "belly", "throat", "nape", "crown", "forehead", "face"]
_SLOT_TRAITS = {
    **{part: f"{part}_color" for part in [*_PLAIN, "bill", "eye"]},
    **{f"{part}_ink": f"{part}_ink" for part in [*PATTERNED, "head"]},
    "wing_dark": "wing_color",
    "tail_dark": "upper_tail_color",
    "under_tail_dark": "under_tail_color",
    "bill_dark": "bill_color",
    "leg_near": "leg_color",
    "leg_far": "leg_color",
}
_SCENERY = ("bark", "bark_dark", "leaf", "leaf_dark", "rock", "rock_dark", "soil", "soil_dark", "pool", "ripple")
_SLOTS = ["nothing", *_SLOT_TRAITS, *_FIXED, *_SCENERY]
_SLOT = {name: number for number, name in enumerate(_SLOTS)}


class BirdSpec(NamedTuple):
    """Everything that decides a picture."""

    traits: Traits
    scene: Scene


class Drawing(NamedTuple):
    """A picture with its exact ground truth.

    Attributes:
        image: (h, w, 3) uint8.
        part_mask: (h, w) uint8, the part every pixel belongs to (`vocabulary.PART_IDS`), 0 where there is no bird.
        parts: (15, 3) x, y, visible in CUB's order; 0 0 0 where not visible.
        box: (4,) x, y, width, height of the visible bird in pixels.
        attributes: (312,) bool, present.
        seen: (312,) bool, whether the part that the attribute speaks about can be seen.
        primary_color: the colour word with the largest drawn area.
    """

    image: np.ndarray
    part_mask: np.ndarray
    parts: np.ndarray
    box: np.ndarray
    attributes: np.ndarray
    seen: np.ndarray
    primary_color: str


def draw(spec: BirdSpec) -> Drawing:
    """Draws one bird; the same specification gives the same picture.

    Args:
        spec: traits and scene.

    Returns:
        The picture, its masks, part locations, box and attribute labels.
    """
    traits, scene = spec
    part, slot, whole = _paint(traits, scene)
    mask = part[1::OVERSAMPLING, 1::OVERSAMPLING].copy()
    visible = _visible_parts(mask, whole)
    primary = _primary_color(traits, slot[part > 0])
    present, seen = labels.attribute_labels(traits, primary, visible)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]], float)
    return Drawing(_colorize(traits, scene, part, slot), mask, _locate(mask, visible), box, present, seen, primary)


def _paint(traits: Traits, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Oversampled part and slot maps of the frame, and each part's area (in frame pixels) before anything covers it."""
    bird = anatomy.build(traits, scene.pose)
    everything = np.concatenate([fill.points for fill in bird.fills])
    low, high = everything.min(0), everything.max(0)
    size = np.array([scene.width, scene.height], float)
    scale = scene.fill * float((size / (high - low)).min())
    free = size - scale * (high - low)
    corner = free * scene.position
    if scene.overhang:  # the tail, on the left of a bird that faces right, leaves the frame
        corner[0] = -scene.overhang * scale * (high - low)[0]
    margin = int(np.ceil(max(0.0, -float(corner[0])))) + 1

    def place(points: Points) -> Points:
        """World to frame pixels."""
        placed = (points - low) * scale + corner
        if scene.facing < 0:
            placed[:, 0] = scene.width - placed[:, 0]
        return placed

    def grid(points: Points) -> list[tuple[float, float]]:
        """Frame pixels to the oversampled canvas with its margin; sixteenths keep rounding noise out of the raster."""
        scaled = np.round((points + margin) * (16 * OVERSAMPLING)) / 16
        return [(x, y) for x, y in scaled.tolist()]

    canvas = (OVERSAMPLING * (scene.width + 2 * margin), OVERSAMPLING * (scene.height + 2 * margin))
    part_map, slot_map = Image.new("L", canvas), Image.new("L", canvas)
    draw_part, draw_slot = ImageDraw.Draw(part_map), ImageDraw.Draw(slot_map)
    outline = place(everything)
    box = (*outline.min(0).tolist(), *outline.max(0).tolist())
    foreground = scenery.Foreground(scene, place(bird.feet), box)
    for slot, points in foreground.behind:
        draw_slot.polygon(grid(points), fill=_SLOT[slot])
    near, far = ("right", "left") if scene.facing > 0 else ("left", "right")
    for fill in bird.fills:
        name = fill.part.replace("near", near).replace("far", far)
        corners = grid(place(fill.points))
        draw_part.polygon(corners, fill=PART_IDS[name])
        draw_slot.polygon(corners, fill=_SLOT[fill.slot])
    whole = np.bincount(np.asarray(part_map).ravel(), minlength=32) / OVERSAMPLING**2
    for slot, points in foreground.front:
        corners = grid(points)
        draw_part.polygon(corners, fill=0)
        draw_slot.polygon(corners, fill=_SLOT[slot])
    part, slots = np.asarray(part_map), np.array(slot_map)
    for ink in bird.inks:
        owners = [PART_IDS[name.replace("near", near)] for name in ink.parts]
        _apply_ink(part, slots, owners, _SLOT[ink.slot], [grid(place(polygon)) for polygon in ink.polygons])
    inner = slice(OVERSAMPLING * margin, OVERSAMPLING * (scene.height + margin))
    across = slice(OVERSAMPLING * margin, OVERSAMPLING * (scene.width + margin))
    return part[inner, across], slots[inner, across], whole


def _apply_ink(part: np.ndarray, slots: np.ndarray, owners: list[int], slot: int, polygons: list) -> None:
    corners = np.array([corner for polygon in polygons for corner in polygon])
    limit = np.array(part.shape[::-1])
    x0, y0 = np.clip(np.floor(corners.min(0)), 0, limit).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(corners.max(0)) + 1, 0, limit).astype(int).tolist()
    if x1 <= x0 or y1 <= y0:
        return
    stencil = Image.new("L", (x1 - x0, y1 - y0))
    pen = ImageDraw.Draw(stencil)
    for polygon in polygons:
        pen.polygon([(x - x0, y - y0) for x, y in polygon], fill=1)
    window = part[y0:y1, x0:x1]
    owned = window == owners[0]
    for owner in owners[1:]:
        owned |= window == owner
    slots[y0:y1, x0:x1][owned & (np.asarray(stencil) > 0)] = slot


def _visible_parts(mask: np.ndarray, whole: np.ndarray) -> dict[str, bool]:
    """Part or region -> whether a quarter of its uncovered area can be seen, and enough pixels to tell a colour."""
    area = np.bincount(mask.ravel(), minlength=32)
    least = max(3, 0.002 * area[1:].sum())
    visible = {name: bool(area[i] >= max(least, 0.25 * whole[i])) for name, i in PART_IDS.items()}
    for pair in ("leg", "wing"):
        visible[pair] = visible[f"left {pair}"] or visible[f"right {pair}"]
    # The ring of colour around the pupil needs more room than the eye as a dot.
    visible["iris"] = max(area[PART_IDS["left eye"]], area[PART_IDS["right eye"]]) >= 9
    return visible


def _locate(mask: np.ndarray, visible: Mapping[str, bool]) -> np.ndarray:
    parts = np.zeros((len(PARTS), 3))
    for row, name in enumerate(PARTS):
        if visible[name]:
            ys, xs = np.nonzero(mask == PART_IDS[name])
            nearest = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
            parts[row] = xs[nearest], ys[nearest], 1
    return parts


def _primary_color(traits: Traits, slots: np.ndarray) -> str:
    area: dict[str, int] = {}
    for slot, count in enumerate(np.bincount(slots, minlength=len(_SLOTS)).tolist()):
        trait = _SLOT_TRAITS.get(_SLOTS[slot])
        if trait:
            area[traits[trait]] = area.get(traits[trait], 0) + count
    return max(sorted(area), key=lambda color: area[color])


def _colorize(traits: Traits, scene: Scene, part: np.ndarray, slots: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3))
    gloss = np.zeros(256, np.uint8)
    jitter = np.random.default_rng([scene.texture_seed, 4]).uniform(0.94, 1.06, (len(_SLOTS), 4))
    for name, trait in _SLOT_TRAITS.items():
        # A darker shade of a colour follows the jitter of that colour, not its own.
        wobble = jitter[_SLOT[_base_slot(name)]]
        shade = _SHADES.get(name, 1.0) * wobble[0]
        if traits[trait] == "iridescent":
            gloss[_SLOT[name]] = int(min(255, 235 * shade))
        else:
            table[_SLOT[name]] = np.array(RGB[traits[trait]]) * shade * (0.5 + 0.5 * wobble[1:])
    for name, color in (_FIXED | scenery.palette(scene)).items():
        table[_SLOT[name]] = color
    flat = Image.fromarray(slots)
    flat.putpalette(np.clip(table, 0, 255).astype(np.uint8).tobytes())
    color = np.asarray(flat.convert("RGB").reduce(OVERSAMPLING), np.float32)
    glossy = _reduced(gloss[slots])
    if glossy.any():
        color = color + glossy[..., None] * _iridescence(scene)
    bird = _reduced(np.where(part > 0, 255, 0))
    wings = _reduced(np.where((part == PART_IDS["left wing"]) | (part == PART_IDS["right wing"]), 255, 0))
    solid = _reduced(np.where(slots > 0, 255, 0))[..., None]
    rng = np.random.default_rng([scene.texture_seed, 5])
    grain = 1 + 0.07 * (rng.random(bird.shape, dtype=np.float32) - 0.5)
    picture = color * (_shading(scene, bird, wings) * grain)[..., None] + scenery.backdrop(scene) * (1 - solid)
    tint = scene.brightness * np.array([1 + scene.warmth, 1, 1 - scene.warmth], np.float32)
    return np.clip(picture * tint + 0.5, 0, 255).astype(np.uint8)


def _base_slot(name: str) -> str:
    base = name.removesuffix("_dark").removesuffix("_far").removesuffix("_near")
    return {"tail": "upper_tail", "leg": "leg_near"}.get(base, base)


def _reduced(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).reduce(OVERSAMPLING), np.float32) / 255


def _blurred(mask: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((255 * mask).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _shading(scene: Scene, bird: np.ndarray, wings: np.ndarray) -> np.ndarray:
    """Light from above on a rounded body, a little shadow below the wing; about 1 in the middle of the bird."""
    angle = np.radians(scene.light_angle)
    light = (float(np.cos(angle)), -float(np.sin(angle)))
    size = min(scene.width, scene.height)
    shade = np.ones_like(bird)
    for mask, radius, strength in ((bird, 0.055 * size, 0.30), (wings, 0.02 * size, 0.16)):
        soft = _blurred(mask, radius)
        down, right = np.gradient(soft)
        facing = -(right * light[0] + down * light[1]) * radius * 2.5  # outward normal against the light
        shade += strength * np.clip(facing, -1, 0.7) * mask
        if mask is bird:
            shade += 0.10 * (soft - 0.8) * mask
        else:
            shade -= 0.26 * np.roll(soft, max(1, size // 48), 0) * (1 - mask) * bird
    return shade


def _iridescence(scene: Scene) -> np.ndarray:
    """A sheen that runs from green over teal to violet across the bird, (h, w, 3) in 0..255."""
    rng = np.random.default_rng([scene.texture_seed, 6])
    angle, phase = 2 * np.pi * rng.random(2)
    y, x = np.mgrid[: scene.height, : scene.width] / min(scene.width, scene.height)
    wave = np.sin(2 * np.pi * 2.6 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    hues, values = np.linspace(0.38, 0.82, 64), 0.52 + 0.2 * np.sin(np.linspace(0, 9, 64))
    ramp = np.array([colorsys.hsv_to_rgb(hue, 0.85, value) for hue, value in zip(hues, values, strict=True)])
    return (255 * ramp[np.clip(31.5 + 31.5 * wave, 0, 63).astype(int)]).astype(np.float32)
