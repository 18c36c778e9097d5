"""Distinguishes the two layouts that a data set may have, and prepares either."""

from pathlib import Path
from typing import Literal

from data_prep.problems import DataError
from data_prep.table_files import SUFFIXES

Crop = Literal["box", "full"]
_PREFERRED = ("table", "attributes")
_SIGNS = ("classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "attributes.txt")
_LAYOUTS = """It needs one of
  - a table and images: one .csv or .parquet file with the columns file, class, optionally split (train, val, test), and
    one for each attribute (0 to 1); the files relative to the table's folder; docs/own-data.md has an example
  - CUB-200-2011's layout: images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, classes.txt,
    attributes.txt, attributes/image_attribute_labels.txt or attributes/class_attribute_labels_continuous.txt, the
    folder images/, and optionally parts/parts.txt with parts/part_locs.txt; or its archive"""


def find_table(source: Path) -> Path | None:
    """The table of a folder of images, or `source` itself where it is one; None for CUB's layout and archives.

    Raises:
        DataError: the folder has neither layout, or several tables.
    """
    if source.is_file():
        return source if source.suffix.lower() in SUFFIXES else None
    if not source.is_dir():
        raise DataError(f"{source}: not found; expected a folder, a table or an archive")
    if (source / "images.txt").exists() or (source / "CUB_200_2011").is_dir():
        return None
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    preferred = [path for path in tables if path.stem.lower() in _PREFERRED]
    if len(tables) > 1 and len(preferred) != 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{source} has several tables: {names}. Name the one that counts: {tables[0]}")
    if not tables and any((source / name).exists() for name in _SIGNS):
        return None  # what is missing of it is named where it is read
    if not tables:
        found = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
        raise DataError(f"{source} is no data set: it holds {found}. {_LAYOUTS}")
    return (preferred or tables)[0]


def prepare_source(
    source: Path, cache_dir: Path, *, attributes: int = 312, crop: Crop = "box", progress: bool = True
) -> Path:
    """Prepares a data set of either layout below `cache_dir`, or returns at once what is there already.

    Args:
        source: a folder, a table in it, or CUB's archive.
        cache_dir: where prepared data sets live.
        attributes, crop: for CUB's layout, see `data_prep.cub200.prepare`; a table names its attributes and has no
            boxes.
        progress: show a progress bar on the terminal.

    Returns:
        The prepared folder, for `spectra_jax.data.open_dataset`.

    Raises:
        DataError: listing what is wrong with it.
    """
    from data_prep import cub200, own_images  # here: the layout can be told without loading TFDS

    table = find_table(source)
    if table is None:
        return cub200.prepare(source, cache_dir, attributes=attributes, crop=crop, progress=progress)
    if attributes == 112:
        raise DataError(f"--attributes 112 selects from CUB's attributes; {table} has its own: omit the option")
    return own_images.prepare(table, cache_dir, progress=progress)
