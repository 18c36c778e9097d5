"""Writes tiny data sets in CUB-200-2011's layout. Everything in them is made up; they are fixtures, not birds."""

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PARTS = (
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)
FRAME = (60, 40)  # width, height of every photograph
BOX = (5.0, 4.0, 41.0, 30.0)
NUM_ATTRIBUTES = 6


def write_cub_folder(parent: Path, *, num_classes: int = 3, per_class: int = 6, image_labels: bool = True) -> Path:
    """Writes parent/attributes.txt and parent/CUB_200_2011/ and returns `parent`.

    Within a class, images 0, 1, 2 ... alternate between training and test in the official split (training first).
    Image 1 is grayscale. Image i's attribute a is present where (class + a) % 2 == 0, with certainty 4.
    """
    root = parent / "CUB_200_2011"
    for folder in ("images", "attributes", "parts"):
        (root / folder).mkdir(parents=True)
    names = [f"{c + 1:03}.Fixture_{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[c]}" for c in range(num_classes)]
    paths = [f"{name}/{name[4:]}_{i:04}.jpg" for name in names for i in range(per_class)]
    classes = [c for c in range(num_classes) for _ in range(per_class)]
    write_lines(parent / "attributes.txt", [f"{a + 1} has_fixture_{a // 2}::kind_{a}" for a in range(NUM_ATTRIBUTES)])
    write_lines(root / "classes.txt", [f"{c + 1} {name}" for c, name in enumerate(names)])
    write_lines(root / "images.txt", [f"{i + 1} {path}" for i, path in enumerate(paths)])
    write_lines(root / "image_class_labels.txt", [f"{i + 1} {c + 1}" for i, c in enumerate(classes)])
    write_lines(root / "train_test_split.txt", [f"{i + 1} {int(i % 2 == 0)}" for i in range(len(paths))])
    write_lines(root / "bounding_boxes.txt", [f"{i + 1} {' '.join(map(str, BOX))}" for i in range(len(paths))])
    write_lines(root / "parts" / "parts.txt", [f"{p + 1} {name}" for p, name in enumerate(PARTS)])
    locations = [
        f"{i + 1} {p + 1} 0.0 0.0 0" if p == 0 else f"{i + 1} {p + 1} {10.0 + p} {8.0 + p} 1"
        for i in range(len(paths))
        for p in range(len(PARTS))
    ]
    write_lines(root / "parts" / "part_locs.txt", locations)
    present = [[(c + a) % 2 == 0 for a in range(NUM_ATTRIBUTES)] for c in range(num_classes)]
    percentages = [" ".join("80.0" if value else "12.5" for value in row) for row in present]
    write_lines(root / "attributes" / "class_attribute_labels_continuous.txt", percentages)
    if image_labels:
        labels = [
            f"{i + 1} {a + 1} {int(present[c][a])} 4 1.5" + " 0.25" * (i == 2 and a == 3)  # one ragged line, as in CUB
            for i, c in enumerate(classes)
            for a in range(NUM_ATTRIBUTES)
        ]
        write_lines(root / "attributes" / "image_attribute_labels.txt", labels)
    for i, (path, c) in enumerate(zip(paths, classes, strict=True)):
        (root / "images" / path).parent.mkdir(exist_ok=True)
        picture(i, c).convert("L" if i == 1 else "RGB").save(root / "images" / path, quality=95)
    return parent


def picture(number: int, label: int, size: tuple[int, int] = FRAME) -> Image.Image:
    """A disc on a ground, in colours of the class, at a place that depends on the number."""
    image = Image.new("RGB", size, (40 * label % 256, 200 - 30 * label % 200, 90))
    x = 6 + 3 * number % 30
    ImageDraw.Draw(image).ellipse((x, 8, x + 20, 30), fill=(220, 60 * label % 256, 10 * number % 256))
    return image


def write_lines(path: Path, lines: list[str], newline: str = "\n") -> None:
    """Writes a text file with the given line ends."""
    path.write_bytes("".join(line + newline for line in lines).encode())


def edit_line(path: Path, number: int, line: str | None) -> None:
    """Replaces line `number` (from 1), or deletes it."""
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    write_lines(path, lines)


def write_archive(parent: Path, archive: Path) -> Path:
    """Packs a folder like the official .tgz: attributes.txt and CUB_200_2011 side by side."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(parent / "attributes.txt", "attributes.txt")
        tar.add(parent / "CUB_200_2011", "CUB_200_2011")
    return archive


def example_key(example: dict) -> tuple:
    """A decoded example as something that compares and hashes."""
    return tuple((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in sorted(example.items()))
