"""Where arrays come from: a file, a folder of files that follow each other, a Zarr folder, or the URL of a file."""

import atexit
import functools
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spectra_jax.array_files import SUFFIXES as FILE_SUFFIXES
from spectra_jax.array_files import UNNAMED, Rows, SourceError, npy_header
from spectra_jax.array_files import open_arrays as open_file
from spectra_jax.extras import extra

PARQUET, ARRAY_RECORD, ZARR_METADATA = ".parquet", ".array_record", "zarr.json"
SUFFIXES = (*FILE_SUFFIXES, PARQUET, ARRAY_RECORD)
# Of buckets and servers whose chunks TensorStore reads as they are asked for.
_TENSORSTORE_SCHEMES = ("gs", "s3", "http", "https")
# pathlib writes s3://bucket/name as s3:/bucket/name; a single letter is a drive.
_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)", re.DOTALL)


def url_of(path: Path) -> str | None:
    """The URL that a path was made of, such as s3://bucket/name; None for a file or folder of this machine."""
    match = _URL.fullmatch(str(path))
    if match is None:
        return None
    return f"file:///{match[2]}" if match[1] == "file" else f"{match[1]}://{match[2]}"


def open_arrays(path: Path) -> dict[str, Rows]:
    """The arrays of a source by name.

    Args:
        path: a file ending in .npy, .npz, .safetensors, .parquet or .array_record (a row per record, as numpy.save
            writes it); a folder of files of one kind, whose rows follow each other in the order of their names; a Zarr
            v3 array or group; or the URL of such a file or folder in any scheme that fsspec knows.

    Raises:
        SourceError: it is missing, unreadable, damaged or of another kind.
    """
    url = url_of(path)
    if url is not None and url.startswith("file://"):
        path, url = Path(url.removeprefix("file://")), None
    if url is not None:
        return _open_url(path, url)
    if path.is_dir() and path.suffix not in FILE_SUFFIXES:
        return _open_zarr(path) if (path / ZARR_METADATA).is_file() else _open_files(path, list(path.iterdir()))
    if path.suffix == PARQUET and path.is_file():
        from spectra_jax.parquet_files import open_parquet

        return open_parquet(path)
    if path.suffix == ARRAY_RECORD and path.is_file():
        from spectra_jax.array_record_files import open_array_record

        return open_array_record(path)
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder of such files.")
    return open_file(path)


def _open_files(path: Path, listed: list[Path]) -> dict[str, Rows]:
    """Files of one kind as if they were one."""
    files = sorted(file for file in listed if file.suffix in SUFFIXES and not file.name.startswith("."))
    kinds = {file.suffix for file in files}
    if len(kinds) != 1:
        found = f"files of several kinds, {', '.join(sorted(kinds))}" if kinds else "no file"
        raise SourceError(f"{path} holds {found}; expected files that end in one of {', '.join(SUFFIXES)}.")
    parts = [open_arrays(file) for file in files]
    return {name: _joined(path, name, files, parts) for name in parts[0]}


def _joined(path: Path, name: str, files: list[Path], parts: list[dict[str, Rows]]) -> Rows:
    first, every = parts[0][name], []
    for file, part in zip(files, parts, strict=True):
        array = part.get(name)
        if array is None or not array.shape or array.shape[1:] != first.shape[1:] or array.kind != first.kind:
            found = f"{array.shape} of kind {array.kind!r}" if array is not None else "nothing"
            raise SourceError(
                f"{file} holds {found} as {name or 'its array'}, {files[0].name} {first.shape} of kind {first.kind!r}; "
                "expected rows of one width and kind in every file."
            )
        every.append(array)
    ends = np.cumsum([array.shape[0] for array in every])

    def read(start: int, stop: int) -> np.ndarray:
        rows = []
        at = start
        while at < stop:
            place = int(np.searchsorted(ends, at, side="right"))
            before = int(ends[place]) - every[place].shape[0]
            end = min(stop, int(ends[place]))
            rows.append(every[place].read(at - before, end - before))
            at = end
        return np.concatenate(rows or [first.read(0, 0)]) if len(rows) != 1 else rows[0]

    return Rows(path, name, (int(ends[-1]), *first.shape[1:]), first.kind, read)


def _open_zarr(path: Path) -> dict[str, Rows]:
    """The array of a Zarr v3 folder, or those of a group by name."""
    try:
        metadata = (path / ZARR_METADATA).read_bytes()
    except OSError as error:
        raise SourceError(f"{path / ZARR_METADATA} cannot be read: {error}") from error
    return _zarr_arrays(
        path,
        metadata,
        lambda: [child.parent.name for child in path.glob(f"*/{ZARR_METADATA}")],
        lambda name: {"driver": "file", "path": str(path / name)},
    )


def _open_zarr_url(path: Path, url: str) -> dict[str, Rows]:
    """The same on another machine: by chunks where TensorStore knows the scheme, else fetched whole."""
    import fsspec

    if url.partition("://")[0] not in _TENSORSTORE_SCHEMES:
        return _open_zarr(_fetched(url))
    system, place = fsspec.url_to_fs(url)

    def children() -> list[str]:
        try:
            return [found.split("/")[-2] for found in system.glob(f"{place}/*/{ZARR_METADATA}")]
        except Exception as error:  # of the library of that scheme
            raise SourceError(
                f"{url}: the arrays of the group cannot be listed ({error}); name one of them."
            ) from error

    return _zarr_arrays(path, system.cat(f"{place}/{ZARR_METADATA}"), children, lambda name: f"{url}/{name}")


def _zarr_arrays(
    path: Path, metadata: bytes, children: Callable[[], list[str]], place: Callable[[str], dict[str, str] | str]
) -> dict[str, Rows]:
    """The array or those of the group that the metadata describes, each where `place` of its name says."""
    try:
        node = json.loads(metadata).get("node_type")
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{path / ZARR_METADATA} cannot be read: {error}") from error
    names = [UNNAMED] if node == "array" else sorted(children())
    if not names:
        raise SourceError(f"{path} is a Zarr group in which no array can be found; name an array of it.")
    return {name: _zarr_array(path, name, place(name)) for name in names}


def _zarr_array(path: Path, name: str, place: dict[str, str] | str) -> Rows:
    with extra("experiments"):
        import tensorstore

    title = f"{path}: {name}" if name else str(path)
    try:
        store = tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True, read=True).result()
    except ValueError as error:
        raise SourceError(f"{title} is no Zarr v3 array, or is damaged: {error}") from error
    dtype = np.dtype(store.dtype.numpy_dtype)

    def read(start: int, stop: int) -> np.ndarray:
        try:
            return np.asarray(store[start:stop].read().result())
        except ValueError as error:
            raise SourceError(f"{title} cannot be read at rows {start} to {stop}: {error}") from error

    return Rows(path, name, tuple(store.shape), "f" if dtype.name == "bfloat16" else dtype.kind, read)


def _open_url(path: Path, url: str) -> dict[str, Rows]:
    """A file of another machine: the rows of .npy and .parquet as they are asked for, other kinds fetched whole.

    A folder of such files is one, as on this machine. Of Zarr the chunks that hold the rows are read.
    """
    with extra("experiments"):
        import fsspec

    def opened():
        return fsspec.open(url, "rb", block_size=1 << 24).open()

    try:
        if path.suffix == PARQUET:
            from spectra_jax.parquet_files import open_parquet

            return open_parquet(Path(url), opened)
        if path.suffix == ".npy":
            with opened() as file:
                shape, fortran, dtype = npy_header(file, url)
                offset = file.tell()
            if not fortran and dtype.kind not in "OV":
                return {UNNAMED: Rows(path, UNNAMED, shape, dtype.kind, _ranged(opened, url, shape, dtype, offset))}
        if path.suffix in SUFFIXES:
            return open_arrays(_fetched(url))
        system, place = fsspec.url_to_fs(url)
        if system.exists(f"{place}/{ZARR_METADATA}"):
            return _open_zarr_url(path, url)
        if system.isdir(place):
            return _open_files(path, [path / name.rpartition("/")[2] for name in system.ls(place, detail=False)])
    except SourceError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{url} cannot be read: {error}") from error
    raise SourceError(f"{url}: expected a URL that ends in {', '.join(SUFFIXES)}, or of a folder of such files.")


@functools.cache
def _fetched(url: str) -> Path:
    """A copy of a file or folder of another machine, made once and deleted when this process ends."""
    import fsspec

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    system, place = fsspec.url_to_fs(url)
    copy = folder / place.rstrip("/").rpartition("/")[2]
    if system.isdir(place):
        system.get(place, str(copy), recursive=True)
    else:  # whose name may hold what `get` takes for a pattern
        system.get_file(place, str(copy))
    return copy


def _ranged(
    opened: Callable, url: str, shape: tuple[int, ...], dtype: np.dtype, offset: int
) -> Callable[[int, int], np.ndarray]:
    row_bytes = dtype.itemsize * math.prod(shape[1:])

    def read(start: int, stop: int) -> np.ndarray:
        try:
            with opened() as file:
                file.seek(offset + start * row_bytes)
                rows = file.read((stop - start) * row_bytes)
            return np.frombuffer(rows, dtype).reshape(stop - start, *shape[1:])
        except (OSError, ValueError) as error:
            raise SourceError(f"{url} cannot be read at rows {start} to {stop}: {error}") from error

    return read
