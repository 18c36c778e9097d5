"""Prepares a folder of images with one table, see `data_prep.image_table`, as `data_prep.cub200` does CUB's layout."""

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_prep.builder import AttributeImages
from data_prep.image_table import ImageTable, read_image_table
from data_prep.images import encoded_upright, load, upright_size
from data_prep.prepared import prepare_once, workspace, write


class OwnImages(AttributeImages):
    """Images with the attributes of a table; upright, in RGB, at their own size."""

    DESCRIPTION = "A folder of images with one table of classes and attributes."
    ATTRIBUTE_TYPE = np.float32

    def __init__(self, *, table: ImageTable, **kwargs: Any):
        self._table = table
        splits = np.array(table.splits)
        rows = {split: np.flatnonzero(splits == split).tolist() for split in ("train", "validation", "test")}
        super().__init__(rows=rows, metadata=_metadata(table, rows), **kwargs)

    def _example(self, row: int) -> dict[str, Any]:
        table = self._table
        path = table.path.parent / table.files[row]
        image = load(path)
        return {
            "image": encoded_upright(path, image),
            "label": int(table.labels[row]),
            "attributes": table.values[row],
            "certainty": np.zeros(len(table.attribute_names), np.uint8),
            "box": np.array([0, 0, *upright_size(image)], np.float32),
            "image_id": row + 1,
            "path": table.files[row],
        }


def prepare(table_file: Path, cache_dir: Path, *, progress: bool = True) -> Path:
    """Prepares the images of a table below `cache_dir`, or returns at once what is there already.

    Raises:
        DataError: listing what is wrong with the table or its images.
    """
    console = Console(stderr=True, quiet=not progress)
    with console.status(f"Reading {table_file.name}"):
        table = read_image_table(table_file)
        name = _fingerprint(table)

    def prepare_into(target: Path) -> None:
        with workspace(target) as temporary:
            make_builder = functools.partial(OwnImages, table=table)
            write(make_builder, temporary, target, num_images=len(table.files), console=console)

    return prepare_once(cache_dir, name, prepare_into)


def _name(table: ImageTable) -> str:
    return table.path.absolute().parent.name or "images"


def _fingerprint(table: ImageTable) -> str:
    """A short name for this folder's name and content: a changed image or table is prepared again."""
    digest = hashlib.sha256(f"{OwnImages.VERSION} {_name(table)}\0".encode())
    digest.update(table.path.read_bytes())

    def content(name: str) -> bytes:
        with (table.path.parent / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for found in pool.map(content, table.files):
            digest.update(found)
    return digest.hexdigest()[:16]


def _metadata(table: ImageTable, rows: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "name": _name(table),
        "class_names": list(table.class_names),
        "class_ids": list(range(len(table.class_names))),
        "attribute_names": list(table.attribute_names),
        "attribute_ids": list(range(len(table.attribute_names))),
        "attribute_source": "image",
        "class_attributes": [[round(float(share), 4) for share in row] for row in table.class_attributes()],
        "part_names": [],
        "image_kind": "full",
        "num_images": {split: len(members) for split, members in rows.items()},
        "num_missing_images": 0,
        "notes": list(table.notes),
    }
