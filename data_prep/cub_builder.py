"""The plan and the TFDS builder of CUB-200-2011 with its attributes."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data_prep.builder import AttributeImages
from data_prep.cub_files import CubFiles
from data_prep.cub_images import StoredImage, box_crop, full_frame, ready_made_crop
from data_prep.cub_labels import AttributeLabels, LabelSource, attribute_labels, is_official
from data_prep.cub_source import list_files
from data_prep.cub_tables import CubError
from data_prep.splits import class_shares, held_out
from data_prep.synthetic_birds import MANIFEST as SYNTHETIC_BIRDS

Crop = Literal["box", "full"]


class CubOptions(NamedTuple):
    """What is prepared from a source; part of the name of the prepared folder."""

    attributes: int = 312
    crop: Crop = "box"
    labels: LabelSource = "auto"
    validation_fraction: float = 0.1
    seed: int = 0


class CubPlan(NamedTuple):
    """Everything decided before the first image is read.

    Attributes:
        files: the annotations of all listed images.
        labels: the attribute labels of all listed images.
        rows: split -> rows of `files` that are prepared, by ascending image id.
        images: row -> file to read, and whether it is a ready-made crop.
        class_ids: 0-based CUB ids of the classes with images, ascending; a label is a position in it.
        options: as asked for.
    """

    files: CubFiles
    labels: AttributeLabels
    rows: dict[str, list[int]]
    images: dict[int, tuple[Path, bool]]
    class_ids: list[int]
    options: CubOptions

    @property
    def num_missing(self) -> int:
        """Listed images of which no file is there."""
        return len(self.files.paths) - len(self.images)


def make_plan(files: CubFiles, options: CubOptions) -> CubPlan:
    """Finds the images that are there and fixes splits, classes and labels.

    Raises:
        CubError: where no listed image is there.
    """
    layout = files.layout
    photos = list_files(layout.photos)
    crops = list_files(layout.crops) if layout.crops and options.crop == "box" else {}
    images: dict[int, tuple[Path, bool]] = {}
    for row, path in enumerate(files.paths):
        if path in photos:
            images[row] = (layout.photos / path, False)
        elif layout.crops and path in crops:
            images[row] = (layout.crops / path, True)
    if not images:
        raise CubError(f"{layout.photos}: none of the {len(files.paths)} images in images.txt exists")
    training = [row for row in images if files.is_train[row]]
    validation = held_out(files.paths, files.classes, training, fraction=options.validation_fraction, seed=options.seed)
    labels = attribute_labels(
        files, attributes=options.attributes, source=options.labels, is_train=files.is_train & ~validation
    )
    split_of = np.where(files.is_train, np.where(validation, "validation", "train"), "test")
    rows = {split: [row for row in images if split_of[row] == split] for split in ("train", "validation", "test")}
    class_ids = sorted({int(files.classes[row]) for row in images})
    return CubPlan(files, labels, rows, images, class_ids, options)


class Cub200(AttributeImages):
    """CUB-200-2011 with attributes, parts, boxes. Use `data_prep.cub200.prepare`, which makes it safe to interrupt."""

    DESCRIPTION = "Caltech-UCSD Birds-200-2011 with attributes, certainties, parts and boxes."
    HOMEPAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"

    def __init__(self, *, plan: CubPlan, **kwargs: Any):
        self._plan = plan
        super().__init__(rows=plan.rows, metadata=metadata(plan), **kwargs)

    def _example(self, row: int) -> dict[str, Any]:
        plan, files = self._plan, self._plan.files
        path, is_ready_made = plan.images[row]
        read = ready_made_crop if is_ready_made else box_crop if plan.options.crop == "box" else full_frame
        image = read(path, files.boxes[row])
        parts = {"parts": _moved_parts(files.parts[row], image)} if files.part_names else {}
        return {
            "image": image.encoded,
            "label": plan.class_ids.index(int(files.classes[row])),
            "attributes": plan.labels.values[row],
            "certainty": plan.labels.certainties[row],
            **parts,
            "box": np.asarray(image.box, np.float32),
            "image_id": int(files.image_ids[row]),
            "path": files.paths[row],
        }


def _moved_parts(parts: np.ndarray, image: StoredImage) -> np.ndarray:
    """Part positions in pixels of the stored image; an invisible part stays 0 0 0."""
    visible = parts[:, 2:] > 0
    moved = (parts[:, :2] - np.asarray(image.offset)) * np.asarray(image.scale)
    return np.where(visible, np.concatenate([moved, visible], axis=1), 0).astype(np.float32)


def metadata(plan: CubPlan) -> dict[str, Any]:
    """What readers of the prepared data need beside the records; JSON-able."""
    files, labels = plan.files, plan.labels
    percentages = _class_percentages(plan)[plan.class_ids][:, labels.ids]
    return {
        "name": _name(files),
        "class_names": [files.class_names[i] for i in plan.class_ids],
        "class_ids": plan.class_ids,
        "attribute_names": [files.attribute_names[i] for i in labels.ids],
        "attribute_ids": labels.ids.tolist(),
        "attribute_source": labels.source,
        "class_attributes": [[round(float(percentage), 4) for percentage in row] for row in percentages],
        "part_names": list(files.part_names),
        "image_kind": plan.options.crop,
        "num_images": {split: len(rows) for split, rows in plan.rows.items()},
        "num_ready_made_crops": sum(is_ready_made for _, is_ready_made in plan.images.values()),
        "num_missing_images": plan.num_missing,
        "options": plan.options._asdict(),
    }


def _name(files: CubFiles) -> str:
    if (files.layout.root.parent / SYNTHETIC_BIRDS).is_file():
        return "synthetic_birds"
    return "cub200" if is_official(files) else "own_images"


def _class_percentages(plan: CubPlan) -> np.ndarray:
    """(C, A) as annotated; otherwise of the class's training images that are labelled with the attribute."""
    files = plan.files
    if files.class_percentages is not None:
        return files.class_percentages
    assert files.image_attributes is not None  # `locate` wants one of the two
    rows = plan.rows["train"]
    return class_shares(files.image_attributes[rows], files.classes[rows], num_classes=len(files.class_names))
