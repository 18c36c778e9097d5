"""Rows in ArrayRecord files: a record is one row as numpy.save writes it, so that no schema is needed beside them."""

import functools
import io
from pathlib import Path

import numpy as np

from spectra_jax.array_files import UNNAMED, Rows, SourceError, npy_header
from spectra_jax.extras import extra

with extra("experiments"):
    from array_record.python.array_record_module import ArrayRecordReader

EXPECTED = "expected one row in every record, as numpy.save writes it, all of one shape and type"


def open_array_record(path: Path) -> dict[str, Rows]:
    """The only array of an ArrayRecord file.

    Args:
        path: of the file.

    Raises:
        SourceError: it is no ArrayRecord file or is damaged, or its first record is no row.
    """
    try:
        count = _reader(path).num_records()
        first = _reader(path).read([0])[0] if count else b""
    except (ValueError, RuntimeError, OSError) as error:
        raise SourceError(f"{path} is no ArrayRecord file, or is damaged: {error}") from error
    if not count:
        raise SourceError(f"{path} holds no records, or is damaged; {EXPECTED}.")
    file = io.BytesIO(first)
    title = f"{path}: record 0"
    shape, _, dtype = npy_header(file, title)
    header, width = first[: file.tell()], len(first) - file.tell()
    if dtype.kind in "OV" or width != dtype.itemsize * int(np.prod(shape)):
        raise SourceError(f"{title} cannot be read; {EXPECTED}.")

    def read(start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return np.empty((0, *shape), dtype)
        try:
            records = _reader(path).read(start, stop)
        except (ValueError, RuntimeError, IndexError) as error:
            raise SourceError(f"{path} cannot be read at records {start} to {stop}: {error}") from error
        for number, record in enumerate(records, start):
            if len(record) != len(first) or not record.startswith(header):
                raise SourceError(f"{path}: record {number} differs in shape or type from record 0; {EXPECTED}.")
        rows = b"".join(record[len(header) :] for record in records)
        return np.frombuffer(rows, dtype).reshape(len(records), *shape)

    return {UNNAMED: Rows(path, UNNAMED, (count, *shape), dtype.kind, read)}


@functools.lru_cache(maxsize=256)  # of a folder's files; opening one reads its index
def _reader(path: Path) -> "ArrayRecordReader":
    return ArrayRecordReader(str(path))
