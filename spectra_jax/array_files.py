"""Arrays in .npy, .npz and .safetensors files, opened without being read: shapes, types, and rows as asked for.

Memory does not depend on the number of rows. Whatever a file holds, it is opened or refused in one sentence.
"""

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from spectra_jax.extras import extra

SUFFIXES = (".npy", ".npz", ".safetensors")
UNNAMED = ""  # the only array of an .npy file
_SKIPPED_BYTES = 1 << 20
_NUMBERS = {"F": "f", "B": "f", "I": "i", "U": "u"}  # first letters of safetensors' types to NumPy's kinds
_NO_NUMBERS = "OV"
_UNREADABLE = ("F8", "F6", "F4")  # types that NumPy has no counterpart of
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,  # encrypted, or compressed in an unknown way (NotImplementedError)
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


class SourceError(ValueError):
    """A file that cannot be used, and why."""


class Rows(NamedTuple):
    """An array on disk, read by rows.

    Attributes:
        path: its file.
        name: of the array in the file; "" in an .npy.
        shape: of the whole array.
        kind: of its numbers, as in NumPy: "f" for floats (bfloat16 too), "i" and "u" for integers, "b" for booleans.
        read: (start, stop) -> those rows, in memory of their own.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[int, int], np.ndarray]

    @property
    def title(self) -> str:
        """The file and, where there are several in it, the array."""
        return f"{self.path}: {self.name}" if self.name else str(self.path)


def open_arrays(path: Path) -> dict[str, Rows]:
    """The arrays of a file by name.

    Raises:
        SourceError: the file is missing, unreadable, damaged or of another kind.
    """
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    try:
        if not path.exists():
            raise SourceError(f"{path}: there is no such file.")
        if not path.is_file():  # opening a pipe would wait for ever
            raise SourceError(f"{path} cannot be read: it is a folder or a pipe; expected a file on a disk.")
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix == ".npz":
            return _open_npz(path)
        with open(path, "rb") as file:
            shape, fortran, dtype = npy_header(file, str(path))
            if dtype.kind in _NO_NUMBERS:
                raise _holds_objects(str(path), dtype)
            return {UNNAMED: _stored(path, UNNAMED, shape, dtype, fortran, file.tell())}
    except SourceError:
        raise
    except _DAMAGE as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def listing(arrays: Mapping[str, Rows]) -> str:
    """Names and shapes, for messages."""
    if not arrays:
        return "It holds no arrays."
    shown = [f"{name} {array.shape}" for name, array in list(arrays.items())[:40]]
    return f"It holds: {', '.join(shown)}{', ...' if len(arrays) > 40 else ''}."


def npy_header(file: Any, title: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type of an .npy file, which is read up to its numbers."""
    try:
        version = np.lib.format.read_magic(file)
        # NumPy has no public reader of version 3.0, which is 2.0 with names of fields in UTF-8.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # the header is a Python literal: a damaged one can fail in any way
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"{title} is no .npy array of numbers, or is damaged: {reason}") from error
    if any(type(side) is not int or side < 0 for side in shape):
        raise SourceError(f"{title} is damaged: its header promises the shape {shape}; expected sizes of 0 or more.")
    return shape, fortran, dtype


def _holds_objects(title: str, dtype: np.dtype) -> SourceError:
    return SourceError(f"{title} holds Python objects or records ({dtype}); save plain numbers.")


def _stored(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, offset: int) -> Rows:
    """An array whose bytes lie in the file as they are, from `offset` on."""
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    needed, there = offset + row_bytes * (shape[0] if shape else 1), path.stat().st_size
    title = f"{path}: {name}" if name else str(path)
    if there < needed:
        raise SourceError(
            f"{title} is truncated: its header promises {shape} of {dtype}, {needed:,} bytes; the file has {there:,}."
        )

    def read(start: int, stop: int) -> np.ndarray:
        with open(path, "rb") as file:
            if fortran and len(shape) > 1:  # a row is scattered over the whole file
                return np.array(np.memmap(file, dtype, "r", offset, shape, order="F")[start:stop])
            # Read rather than mapped: mapped pages count as this process's memory, and a file that shrinks under the
            # map kills the process.
            file.seek(offset + start * row_bytes)
            rows = np.fromfile(file, dtype, (stop - start) * math.prod(shape[1:]))
        if rows.nbytes != (stop - start) * row_bytes:
            raise SourceError(f"{title} became shorter while it was read.")
        return rows.reshape(stop - start, *shape[1:])

    return Rows(path, name, shape, dtype.kind, _guarded(read, title))


def _open_npz(path: Path) -> dict[str, Rows]:
    arrays: dict[str, Rows] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise SourceError(f"{path} holds two arrays named {name}; expected each name once.")
            title = f"{path}: {name}"
            with archive.open(info) as member:
                shape, fortran, dtype = npy_header(member, title)
                header = member.tell()
            if dtype.kind in _NO_NUMBERS:  # names of classes and the like; no reason to refuse the arrays beside them
                arrays[name] = Rows(path, name, shape, dtype.kind, refused(_holds_objects(title, dtype)))
            elif info.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _stored(path, name, shape, dtype, fortran, _data_offset(path, info) + header)
            elif info.file_size < header + dtype.itemsize * math.prod(shape):
                raise SourceError(f"{title} is truncated: its header promises {shape} of {dtype}.")
            else:
                arrays[name] = _compressed(path, name, shape, dtype, fortran, header)
    return arrays


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose length only that header knows."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {info.filename}")
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _compressed(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, header: int) -> Rows:
    """A compressed array, decompressed from its beginning to the rows asked for; cheap as long as they ascend."""
    title = f"{path}: {name}"
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    stream: list[Any] = []  # the open member, if any

    def read(start: int, stop: int) -> np.ndarray:
        if fortran and len(shape) > 1:
            raise SourceError(f"{title} is compressed column by column (Fortran order); save it in C order.")
        if not stream or stream[0].tell() > header + start * row_bytes:
            stream[:] = [zipfile.ZipFile(path).open(f"{name}.npy")]  # noqa: SIM115 - read on by the next call
        member = stream[0]
        while (left := header + start * row_bytes - member.tell()) > 0:
            if not member.read(min(left, _SKIPPED_BYTES)):
                raise EOFError("it is truncated")
        rows = member.read((stop - start) * row_bytes)
        if stop >= shape[0]:
            member.close()
            stream.clear()
        if len(rows) != (stop - start) * row_bytes:
            raise EOFError("it is truncated")
        return np.frombuffer(rows, dtype).reshape(stop - start, *shape[1:])

    return Rows(path, name, shape, dtype.kind, _guarded(read, title))


def _open_safetensors(path: Path) -> dict[str, Rows]:
    with extra("experiments"):
        from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            facts = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        raise SourceError(f"{path} is no .safetensors file, or is damaged: {error}") from error

    def rows(name: str) -> Rows:
        shape, dtype = facts[name]
        title = f"{path}: {name}"

        def read(start: int, stop: int) -> np.ndarray:
            with safe_open(path, "np") as file:  # opened anew: pages of a kept map would add up
                return np.array(file.get_slice(name)[start:stop])

        if dtype != "BOOL" and (dtype.startswith(_UNREADABLE) or dtype[0] not in _NUMBERS):
            refusal = SourceError(f"{title} has type {dtype}, which NumPy cannot hold; save it as F32.")
            return Rows(path, name, shape, "V", refused(refusal))
        return Rows(path, name, shape, "b" if dtype == "BOOL" else _NUMBERS[dtype[0]], _guarded(read, title))

    return {name: rows(name) for name in facts}


def refused(error: SourceError) -> Callable[[int, int], NoReturn]:
    """What reads an array that cannot be read."""

    def refuse(start: int, stop: int) -> NoReturn:
        raise error

    return refuse


def _guarded(read: Callable[[int, int], np.ndarray], title: str) -> Callable[[int, int], np.ndarray]:
    """`read` with what goes wrong explained."""

    def guarded(start: int, stop: int) -> np.ndarray:
        try:
            return read(start, stop)
        except SourceError:
            raise
        except _DAMAGE as error:
            raise SourceError(f"{title} cannot be read at rows {start} to {stop}: {error}") from error

    return guarded
