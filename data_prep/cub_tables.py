"""Tables of numbers in CUB's text files, with errors that name the file, the line and what was expected."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.problems import DataError


class CubError(DataError):
    """CUB source files that are missing, damaged or contradict each other."""


class Table:
    """A file of numbers; columns are given as a comma-separated description that error messages repeat."""

    def __init__(self, path: Path, columns: str, *, ragged: bool = False, describe: str | None = None):
        width = columns.count(",") + 1
        self.path, self.expected = path, describe or f"{width} numbers ({columns})"
        try:
            with warnings.catch_warnings(action="ignore"):  # an empty file, which is an error below
                # Naming the columns makes NumPy tolerate longer lines.
                self.values = np.loadtxt(path, usecols=range(width) if ragged else None, ndmin=2, comments=None)
        except (ValueError, IndexError, OSError):
            self.values = np.empty((0, 0))
        if self.values.shape[1:] != (width,) or not np.isfinite(self.values).all():
            raise self._malformed(width, ragged)

    def _malformed(self, width: int, ragged: bool) -> CubError:
        for number, fields in numbered_lines(self.path):
            try:
                numeric = bool(np.isfinite([float(field) for field in fields[:width]]).all())
            except ValueError:
                numeric = False
            if not numeric or len(fields) < width or (len(fields) > width and not ragged):
                shown = " ".join(fields)[:60]
                return CubError(f"{self.path}:{number}: got {len(fields)} fields {shown!r}; expected {self.expected}")
        return CubError(f"{self.path}: no lines; expected lines of {self.expected}")

    def error(self, row: int, problem: str) -> CubError:
        """A CubError that names the line which row `row` came from."""
        number, fields = next(line for i, line in enumerate(numbered_lines(self.path)) if i == row)
        return CubError(f"{self.path}:{number}: {problem}; the line is {' '.join(fields)[:60]!r}")

    def check(self, column: int, low: float, high: float, expected: str, *, whole: bool = False) -> None:
        """Raises unless every value of `column` lies in [low, high]."""
        values = self.values[:, column]
        wrong = (values < low) | (values > high) | (whole & (values != np.round(values)))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise self.error(row, f"got {values[row]:g}, expected {expected}")

    def keys(self, image_ids: np.ndarray, group: int = 0) -> np.ndarray:
        """The position of each line in the table of all images (times `group` entries each, ids 1 to group)."""
        ids = self.values[:, 0]
        rows = np.clip(np.searchsorted(image_ids, ids), 0, len(image_ids) - 1)
        if (unknown := image_ids[rows] != ids).any():
            row = int(np.argmax(unknown))
            raise self.error(row, f"image id {ids[row]:g} is not in images.txt")
        if not group:
            return rows
        self.check(1, 1, group, f"an id from 1 to {group}", whole=True)
        return rows * group + self.values[:, 1].astype(np.int64) - 1

    def aligned(self, image_ids: np.ndarray, group: int = 0) -> np.ndarray:
        """The lines in the order of `image_ids`, exactly one for each image (and each of its `group` entries)."""
        keys, size = self.keys(image_ids, group), len(image_ids) * max(group, 1)
        order = np.argsort(keys, kind="stable")
        if (repeated := keys[order][1:] == keys[order][:-1]).any():
            raise self.error(int(order[1:][repeated].min()), "this entry was already given on an earlier line")
        if len(keys) != size:
            missing = int(np.setdiff1d(np.arange(size), keys)[0])
            entry = f"entry {missing % group + 1} of image {image_ids[missing // group]}" if group else ""
            raise CubError(
                f"{self.path}: {len(keys)} lines; expected {size}; {entry or f'image {image_ids[missing]}'} is missing"
            )
        return self.values[order]


def is_utf8(name: str) -> bool:
    """Whether a file's name was read as text: Python keeps bytes that were not as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def numbered_lines(path: Path, maxsplit: int = -1) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number from 1, fields) of the lines that are not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if fields := line.split(maxsplit=maxsplit):
                    yield number, fields
    except FileNotFoundError as error:
        raise CubError(f"{path}: missing; a CUB-200-2011 folder needs it") from error
    except OSError as error:
        raise CubError(f"{path}: cannot be read ({error.strerror}); expected a text file") from error
    except UnicodeDecodeError as error:
        raise CubError(f"{path}: is not text (byte {error.start} is not UTF-8)") from error
