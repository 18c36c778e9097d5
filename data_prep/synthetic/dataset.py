"""The options of a synthetic data set, and the specification of each of its images as a pure function of them."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_prep.synthetic.drawing import BirdSpec
from data_prep.synthetic.plumage import BirdClass, sample_classes, sample_individual
from data_prep.synthetic.scenery import sample_scene

VERSION = 2  # raise it whenever the same options give other pictures or labels


@dataclass(frozen=True)
class Options:
    """What decides every byte of a synthetic data set (together with `VERSION`)."""

    num_classes: int = 24
    images_per_class: int = 90
    image_size: int = 96
    seed: int = 0
    label_noise: float = 0.0
    independent: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= 999:
            raise ValueError(f"num_classes must be between 2 and 999, got {self.num_classes}")
        if self.images_per_class < 2:
            raise ValueError(
                f"images_per_class must be at least 2 (one to train, one to test), got {self.images_per_class}"
            )
        if not 48 <= self.image_size <= 1024:
            raise ValueError(f"image_size must be between 48 and 1024 pixels, got {self.image_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.label_noise <= 0.5:
            raise ValueError(f"label_noise must be between 0 and 0.5, got {self.label_noise}")

    @property
    def num_images(self) -> int:
        """Images in the data set; their ids run from 1."""
        return self.num_classes * self.images_per_class

    def to_json(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return asdict(self)


@lru_cache(maxsize=4)
def _classes(num_classes: int, seed: int, independent: bool) -> tuple[BirdClass, ...]:
    return tuple(sample_classes(num_classes, seed, independent=independent))


def classes_of(options: Options) -> tuple[BirdClass, ...]:
    """The classes of a data set; do not change the traits in place."""
    return _classes(options.num_classes, options.seed, options.independent)


def image_stem(options: Options, image_id: int) -> str:
    """Path of an image below images/ without its suffix, named as CUB names them."""
    label, index = divmod(image_id - 1, options.images_per_class)
    name = classes_of(options)[label].name
    return f"{label + 1:03d}.{name}/{name.title()}_{index + 1:04d}_{image_id}"


def image_spec(options: Options, image_id: int) -> BirdSpec:
    """Traits and scene of one image (1-based id); depends on nothing but the options."""
    if not 1 <= image_id <= options.num_images:
        raise ValueError(f"image_id must be between 1 and {options.num_images}, got {image_id}")
    label, index = divmod(image_id - 1, options.images_per_class)
    rng = np.random.default_rng([options.seed, 102, label, index])
    traits = sample_individual(classes_of(options)[label].traits, rng, independent=options.independent)
    return BirdSpec(traits, sample_scene(traits, rng, image_size=options.image_size))
