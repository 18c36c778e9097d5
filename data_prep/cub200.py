"""Prepares CUB-200-2011, or any data set in its layout, once; afterwards it is decoded fast and read by index.

`python -m data_prep.cub200 --source CUB_200_2011.tgz --out CACHE_DIR` does it from the command line.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console

from data_prep.commands import ended
from data_prep.cub_files import locate, read_cub
from data_prep.cub_labels import LabelSource
from data_prep.cub_source import extract, fingerprint
from data_prep.cub_tables import CubError as CubError
from data_prep.prepared import metadata, prepare_once, workspace, write
from data_prep.problems import DataError

if TYPE_CHECKING:
    from data_prep.cub_builder import Crop, CubOptions


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
    """Prepares a CUB source below `cache_dir`, or returns at once what is there already, see `prepare_once`.

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
    target = prepare_once(
        cache_dir, name, lambda target: _prepare_into(target, source, options, strict=strict, progress=progress)
    )
    if strict and (missing := metadata(target)["num_missing_images"]):
        raise _missing_error(source, missing)
    return target


def _prepare_into(target: Path, source: Path, options: CubOptions, *, strict: bool, progress: bool) -> None:
    """Builds in a temporary folder beside `target` and renames it when whole."""
    from data_prep.cub_builder import Cub200, make_plan

    console = Console(stderr=True, quiet=not progress)
    with workspace(target) as temporary:
        try:
            folder = source
            if source.is_file():
                folder = temporary / "source"
                with console.status(f"Extracting {source.name}"):
                    extract(source, folder)
            with console.status("Reading annotations"):
                plan = make_plan(read_cub(locate(folder)), options)
            if strict and plan.num_missing:
                raise _missing_error(source, plan.num_missing)
            make_builder = functools.partial(Cub200, plan=plan)
            write(make_builder, temporary, target, num_images=len(plan.images), console=console)
        except DataError as error:
            # What was extracted is gone when the caller reads this; the archive is what can be looked into.
            raise CubError(str(error).replace(str(temporary / "source"), str(source))) from error


def _missing_error(source: Path, missing: int) -> CubError:
    return CubError(f"{source}: {missing} of the images in images.txt are missing; expected all of them (strict=True)")


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
    info = metadata(target)
    counts = ", ".join(f"{count} {split}" for split, count in info["num_images"].items())
    print(f"prepared    {target}")
    print(f"images      {sum(info['num_images'].values())} ({counts}), {info['num_missing_images']} missing")
    print(f"stored as   {info['image_kind']}; {info['num_ready_made_crops']} of them ready-made crops")
    print(f"classes     {len(info['class_names'])}")
    print(f"attributes  {len(info['attribute_names'])}, labels from the {info['attribute_source']}")


if __name__ == "__main__":
    sys.exit(ended(lambda: main(tyro.cli(Arguments)), ValueError))
