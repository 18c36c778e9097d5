"""Reads the tensors of a PyTorch checkpoint without PyTorch and without executing the pickle inside.

A pickle is a program: loading one runs whatever it names. This reader resolves three kinds of names only (the tensor
rebuilder, OrderedDict, storage types) and maps them to inert descriptions, checked before any byte of
data is touched. Both containers are read: the zip file written since PyTorch 1.6, and the older stream of pickles
followed by raw storages.
"""

import collections
import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGE_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class TorchFileError(ValueError):
    """The file is not a checkpoint of plain tensors, is damaged, or asks for something that is never executed."""


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict (a flat mapping from names to tensors), as arrays of the stored dtype.

    Args:
        path: a file written by `torch.save`, in either container.

    Raises:
        TorchFileError: anything but a state dict of plain tensors, naming the file and the offending content.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                state, storages = _read_zip(archive)
        else:
            with path.open("rb") as stream:
                state, storages = _read_legacy(stream, path.stat().st_size)
        if not isinstance(state, dict) or not state:
            raise TorchFileError(f"expected a state dict (names to tensors), found {type(state).__name__}")
        return {name: _materialise(name, tensor, storages) for name, tensor in state.items()}
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle can fail in any way; all of them mean the same here
        raise TorchFileError(f"{path}: not a readable PyTorch checkpoint: {error!r}") from error


class _InertUnpickler(pickle.Unpickler):
    """Resolves names to inert stand-ins; every other name is refused before it could be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe_tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return _StorageType(STORAGE_DTYPES[name])
        raise TorchFileError(f"the pickle asks for {module}.{name}; only plain tensors are read, nothing is executed")

    def persistent_load(self, reference: Any) -> _Storage:
        # ("storage", type, key, location, number of elements[, view]); views were last written by PyTorch 0.4.
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise TorchFileError(f"unknown storage reference {reference!r}")
        _, kind, key, _, size, *view = reference
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(size) is not int or size < 0:
            raise TorchFileError(f"malformed storage reference {reference!r}")
        if view and view[0] is not None:
            raise TorchFileError("storages that are views of others are not supported")
        return _Storage(key, kind.dtype, size)


def _describe_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands in for torch._utils._rebuild_tensor_v2; refuses a tensor that would reach outside its storage."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise TorchFileError("malformed tensor description")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TorchFileError(f"tensor with offset {offset}, shape {shape}, strides {strides}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    # The second test stops stride-0 tensors that unfold a few bytes into gigabytes.
    if math.prod(shape) > 0 and (last >= storage.size or math.prod(shape) > storage.size):
        raise TorchFileError(f"tensor of shape {shape} does not fit its storage of {storage.size} elements")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _read_zip(archive: zipfile.ZipFile) -> tuple[Any, dict[str, np.ndarray]]:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TorchFileError("the zip file has no data.pkl; it is not a PyTorch checkpoint (TorchScript is not read)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise TorchFileError("big-endian checkpoints are not supported")
    with archive.open(pickles[0]) as stream:
        state = _InertUnpickler(stream).load()
    storages = {}
    for storage in _storages(state):
        member = archive.getinfo(f"{prefix}data/{storage.key}")
        expected = storage.size * storage.dtype.itemsize
        # PyTorch never compresses; refusing to unpack keeps a small file from filling the memory.
        if member.file_size != expected or member.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError(f"member {member.filename} holds {member.file_size} bytes, expected {expected} stored")
        storages[storage.key] = np.frombuffer(archive.read(member), storage.dtype)
    return state, storages


def _read_legacy(stream: IO[bytes], length: int) -> tuple[Any, dict[str, np.ndarray]]:
    if _InertUnpickler(stream).load() != LEGACY_MAGIC:
        raise TorchFileError("neither a zip file nor an old-style PyTorch checkpoint")
    protocol = _InertUnpickler(stream).load()
    system = _InertUnpickler(stream).load()
    if protocol != LEGACY_PROTOCOL or not system["little_endian"]:
        raise TorchFileError(f"unsupported protocol {protocol} or byte order")
    state = _InertUnpickler(stream).load()
    expected = {storage.key: storage for storage in _storages(state)}
    storages = {}
    for key in _InertUnpickler(stream).load():
        storage = expected[key]
        size, expected_bytes = int.from_bytes(stream.read(8), "little"), storage.size * storage.dtype.itemsize
        data = stream.read(min(expected_bytes, length))
        if size != storage.size or len(data) != expected_bytes:
            raise TorchFileError(f"storage {key} is truncated: {len(data)} bytes for {storage.size} elements")
        storages[key] = np.frombuffer(data, storage.dtype)
    return state, storages


def _storages(state: Any) -> list[_Storage]:
    values = state.values() if isinstance(state, dict) else ()
    return list({tensor.storage.key: tensor.storage for tensor in values if isinstance(tensor, _Tensor)}.values())


def _materialise(name: Any, tensor: Any, storages: dict[str, np.ndarray]) -> np.ndarray:
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise TorchFileError(f"entry {name!r} is a {type(tensor).__name__}, expected a tensor")
    data = storages[tensor.storage.key]
    if data.dtype != tensor.storage.dtype or data.size != tensor.storage.size:
        raise TorchFileError(f"entry {name!r} reads a storage under two descriptions")
    strides = tuple(stride * data.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
    array = np.array(view, order="C")
    return array if sys.byteorder == "little" else array.astype(array.dtype.newbyteorder("="))
