"""Your own model and images, in the shape of a run."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.cli.options import OwnModel
from experiments.runs.loading import LoadedRun, load_run, load_test_split
from experiments.runs.own_files import load_function, read_images, read_names, read_own_head
from spectra_jax import Head, head_logits
from spectra_jax.data import DatasetInfo
from spectra_jax.training import TrainConfig

_BATCH = 32


@dataclass(frozen=True)
class OwnNetwork:
    """What the scripts ask of a `spectra_jax.models.Model`, from a function and a head.

    Attributes:
        name: how it was given.
        function: images -> attributes (b, n).
        classifier: on the attributes.
    """

    name: str
    function: Callable[[Any], Any]
    classifier: Head

    def __hash__(self) -> int:
        return hash((self.name, id(self.function)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnNetwork) and self.function is other.function

    def encode(self, params: Any, images: Any) -> Any:
        """The function's attributes; its parameters are its own."""
        return self.function(images)

    def attribute_logits(self, params: Any, attributes: Any) -> Any:
        """The attributes: nothing else is known of them."""
        return attributes

    def head(self, params: Any) -> Head:
        """The classifier."""
        return self.classifier


class OwnImages:
    """What the scripts ask of a `spectra_jax.data.Dataset`, from arrays that are one test split."""

    def __init__(self, path: Path, info: DatasetInfo, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.path, self.info = path, info
        self._pixels, self._labels = pixels, labels

    def num_examples(self, split: str) -> int:
        """Images of a split."""
        return len(self._pixels) if split == "test" else 0

    def source(self, split: str) -> Sequence[dict[str, Any]]:
        """The records without their images."""
        return [{"label": label} for label in self._labels] if split == "test" else []

    def images(self, split: str, rows: np.ndarray, *, image_size: int) -> np.ndarray:
        """(b, h, w, 3) uint8, at their own size."""
        return self._pixels[rows]

    def example(self, split: str, index: int) -> dict[str, Any]:
        """One example, without parts."""
        return {"image": self._pixels[index], "label": int(self._labels[index]), "parts": np.zeros((0, 3), np.float32)}


def open_subject(run_dir: Path | None, own: OwnModel) -> tuple[LoadedRun, np.ndarray, np.ndarray]:
    """A trained run or your own model, its test attributes (N, n) and labels (N,).

    Raises:
        UserError: the run is not complete, or a part of the model does not fit the others.
    """
    if run_dir is not None:
        run, split = load_run(run_dir), load_test_split(run_dir)
        return run, split.attributes, split.labels
    return open_own(own)


def open_own(own: OwnModel) -> tuple[LoadedRun, np.ndarray, np.ndarray]:
    """Your own model in the shape of a run, the attributes (N, n) of its images and labels (N,).

    Without labels, the predicted classes take their place.

    Raises:
        UserError: a part of the model does not fit the others.
    """
    assert own.encoder is not None and own.head is not None and own.images is not None
    pixels, labels = read_images(own.images)
    function = load_function(own.encoder)
    attributes = _encode(own.encoder, function, pixels)
    head = read_own_head(own.head, attributes.shape[1])
    num_classes, num_attributes = head.weights.shape
    if labels is None:
        labels = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=1)
    elif not (labels.min() >= 0 and labels.max() < num_classes):
        raise UserError(
            f"{own.images}: labels go from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}, the "
            "classes of the head."
        )
    info = DatasetInfo(
        name=own.images.stem,
        class_names=read_names("class", own.class_names, num_classes),
        class_ids=tuple(range(num_classes)),
        attribute_names=read_names("attribute", own.attribute_names, num_attributes),
        attribute_ids=tuple(range(num_attributes)),
        attribute_source="image",
        class_attributes=np.zeros((num_classes, num_attributes)),
        part_names=(),
        image_kind="full",
        num_images={"train": 0, "validation": 0, "test": len(pixels)},
        num_missing_images=0,
    )
    # Nobody's parameters can be looked at, so what the function answers stands for them in checksums.
    digest = hashlib.sha256(attributes.tobytes() + pixels.tobytes()).hexdigest()[:16]
    dataset = OwnImages(own.images.with_name(f"{own.images.stem}-{digest}"), info, pixels, labels)
    network = OwnNetwork(own.encoder, function, head)
    config = dataclasses.replace(TrainConfig(), model=own.encoder, image_size=pixels.shape[1])
    run = LoadedRun(cast(Any, network), {"head": head}, info, config, cast(Any, dataset), 0)
    return run, attributes, labels


def _encode(name: str, function: Callable[[Any], Any], pixels: np.ndarray) -> np.ndarray:
    parts = []
    for begin in range(0, len(pixels), _BATCH):
        rows = np.minimum(np.arange(begin, begin + _BATCH), len(pixels) - 1)
        images = jnp.asarray(pixels[rows], jnp.float32) / 255
        try:
            values = np.asarray(function(images))
        except Exception as error:
            raise UserError(f"--encoder {name} fails on images {images.shape}: {error}") from error
        if values.ndim != 2 or len(values) != len(images) or not jnp.issubdtype(values.dtype, jnp.floating):
            raise UserError(
                f"--encoder {name} returns {values.dtype} {values.shape} for images {images.shape}; expected floats "
                f"({len(images)}, n), a row of attributes per image."
            )
        if not np.isfinite(values).all():
            raise UserError(f"--encoder {name} returns NaN or infinite attributes in the batch from image {begin} on.")
        parts.append(values.astype(np.float32))
    return np.concatenate(parts)[: len(pixels)]
