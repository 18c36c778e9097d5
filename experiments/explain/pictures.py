"""The images of answers as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from spectra_jax import Explanation


def write_pictures(folder: Path, rows: np.ndarray, answers: Explanation, pixels: np.ndarray) -> None:
    """A PNG of every sample, and of every answer whose image reaches its class: sample-ROW-class-NUMBER.png."""
    assert answers.realised is not None
    folder.mkdir(exist_ok=True)
    for place, row in enumerate(rows):
        pictures = {"original": pixels[place]}
        for k in np.flatnonzero(answers.realised.success[place]):
            found = np.rint(255 * np.asarray(answers.realised.images[place, k])).astype(np.uint8)
            pictures[f"class-{answers.targets[place, k]}"] = found
        for name, picture in pictures.items():
            temporary = folder / f".sample-{row}-{name}.tmp"
            Image.fromarray(picture).save(temporary, format="PNG")
            temporary.replace(folder / f"sample-{row}-{name}.png")
