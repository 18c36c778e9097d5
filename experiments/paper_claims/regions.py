"""Where an attribute's part is, where else on the bird an equally large region fits, and where other parts are."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.morphology import convex_hull_image

from experiments.cli.command import UserError
from experiments.cli.devices import cache_dir
from experiments.counterfactuals.parts import RADIUS, disc_scale
from experiments.runs.loading import LoadedRun
from experiments.runs.part_names import part_names
from spectra_jax import localization

# Drawn birds have two regions that CUB does not name; the groups that are about them.
EXTRA = {"under_tail_color": ("under tail",), "head_pattern": ("crown", "forehead", "nape", "face")}
_SAME_PICTURE = 3.0  # levels by which a stored crop may differ from its source on average: JPEG twice


class Regions:
    """The regions of the test pictures of a data set, at one size.

    Drawn birds have exact masks of what was painted; photographs have discs around CUB's part points.

    Args:
        run: whose data set and picture size.
        masks: folder of drawn birds with part_masks/; None takes the cached one if the run's pictures are from there.
        seed: of the places elsewhere on the bird.

    Raises:
        UserError: `masks` holds other pictures than the run's data set.
    """

    def __init__(self, run: LoadedRun, *, masks: Path | None, seed: int):
        self._run, self._seed, self._size = run, seed, run.config.image_size
        self._source = _mask_source(run, masks)
        self._cache: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}

    @property
    def kind(self) -> str:
        """How the regions are known, in words."""
        return "painted masks, exact" if self._source else f"discs of {RADIUS:g} of the bird's size around part points"

    def parts_of(self, attribute: str) -> tuple[str, ...]:
        """Names of the regions an attribute is about, () for the whole bird."""
        group = attribute.partition("::")[0].removeprefix("has_")
        return EXTRA.get(group, part_names(attribute)) if self._source else part_names(attribute)

    def own(self, index: int, attribute: str) -> np.ndarray | None:
        """(h, w) the part of an attribute in a test picture; None without a part or where it is not visible."""
        parts, _ = self._read(index)
        found = [parts[name] for name in self.parts_of(attribute) if name in parts]
        return np.any(found, axis=0) if found else None

    def bird(self, index: int) -> np.ndarray:
        """(h, w) the bird: what was painted, or the convex hull of the discs of all visible parts."""
        return self._read(index)[1]

    def elsewhere(self, index: int, attribute: str) -> np.ndarray | None:
        """As many pixels of the bird as the part has, around a random place and outside of the part.

        None where the part is not known or the rest of the bird is smaller than it.
        """
        own = self.own(index, attribute)
        if own is None:
            return None
        free = np.flatnonzero(self.bird(index) & ~own)
        wanted = int(own.sum())
        if not 0 < wanted <= len(free):
            return None
        column = self._run.info.attribute_names.index(attribute)
        rows, columns = np.unravel_index(free, own.shape)
        centre = int(np.random.default_rng([self._seed, 11, index, column]).integers(len(free)))
        distance = np.hypot(rows - rows[centre], columns - columns[centre])
        region = np.zeros_like(own)
        region.flat[free[np.argpartition(distance, wanted - 1)[:wanted]]] = True
        return region

    def swapped(self, index: int, attribute: str) -> np.ndarray | None:
        """The part of another attribute, drawn at random among those about other parts that are visible here."""
        own, names = set(self.parts_of(attribute)), self._run.info.attribute_names
        column = names.index(attribute)
        rng = np.random.default_rng([self._seed, 12, index, column])
        for other in rng.permutation(len(names)):
            theirs = self.parts_of(names[other])
            if theirs and not own & set(theirs) and (region := self.own(index, names[other])) is not None:
                return region
        return None

    def _read(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if index not in self._cache:
            example = self._run.dataset.example("test", index)
            read = self._painted if self._source else self._discs
            if len(self._cache) > 256:  # pictures come several times in a row, not at random
                self._cache.clear()
            self._cache[index] = read(example)
        return self._cache[index]

    def _painted(self, example: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        from data_prep.synthetic.vocabulary import PART_IDS

        assert self._source is not None
        mask = _cut(Image.open(self._source / "part_masks" / Path(example["path"]).with_suffix(".png")), example,
                    self._run.info.image_kind)  # fmt: skip
        ids = np.asarray(mask.resize((self._size, self._size), Image.Resampling.NEAREST))
        parts = {name: ids == number for name, number in PART_IDS.items() if (ids == number).any()}
        return parts, ids > 0

    def _discs(self, example: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        info, size = self._run.info, self._size
        scale, radius = disc_scale(info, example, size)
        seen = np.flatnonzero(example["parts"][:, 2] > 0)
        centres = (example["parts"][seen, :2] * scale)[:, None].astype(np.float32)
        if not len(seen):
            return {}, np.zeros((size, size), bool)
        shown, radii = np.ones((len(seen), 1), bool), np.full(len(seen), radius, np.float32)
        discs = localization.draw_discs(centres, shown, radii, height=size, width=size)
        parts = {info.part_names[part]: disc for part, disc in zip(seen, discs, strict=True) if disc.any()}
        together = discs.any(axis=0)
        return parts, np.asarray(convex_hull_image(together)) if together.any() else together


def _cut(picture: Image.Image, example: dict[str, Any], kind: str) -> Image.Image:
    """The part of a full frame that the prepared data set stores of it."""
    if kind == "full":
        return picture
    x, y, width, height = (float(value) for value in example["box"])
    return picture.crop((math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)))


def _mask_source(run: LoadedRun, masks: Path | None) -> Path | None:
    """The folder of drawn birds that the run's pictures come from; None for photographs."""
    folder = cache_dir() / "synthetic_birds" if masks is None else masks
    example = run.dataset.example("test", 0)
    picture = folder / "CUB_200_2011" / "images" / example["path"]
    wrong = UserError(f"--masks {folder} has other pictures than those that {run.info.name} was prepared from.")
    if not (folder / "part_masks").is_dir() or not picture.exists():
        if masks is not None:
            raise wrong
        return None
    with Image.open(picture) as whole:
        cut = np.asarray(_cut(whole.convert("RGB"), example, run.info.image_kind), np.float32)
    stored = example["image"].astype(np.float32)
    if cut.shape != stored.shape or np.abs(cut - stored).mean() > _SAME_PICTURE:
        if masks is not None:
            raise wrong
        return None
    return folder
