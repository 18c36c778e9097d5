"""The TFDS builder of CUB-200-2011 with its attributes; prepared and read without tensorflow.

It lives in a module of its own because TFDS can only read a builder back that was not defined in `__main__`.
"""

import collections
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool

from data_prep.cub_files import CubFiles
from data_prep.cub_images import StoredImage, box_crop, full_frame, ready_made_crop
from data_prep.cub_labels import AttributeLabels, LabelSource, attribute_labels, is_official
from data_prep.cub_source import list_files
from data_prep.cub_tables import CubError

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
        raise CubError(f"{layout.photos}: none of the {len(files.paths)} images of images.txt is there")
    validation = _validation_rows(files, list(images), options)
    labels = attribute_labels(
        files, attributes=options.attributes, source=options.labels, is_train=files.is_train & ~validation
    )
    split_of = np.where(files.is_train, np.where(validation, "validation", "train"), "test")
    rows = {split: [row for row in images if split_of[row] == split] for split in ("train", "validation", "test")}
    class_ids = sorted({int(files.classes[row]) for row in images})
    return CubPlan(files, labels, rows, images, class_ids, options)


def _validation_rows(files: CubFiles, rows: list[int], options: CubOptions) -> Bool[np.ndarray, "N"]:
    """The validation images: the same share of each class's training images, at least one, never all of them.

    Which ones is decided by a hash of seed and file name, so it depends on no random generator's version.
    """
    chosen = np.zeros(len(files.paths), bool)
    by_class: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        if files.is_train[row]:
            by_class[int(files.classes[row])].append(row)
    for members in by_class.values():
        count = min(max(round(len(members) * options.validation_fraction), 1), len(members) - 1)
        ranked = sorted(members, key=lambda row: hashlib.sha256(f"{options.seed}/{files.paths[row]}".encode()).digest())
        chosen[ranked[: count if options.validation_fraction > 0 else 0]] = True
    return chosen


class Cub200(tfds.core.GeneratorBasedBuilder):
    """CUB-200-2011 with attributes, parts, boxes. Use `data_prep.cub200.prepare`, which makes it safe to interrupt."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, plan: CubPlan, on_example: Callable[[], object] = lambda: None, **kwargs: Any):
        self._plan = plan
        self._on_example = on_example
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        plan, features = self._plan, tfds.features
        num_attributes, num_parts = len(plan.labels.ids), len(plan.files.part_names)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Caltech-UCSD Birds-200-2011 with attributes, certainties, parts and boxes.",
            homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": np.int32,
                    "attributes": features.Tensor(shape=(num_attributes,), dtype=np.uint8),
                    "certainty": features.Tensor(shape=(num_attributes,), dtype=np.uint8),
                    "parts": features.Tensor(shape=(num_parts, 3), dtype=np.float32),
                    "box": features.Tensor(shape=(4,), dtype=np.float32),
                    "image_id": np.int32,
                    "path": features.Text(),
                }
            ),
            disable_shuffling=True,  # records lie in the order of the image ids
            metadata=tfds.core.MetadataDict(metadata(plan)),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(rows) for split, rows in self._plan.rows.items() if rows}

    def _generate_examples(self, rows: list[int]) -> Iterator[tuple[int, dict]]:
        """Yields (image id, example) in order, with a few images being read ahead on other threads."""
        workers = min(os.cpu_count() or 1, 8)
        with ThreadPoolExecutor(workers) as pool:
            ahead: collections.deque[Future[dict]] = collections.deque()
            for row in rows:
                ahead.append(pool.submit(self._example, row))
                if len(ahead) > 4 * workers:
                    yield self._keyed(ahead.popleft())
            while ahead:
                yield self._keyed(ahead.popleft())

    def _keyed(self, future: Future[dict]) -> tuple[int, dict]:
        example = future.result()
        self._on_example()
        return example["image_id"], example

    def _example(self, row: int) -> dict[str, Any]:
        plan, files = self._plan, self._plan.files
        path, is_ready_made = plan.images[row]
        read = ready_made_crop if is_ready_made else box_crop if plan.options.crop == "box" else full_frame
        image = read(path, files.boxes[row])
        return {
            "image": image.encoded,
            "label": plan.class_ids.index(int(files.classes[row])),
            "attributes": plan.labels.values[row],
            "certainty": plan.labels.certainties[row],
            "parts": _moved_parts(files.parts[row], image),
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
    percentages = files.class_percentages[plan.class_ids][:, labels.ids]
    return {
        "name": "cub200" if is_official(files) else "cub_layout",
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
