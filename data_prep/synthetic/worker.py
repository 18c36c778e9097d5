"""Draws images and writes their files: in this process or, started as a module, in one of its own.

`python -m data_prep.synthetic.worker` reads one job (JSON) from standard input and prints an annotation (a JSON line)
for every image. Plain subprocesses instead of multiprocessing: forking is unsafe once JAX runs, and spawning would
import the caller's script again.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_prep.synthetic.dataset import Options, image_spec, image_stem
from data_prep.synthetic.drawing import draw
from data_prep.synthetic.vocabulary import PART_IDS


class Annotation(NamedTuple):
    """What the text files say about one image; JSON-able."""

    image_id: int
    box: list[float]
    parts: list[list[float]]
    present: list[int]  # 0-based attribute indices
    hidden: list[int]


def draw_images(root: Path, options: Options, image_ids: Iterable[int]) -> Iterator[Annotation]:
    """Draws images, writes picture, segmentation and part mask of each below `root`, and yields the annotations."""
    colors = _mask_palette()
    for image_id in image_ids:
        drawing = draw(image_spec(options, image_id))
        stem = image_stem(options, image_id)
        paths = {
            "image": root / "CUB_200_2011" / "images" / f"{stem}.jpg",
            "segmentation": root / "CUB_200_2011" / "segmentations" / f"{stem}.png",
            "part_mask": root / "part_masks" / f"{stem}.png",
        }
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        # Full chroma resolution: colours are what the attributes are about.
        Image.fromarray(drawing.image).save(paths["image"], quality=95, subsampling=0)
        Image.fromarray(np.where(drawing.part_mask > 0, 255, 0).astype(np.uint8)).save(
            paths["segmentation"], compress_level=1
        )
        indexed = Image.fromarray(drawing.part_mask)
        indexed.putpalette(colors)
        indexed.save(paths["part_mask"], compress_level=1)
        yield Annotation(
            image_id,
            drawing.box.tolist(),
            drawing.parts.tolist(),
            np.flatnonzero(drawing.attributes).tolist(),
            np.flatnonzero(~drawing.seen).tolist(),
        )


def _mask_palette() -> list[int]:
    """Black for the background, then a distinct colour for every part, so that a part mask can be looked at."""
    palette = [0, 0, 0]
    for number in PART_IDS.values():
        palette += [60 + 67 * number % 196, 60 + 131 * number % 196, 60 + 41 * number % 196]
    return palette


def main() -> None:
    """Does the job given on standard input."""
    job: dict[str, Any] = json.load(sys.stdin)
    for annotation in draw_images(Path(job["root"]), Options(**job["options"]), job["image_ids"]):
        print(json.dumps(annotation), flush=True)


if __name__ == "__main__":
    main()
