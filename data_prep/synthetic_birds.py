"""Synthetic birds: a data set in CUB-200-2011's layout for those who have no photographs, with exact ground truth.

    python -m data_prep.synthetic_birds --out DIR

draws 24 classes x 90 birds in about 20 s of CPU time. Every bird is drawn from traits in CUB's own words (one labelled
has_nape_color::purple has a purple nape), so attributes, part locations, boxes, segmentations and part masks are exact,
and `render` draws any image again with a single attribute changed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.commands import ended
from data_prep.synthetic.dataset import VERSION, Options, image_spec
from data_prep.synthetic.drawing import BirdSpec, Drawing, draw
from data_prep.synthetic.layout import write_text_files
from data_prep.synthetic.plumage import TRAIT_VALUES
from data_prep.synthetic.worker import Annotation, draw_images

MANIFEST = "synthetic_birds.json"
_SMALL = 64  # up to so many images it is quicker to draw them here than to start processes


class SyntheticBirdsError(ValueError):
    """The output folder holds something else, or is not a synthetic data set of this version."""


def generate(
    out_dir: str | os.PathLike[str],
    *,
    num_classes: int = 24,
    images_per_class: int = 90,
    image_size: int = 96,
    seed: int = 0,
    label_noise: float = 0.0,
    independent: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Draws a data set of synthetic birds in CUB-200-2011's on-disk layout.

    The folder appears under its name only when it is complete; a complete one with the same options is returned at
    once, and what an interrupted run left behind is removed. The result does not depend on the number of workers;
    another release of Pillow may draw a few edge pixels differently.

    Args:
        out_dir: becomes the parent of attributes.txt, CUB_200_2011/ and part_masks/.
        num_classes: number of synthetic species.
        images_per_class: number of images of each; 60 % of them are for training.
        image_size: short side of the frames in pixels; the long side is up to 1.25 times as long.
        seed: seed of everything.
        label_noise: probability that a label given as "probably" is wrong, twice that for "guessing"; 0: exact.
        independent: draw every colour, pattern and marking for each bird anew, whatever its class and its other parts
            have; classes differ only in their build (`plumage.sample_individual`).
        workers: number of processes; None for one per CPU, at most 8.
        overwrite: replace a synthetic data set with other options instead of raising.
        progress: show a progress bar.

    Returns:
        `out_dir` as a Path.

    Raises:
        ValueError: an option is out of range.
        SyntheticBirdsError: `out_dir` holds something else, or birds with other options and `overwrite` is off.
    """
    options = Options(num_classes, images_per_class, image_size, seed, label_noise, independent)
    out = Path(out_dir).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.parent):
        for stale in out.parent.glob(f".{out.name}.partial-*"):  # nobody else is at work here: the folder is locked
            shutil.rmtree(stale, ignore_errors=True)
        if _is_complete(out, options, overwrite=overwrite):
            return out
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            new = partial / "new"
            annotations = _draw_all(new, options, workers=workers or min(os.cpu_count() or 1, 8), progress=progress)
            write_text_files(new, options, annotations)
            manifest = {"generator": "data_prep.synthetic_birds", "version": VERSION, "options": options.to_json()}
            (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if out.exists():
                out.rename(partial / "old")
            new.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def render(data_dir: str | os.PathLike[str], image_id: int, *, changes: Mapping[str, str] | None = None) -> Drawing:
    """Draws an image of a generated data set again, optionally with some traits changed and everything else equal.

    Args:
        data_dir: what `generate` returned.
        image_id: 1-based, as in images.txt.
        changes: trait -> value in CUB's words, for example {"nape_color": "purple"}. The traits are the attribute
            groups without "has_", except upperparts, underparts and primary colour, which follow from the others; and
            what CUB has no words for: "face_color" and the second colours of patterns ("wing_ink", ...).

    Returns:
        The drawing with its ground truth. Changing a colour changes no mask.

    Raises:
        ValueError: an unknown image, trait or value.
        SyntheticBirdsError: not a data set of this version of the generator.
    """
    return draw(change(read_spec(data_dir, image_id), changes or {}))


def read_spec(data_dir: str | os.PathLike[str], image_id: int) -> BirdSpec:
    """Traits and scene of an image of a generated data set; see `render` for the arguments and errors."""
    manifest = _read_manifest(Path(data_dir))
    if manifest is None:
        raise SyntheticBirdsError(f"{data_dir} holds no synthetic birds (no {MANIFEST}); generate them first")
    if manifest["version"] != VERSION:
        found = manifest["version"]
        raise SyntheticBirdsError(
            f"{data_dir} was drawn by version {found} of the generator, this is {VERSION}; generate it again"
        )
    return image_spec(Options(**manifest["options"]), image_id)


def change(spec: BirdSpec, changes: Mapping[str, str]) -> BirdSpec:
    """A specification with some traits changed (see `render`); the scene, and so every random detail, stays."""
    for trait, value in changes.items():
        if trait not in TRAIT_VALUES:
            raise ValueError(f"unknown trait {trait!r}; choose from {', '.join(TRAIT_VALUES)}")
        if value not in TRAIT_VALUES[trait]:
            raise ValueError(f"unknown value {value!r} of {trait}; choose from {', '.join(TRAIT_VALUES[trait])}")
    return spec._replace(traits={**spec.traits, **changes})


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for and holds the folder's lock, which the system frees even if the process is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_manifest(out: Path) -> dict | None:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or damaged
        return None
    whole = isinstance(manifest, dict) and "version" in manifest and isinstance(manifest.get("options"), dict)
    return manifest if whole else None


def _is_complete(out: Path, options: Options, *, overwrite: bool) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = _read_manifest(out)
    if manifest is None:
        raise SyntheticBirdsError(
            f"{out} exists and holds no synthetic birds (no whole {MANIFEST}); choose another folder or empty it"
        )
    if Options().to_json() | manifest["options"] == options.to_json():  # also of a version with fewer options
        return manifest["version"] == VERSION  # an older version's pictures are drawn again
    if not overwrite:
        raise SyntheticBirdsError(
            f"{out} holds synthetic birds with other options ({manifest['options']}, asked for {options.to_json()}); "
            "choose another folder or pass overwrite"
        )
    return False


def _draw_all(root: Path, options: Options, *, workers: int, progress: bool) -> list[Annotation]:
    columns = (TextColumn("drawing synthetic birds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    image_ids = list(range(1, options.num_images + 1))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("", total=len(image_ids))

        def work(share: list[int]) -> list[Annotation]:
            run = (
                draw_images(root, options, share)
                if workers == 1 or len(image_ids) <= _SMALL
                else _remote(root, options, share)
            )
            annotations = []
            for annotation in run:
                annotations.append(annotation)
                bar.advance(task)
            return annotations

        if workers == 1 or len(image_ids) <= _SMALL:
            return work(image_ids)
        with ThreadPoolExecutor(workers) as pool:  # one waiting thread a process
            shares = pool.map(work, [image_ids[start::workers] for start in range(workers)])
            return sorted(annotation for share in shares for annotation in share)


def _remote(root: Path, options: Options, image_ids: list[int]) -> Iterator[Annotation]:
    """As `draw_images`, in a process of its own."""
    job = {"root": str(root), "options": options.to_json(), "image_ids": image_ids}
    here = str(Path(__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-m", "data_prep.synthetic.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        for line in process.stdout:
            yield Annotation(*json.loads(line))
    if process.returncode:
        raise RuntimeError(f"a drawing process ended with code {process.returncode}; its own message is above")


def main(
    out: Annotated[Path, tyro.conf.arg(help="folder to write")],
    num_classes: int = 24,
    images_per_class: int = 90,
    image_size: int = 96,
    seed: int = 0,
    label_noise: float = 0.0,
    independent: Annotated[
        bool, tyro.conf.arg(help="draw the plumage of every bird anew, whatever its class and its other parts have")
    ] = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw synthetic birds into CUB-200-2011's on-disk layout."""
    path = generate(
        out,
        num_classes=num_classes,
        images_per_class=images_per_class,
        image_size=image_size,
        seed=seed,
        label_noise=label_noise,
        independent=independent,
        workers=workers,
        overwrite=overwrite,
    )
    print(f"synthetic birds: {path}")


if __name__ == "__main__":
    sys.exit(ended(lambda: tyro.cli(main), ValueError))
