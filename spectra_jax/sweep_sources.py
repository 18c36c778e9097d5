"""What a sweep reads: rows of an array file, some at a time, and the linear head, from .npz, .npy or .safetensors.

Nothing is read that is not asked for: memory does not depend on the number of samples, whatever the file.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike, NDArray

from spectra_jax.types import Head

FEATURE_NAMES = ("attributes", "features", "embeddings")
LABEL_NAMES = ("labels", "label", "targets")
WEIGHT_NAMES = ("weights", "weight")
SUFFIXES = (".npy", ".npz", ".safetensors")
# .npy files need no name for their only array.
_UNNAMED = ""
_SKIPPED_BYTES = 1 << 20


class SourceError(ValueError):
    """A file that cannot be used, and why."""


class Rows(NamedTuple):
    """An array on disk, read by rows.

    Attributes:
        path: its file.
        name: of the array in the file; "" in an .npy.
        shape: of the whole array.
        read: (start, stop) -> those rows, in memory of their own.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]

    @property
    def title(self) -> str:
        """The file and, where there are several in it, the array."""
        return f"{self.path}: {self.name}" if self.name else str(self.path)


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a file, by name.

    Raises:
        SourceError: the file is missing, unreadable, damaged or of another kind.
    """
    return {name: array.shape for name, array in _open(Path(path)).items()}


def open_rows(path: Path, *, name: str | None = None, usual: Sequence[str] = (), ndim: int, what: str) -> Rows:
    """An array of a file, not read yet.

    Args:
        path: .npy, .npz or .safetensors.
        name: of the array in the file; by default the first of `usual` that is there, else the only one with `ndim`
            axes.
        usual: names to look for.
        ndim: axes that it must have; 2 for features (N, n), 1 for labels (N,).
        what: "features", for the messages.

    Raises:
        SourceError: there is no such file or array, or it cannot be read as what it shall be.
    """
    path = Path(path)
    arrays = _open(path)
    chosen = _choose(path, arrays, name, usual, lambda shape: len(shape) == ndim, f"{what} with {ndim} axes")
    array = arrays[chosen]
    if len(array.shape) != ndim:
        wanted = "(samples, attributes)" if ndim == 2 else "(samples,)"
        raise SourceError(f"{array.title} has shape {array.shape}; expected {what} of shape {wanted}.")
    return array


def find_labels(path: Path) -> Rows | None:
    """The labels that lie beside the features in one file, if there are any under a usual name."""
    arrays = _open(Path(path))
    return next((arrays[name] for name in LABEL_NAMES if name in arrays and len(arrays[name].shape) == 1), None)


def read_head(
    path: Path, *, width: int, dtype: DTypeLike, weight: str | None = None, bias: str | None = None
) -> tuple[Head, str]:
    """The linear head of a file.

    Args:
        path: .npy (weights alone), .npz or .safetensors.
        width: n, the number of attributes that the weights (c, n) must have.
        dtype: floating type to give it; float64 only where JAX has it switched on.
        weight: name of the weights; by default "weights" or "weight", else the only array (c, n).
        bias: name of the bias; "none" for no bias; by default the one that goes with the weights, "fc.bias" with
            "fc.weight", if there is one.

    Returns:
        The head, and in words which arrays it came from.

    Raises:
        SourceError: no array fits, several do, or one holds NaN or infinite values.
    """
    path = Path(path)
    arrays = _open(path)
    fits = f"head with {width} attributes, (classes, {width})"
    chosen = _choose(path, arrays, weight, WEIGHT_NAMES, lambda s: len(s) == 2 and s[1] == width and s[0] > 1, fits)
    shape = arrays[chosen].shape
    if len(shape) != 2 or shape[1] != width or shape[0] < 2:
        turned = f" It looks transposed: save it as ({width} columns)." if shape[:1] == (width,) else ""
        raise SourceError(
            f"{arrays[chosen].title} has shape {shape}; expected (classes, {width}): the features have {width} "
            f"attributes.{turned}"
        )
    weights = _floats(arrays[chosen], 0, shape[0], dtype)
    name = None if bias == "none" else bias
    if bias is None and chosen:
        stem = chosen.removesuffix("weights").removesuffix("weight")
        name = next((n for n in (f"{stem}bias",) if stem != chosen and arrays.get(n) is not None), None)
    if name is None:
        return Head(jnp.asarray(weights)), f"{arrays[chosen].title} {shape}, no bias"
    if name not in arrays:
        raise SourceError(f"{path} has no array {name!r} for the bias. {_listing(arrays)}")
    if arrays[name].shape != shape[:1]:
        raise SourceError(
            f"{arrays[name].title} has shape {arrays[name].shape}; expected {shape[:1]}, a number a class. "
            "Name the right one, or none."
        )
    head = Head(jnp.asarray(weights), jnp.asarray(_floats(arrays[name], 0, shape[0], dtype)))
    return head, f"{arrays[chosen].title} {shape}, bias {name}"


def check_floats(rows: NDArray[Any], *, start: int, dtype: DTypeLike, title: str) -> np.ndarray:
    """`rows`, that begin at sample `start`, as finite floats (k, n).

    Raises:
        SourceError: they are no numbers, or one is NaN or infinite; the message says which.
    """
    if rows.dtype.kind not in "fiub" and rows.dtype.name not in ("bfloat16",):
        raise SourceError(f"{title} has type {rows.dtype}; expected real numbers.")
    with np.errstate(over="ignore"):  # found below
        values = rows.astype(dtype)
    bad = ~np.isfinite(values)
    if bad.any():
        row, *column = (int(i) for i in np.argwhere(bad)[0])
        where = f"row {start + row}" + (f", column {column[0]}" if column else "")
        number = int(bad.reshape(len(bad), -1).any(axis=1).sum())
        raise SourceError(
            f"{title} holds {rows[(row, *column)]} in {where} (counted from 0), where {np.dtype(dtype)} needs a finite "
            f"number; so do {number - 1} more of the {len(rows)} rows read with it. Leave those samples out or repair "
            "them."
        )
    return values


def check_labels(rows: NDArray[Any], *, start: int, num_classes: int, title: str) -> np.ndarray:
    """`rows`, that begin at sample `start`, as class indices (k,) int32.

    Raises:
        SourceError: they are no integers or one is no class of the head; the message says which.
    """
    if rows.dtype.kind not in "iu":
        raise SourceError(f"{title} has type {rows.dtype}; expected integers, the class indices of the head.")
    wrong = (rows < 0) | (rows >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise SourceError(
            f"{title} holds class {rows[row]} in row {start + row} (counted from 0); the head has the classes 0 to "
            f"{num_classes - 1}."
        )
    return rows.astype(np.int32)


def _floats(array: Rows, start: int, stop: int, dtype: DTypeLike) -> np.ndarray:
    return check_floats(array.read(start, stop), start=start, dtype=dtype, title=array.title)


def _choose(
    path: Path,
    arrays: Mapping[str, Rows],
    name: str | None,
    usual: Sequence[str],
    fits: Callable[[tuple[int, ...]], bool],
    what: str,
) -> str:
    """Which array is meant."""
    if name is not None and not (name == _UNNAMED or _UNNAMED in arrays):
        if name not in arrays:
            raise SourceError(f"{path} has no array {name!r}. {_listing(arrays)}")
        return name
    if _UNNAMED in arrays:
        return _UNNAMED
    for candidate in usual:
        if candidate in arrays:
            return candidate
    fitting = [name for name, array in arrays.items() if fits(array.shape)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"{len(fitting)} arrays that could be" if fitting else "nothing that could be"
    raise SourceError(f"{path} has {found} the {what}; name the right one. {_listing(arrays)}")


def _listing(arrays: Mapping[str, Rows]) -> str:
    shown = [f"{name} {array.shape}" for name, array in list(arrays.items())[:40]]
    return f"It holds: {', '.join(shown)}{', ...' if len(arrays) > 40 else ''}."


def _open(path: Path) -> dict[str, Rows]:
    """The arrays of a file by name."""
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    if not path.exists():
        raise SourceError(f"{path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix == ".npz":
            return _open_npz(path)
        with open(path, "rb") as file:
            shape, fortran, dtype = _npy_header(file, str(path))
            return {_UNNAMED: _stored(path, _UNNAMED, shape, dtype, fortran, file.tell())}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _npy_header(file: Any, title: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise SourceError(f"{title} is no .npy array of numbers, or is damaged: {error}") from error
    if dtype.hasobject or dtype.names:
        raise SourceError(f"{title} holds Python objects or records ({dtype}); save plain numbers.")
    return shape, fortran, dtype


def _stored(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, offset: int) -> Rows:
    """An array whose bytes lie in the file as they are, from `offset` on."""
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
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
            rows = np.fromfile(file, dtype, (stop - start) * int(np.prod(shape[1:], dtype=np.int64)))
        if rows.nbytes != (stop - start) * row_bytes:
            raise SourceError(f"{title} became shorter while it was read.")
        return rows.reshape(stop - start, *shape[1:])

    return Rows(path, name, shape, _guarded(read, title))


def _open_npz(path: Path) -> dict[str, Rows]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                try:
                    shape, fortran, dtype = _npy_header(member, f"{path}: {name}")
                except SourceError:  # names of classes and the like may be objects: not an array of ours
                    continue
                header = member.tell()
            if info.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _stored(path, name, shape, dtype, fortran, _data_offset(path, info) + header)
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
    row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
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
        if len(rows) != (stop - start) * row_bytes:
            raise EOFError("it is truncated")
        return np.frombuffer(rows, dtype).reshape(stop - start, *shape[1:])

    return Rows(path, name, shape, _guarded(read, title))


def _open_safetensors(path: Path) -> dict[str, Rows]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise SourceError(f"{path} is no .safetensors file, or is damaged: {error}") from error

    def rows(name: str) -> Rows:
        def read(start: int, stop: int) -> np.ndarray:
            with safe_open(path, "np") as file:  # opened anew: pages of a kept map would add up
                return np.array(file.get_slice(name)[start:stop])

        return Rows(path, name, shapes[name], _guarded(read, f"{path}: {name}"))

    return {name: rows(name) for name in shapes}


def _guarded(read: Callable[[int, int], np.ndarray], title: str) -> Callable[[int, int], np.ndarray]:
    """`read` with what goes wrong explained."""

    def guarded(start: int, stop: int) -> np.ndarray:
        try:
            return read(start, stop)
        except SourceError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise SourceError(f"{title} cannot be read at rows {start} to {stop}: {error}") from error

    return guarded


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of `size` rows; the last one may be smaller."""
    for start in range(0, count, size):
        yield start, min(start + size, count)
