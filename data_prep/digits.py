"""Handwritten digits as a folder of images with one table: an example of `data_prep.image_table`, without downloads.

    python -m data_prep.digits --out DIR

writes scikit-learn's 1,797 digits (a part of the UCI data set of Alpaydin and Kaynak, 1998; 8 x 8 pixels) as grey PNG
files and table.csv. The attributes say how a digit is drawn, measured on its own pixels: the seven strokes of a
pocket calculator, a stem, loops, where the ink lies, which way it leans.
"""

import csv
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Bool, Float
from PIL import Image

from data_prep.commands import ended

TEST_FRACTION = 0.3
_DRAWN = 0.6  # mean of the ink along a stroke from which it counts as drawn


def attributes(ink: Float[np.ndarray, "N 8 8"]) -> dict[str, Bool[np.ndarray, " N"]]:
    """The attributes of digits, by name.

    Args:
        ink: (N, 8, 8) from 0 for paper to 1.
    """

    def bar(top: int, bottom: int) -> np.ndarray:
        """Whether the middle four columns are inked somewhere between two rows."""
        return ink[:, top:bottom, 2:6].max(axis=1).mean(axis=1) >= _DRAWN

    def side(top: int, left: int) -> np.ndarray:
        """Whether three rows are inked somewhere in three columns."""
        return ink[:, top : top + 3, left : left + 3].max(axis=2).mean(axis=1) >= _DRAWN

    place = np.arange(8) - 3.5
    total = ink.sum(axis=(1, 2))
    across, down = (ink.sum(axis=axis) @ place / total for axis in (1, 2))
    x, y = place - across[:, None], place - down[:, None]
    lean = -np.einsum("nij,nj,ni->n", ink, x, y) / np.einsum("nij,ni->n", ink, y**2)
    mirrored = {name: 1 - abs(ink - ink[flip]).sum(axis=(1, 2)) / (2 * total) for name, flip in _FLIPS.items()}
    loops = np.array([_loops(digit) for digit in ink]).reshape(-1, 3)
    return {
        "bar::top": bar(0, 2),
        "bar::middle": bar(3, 5),
        "bar::bottom": bar(6, 8),
        "side::upper_left": side(1, 0),
        "side::upper_right": side(1, 5),
        "side::lower_left": side(4, 0),
        "side::lower_right": side(4, 5),
        "stem": ink[:, :, 3:5].max(axis=2).mean(axis=1) >= 0.85,
        "loop::whole": loops[:, 0],
        "loop::upper": loops[:, 1],
        "loop::lower": loops[:, 2],
        "narrow": (ink.max(axis=1) > 0.25).sum(axis=1) <= 4,
        "heavy::top": down < -0.25,
        "heavy::bottom": down > 0.25,
        "leans::left": lean < -0.1,
        "leans::right": lean > 0.05,
        "symmetry::left_right": mirrored["left_right"] >= 0.75,
        "symmetry::top_bottom": mirrored["top_bottom"] >= 0.75,
    }


_FLIPS = {"left_right": np.s_[:, :, ::-1], "top_bottom": np.s_[:, ::-1]}


def _loops(digit: Float[np.ndarray, "8 8"]) -> tuple[bool, bool, bool]:
    """Whether paper enclosed by ink reaches over half of the height, or else lies above or below the middle."""
    from scipy import ndimage

    fine = ndimage.zoom(np.pad(digit, 1), 4, order=1)  # eight pixels are too coarse to tell a hole from a dent
    regions, _ = ndimage.label(fine < 0.4)
    whole = upper = lower = False
    for number, (rows, _) in enumerate(ndimage.find_objects(regions), start=1):
        inside = np.argwhere(regions == number)
        if number == regions[0, 0] or len(inside) < 6:  # the paper around the digit, or a speck
            continue
        middle = float(inside[:, 0].mean()) / (len(fine) - 1)
        is_whole = rows.stop - rows.start >= 14
        whole, upper, lower = (
            whole or is_whole,
            upper or (not is_whole and middle < 0.5),
            lower or (not is_whole and middle >= 0.5),
        )
    return whole, upper, lower


def write(out: Path) -> Path:
    """Writes the digits; the folder appears under its name when it is whole.

    Raises:
        ValueError: there is something at `out` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: choose a folder that is new or empty, or delete it")
    from sklearn.datasets import load_digits

    digits = load_digits()
    described = attributes(digits.images / 16)
    # They are in the order in which people wrote them, so most of the test digits are by other hands.
    num_train = round(len(digits.target) * (1 - TEST_FRACTION))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        whole = temporary / "whole"
        (whole / "images").mkdir(parents=True)
        with (whole / "table.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "class", "split", *described])
            for row, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
                name = f"images/{row:04}.png"
                Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(whole / name)
                split = "train" if row < num_train else "test"
                table.writerow([name, label, split, *(int(values[row]) for values in described.values())])
        whole.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def main(out: Annotated[Path, tyro.conf.arg(help="folder to write")]) -> None:
    """Write scikit-learn's handwritten digits as a folder of images with one table."""
    print(f"digits: {write(out)}")


if __name__ == "__main__":
    sys.exit(ended(lambda: tyro.cli(main), ValueError))
