"""Reads and checks the text files of a CUB-200-2011 folder.

Every table is joined on the ids of images.txt, so the order of lines never matters; LF and CRLF both work. Whatever
does not fit raises `CubError` naming the file, the line and what was expected.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data_prep.cub_tables import CubError, Table, numbered_lines

_MAX_ID = np.iinfo(np.int32).max  # ids are stored as int32


@dataclass(frozen=True)
class CubLayout:
    """Where the pieces of one CUB folder lie.

    Attributes:
        root: the folder that holds images.txt (CUB_200_2011 in the official archive).
        attributes_file: the attribute names; officially beside `root`, in some copies inside it.
        photos: folder of the full-frame photographs.
        crops: folder of ready-made box crops, or None.
    """

    root: Path
    attributes_file: Path
    photos: Path
    crops: Path | None


@dataclass(frozen=True)
class CubFiles:
    """The annotations of all N images that images.txt lists, rows sorted by image id.

    Attributes:
        image_ids: (N,) as in images.txt.
        paths: "class folder/file.jpg" of each image.
        classes: (N,) 0-based class ids.
        is_train: (N,) the official split.
        boxes: (N, 4) x, y, width, height in pixels of the full frame, as annotated.
        parts: (N, p, 3) x, y in pixels of the full frame and visible (0 or 1).
        class_names: without the leading number.
        attribute_names: such as "has_nape_color::purple".
        part_names: such as "left wing"; none where parts/ is absent.
        class_percentages: (C, A) share in percent of the annotators who saw the attribute on the class, or None where
            class_attribute_labels_continuous.txt is absent.
        image_attributes: (N, A) 0 or 1, or None where image_attribute_labels.txt is absent.
        image_certainties: (N, A) 1 not visible, 2 guessing, 3 probably, 4 definitely; None with image_attributes.
    """

    layout: CubLayout
    image_ids: Int[np.ndarray, " N"]
    paths: tuple[str, ...]
    classes: Int[np.ndarray, " N"]
    is_train: Bool[np.ndarray, " N"]
    boxes: Float[np.ndarray, "N 4"]
    parts: Float[np.ndarray, "N p 3"]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    part_names: tuple[str, ...]
    class_percentages: Float[np.ndarray, "C A"] | None
    image_attributes: UInt8[np.ndarray, "N A"] | None
    image_certainties: UInt8[np.ndarray, "N A"] | None


_REQUIRED = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt")
_PARTS = ("parts/parts.txt", "parts/part_locs.txt")  # optional, but neither says anything without the other
_LABELS = ("attributes/image_attribute_labels.txt", "attributes/class_attribute_labels_continuous.txt")  # one of them


def locate(folder: Path) -> CubLayout:
    """Finds the pieces of a CUB folder, given that folder or its parent.

    Raises:
        CubError: naming all files that are missing.
    """
    roots = (folder, folder / "CUB_200_2011")
    root = next((r for r in roots if (r / "images.txt").is_file()), roots[(folder / "CUB_200_2011").is_dir()])
    places = [root.parent / "attributes.txt", root / "attributes.txt", root / "attributes" / "attributes.txt"]
    attributes_file = next((place for place in places if place.is_file()), places[1 if root == folder else 0])
    missing = [str(root / name) for name in _REQUIRED if not (root / name).is_file()]
    if not attributes_file.is_file():
        missing.append(f"{attributes_file} (or one of {', '.join(str(p) for p in places if p != attributes_file)})")
    parts = [name for name in _PARTS if (root / name).is_file()]
    if len(parts) == 1:
        missing += [f"{root / name} (or omit {parts[0]} as well)" for name in _PARTS if name not in parts]
    if not any((root / name).is_file() for name in _LABELS):
        missing.append(f"{root / _LABELS[0]} or {_LABELS[1]}")
    if missing:
        raise CubError(f"{folder} is not a whole folder in CUB-200-2011's layout; missing: " + ", ".join(missing))
    crops = next((c for c in (root.parent / "crops227", root / "crops227") if c.is_dir()), None)
    return CubLayout(root, attributes_file, root / "images", crops)


def metadata_files(layout: CubLayout) -> list[Path]:
    """The text files that decide what is prepared, in a fixed order; optional ones only where they exist."""
    root, (image_labels, percentages) = layout.root, _LABELS
    optional = [root / name for name in (*_PARTS, percentages, image_labels)]
    return [
        layout.attributes_file,
        *(root / name for name in _REQUIRED),
        *(path for path in optional if path.is_file()),
    ]


def read_cub(layout: CubLayout) -> CubFiles:
    """Reads every annotation file of a CUB folder.

    Raises:
        CubError: naming file and line of the first thing that is not as expected.
    """
    root = layout.root
    image_ids, paths = _read_images(root / "images.txt")
    class_names = tuple(name.split(".", 1)[-1] for name in _read_names(root / "classes.txt"))
    attribute_names = _read_names(layout.attributes_file)
    classes = Table(root / "image_class_labels.txt", "image id, class id")
    split = Table(root / "train_test_split.txt", "image id, 1 for training or 0 for test")
    boxes = Table(root / "bounding_boxes.txt", "image id, x, y, width, height")
    classes.check(1, 1, len(class_names), f"a class id from 1 to {len(class_names)}", whole=True)
    split.check(1, 0, 1, "0 or 1", whole=True)
    boxes.check(3, 1e-6, np.inf, "a positive width")
    boxes.check(4, 1e-6, np.inf, "a positive height")
    part_names, parts = _read_parts(root, image_ids)
    labels, certainties = _read_image_attributes(root, image_ids, len(attribute_names))
    return CubFiles(
        layout=layout,
        image_ids=image_ids,
        paths=paths,
        classes=classes.aligned(image_ids)[:, 1].astype(np.int64) - 1,
        is_train=split.aligned(image_ids)[:, 1] == 1,
        boxes=boxes.aligned(image_ids)[:, 1:],
        parts=parts,
        class_names=class_names,
        attribute_names=attribute_names,
        part_names=part_names,
        class_percentages=_read_percentages(layout, len(class_names), len(attribute_names)),
        image_attributes=labels,
        image_certainties=certainties,
    )


def _read_parts(root: Path, image_ids: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and places of the parts; none where their files are absent."""
    names_file, places_file = (root / name for name in _PARTS)
    if not names_file.is_file():
        return (), np.zeros((len(image_ids), 0, 3), np.float32)
    names = _read_names(names_file)
    places = Table(places_file, "image id, part id, x, y, visible")
    places.check(4, 0, 1, "visible to be 0 or 1", whole=True)
    return names, places.aligned(image_ids, len(names))[:, 2:].reshape(len(image_ids), -1, 3).astype(np.float32)


def _read_percentages(layout: CubLayout, num_classes: int, num_attributes: int) -> np.ndarray | None:
    """(C, A) share of the annotators who saw an attribute on a class, in percent; None where the file is absent."""
    path = layout.root / _LABELS[1]
    if not path.is_file():
        return None
    table = Table(
        path,
        ", ".join(["percentage"] * num_attributes),
        describe=f"{num_attributes} percentages, one for each line of {layout.attributes_file.name}",
    )
    if len(table.values) != num_classes:
        raise CubError(f"{path}: {len(table.values)} lines; expected {num_classes}, one per class")
    for column in range(num_attributes):
        table.check(column, 0, 100, "percentages from 0 to 100")
    return table.values.astype(np.float32)


def _read_images(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids (sorted) and relative paths of images.txt."""
    images: dict[int, str] = {}
    for number, fields in numbered_lines(path):
        if len(fields) != 2 or not fields[0].isdecimal():
            raise CubError(f"{path}:{number}: got {' '.join(fields)[:60]!r}; expected 'image-id class-folder/file'")
        name = PurePosixPath(fields[1])
        if name.is_absolute() or ".." in name.parts:
            raise CubError(f"{path}:{number}: {fields[1]!r} points outside the images folder; expected 'folder/file'")
        if len(fields[0]) > 10 or not 0 <= int(fields[0]) <= _MAX_ID:
            raise CubError(f"{path}:{number}: image id {fields[0][:30]} is too large; expected at most {_MAX_ID}")
        if int(fields[0]) in images:
            raise CubError(f"{path}:{number}: image id {fields[0]} was already given on an earlier line")
        images[int(fields[0])] = fields[1]
    if not images:
        raise CubError(f"{path}: no lines; expected lines 'image-id class-folder/file'")
    if len(set(images.values())) != len(images):
        raise CubError(f"{path}: the same file is listed under two ids; expected each file once")
    ids = sorted(images)
    return np.asarray(ids, np.int64), tuple(images[i] for i in ids)


def _read_names(path: Path) -> tuple[str, ...]:
    """The names of a file of 'number name' lines whose numbers count up from 1."""
    names: list[str] = []
    for number, fields in numbered_lines(path, maxsplit=1):
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            shown = " ".join(fields).strip()[:60]
            raise CubError(f"{path}:{number}: got {shown!r}; expected '{len(names) + 1} name'")
        names.append(fields[1].strip())
    if not names:
        raise CubError(f"{path}: no lines; expected lines '1 name', '2 name', ...")
    return tuple(names)


def _read_image_attributes(
    root: Path, image_ids: np.ndarray, num_attributes: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Per-image labels and certainties, each (N, A) uint8, or (None, None) without image_attribute_labels.txt.

    Only the first four fields of a line count (image id, attribute id, present, certainty): the official file has lines
    with an extra field. Where several lines label the same attribute of the same image (several workers), those of the
    highest certainty vote and a tie counts as present; the certainty kept is that highest one.
    """
    path = root / _LABELS[0]
    if not path.is_file():
        return None, None
    table = Table(path, "image id, attribute id, present, certainty", ragged=True)
    table.check(2, 0, 1, "present to be 0 or 1", whole=True)
    table.check(3, 1, 4, "a certainty from 1 to 4", whole=True)
    keys = table.keys(image_ids, num_attributes)
    size = len(image_ids) * num_attributes
    certainties = np.zeros(size, np.uint8)
    np.maximum.at(certainties, keys, table.values[:, 3].astype(np.uint8))
    counted = table.values[:, 3] == certainties[keys]
    votes = np.bincount(keys[counted], weights=2 * table.values[counted, 2] - 1, minlength=size)
    if (certainties == 0).any():
        image, attribute = divmod(int(np.argmin(certainties)), num_attributes)
        raise CubError(
            f"{path}: labels {np.count_nonzero(certainties)} image-attribute pairs; expected {size} "
            f"({len(image_ids)} images x {num_attributes}); attribute {attribute + 1} of image {image_ids[image]} is "
            "missing"
        )
    shape = (len(image_ids), num_attributes)
    return (votes >= 0).astype(np.uint8).reshape(shape), certainties.reshape(shape)


def names_digest(names: Sequence[str]) -> str:
    """SHA-256 over a list of names; tells the official vocabulary from another one."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
