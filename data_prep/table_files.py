"""Reads a CSV or Parquet file as columns of text, so that every cell can be shown as the user wrote it."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
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
        table, problems = _read_csv(path) if path.suffix.lower() == ".csv" else (pa.parquet.read_table(path), [])
        columns = [_texts(column) for column in table.columns]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); expected a CSV or Parquet file"
        ) from error
    except (ValueError, pa.ArrowException) as error:  # pyarrow's own errors are of either kind
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"{path}: not a whole {path.suffix[1:].upper()} file of text and numbers ({reason})") from error
    return TextTable(path, [name.strip() for name in table.column_names], columns, problems)


def _read_csv(path: Path) -> tuple[pa.Table, list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    if not names:
        raise ValueError("it is empty; expected a first line that names the columns")
    if len(names) == 1:
        raise ValueError(f"its first line is {names[0][:60]!r}, one column; expected names with commas between them")
    wrong: list[int] = []

    def note(row: pa.csv.InvalidRow) -> str:
        wrong.append(row.number - 1)  # the header is row 1
        return "skip"

    keys = [str(column) for column in range(len(names))]  # names may repeat, which is said later
    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(column_names=keys, skip_rows_after_names=1, use_threads=False),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(keys, pa.string()), strings_can_be_null=False),
    )
    problems = [f"row {some(wrong)} has not {len(names)} cells, as many as the header"] if wrong else []
    return table.rename_columns(names), problems


def _texts(column: pa.ChunkedArray) -> list[str]:
    texts = pc.fill_null(pc.cast(column, pa.string()), "")
    return pc.utf8_trim_whitespace(texts).to_pylist()


def numbers(texts: list[str]) -> Float[np.ndarray, "N"]:
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
