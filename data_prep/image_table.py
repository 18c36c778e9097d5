"""Reads a folder of images with one table: a row per image, a column per attribute.

| file | class | split | striped | ... |

`file` is relative to the table's folder, `class` any name, `split` (optional) train, val or test; every other column is
an attribute, 0 to 1. Whatever does not fit is collected, so that a user sees all of it at once.
"""

import difflib
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_prep.problems import DataError, listed, some
from data_prep.splits import class_shares, held_out
from data_prep.table_files import TextTable, numbers, read_text_table

NAMED = ("file", "class", "split")
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
TEST_FRACTION, VALIDATION_FRACTION, SEED = 0.2, 0.1, 0


class ImageTable(NamedTuple):
    """What a table says of its N images.

    Attributes:
        path: of the table; its folder holds the images.
        files: (N,) relative to that folder.
        labels: (N,) positions in class_names.
        class_names: (c,) sorted, numbers by their size.
        attribute_names: (n,) in the order of the columns.
        values: (N, n) in [0, 1].
        splits: (N,) "train", "validation" or "test".
        notes: sentences on what was decided for the user.
    """

    path: Path
    files: tuple[str, ...]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    values: Float[np.ndarray, "N n"]
    splits: tuple[str, ...]
    notes: tuple[str, ...]

    def class_attributes(self) -> Float[np.ndarray, "c n"]:
        """Share in percent of each class's training images that have the attribute."""
        train = np.array([split == "train" for split in self.splits])
        return class_shares(self.values[train], self.labels[train], num_classes=len(self.class_names))


def read_image_table(path: Path) -> ImageTable:
    """Reads and checks a table, .csv or .parquet, and looks whether its images are there.

    Raises:
        DataError: listing every problem.
    """
    table = read_text_table(path)
    problems = [*table.problems, *_column_problems(table)]
    where = {name.casefold(): column for column, name in enumerate(table.names) if name.casefold() in NAMED}
    files = _files(table, where.get("file"), problems)
    classes = _filled(table, where.get("class"), "the name of its class", problems)
    splits = _splits(table, where.get("split"), problems)
    attributes = [column for column in range(len(table.names)) if column not in where.values()]
    values = _values(table, attributes, files, problems)
    if problems:
        raise DataError(listed(f"{path}, rows counted below the header", problems))

    class_names = sorted(set(classes), key=_by_size)
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.array([position[name] for name in classes], np.int32)
    splits, notes = _drawn(files, labels, splits)
    result = ImageTable(
        path,
        tuple(files),
        labels,
        tuple(class_names),
        tuple(table.names[column] for column in attributes),
        values,
        tuple(splits),
        notes,
    )
    if problems := _whole_problems(result):
        raise DataError(listed(f"{path}, rows counted below the header", problems))
    return result._replace(notes=(*notes, *_unvaried(result)))


def _by_size(name: str) -> tuple[bool, int, str, str]:
    """A key that sorts "9" before "10", and both before words."""
    digits = name.lstrip("0") if name.isdecimal() else ""
    return not name.isdecimal(), len(digits), digits, name


def _column_problems(table: TextTable) -> list[str]:
    names = [name.casefold() for name in table.names]
    problems = [
        f"two columns are called {name!r}; expected each name once: rename or delete one"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for wanted in NAMED[:2]:
        if wanted not in names:
            other = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
            hint = (
                f"rename {table.names[names.index(other[0])]!r}"
                if other
                else f"add it or rename one of {some(table.names)}"
            )
            problems.append(f"there is no column {wanted!r}; expected 'file', 'class' and one per attribute: {hint}")
    if not set(names) - set(NAMED):
        problems.append("there is no attribute; expected a column of 0 and 1 for each beside file, class and split")
    if not table.num_rows:
        problems.append("there are no rows; expected one for each image")
    return problems


def _filled(table: TextTable, column: int | None, expected: str, problems: list[str]) -> list[str]:
    """The texts of a column; empty ones are problems."""
    texts = table.columns[column] if column is not None else []
    if empty := [row for row, text in enumerate(texts, start=1) if not text]:
        assert column is not None
        problems.append(
            f"column {table.names[column]!r} is empty in row {some(empty)}; expected {expected}: fill it in"
        )
    return texts


def _files(table: TextTable, column: int | None, problems: list[str]) -> list[str]:
    """The paths of the images, cleaned; those outside the folder, given twice or missing are problems."""
    texts = _filled(table, column, "the path of an image", problems)
    names = [str(PurePosixPath(text)) for text in texts]
    folder, rows, missing, outside, twice = table.path.parent, dict[str, int](), [], [], []
    for row, (text, name) in enumerate(zip(texts, names, strict=True), start=1):
        if not text:
            continue
        if name in rows:
            twice.append(f"{name} (rows {rows[name]} and {row})")
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            outside.append(f"{name} (row {row})")
        elif not os.path.isfile(folder / name):  # False also for names that no file can have
            missing.append(f"{name} (row {row})")
        rows.setdefault(name, row)
    if outside:
        problems.append(f"files outside the table's folder: {some(outside)}; expected paths relative to {folder}")
    if twice:
        problems.append(f"files given twice: {some(twice)}; expected a row for each image: delete one of them")
    if missing:
        problems.append(
            f"{len(missing):,} of {len(names):,} files are not in {folder}: {some(missing)}; correct their names, copy "
            "them there or delete their rows"
        )
    return names


def _splits(table: TextTable, column: int | None, problems: list[str]) -> list[str]:
    """What the table says of each image's split; nothing where it has no such column."""
    if column is None:
        return []
    texts = [text.casefold() for text in table.columns[column]]
    wrong = [f"{text!r} (row {row})" for row, text in enumerate(texts, start=1) if text not in SPLITS]
    if wrong:
        problems.append(f"column 'split' holds {some(wrong)}; expected train, val or test, or no such column at all")
    return [SPLITS.get(text, "train") for text in texts]


def _values(table: TextTable, columns: list[int], files: list[str], problems: list[str]) -> np.ndarray:
    """(N, n) of the attributes; a column's missing, non-numeric and outlying cells are one problem."""
    values = np.zeros((table.num_rows, len(columns)), np.float32)
    for place, column in enumerate(columns):
        found = numbers(table.columns[column])
        wrong = np.flatnonzero(~((found >= 0) & (found <= 1)))
        values[:, place] = found
        if not len(wrong):
            continue
        cells = []
        for row in wrong:
            shown = repr(table.columns[column][row][:30]) if table.columns[column][row] else "nothing"
            cells.append(f"{shown} in row {row + 1}" + (f" ({files[row]})" if files else ""))
        hint = "delete the column if it is no attribute" if len(wrong) == table.num_rows else "correct the cells"
        name = repr(table.names[column]) if table.names[column] else f"number {column + 1}, which has no name,"
        problems.append(f"column {name} holds {some(cells, shown=3)}; expected 0 or 1, or a number between: {hint}")
    return values


def _drawn(files: list[str], labels: np.ndarray, splits: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The splits, drawn as far as the table does not say them, and sentences on what was drawn."""
    drawn, notes = np.array(splits or ["train"] * len(files), dtype="<U10"), []
    for split, fraction in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION)):
        if splits and (split == "test" or split in splits):
            continue
        rows = np.flatnonzero(drawn == "train")
        drawn[held_out(files, labels, rows, fraction=fraction, seed=SEED)] = split
        why = "no column 'split'" if not splits else "no row of the split 'val'"
        of = "images" if split == "test" else "training images"
        notes.append(
            f"The table has {why}: {(drawn == split).sum():,} {of}, {fraction:.0%} of each class, were drawn for "
            f"{split}, the same each time."
        )
    return drawn.tolist(), tuple(notes)


def _whole_problems(table: ImageTable) -> list[str]:
    """What can only be said of a table whose every cell is fine."""
    splits, problems = np.array(table.splits), []
    if len(table.class_names) < 2:
        problems.append(f"all images are of the class {table.class_names[0]!r}; expected at least two classes")
    trained = np.bincount(table.labels[splits == "train"], minlength=len(table.class_names))
    if without := [name for name, count in zip(table.class_names, trained, strict=True) if not count]:
        problems.append(
            f"classes without training images: {some(without)}; expected one or more of the split 'train' for each: "
            "mark some, or delete these classes' rows"
        )
    for split in ("validation", "test"):
        present = table.values[splits == split] > 0.5
        if not len(present) and split == "test":
            problems.append("there are no test images; expected rows of the split 'test', or no column 'split' at all")
        elif len(present) and not (present.any(axis=0) & ~present.all(axis=0)).any():
            problems.append(
                f"no attribute differs between the {len(present)} {split} images; expected one that some of them have "
                "and others have not, or nothing can be scored: mark more of them"
            )
    return problems


def _unvaried(table: ImageTable) -> tuple[str, ...]:
    """A sentence on attributes that training cannot learn."""
    values = table.values[np.array(table.splits) == "train"]
    same = np.flatnonzero(np.ptp(values, axis=0) == 0)
    names = [table.attribute_names[column] for column in same]
    return (f"Nothing can be learnt of attributes that all training images share: {some(names)}.",) if names else ()
