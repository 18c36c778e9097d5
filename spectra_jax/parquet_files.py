"""Columns of Parquet files as arrays read by rows: lists of numbers, a column per dimension, labels and ids.

Row groups are streamed: what is held is a batch of rows, not a row group and not the file.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spectra_jax.array_files import Rows, SourceError, refused
from spectra_jax.extras import extra

with extra("experiments"):
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows decoded at once hold about so many numbers.
_NUMBERS_AT_ONCE = 1 << 22
# NumPy's kinds; pyarrow before 25 needs pandas to name them.
_LETTERS = (
    (pa.types.is_floating, "f"),
    (pa.types.is_signed_integer, "i"),
    (pa.types.is_unsigned_integer, "u"),
    (pa.types.is_boolean, "b"),
    (pa.types.is_string, "U"),
    (pa.types.is_large_string, "U"),
)
_BUFFER = 1 << 22  # bytes of a file read at once
_NUMBERED = re.compile(r"(.*?)[_.]?(\d+)")
UNNAMED_COLUMNS = "features"  # columns named 0, 1, 2 ...

Opened = Callable[[], Any]


def open_parquet(path: Path, opened: Opened | None = None) -> dict[str, Rows]:
    """The arrays of a Parquet file by name.

    A column of lists of one length is an array (N, n), any other column of numbers, texts or booleans one (N,); columns
    NAME_0, NAME_1, ... or 0, 1, ... are an array NAME (N, n), "features" where they have no name.

    Args:
        path: of the file, for messages too.
        opened: gives the file opened for reading in binary; by default that of `path`.

    Raises:
        SourceError: it is no Parquet file, or is damaged.
    """
    opened = opened or functools.partial(open, path, "rb")
    try:
        with opened() as file, pq.ParquetFile(file) as table:
            count, schema = table.metadata.num_rows, table.schema_arrow
            arrays: dict[str, Rows] = {}
            for name, columns in _grouped(schema).items():
                arrays[name] = _column_array(path, opened, name, columns, count, table)
            return arrays
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} is no Parquet file, or is damaged: {error}") from error


def _grouped(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of arrays and the columns of each; numbered ones count from 0 or 1 without a gap, all of one type."""
    numbered: dict[str, dict[int, str]] = {}
    for field in schema:
        match = _NUMBERED.fullmatch(field.name)
        if match and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            numbered.setdefault(match[1], {})[int(match[2])] = field.name
    groups: dict[str, list[str]] = {}
    taken = set()
    for stem, columns in numbered.items():
        places = sorted(columns)
        if len(places) < 2 or places != list(range(places[0], places[0] + len(places))) or places[0] > 1:
            continue
        name = stem or UNNAMED_COLUMNS
        if name not in schema.names:
            groups[name] = [columns[place] for place in places]
            taken.update(groups[name])
    return groups | {name: [name] for name in schema.names if name not in taken}


def _column_array(path: Path, opened: Opened, name: str, columns: list[str], count: int, table: pq.ParquetFile) -> Rows:
    kind = table.schema_arrow.field(columns[0]).type
    width: tuple[int, ...] = () if len(columns) == 1 else (len(columns),)
    if pa.types.is_fixed_size_list(kind):
        width, kind = (kind.list_size,), kind.value_type
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        width, kind = (_first_length(table, name),), kind.value_type
    shape, title = (count, *width), f"{path}: {name}"
    letter = next((letter for holds, letter in _LETTERS if holds(kind)), None)
    if letter is None:
        return Rows(path, name, shape, "V", refused(SourceError(f"{title} has type {kind}; expected numbers.")))
    batch = max(1, _NUMBERS_AT_ONCE // (width[0] if width else 1))
    return Rows(path, name, shape, letter, _streamed(opened, title, columns, shape, batch))


def _first_length(table: pq.ParquetFile, name: str) -> int:
    """Of the lists of a column, by the first one; the others are checked when they are read."""
    first = next(table.iter_batches(1, columns=[name]), None)
    return 0 if first is None or not first.num_rows or first[0][0].as_py() is None else len(first[0][0])


def _streamed(
    opened: Opened, title: str, columns: list[str], shape: tuple[int, ...], batch: int
) -> Callable[[int, int], np.ndarray]:
    """Reads rows, each batch once as long as they ascend."""
    stream: Iterator[tuple[int, np.ndarray]] = iter(())
    left: np.ndarray | None = None  # the batch read last, that begins with row `position`
    position = 0

    def batches(start: int) -> Iterator[tuple[int, np.ndarray]]:
        """From the row group that holds `start`: first row and values of each batch."""
        # Buffered ahead, every row group still to come would be held.
        with opened() as file, pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            ends = np.cumsum(sizes)
            group = int(np.searchsorted(ends, start, side="right"))
            row = int(ends[group]) - sizes[group] if sizes else 0
            groups = list(range(group, len(sizes)))
            for found in table.iter_batches(batch, row_groups=groups, columns=columns, use_threads=True):
                values = [_values(found.column(name), title, row, shape[1:]) for name in columns]
                yield row, values[0] if len(values) == 1 else np.stack(values, axis=1)
                row += found.num_rows

    def read(start: int, stop: int) -> np.ndarray:
        nonlocal position, stream, left
        parts: list[np.ndarray] = []
        try:
            if start < position or left is None:
                stream = batches(start)
                position, left = next(stream)
            at = start
            while at < stop:
                if at >= position + len(left):
                    position, left = next(stream)
                    continue
                part = left[at - position : stop - position]
                parts.append(part)
                at += len(part)
        except (OSError, pa.ArrowException, StopIteration) as error:
            stream, left = iter(()), None
            raise SourceError(f"{title} cannot be read at rows {start} to {stop}: {error or 'it ends'}") from error
        if not parts:
            return left[:0]
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)

    return read


def _values(column: pa.Array, title: str, row: int, width: tuple[int, ...]) -> np.ndarray:
    """(k,) or (k, n) of a batch that begins with `row`; n of lists is `width`."""
    lists = pa.types.is_nested(column.type)
    if column.null_count or (lists and column.flatten().null_count):
        raise SourceError(f"{title} holds nulls in rows {row} to {row + len(column)}; remove those rows.")
    if not lists:
        return column.to_numpy(zero_copy_only=False)
    values = column.flatten()
    if not pa.types.is_fixed_size_list(column.type):
        lengths = column.value_lengths().to_numpy()
        if (wrong := lengths != width[0]).any():
            at = int(np.argmax(wrong))
            raise SourceError(
                f"{title} holds {lengths[at]} numbers in row {row + at} (counted from 0), {width[0]} in the first; "
                "expected one length."
            )
    return values.to_numpy(zero_copy_only=False).reshape(len(column), *width)
