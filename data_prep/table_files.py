"""Reads a CSV or Parquet file as columns of text, so that every cell can be shown as the user wrote it."""

import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float

from data_prep.problems import DataError, some

SUFFIXES = (".csv", ".parquet")
_WORDS = {"true": "1", "false": "0"}


class TextTable(NamedTuple):
    """A table whose cells are text without blanks around it; missing ones are empty.

    Attributes:
        path: of the file.
        names: of the columns.
        columns: the cells, a list for each column.
        problems: rows that are not as long as the header.
    """

    path: Path
    names: list[str]
    columns: list[list[str]]
    problems: list[str]

    @property
    def num_rows(self) -> int:
        return len(self.columns[0]) if self.columns else 0


def read_text_table(path: Path) -> TextTable:
    """Reads a .csv (comma-separated, UTF-8, the first line names the columns) or .parquet file.

    Raises:
        DataError: it cannot be read as such a file.
    """
    try:
        return _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); expected a CSV or Parquet file"
        ) from error
    except (ValueError, csv.Error, pa.ArrowException) as error:  # text that is not UTF-8 is a ValueError
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"{path}: not a whole {path.suffix[1:].upper()} file of text and numbers ({reason})") from error


def _read_csv(path: Path) -> TextTable:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    if len(header) < 2:
        raise ValueError(f"its first line is {','.join(header)[:60]!r}; expected names with commas between them")
    wrong = [number for number, row in enumerate(rows, start=1) if len(row) != len(header)]
    problems = [f"row {some(wrong)} has not {len(header)} cells, as many as the header"] if wrong else []
    cells = itertools.zip_longest(header, *rows, fillvalue="")
    columns = [[text.strip() for text in column] for column in itertools.islice(cells, len(header))]
    return TextTable(path, [column[0] for column in columns], [column[1:] for column in columns], problems)


def _read_parquet(path: Path) -> TextTable:
    table = pq.read_table(path)
    return TextTable(path, [name.strip() for name in table.column_names], [_texts(c) for c in table.columns], [])


def _texts(column: pa.ChunkedArray) -> list[str]:
    texts = pc.fill_null(pc.cast(column, pa.string()), "")
    return pc.utf8_trim_whitespace(texts).to_pylist()


def numbers(texts: list[str]) -> Float[np.ndarray, " N"]:
    """The texts as numbers, true and false as 1 and 0; NaN where there is none."""
    try:
        return np.asarray(texts, object).astype(np.float64)
    except ValueError:
        return np.array([_number(text) for text in texts], np.float64)


def _number(text: str) -> float:
    try:
        return float(_WORDS.get(text.casefold(), text))
    except ValueError:
        return float("nan")
