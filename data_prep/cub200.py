"""Prepares CUB-200-2011, or any data set in its layout, once: decoded fast and read by index ever after.

`python -m data_prep.cub200 --source CUB_200_2011.tgz --out CACHE_DIR` does it from the command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.commands import ended
from data_prep.cub_files import locate, read_cub
from data_prep.cub_labels import LabelSource
from data_prep.cub_source import extract, fingerprint
from data_prep.cub_tables import CubError as CubError

if TYPE_CHECKING:
    from data_prep.cub_builder import Crop, Cub200, CubOptions

MANIFEST = "manifest.json"


def prepare(
    source: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str],
    *,
    attributes: int = 312,
    crop: Crop = "box",
    labels: LabelSource = "auto",
    validation_fraction: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> Path:
    """Prepares a CUB source below `cache_dir`, or returns at once what is there already.

    Several processes may ask for the same data: one prepares, the others wait. One that dies leaves nothing that a
    later call would take for a whole data set; the next call removes what it left.

    Args:
        source: CUB_200_2011.tgz, the extracted CUB_200_2011 folder or its parent, or a folder with fewer photographs
            and optionally ready-made box crops in crops227/ beside it.
        cache_dir: where prepared data sets live, each in a folder named after source content, options and version.
        attributes: 312 for every attribute of attributes.txt, 112 for the concept-bottleneck selection
            (`data_prep.cub_labels.select_attributes`).
        crop: "box" stores the bounding box of each photograph at its own resolution, and ready-made crops as they are;
            "full" stores whole photographs only.
        labels: "image", "class" or "auto", see `data_prep.cub_labels.attribute_labels`.
        validation_fraction: share of each class's official training images that become the validation split.
        seed: which images those are.
        strict: raise where a photograph that images.txt lists is missing, instead of counting it.
        progress: show a progress bar on the terminal.

    Returns:
        The prepared folder, for `spectra_jax.data.open_dataset`.

    Raises:
        CubError: for a source that is missing, damaged or contradicts itself, naming file and line or member.
        ValueError: for an option out of range.
    """
    if attributes not in (312, 112):
        raise ValueError(f"attributes={attributes!r}: expected 312 (all) or 112 (the concept-bottleneck selection)")
    if crop not in ("box", "full"):
        raise ValueError(f"crop={crop!r}: expected 'box' or 'full'")
    if labels not in ("auto", "image", "class"):
        raise ValueError(f"labels={labels!r}: expected 'auto', 'image' or 'class'")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction}: expected a share from 0 to below 1")
    from data_prep.cub_builder import Cub200, CubOptions

    options = CubOptions(attributes, crop, labels, float(validation_fraction), seed)
    source, cache_dir = Path(source), Path(cache_dir)
    name = fingerprint(source, f"{Cub200.VERSION} {options}")
    target = cache_dir / name
    if not _is_complete(target):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{name}.lock"):
            _remove_stale(cache_dir, name)
            if not _is_complete(target):
                _prepare_into(target, source, options, strict=strict, progress=progress)
    if strict and (missing := _metadata(target)["num_missing_images"]):
        raise _missing_error(source, missing)
    return target


def _prepare_into(target: Path, source: Path, options: CubOptions, *, strict: bool, progress: bool) -> None:
    """Builds in a temporary folder beside `target` and renames it when whole."""
    from data_prep.cub_builder import Cub200, make_plan

    temporary = _temporary(target)
    console = Console(stderr=True, quiet=not progress)
    try:
        temporary.mkdir()
        folder = source
        if source.is_file():
            folder = temporary / "source"
            with console.status(f"Extracting {source.name}"):
                extract(source, folder)
        with console.status("Reading annotations"):
            plan = make_plan(read_cub(locate(folder)), options)
        if strict and plan.num_missing:
            raise _missing_error(source, plan.num_missing)
        columns = (TextColumn("Preparing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not progress) as bar:
            task = bar.add_task("", total=len(plan.images))
            _build(Cub200(plan=plan, data_dir=temporary / "whole", on_example=lambda: bar.advance(task)), temporary)
        whole = temporary / "whole"
        sizes = {path.relative_to(whole).as_posix(): path.stat().st_size for path in whole.rglob("*") if path.is_file()}
        (whole / MANIFEST).write_text(json.dumps(sizes))
        if target.exists():  # only ever a folder that lost files, or `prepare` would have returned it
            shutil.rmtree(target)
        whole.rename(target)
    except CubError as error:
        # What was extracted is gone when the caller reads this; the archive is what can be looked into.
        raise CubError(str(error).replace(str(temporary / "source"), str(source))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(builder: Cub200, temporary: Path) -> None:
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


def _metadata(target: Path) -> dict:
    return json.loads(next(target.glob("*/*/metadata.json")).read_text())


def _is_complete(target: Path) -> bool:
    """Whether every file that was prepared is still there in its full size."""
    try:
        sizes = json.loads((target / MANIFEST).read_text())
        return all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, RecursionError):  # files or the manifest are gone or damaged
        return False


def _missing_error(source: Path, missing: int) -> CubError:
    return CubError(f"{source}: {missing} of the images in images.txt are missing; expected all of them (strict=True)")


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


@dataclass
class Arguments:
    """Prepares CUB-200-2011 or a data set in its layout.

    Cost: ../shared/cub about 20 s, the official archive a few minutes. Prints what was prepared and where.
    """

    source: Path
    """CUB_200_2011.tgz, its extracted folder, or a folder like it with fewer photographs"""
    out: Path
    """cache folder; the prepared data set goes into a folder of its own below it"""
    attributes: Literal[312, 112] = 312
    """all attributes, or the selection of the concept-bottleneck literature"""
    crop: Literal["box", "full"] = "box"
    """cut to the bounding box, or whole photographs"""
    labels: LabelSource = "auto"
    """image labels, class labels, or what is there"""
    validation_fraction: float = 0.1
    """share of the official training images kept for validation"""
    seed: int = 0
    """which images those are"""
    strict: bool = False
    """fail where a listed photograph is missing"""


def main(arguments: Arguments) -> None:
    """Prepares and prints a summary."""
    options = dict(vars(arguments))
    source, out = options.pop("source"), options.pop("out")
    target = prepare(source, out, **options)
    info = _metadata(target)
    counts = ", ".join(f"{count} {split}" for split, count in info["num_images"].items())
    print(f"prepared    {target}")
    print(f"images      {sum(info['num_images'].values())} ({counts}), {info['num_missing_images']} missing")
    print(f"stored as   {info['image_kind']}; {info['num_ready_made_crops']} of them ready-made crops")
    print(f"classes     {len(info['class_names'])}")
    print(f"attributes  {len(info['attribute_names'])}, labels from the {info['attribute_source']}")


if __name__ == "__main__":
    sys.exit(ended(lambda: main(tyro.cli(Arguments)), ValueError))
