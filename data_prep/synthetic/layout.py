"""CUB-200-2011's text files, written byte for byte as the official archive lays them out."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.synthetic import labels
from data_prep.synthetic.dataset import Options, classes_of, image_stem
from data_prep.synthetic.vocabulary import ATTRIBUTE_NAMES, CERTAINTIES, PART_IDS, PARTS
from data_prep.synthetic.worker import Annotation

TRAIN_SHARE = 0.6  # of every class; CUB's own split is about half and half, with 200 classes instead of two dozen
_NUM_RAGGED = 12  # lines with an extra field, as a few of the official file have


def write_text_files(root: Path, options: Options, annotations: Sequence[Annotation]) -> None:
    """Writes every text file of the data set.

    Args:
        root: the folder that holds CUB_200_2011/.
        options: of the data set.
        annotations: one per image, in the order of their ids.
    """
    cub = root / "CUB_200_2011"
    names = [f"{i + 1:03d}.{bird.name}" for i, bird in enumerate(classes_of(options))]
    image_ids = range(1, options.num_images + 1)
    class_ids = [1 + (image_id - 1) // options.images_per_class for image_id in image_ids]
    _write(root / "attributes.txt", _numbered(ATTRIBUTE_NAMES))
    _write(cub / "classes.txt", _numbered(names))
    _write(cub / "images.txt", _numbered([f"{image_stem(options, i)}.jpg" for i in image_ids]))
    _write(cub / "image_class_labels.txt", _numbered(class_ids))
    _write(cub / "train_test_split.txt", _numbered(_split(options)))
    _write(cub / "bounding_boxes.txt", _numbered([" ".join(f"{v:.1f}" for v in a.box) for a in annotations]))
    _write(cub / "parts" / "parts.txt", _numbered(PARTS))
    locations = [
        f"{a.image_id} {part + 1} {x:.1f} {y:.1f} {int(visible)}"
        for a in annotations
        for part, (x, y, visible) in enumerate(a.parts)
    ]
    _write(cub / "parts" / "part_locs.txt", locations)
    _write(cub / "attributes" / "certainties.txt", _numbered(CERTAINTIES))
    _write_attribute_labels(cub / "attributes", options, annotations)
    _write(cub / "README", [_README.format(**options.to_json())])
    legend = {"0": "background"} | {str(number): name for name, number in PART_IDS.items()}
    _write(root / "part_masks" / "parts.json", [json.dumps(legend, indent=2)])


_README = """Synthetic birds in the layout of CUB-200-2011: drawings, not photographs; the species do not exist.

{num_classes} classes, {images_per_class} images each, seed {seed}. Attributes, part locations, boxes and masks are
exact: they were written by the program that drew the birds. segmentations/ marks the visible bird in white;
../part_masks/ holds indexed PNGs whose pixel values are the ids of parts/parts.txt, and two regions CUB does not name,
see ../part_masks/parts.json."""


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _numbered(values: Sequence[object]) -> list[str]:
    return [f"{number} {value}" for number, value in enumerate(values, 1)]


def _split(options: Options) -> list[int]:
    """1 for training, 0 for test: the same share of every class, chosen by the seed."""
    num_train = min(max(round(TRAIN_SHARE * options.images_per_class), 1), options.images_per_class - 1)
    split: list[int] = []
    for label in range(options.num_classes):
        order = np.random.default_rng([options.seed, 103, label]).permutation(options.images_per_class)
        split += (order < num_train).astype(int).tolist()
    return split


def _write_attribute_labels(folder: Path, options: Options, annotations: Sequence[Annotation]) -> None:
    shape = (options.num_images, labels.NUM_ATTRIBUTES)
    present, certainty = np.zeros(shape, bool), np.zeros(shape, np.int64)
    ragged = set(np.random.default_rng([options.seed, 105]).integers(0, present.size, _NUM_RAGGED).tolist())
    lines: list[str] = []
    for row, annotation in enumerate(annotations):
        rng = np.random.default_rng([options.seed, 104, annotation.image_id])
        seen = np.ones(labels.NUM_ATTRIBUTES, bool)
        seen[annotation.hidden] = False
        present[row, annotation.present] = True
        certainty[row] = labels.certainties(seen, rng)
        present[row] = labels.flip_labels(present[row], seen, certainty[row], options.label_noise, rng)
        seconds = np.round(1 + 12 * rng.random(len(labels.GROUP_REGIONS)) ** 3, 3)[labels.GROUP_OF]
        lines += [
            f"{annotation.image_id} {number} {is_present} {sure} {time}"
            for number, (is_present, sure, time) in enumerate(
                zip(present[row].astype(int).tolist(), certainty[row].tolist(), seconds.tolist(), strict=True), 1
            )
        ]
    for index in ragged:
        fields = lines[index].split()
        lines[index] = " ".join([*fields[:4], "0", fields[4]])
    _write(folder / "image_attribute_labels.txt", lines)
    per_class = np.split(np.arange(options.num_images), options.num_classes)
    rows = [labels.class_percentages(present[members], certainty[members]) for members in per_class]
    _write(
        folder / "class_attribute_labels_continuous.txt",
        [" ".join(repr(round(v, 10)) for v in row.tolist()) for row in rows],
    )
