"""Everything in the picture that is not the bird: frame, pose, light, background, perch and what grows in front."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic.anatomy import Pose
from data_prep.synthetic.geometry import Points, bend, ellipse, ribbon, smooth
from data_prep.synthetic.plumage import Traits, pick

_PERCHES = {  # what a shape is seen on; one of them is drawn
    "duck-like": ["water", "water", "ground"],
    "gull-like": ["ground", "water", "rock"],
    "upright-perching_water-like": ["rock", "rock", "branch"],
    "long-legged-like": ["shallows", "shallows", "ground"],
    "sandpiper-like": ["shallows", "ground", "rock"],
    "chicken-like-marsh": ["grass", "ground", "shallows"],
    "upland-ground-like": ["grass", "ground"],
    "hummingbird-like": ["air", "air", "branch"],
    "tree-clinging-like": ["trunk", "trunk", "branch"],
}
_DEFAULT_PERCHES = ["branch", "branch", "branch", "ground", "rock"]
_BACKDROPS = {
    "branch": ["foliage", "foliage", "sky", "dusk"],
    "trunk": ["foliage", "foliage", "dusk"],
    "air": ["foliage", "sky"],
    "water": ["water"],
    "shallows": ["water", "marsh"],
    "ground": ["meadow", "sand", "sky"],
    "grass": ["meadow", "marsh"],
    "rock": ["sky", "water", "dusk"],
}
_TONES = {  # top and bottom of the backdrop, and what its soft blobs look like
    "sky": ((150, 188, 222), (214, 226, 234), (238, 241, 243)),
    "dusk": ((96, 98, 122), (196, 164, 146), (150, 126, 128)),
    "foliage": ((70, 96, 62), (122, 140, 92), (158, 168, 116)),
    "water": ((120, 150, 164), (88, 118, 134), (168, 190, 198)),
    "marsh": ((150, 152, 112), (104, 112, 80), (178, 172, 128)),
    "meadow": ((176, 194, 186), (128, 146, 92), (164, 172, 118)),
    "sand": ((190, 196, 196), (198, 180, 148), (214, 200, 172)),
}


@dataclass(frozen=True)
class Scene:
    """What varies from picture to picture besides the bird's traits; fractions of the frame unless said otherwise."""

    width: int  # pixels
    height: int
    facing: int  # 1: the bird looks to the right of the picture, -1: to the left
    body_angle: float  # degrees, relative to the habit of the shape
    head_angle: float
    tail_angle: float
    stride: float
    fill: float  # share of the frame that the bird's box may take
    position: tuple[float, float]  # 0..1 of the free room
    overhang: float  # how far the tail side is pushed out of the frame
    brightness: float
    warmth: float
    light_angle: float  # degrees, 90 = from above
    perch: str
    backdrop: str
    cover: str  # "none", "leaf" or "blades": something in front of the bird
    cover_at: tuple[float, float]  # of the bird's box
    texture_seed: int

    @property
    def pose(self) -> Pose:
        """The bird's pose for `anatomy.build`."""
        return Pose(self.body_angle, self.head_angle, self.tail_angle, self.stride)


def sample_scene(traits: Traits, rng: np.random.Generator, *, image_size: int) -> Scene:
    """Draws a scene that suits the bird's shape; the short side of the frame is `image_size` pixels."""
    perch = pick(rng, _PERCHES.get(traits["shape"], _DEFAULT_PERCHES))
    long_side = image_size * (4 + int(rng.integers(3)) * 0.5) / 4  # 1, 1.125 or 1.25 times as long
    width, height = (int(long_side), image_size) if rng.random() < 0.65 else (image_size, int(long_side))
    size_words = ("very_small", "small", "medium", "large", "very_large")
    rank = size_words.index(traits["size"].split("_(")[0])

    def spread(low: float, high: float) -> float:
        return round(low + (high - low) * float(rng.random()), 4)

    return Scene(
        width=width,
        height=height,
        facing=1 if rng.random() < 0.5 else -1,
        body_angle=spread(-9, 9),
        head_angle=spread(-16, 14),
        tail_angle=spread(-9, 9),
        stride=spread(-22, 22),
        fill=min(spread(0.74, 0.88) + 0.02 * rank, 0.94),
        position=(spread(0, 1), spread(0.15, 0.85)),
        overhang=spread(0.10, 0.28) if rng.random() < 0.08 else 0.0,
        brightness=spread(0.88, 1.08),
        warmth=spread(-0.03, 0.03),
        light_angle=spread(50, 130),
        perch=perch,
        backdrop=pick(rng, _BACKDROPS[perch]),
        cover=pick(rng, ["leaf", "blades"]) if rng.random() < 0.14 else "none",
        cover_at=(spread(0.1, 0.9), spread(0.35, 0.85)),
        texture_seed=int(rng.integers(2**31)),
    )


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    grid = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1


def backdrop(scene: Scene) -> np.ndarray:
    """The out-of-focus background, (height, width, 3) float32 in 0..255."""
    rng = np.random.default_rng([scene.texture_seed, 1])
    top, bottom, blob = (np.array(tone) + rng.integers(-14, 15, 3) for tone in _TONES[scene.backdrop])
    ramp = np.linspace(0, 1, scene.height)[:, None, None] ** (0.6 + 0.8 * float(rng.random()))
    canvas = np.broadcast_to(top + (bottom - top) * ramp, (scene.height, scene.width, 3))
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    flat = scene.backdrop in ("water", "sand", "marsh", "sky")
    for _ in range(int(rng.integers(7, 14))):
        x, y = float(rng.random()) * scene.width, float(rng.random()) * scene.height
        rx = (0.10 + 0.14 * float(rng.random())) * scene.width * (1.7 if flat else 1)
        ry = rx * (0.18 if flat else 0.9)
        shift = (float(rng.random()) - 0.5) * 30 + (rng.random(3) - 0.5) * 12
        fill = tuple(int(v) for v in np.clip(blob + shift, 0, 255))
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.035 * scene.width)), np.float32)
    coarse = _noise(rng, scene.width, scene.height, 6) * 7
    fine = (rng.random((scene.height, scene.width), dtype=np.float32) - 0.5) * 7
    return soft + (coarse + fine)[..., None]


class Foreground:
    """Polygons of the perch (behind the bird) and of what covers the bird, in pixels of the frame."""

    def __init__(self, scene: Scene, feet: Points, box: tuple[float, float, float, float]) -> None:
        """Lays the scenery out around a placed bird.

        Args:
            scene: what to draw.
            feet: (2, 2) foot positions in pixels, far and near.
            box: left, top, right, bottom of the bird in pixels.
        """
        self.behind: list[tuple[str, Points]] = []
        self.front: list[tuple[str, Points]] = []
        rng = np.random.default_rng([scene.texture_seed, 2])
        left, top, right, bottom = box
        width, height = scene.width, scene.height
        unit = 0.01 * max(width, height)
        ground = float(feet[:, 1].mean())
        self._perch(scene, rng, feet, ground, unit)
        if scene.perch == "grass" or scene.cover == "blades":
            for _ in range(int(rng.integers(9, 16))):
                x = left + (right - left) * (float(rng.random()) * 1.2 - 0.1)
                reach = (9 + 13 * float(rng.random())) * unit
                self._blade(rng, x, max(ground, bottom - 4 * unit), height + 4 * unit, reach, unit)
        if scene.cover == "leaf":
            x = left + scene.cover_at[0] * (right - left)
            y = top + scene.cover_at[1] * (bottom - top)
            self._leaf(rng, x, y, 12 * unit, "front")

    def _perch(self, scene: Scene, rng: np.random.Generator, feet: Points, ground: float, unit: float) -> None:
        width, height = scene.width, scene.height
        far, near = feet
        slope = float(rng.random() - 0.5) * 0.25
        if scene.perch == "branch":
            center = feet.mean(0) + np.array([0, 2.4 * unit])
            ends = [
                (-20, center[1] - slope * (center[0] + 20)),
                (width + 20, center[1] + slope * (width + 20 - center[0])),
            ]
            line = bend(ends[0], center + np.array([0, 1.5 * unit]), ends[1])
            self.behind += [
                ("bark", ribbon(line, 6.2 * unit)),
                ("bark_dark", ribbon(line + np.array([0, 1.8 * unit]), 2.0 * unit)),
            ]
            for _ in range(int(rng.integers(0, 4))):
                spot = line[int(rng.integers(len(line)))]
                self._leaf(rng, float(spot[0]), float(spot[1]), (6 + 5 * float(rng.random())) * unit, "behind")
        elif scene.perch == "trunk":
            ahead = scene.facing * 5.5 * unit
            center_x = float(feet[:, 0].mean()) + ahead
            line = bend(
                (center_x - 2 * unit, -20),
                (center_x + 3 * slope * unit, height / 2),
                (center_x + 3 * unit, height + 20),
            )
            self.behind += [("bark", ribbon(line, 15 * unit))]
            self.behind += [
                ("bark_dark", ribbon(line + np.array([dx * unit, 0]), 0.9 * unit)) for dx in (-4.5, -1.0, 3.5, 5.5)
            ]
        elif scene.perch in ("ground", "grass"):
            shore = bend((-20, ground - unit), (width / 2, ground - 3 * unit), (width + 20, ground - unit))
            self.behind.append(("soil", np.concatenate([shore, [(width + 20, height + 40), (-20, height + 40)]])))
            for _ in range(int(rng.integers(5, 11))):
                x, y = width * float(rng.random()), ground + 24 * unit * float(rng.random()) ** 1.5
                size = (1.2 + 2.2 * float(rng.random())) * unit
                self.behind.append(("soil_dark", ellipse((x, y), 2.2 * size, 0.5 * size)))
        elif scene.perch == "rock":
            x, y = feet.mean(0).tolist()
            top = [(x - 22 * unit, y + 5 * unit), (x, y - 0.5 * unit), (x + 20 * unit, y + 4 * unit)]
            crag = smooth([(x - 30 * unit, height + 60), *top, (x + 32 * unit, height + 60)])
            crack = bend((x - 20 * unit, y + 8 * unit), (x, y + 4 * unit), (x + 6 * unit, height))
            self.behind += [("rock", crag), ("rock_dark", ribbon(crack, 1.2 * unit))]
        elif scene.perch in ("water", "shallows"):
            # A swimmer sits to its belly in the water, a wader stands in it.
            level = ground - (5.0 if scene.perch == "water" else 2.5) * unit
            surface = [(-20, level), (width + 20, level), (width + 20, height + 60), (-20, height + 60)]
            self.front.append(("pool", np.array(surface, float)))
            for k in range(5):
                y = level + (1.5 + 3.2 * k + 2 * float(rng.random())) * unit
                x = float(near[0] if k % 2 else far[0]) + (float(rng.random()) - 0.5) * 40 * unit
                self.front.append(
                    ("ripple", ribbon(bend((x - 16 * unit, y), (x, y + unit), (x + 16 * unit, y)), 0.8 * unit))
                )

    def _leaf(self, rng: np.random.Generator, x: float, y: float, size: float, where: str) -> None:
        angle = float(rng.random()) * 2 * np.pi
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        tip = np.array([x, y]) + size * along
        root = np.array([x, y]) - size * along
        sides = [np.array([x, y]) + side * 0.42 * size * across for side in (1, -1)]
        leaf = np.concatenate(
            [bend(root, 2 * sides[0] - (root + tip) / 2, tip), bend(tip, 2 * sides[1] - (root + tip) / 2, root)]
        )
        target = self.behind if where == "behind" else self.front
        target += [("leaf", leaf), ("leaf_dark", ribbon(np.stack([root, tip]), 0.1 * size))]

    def _blade(self, rng: np.random.Generator, x: float, y: float, root: float, reach: float, unit: float) -> None:
        lean = (float(rng.random()) - 0.5) * 0.9 * reach
        line = bend((x, root), (x, y - 0.3 * reach), (x + lean, y - reach))
        self.front.append(
            ("leaf" if rng.random() < 0.5 else "leaf_dark", ribbon(line, np.linspace(1.8, 0.3, 9) * unit))
        )


def palette(scene: Scene) -> dict[str, np.ndarray]:
    """RGB of the scenery's colour slots."""
    rng = np.random.default_rng([scene.texture_seed, 3])

    def around(*rgb: int) -> np.ndarray:
        return np.clip(np.array(rgb) + rng.integers(-16, 17), 0, 255)

    bark, leaf, rock = around(104, 86, 70), around(88, 122, 62), around(128, 124, 120)
    soil = around(*((186, 168, 134) if scene.backdrop == "sand" else (122, 118, 82)))
    pool = around(104, 136, 150)
    return {
        "bark": bark,
        "bark_dark": 0.72 * bark,
        "leaf": leaf,
        "leaf_dark": 0.76 * leaf,
        "rock": rock,
        "rock_dark": 0.7 * rock,
        "soil": soil,
        "soil_dark": 0.86 * soil,
        "pool": pool,
        "ripple": np.minimum(1.25 * pool, 255),
    }
