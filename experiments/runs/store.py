"""Arrays that are computed once and kept: every file is named after what its arrays depend on."""

import functools
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.signals import stop_on_signals
from spectra_jax.logging import Console

FORMAT = 2  # raise it whenever the same names and facts stand for other arrays


class Store:
    """Arrays in a folder, as NAME-HASH.npz; the hash is of the facts on which they depend.

    Arrays of other facts are therefore never taken for these, and are still there when somebody asks for them again.
    A file appears whole, and one that cannot be read is computed anew. The folder may be deleted at any time to make
    room.

    Args:
        folder: made when the first arrays are kept.
        identity: JSON-able facts on which every array depends.
    """

    def __init__(self, folder: Path, identity: Any):
        self.folder = folder
        self._digest = hashlib.sha256(json.dumps([FORMAT, identity], sort_keys=True).encode()).hexdigest()[:16]

    def path(self, name: str) -> Path:
        """Where the arrays `name` are kept."""
        return self.folder / f"{name}-{self._digest}.npz"

    def get(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays `name`, computed unless they are kept already.

        Args:
            name: of the arrays, unique in this store.
            compute: makes them.
        """
        path = self.path(name)
        try:
            with open(path, "rb") as file, np.load(file) as stored:
                return {key: stored[key] for key in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile):
            pass
        arrays = {key: np.asarray(value) for key, value in compute().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_arrays(path, **arrays)
        return arrays

    def get_rows(
        self, name: str, total: int, compute: Callable[[np.ndarray], Mapping[str, Any]], *, chunk: int,
        console: Console, title: str, unit: str = "pictures",
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Arrays with rows for each of `total` items, computed chunk by chunk; chunks kept already are only read.

        Args:
            name: of the arrays.
            total: number of items.
            compute: positions of a chunk's items -> arrays, to be concatenated along their first axis.
            chunk: items per file.
            console: shows the progress.
            title: what is being made.
            unit: of the items.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM, taken between two chunks, since JAX may lose one that comes while it
                traces a function. Finished chunks are kept.
        """
        parts = []
        with stop_on_signals() as stop, console.progress(title, total, unit=unit) as task:
            for start in range(0, total, chunk):
                rows = np.arange(start, min(start + chunk, total))
                parts.append(self.get(f"{name}-{start:05d}", functools.partial(compute, rows)))
                task.update(int(rows[-1]) + 1)
                if stop():
                    raise KeyboardInterrupt
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file that appears whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
