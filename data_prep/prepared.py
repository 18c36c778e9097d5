"""Prepared data sets below a cache folder: each made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

MANIFEST = "manifest.json"


def prepare_once(cache_dir: Path, name: str, prepare_into: Callable[[Path], None]) -> Path:
    """The folder `name` of `cache_dir`, which `prepare_into` makes unless it is there already.

    Several processes may ask for the same data: one prepares, the others wait. One that dies leaves nothing that a
    later call would take for a whole data set; the next call removes what it left.
    """
    target = cache_dir / name
    if not _is_complete(target):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{name}.lock"):
            _remove_stale(cache_dir, name)
            if not _is_complete(target):
                prepare_into(target)
    return target


@contextlib.contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, gone when the `with` block ends."""
    temporary = _temporary(target)
    try:
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(
    make_builder: Callable[..., tfds.core.GeneratorBasedBuilder], temporary: Path, target: Path, *,
    num_images: int, console: Console,
) -> None:  # fmt: skip
    """Builds in `temporary` and renames the result to `target` when it is whole.

    Args:
        make_builder: the builder, given data_dir and on_example, which it calls after each image.
        temporary: from `workspace`.
        target: the prepared folder.
        num_images: for the progress bar.
        console: where that is shown.
    """
    whole = temporary / "whole"
    columns = (TextColumn("Preparing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("", total=num_images)
        _build(make_builder(data_dir=whole, on_example=lambda: bar.advance(task)), temporary)
    sizes = {path.relative_to(whole).as_posix(): path.stat().st_size for path in whole.rglob("*") if path.is_file()}
    (whole / MANIFEST).write_text(json.dumps(sizes))
    if target.exists():  # only ever a folder that lost files, or `prepare_once` would have returned it
        shutil.rmtree(target)
    whole.rename(target)


def metadata(target: Path) -> dict[str, Any]:
    """What a prepared folder says about its data set."""
    return json.loads(next(target.glob("*/*/metadata.json")).read_text())


def _build(builder: tfds.core.GeneratorBasedBuilder, temporary: Path) -> None:
    """Runs the builder without TFDS's own progress bars, messages and look-ups on the network."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    config = tfds.download.DownloadConfig(try_download_gcs=False, register_checksums=False)
    were_bars_shown = tqdm_utils._active  # TFDS has a switch for its bars and no way to ask for its position
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=temporary / "downloads", download_config=config)
    finally:
        tfds.display_progress_bar(were_bars_shown)


def _is_complete(target: Path) -> bool:
    """Whether every file that was prepared is still there in its full size."""
    try:
        sizes = json.loads((target / MANIFEST).read_text())
        return all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, RecursionError):  # files or the manifest are gone or damaged
        return False


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp")


def _remove_stale(cache_dir: Path, name: str) -> None:
    """Removes the temporary folders of processes that died; called under the lock of `name`."""
    for temporary in cache_dir.glob(".*.tmp"):
        lock = temporary.with_suffix(".lock")
        if temporary.name == f".{name}.tmp":
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        with contextlib.suppress(BlockingIOError), _locked(lock, wait=False):
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds an exclusive lock; the system frees it when the process dies, however it dies."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The one who held it before removed the file: then this lock guards nothing.
            if _is_open_file(path, file.fileno()):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_open_file(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the open file; others may remove it at any moment."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
