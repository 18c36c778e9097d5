"""Reads a prepared data set: single examples, whole splits as arrays, and batches.

Nothing here needs the source files; `data_prep.sources.prepare_source` made the folder.
"""

import difflib
import io
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from spectra_jax.batches import BatchIterator as BatchIterator
from spectra_jax.batches import BatchPlan, Rows, flips, padded_batch
from spectra_jax.batches import array_batches as array_batches
from spectra_jax.extras import extra
from spectra_jax.types import AnyBatch

with extra("experiments"):
    from PIL import Image

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a prepared data set beside its records.

    Attributes:
        name: "cub200", "synthetic_birds", "own_images" for another data set in their layout, or the name of the
            folder that holds a table.
        class_names: (c,) of the classes that have images; a label is a position in it.
        class_ids: (c,) 0-based ids among the source's classes, ascending.
        attribute_names: (n,) such as "has_nape_color::purple" or "striped".
        attribute_ids: (n,) 0-based positions among the source's attributes, ascending.
        attribute_source: "image" where each image has labels of its own, "class" where its class decides.
        class_attributes: (c, n) share of annotators who saw the attribute on the class, or else of the class's training
            images that have it, 0 to 100 percent.
        part_names: (p,) such as "left wing"; none where the source has no part points.
        image_kind: "box" where images are cut to the box around the object, "full" for whole images.
        num_images: split -> images.
        num_missing_images: images that the source lists but does not contain.
        notes: sentences on what was decided for the user, such as how the splits were drawn.
    """

    name: str
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    attribute_names: tuple[str, ...]
    attribute_ids: tuple[int, ...]
    attribute_source: Literal["image", "class"]
    class_attributes: Float[np.ndarray, "c n"]
    part_names: tuple[str, ...]
    image_kind: Literal["box", "full"]
    num_images: dict[str, int]
    num_missing_images: int
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """c"""
        return len(self.class_names)

    @property
    def num_attributes(self) -> int:
        """n"""
        return len(self.attribute_names)

    def find_class(self, name_or_id: str | int) -> int:
        """The label of a class given by name (any case, spaces for underscores) or by its 0-based id in the source.

        A name that is a number, such as "7" of a data set of digits, goes before the id.

        Raises:
            ValueError: where there is none, suggesting the nearest names.
        """
        return _find(name_or_id, self.class_names, self.class_ids, "class")

    def find_attribute(self, name_or_id: str | int) -> int:
        """The column of an attribute given by name (any case) or by its 0-based id in the source.

        Raises:
            ValueError: where there is none, suggesting the nearest names.
        """
        return _find(name_or_id, self.attribute_names, self.attribute_ids, "attribute")


def _find(wanted: str | int, names: Sequence[str], ids: Sequence[int], what: str) -> int:
    plain = [name.casefold().replace(" ", "_") for name in names]
    key = wanted.casefold().replace(" ", "_") if isinstance(wanted, str) else None
    if key in plain:  # also a name such as "7", before the id 7
        return plain.index(key)
    if key is None or key.isdecimal():
        if int(wanted) in ids:
            return ids.index(int(wanted))
        raise ValueError(
            f"no {what} has the 0-based id {wanted} here; there are {len(ids)}, from {ids[0]} to {ids[-1]}"
        )
    nearest = [names[plain.index(name)] for name in difflib.get_close_matches(key, plain, n=3, cutoff=0.4)]
    hint = f"; did you mean {', '.join(nearest)}?" if nearest else f"; names look like {names[0]}"
    raise ValueError(f"no {what} named {wanted!r}{hint}")


class SplitArrays(NamedTuple):
    """A whole split in memory.

    Attributes:
        inputs: (N, h, w, 3) uint8.
        attributes: (N, n) float32 in [0, 1], 0 or 1 where the source says yes or no.
        labels: (N,) int32.
        image_ids: (N,) as in the source's images.txt.
    """

    inputs: UInt8[np.ndarray, "N h w 3"]
    attributes: Float[np.ndarray, "N n"]
    labels: Int[np.ndarray, " N"]
    image_ids: Int[np.ndarray, " N"]


def open_dataset(prepared_dir: str | os.PathLike[str], *, cache_bytes: int = 2**30) -> "Dataset":
    """Opens what `data_prep.cub200.prepare` returned.

    Args:
        prepared_dir: the prepared folder.
        cache_bytes: memory that decoded images may take. A split whose images fit is decoded once, as it is first
            read, and costs nothing in later epochs; one that does not is decoded again each epoch.

    Raises:
        ValueError: where the folder is not a prepared data set.
    """
    return Dataset(Path(prepared_dir), cache_bytes)


class Dataset:
    """A prepared data set; made by `open_dataset`. Splits: "train", "validation", "test", "train+validation"."""

    def __init__(self, path: Path, cache_bytes: int):
        with extra("experiments"):
            import tensorflow_datasets as tfds  # here, so that machines without it can use the rest of the package

        found = sorted(path.glob("*/*/metadata.json"))
        if len(found) != 1:
            raise ValueError(
                f"{path}: expected a prepared folder, what data_prep.cub200.prepare or another prepare returned"
            )
        self.path = path
        self.info = _read_info(found[0])
        self._builder = tfds.builder_from_directory(found[0].parent)
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        self._sources: dict[str, Sequence[dict[str, Any]]] = {}
        self._columns: dict[str, tuple[np.ndarray, ...]] = {}
        self._images: dict[tuple[str, int, int], _Images] = {}
        self._cache_bytes = cache_bytes

    def num_examples(self, split: str) -> int:
        """Images of a split."""
        return sum(self.info.num_images[part] for part in _parts(split))

    def source(self, split: str) -> Sequence[dict[str, Any]]:
        """The TFDS data source: records by index, in the order of the image ids, the image still encoded."""
        parts = [part for part in _parts(split) if self.info.num_images[part]]
        if split not in self._sources:
            name = "+".join(parts)
            self._sources[split] = self._builder.as_data_source(name, decoders=self._decoders) if parts else []
        return self._sources[split]

    def example(self, split: str, index: int) -> dict[str, Any]:
        """One example, decoded.

        Returns:
            image (h, w, 3) uint8 at its stored size; label int; attributes (n,) in [0, 1] and certainty (n,) uint8 (1
            not visible to 4 definitely, 0 where nobody said); parts (p, 3) float32 x, y in pixels of the image and
            visible; box (4,) float32 x, y, width, height in pixels of the full photograph; image_id int; path str.
        """
        record = {"parts": np.zeros((0, 3), np.float32)} | self.source(split)[index]
        record["image"] = _decode(record["image"])
        record["path"] = record["path"].decode()
        return record | {"label": int(record["label"]), "image_id": int(record["image_id"])}

    def arrays(self, split: str, *, image_size: int | tuple[int, int]) -> SplitArrays:
        """Decodes a whole split at once.

        Args:
            split: which.
            image_size: pixels, a side or (height, width); images are resized to it without keeping their aspect.
        """
        attributes, labels, image_ids = self._load_columns(split)
        images = self._load_images(split, _pair(image_size))
        inputs = np.empty((len(labels), *_pair(image_size), 3), np.uint8)

        def fill(start: int) -> None:
            inputs[start : start + 32] = images.get(np.arange(start, min(start + 32, len(labels))))

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            list(pool.map(fill, range(0, len(labels), 32)))
        return SplitArrays(inputs, attributes, labels, image_ids)

    def images(
        self, split: str, indices: Int[np.ndarray, " k"], *, image_size: int | tuple[int, int]
    ) -> UInt8[np.ndarray, "k h w 3"]:
        """Some images of a split, in the order of `indices`, resized as `batches` does."""
        return self._load_images(split, _pair(image_size)).get(np.asarray(indices))

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        image_size: int | tuple[int, int],
        seed: int | None = None,
        shuffle: bool = False,
        flip: bool = False,
        parts: bool = False,
        num_epochs: int | None = 1,
        drop_remainder: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 2,
        prefetch: int = 4,
        keep_decoded: bool = True,
    ) -> BatchIterator:
        """Batches of images in [0, 1], assembled in the background.

        Args:
            split: which.
            batch_size: rows of a batch over all processes; each process gets batch_size / process_count of them, and
                all get the same number of batches.
            image_size: pixels, a side or (height, width); images are resized to it without keeping their aspect.
            seed: of order and flips.
            shuffle: a new order each epoch.
            flip: mirror each image left to right with probability 1/2, decided by (seed, epoch, index). Attributes
                stay, so none of them may tell left from right; none of CUB's does.
            parts: hand out the part points too, mirrored with their image; a left wing stays one by name.
            num_epochs: None never ends.
            drop_remainder: drop an epoch's last batch if it is not full, instead of padding it with zeros.
            process_index: whose share to hand out.
            process_count: number of shares.
            workers: threads that decode ahead; 0 for none. The batches do not depend on it.
            prefetch: batches kept ready.
            keep_decoded: keep the decoded images within the budget of `open_dataset`; False suits a single pass over
                large images.

        Raises:
            ValueError: for an option out of range.
        """
        if flip and seed is None:
            raise ValueError("flip=True needs a seed")
        total = self.num_examples(split)
        plan = BatchPlan(total, batch_size, seed, shuffle, num_epochs, drop_remainder, process_index, process_count)
        attributes, labels, _ = self._load_columns(split)
        points = self._load_parts(split) if parts else None
        images = self._load_images(split, _pair(image_size), keep=keep_decoded)

        def assemble(rows: Rows) -> AnyBatch:
            i = rows.indices
            inputs = images.get(i).astype(np.float32) / np.float32(255)
            places = None if points is None else points[i]
            if flip and seed is not None and len(i):
                mirrored = flips(seed, rows.epoch, i, total)
                inputs[mirrored] = inputs[mirrored, :, ::-1]
                if places is not None:
                    places[mirrored, :, 0] = 1 - places[mirrored, :, 0]
            return padded_batch(inputs, attributes[i], labels[i], size=rows.size, parts=places)

        identity = {"split": split, "image_size": list(_pair(image_size)), "flip": flip}
        return BatchIterator(assemble, plan, workers=workers, prefetch=prefetch, identity=identity)

    def _load_columns(self, split: str) -> tuple[np.ndarray, ...]:
        """Attributes, labels and image ids of a split."""
        if split not in self._columns:
            source = self.source(split)
            attributes = np.zeros((len(source), self.info.num_attributes), np.float32)
            labels, image_ids = np.zeros(len(source), np.int32), np.zeros(len(source), np.int32)
            for i in range(len(source)):
                record = source[i]
                attributes[i], labels[i], image_ids[i] = record["attributes"], record["label"], record["image_id"]
            self._columns[split] = (attributes, labels, image_ids)
        return self._columns[split]

    def _load_parts(self, split: str) -> Float[np.ndarray, "N p 3"]:
        """Part points of a split, x and y from 0 to 1, and whether each is visible."""
        points = np.zeros((self.num_examples(split), len(self.info.part_names), 3), np.float32)
        for place, record in zip(points, self.source(split), strict=True):
            with Image.open(io.BytesIO(record["image"])) as image:  # its size alone, nothing is decoded
                place[:] = record["parts"] / np.array([*image.size, 1], np.float32)
        return points

    def _load_images(self, split: str, size: tuple[int, int], *, keep: bool = True) -> "_Images":
        """The images of a split at one size, kept in memory where the budget still allows."""
        if (split, *size) not in self._images:
            used = sum(images.cache_bytes for images in self._images.values())
            needed = self.num_examples(split) * size[0] * size[1] * 3
            if not keep or used + needed > self._cache_bytes:
                return _Images(self.source(split), size, cached=False)
            self._images[(split, *size)] = _Images(self.source(split), size, cached=True)
        return self._images[(split, *size)]


class _Images:
    """The images of a split at one size; where they are cached, each is decoded as it is first asked for."""

    def __init__(self, source: Sequence[dict[str, Any]], size: tuple[int, int], *, cached: bool):
        self._source, self._size = source, size
        # Memory pages are only taken as they are written, so a cache that is not filled costs nothing.
        self._cache = np.empty((len(source), *size, 3), np.uint8) if cached else None
        self._filled = np.zeros(len(source), bool)
        self._lock = threading.Lock()

    @property
    def cache_bytes(self) -> int:
        return 0 if self._cache is None else self._cache.nbytes

    def get(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w 3"]:
        """A fresh array of the images at `indices`; safe to call from several threads."""
        if self._cache is None:
            return self._decoded(indices)
        with self._lock:
            missing = indices[~self._filled[indices]]
        if len(missing):
            images = self._decoded(missing)
            with self._lock:
                self._cache[missing] = images
                self._filled[missing] = True
        return self._cache[indices]

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self._size, 3), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = _decode(self._source[int(index)]["image"], self._size)
        return images


def flip_example(example: dict[str, Any], info: DatasetInfo) -> dict[str, Any]:
    """Mirrors an example left to right: the image, the parts with left and right swapped, the box where it applies.

    Attributes stay as they are, so none of them may tell left from right; none of CUB's does.
    """
    width = example["image"].shape[1]
    swapped = {"left": "right", "right": "left"}
    partner = [" ".join(swapped.get(word, word) for word in name.split()) for name in info.part_names]
    order = [info.part_names.index(name) if name in info.part_names else i for i, name in enumerate(partner)]
    parts = example["parts"][order].copy()
    parts[:, 0] = np.where(parts[:, 2] > 0, width - parts[:, 0], parts[:, 0])
    box = example["box"].copy()
    if info.image_kind == "full":  # otherwise the box is in pixels of the photograph, which is not what is mirrored
        box[0] = width - box[0] - box[2]
    return example | {"image": example["image"][:, ::-1].copy(), "parts": parts, "box": box}


def _read_info(path: Path) -> DatasetInfo:
    raw = json.loads(path.read_text())
    # Data that an earlier version prepared have no notes.
    fields = {"notes": []} | {name: raw[name] for name in DatasetInfo.__dataclass_fields__ if name in raw}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return DatasetInfo(**(fields | lists | {"class_attributes": np.asarray(raw["class_attributes"], np.float32)}))


def _parts(split: str) -> list[str]:
    if split == "train+validation":
        return ["train", "validation"]
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}, train+validation")
    return [split]


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size={image_size}: expected positive pixels, a side or (height, width)")
    return height, width


def _decode(encoded: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a stored image, resized to (height, width) with antialiasing."""
    with Image.open(io.BytesIO(encoded)) as image:
        if size is None:
            return np.array(image.convert("RGB"))
        height, width = size
        # JPEG decodes to 1/2, 1/4, 1/8 for less; keeping twice the wanted pixels leaves the result's quality to resize.
        image.draft("RGB", (2 * width, 2 * height))
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
