"""The synthetic birds: CUB's layout to the line, and labels that are true of the pixels."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import chi2_contingency
from skimage.color import deltaE_ciede2000, rgb2lab

from data_prep.synthetic import labels
from data_prep.synthetic.dataset import Options, image_spec, image_stem
from data_prep.synthetic.drawing import draw
from data_prep.synthetic.plumage import (
    BUILD,
    COLORED,
    MIN_BUILD_DIFFERENCES,
    MIN_DIFFERENCES,
    PATTERNED,
    VISIBLE_GROUPS,
    num_differences,
    sample_classes,
)
from data_prep.synthetic.vocabulary import ATTRIBUTE_INDEX, ATTRIBUTE_NAMES, COLORS, GROUPS, PART_IDS, PARTS, RGB
from data_prep.synthetic_birds import MANIFEST, SyntheticBirdsError, change, generate, read_spec, render

SMALL: dict[str, Any] = {"num_classes": 3, "images_per_class": 4, "progress": False}
MANY = Options(num_classes=24, images_per_class=90)
# Trait -> part whose pixels show it.
COLORED_PARTS = {
    "nape_color": "nape",
    "crown_color": "crown",
    "throat_color": "throat",
    "breast_color": "breast",
    "belly_color": "belly",
    "back_color": "back",
    "upper_tail_color": "tail",
    "under_tail_color": "under tail",
    "forehead_color": "forehead",
    "bill_color": "beak",
}


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("birds") / "small", **SMALL)


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_vocabulary_is_the_official_one(cub_dir):
    official = [line[1] for line in lines(cub_dir / "attributes.txt")]
    assert official == ATTRIBUTE_NAMES
    assert [
        line.split(" ", 1)[1] for line in (cub_dir / "CUB_200_2011/parts/parts.txt").read_text().splitlines()
    ] == PARTS


def test_vocabulary_indices_of_the_paper():
    assert len(ATTRIBUTE_NAMES) == 312
    assert len(GROUPS) == 28
    assert ATTRIBUTE_INDEX["has_nape_color::purple"] == 185
    assert ATTRIBUTE_INDEX["has_breast_color::green"] == 113
    assert ATTRIBUTE_INDEX["has_crown_color::buff"] == 307
    assert ATTRIBUTE_INDEX["has_size::very_small_(3_-_5_in)"] == 221


def test_layout_is_complete(birds):
    cub = birds / "CUB_200_2011"
    images = [line[1] for line in lines(cub / "images.txt")]
    assert len(images) == 12
    assert len(lines(birds / "attributes.txt")) == 312
    assert [len(lines(cub / name)) for name in ("classes.txt", "image_class_labels.txt", "train_test_split.txt")] == [
        3,
        12,
        12,
    ]
    assert [line[1] for line in lines(cub / "image_class_labels.txt")] == [str(1 + i // 4) for i in range(12)]
    assert sum(int(line[1]) for line in lines(cub / "train_test_split.txt")) == 6  # round(.6 x 4) of each class
    assert len(lines(cub / "parts/parts.txt")) == 15
    assert len(lines(cub / "parts/part_locs.txt")) == 12 * 15
    assert len(lines(cub / "attributes/certainties.txt")) == 4
    for number, image in enumerate(images, 1):
        assert image == f"{image_stem(Options(3, 4), number)}.jpg"
        folder, name = image.split("/")
        assert folder.split(".")[1].lower() in name.lower()
        with Image.open(cub / "images" / image) as picture:
            assert picture.format == "JPEG" and picture.mode == "RGB" and min(picture.size) == 96
            size = picture.size
        segmentation = Image.open((cub / "segmentations" / image).with_suffix(".png"))
        part_mask = Image.open((birds / "part_masks" / image).with_suffix(".png"))
        assert segmentation.mode == "L" and part_mask.mode == "P" and segmentation.size == part_mask.size == size
        mask = np.asarray(part_mask)
        np.testing.assert_array_equal(np.asarray(segmentation), np.where(mask > 0, 255, 0))
        x, y, w, h = (int(float(v)) for v in lines(cub / "bounding_boxes.txt")[number - 1][1:])
        assert (mask > 0).sum() == (mask[y : y + h, x : x + w] > 0).sum() > 300
    legend = json.loads((birds / "part_masks/parts.json").read_text())
    assert legend["10"] == "nape" and legend["0"] == "background" and len(legend) == 18


def test_attribute_lines(birds):
    rows = lines(birds / "CUB_200_2011/attributes/image_attribute_labels.txt")
    assert len(rows) == 12 * 312
    assert [(int(r[0]), int(r[1])) for r in rows] == [(i, a) for i in range(1, 13) for a in range(1, 313)]
    assert {len(row) for row in rows} == {5, 6}  # a few ragged ones, as in the official file
    present = np.array([int(row[2]) for row in rows]).reshape(12, 312)
    certainty = np.array([int(row[3]) for row in rows]).reshape(12, 312)
    assert not present[certainty == 1].any()
    for image_id in range(1, 13):
        drawing = render(birds, image_id)
        np.testing.assert_array_equal(present[image_id - 1], drawing.attributes)
        np.testing.assert_array_equal(certainty[image_id - 1] > 1, drawing.seen)
    percentages = np.loadtxt(birds / "CUB_200_2011/attributes/class_attribute_labels_continuous.txt")
    assert percentages.shape == (3, 312)
    weight = certainty[:4] - 1
    expected = 100 * (weight * present[:4]).sum(0) / np.maximum(weight.sum(0), 1)
    np.testing.assert_allclose(percentages[0], expected, atol=1e-9)


def test_same_bytes_whatever_the_number_of_workers(tmp_path):
    options: dict[str, Any] = {"num_classes": 3, "images_per_class": 24, "progress": False}
    one = generate(tmp_path / "one", workers=1, **options)
    two = generate(tmp_path / "two", workers=2, **options)
    assert contents(one) == contents(two)


def test_seed_and_prefix(birds):
    options = Options(3, 4)
    assert image_spec(options, 6) == image_spec(options, 6)
    assert image_spec(options, 6) != image_spec(Options(3, 4, seed=1), 6)
    assert [c.name for c in sample_classes(5, 0)] == [c.name for c in sample_classes(9, 0)][:5]
    with pytest.raises(ValueError, match="image_id must be between 1 and 12"):
        read_spec(birds, 13)


@pytest.mark.parametrize("seed", [0, 1])
def test_classes_differ_and_are_named_after_themselves(seed):
    classes = sample_classes(40, seed)
    assert len({bird.name for bird in classes}) == 40
    for number, bird in enumerate(classes):
        assert all(num_differences(bird.traits, other.traits) >= MIN_DIFFERENCES for other in classes[:number])
        assert bird.name.split("_")[0].lower() in bird.traits.values()
    assert classes[0].name == "Purple_naped_Finch"
    used = {bird.traits[f"{part}_color"] for bird in classes for part in ("nape", "crown", "breast", "wing", "back")}
    assert used == set(COLORS)


def _median_color(drawing, part: str) -> np.ndarray | None:
    """Median colour inside the part, a pixel away from its edge; None where too little is left."""
    mask = drawing.part_mask == PART_IDS[part]
    inner = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(mask, step, axis)
    return np.median(drawing.image[inner], 0) if inner.sum() >= 8 else None


def dependence(values: list[tuple[str, str]]) -> float:
    """p-value of the chi-squared test of independence of two columns of words."""
    first, second = (np.unique(column, return_inverse=True)[1] for column in zip(*values, strict=True))
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    return chi2_contingency(table).pvalue


@pytest.mark.parametrize("independent", [True, False])
def test_independent_plumage_tells_nothing_of_the_class_nor_of_another_part(independent):
    options = Options(num_classes=12, images_per_class=100, independent=independent)
    birds = [image_spec(options, image_id).traits for image_id in range(1, options.num_images + 1)]
    class_of = [str(i // options.images_per_class) for i in range(len(birds))]
    drawn = [f"{part}_color" for part in COLORED if part != "forehead"] + [f"{part}_pattern" for part in PATTERNED]
    with_class = [
        dependence([(bird[trait], label) for bird, label in zip(birds, class_of, strict=True)]) for trait in drawn
    ]
    with_others = [
        dependence([(bird[one], bird[other]) for bird in birds]) for one, other in itertools.combinations(drawn, 2)
    ]
    if independent:
        assert min(with_class) > 1e-4 and min(with_others) > 1e-5  # of 18 and of 153
    else:
        assert max(with_class) < 1e-9 and np.median(with_others) < 1e-9


def test_classes_of_independent_plumage_differ_in_their_build():
    classes = sample_classes(24, 0, independent=True)
    for one, other in itertools.combinations(classes, 2):
        assert num_differences(one.traits, other.traits, BUILD) >= MIN_BUILD_DIFFERENCES
        assert one.name != other.name
    assert all(re.fullmatch(r"[A-Z][a-z]+(_[a-z]+)*_[A-Z][a-z]+", bird.name) for bird in classes)


@pytest.mark.parametrize("trait", COLORED_PARTS)
def test_the_part_shows_the_colour_the_label_names(trait):
    plain = {f"{part}_pattern": "solid" for part in ("back", "breast", "belly", "wing", "tail")} | {
        "head_pattern": "plain"
    }
    words = [color for color in COLORS if color != "iridescent"]
    targets = rgb2lab(np.array([RGB[word] for word in words]) / 255)
    ranks, checked = [], 0
    for number, color in enumerate(words):
        for image_id in (1 + 97 * number, 1000 + 61 * number):
            drawing = draw(change(image_spec(MANY, image_id), {**plain, trait: color}))
            found = _median_color(drawing, COLORED_PARTS[trait])
            if found is None:
                continue
            checked += 1
            assert drawing.attributes[ATTRIBUTE_INDEX[f"has_{trait}::{color}"]] or not drawing.seen.all()
            # Compare hue and chroma more than lightness: light and shade are part of the picture.
            distance = deltaE_ciede2000(rgb2lab(found / 255)[None], targets, kL=2)
            assert distance[number] < 16, f"{trait}={color}: median {found} in image {image_id}"
            ranks.append(int((distance < distance[number]).sum()))
    assert checked >= 12
    assert np.mean(np.array(ranks) == 0) > 0.85


def test_iridescent_parts_change_hue():
    drawing = draw(change(image_spec(MANY, 1), {"wing_color": "iridescent", "wing_pattern": "solid"}))
    wing = drawing.image[np.isin(drawing.part_mask, [PART_IDS["left wing"], PART_IDS["right wing"]])]
    lab = rgb2lab(wing / 255)
    assert np.ptp(np.percentile(lab[:, 1], [10, 90])) > 25


def test_render_changes_one_thing(birds):
    before = render(birds, 7, changes={"nape_color": "yellow"})
    after = render(birds, 7, changes={"nape_color": "purple"})
    nape = before.part_mask == PART_IDS["nape"]
    changed = (before.image != after.image).any(-1)
    # Slivers thinner than a pixel blend into their neighbours; farther away nothing may change.
    near = np.asarray(Image.fromarray(nape).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
    assert changed[nape].mean() > 0.9
    assert not (changed & ~near).any()
    np.testing.assert_array_equal(before.part_mask, after.part_mask)
    assert after.attributes[185] and not before.attributes[185]
    difference = {ATTRIBUTE_NAMES[i] for i in np.flatnonzero(before.attributes != after.attributes)}
    assert {"has_nape_color::purple", "has_nape_color::yellow"} <= difference
    assert {name.split("::")[0] for name in difference} <= {"has_nape_color", "has_primary_color"}


def test_every_visible_trait_is_drawn():
    """Each value of each visible group gives a picture of its own."""
    spec = change(image_spec(MANY, 3), {"head_pattern": "plain", "bill_length": "longer_than_head"})
    spec = spec._replace(
        scene=type(spec.scene)(**{**spec.scene.__dict__, "cover": "none", "perch": "air", "overhang": 0.0})
    )
    for group in VISIBLE_GROUPS:
        if group == "head_pattern":  # a cap is made of colours and needs them to differ
            spec = change(
                spec, {"crown_color": "black", "forehead_color": "black", "face_color": "white", "head_ink": "red"}
            )
        pictures = [draw(change(spec, {group: value})).image for value in GROUPS[group]]
        same = [
            (GROUPS[group][i], GROUPS[group][j])
            for i in range(len(pictures))
            for j in range(i)
            if np.array_equal(pictures[i], pictures[j])
        ]
        assert same in ([], [("capped", "plain")]), f"{group}: {same}"


def test_sides_and_hidden_parts():
    hidden_legs = 0
    for image_id in range(1, MANY.num_images, 23):
        spec = image_spec(MANY, image_id)
        drawing = draw(spec)
        shown = {PARTS[i] for i in np.flatnonzero(drawing.parts[:, 2])}
        far = "left" if spec.scene.facing > 0 else "right"
        assert f"{far} eye" not in shown and f"{far} wing" not in shown
        assert not drawing.parts[drawing.parts[:, 2] == 0].any()
        for part in shown:  # a visible part's location lies on the part
            x, y, _ = drawing.parts[PARTS.index(part)]
            assert drawing.part_mask[int(y), int(x)] == PART_IDS[part]
        if not shown & {"left leg", "right leg"}:
            hidden_legs += 1
            groups = np.array(list(GROUPS))[labels.GROUP_OF]
            assert not drawing.seen[groups == "leg_color"].any() and not drawing.attributes[groups == "leg_color"].any()
        facing_right = drawing.parts[PARTS.index("beak"), 0] > drawing.parts[PARTS.index("back"), 0]
        if {"beak", "back"} <= shown:
            assert facing_right == (spec.scene.facing > 0)
    assert hidden_legs > 2


def test_certainties_and_label_noise():
    rng = np.random.default_rng(0)
    seen = np.ones(312, bool)
    seen[150:153] = False
    certainty = labels.certainties(seen, rng)
    assert (certainty[150:153] == 1).all() and set(certainty[seen]) <= {2, 3, 4}
    present = np.zeros(312, bool)
    assert not labels.flip_labels(present, seen, certainty, 0.0, rng).any()
    flipped = labels.flip_labels(present, seen, np.where(seen, 2, 1), 0.25, rng)
    assert 0.35 < flipped[seen].mean() < 0.65 and not flipped[~seen].any()


def test_complete_folder_is_returned_and_others_refused(birds, tmp_path):
    before = (birds / MANIFEST).stat().st_mtime_ns
    assert generate(birds, **SMALL) == birds
    assert (birds / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(SyntheticBirdsError, match="other options"):
        generate(birds, **{**SMALL, "seed": 5})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SyntheticBirdsError, match="holds no synthetic birds"):
        generate(tmp_path / "mine", overwrite=True, **SMALL)
    assert (tmp_path / "mine/thesis.txt").exists()
    with pytest.raises(SyntheticBirdsError, match="generate them first"):
        render(tmp_path / "mine", 1)


def test_overwrite_and_older_version(tmp_path):
    out = generate(tmp_path / "birds", num_classes=2, images_per_class=2, progress=False)
    generate(out, num_classes=2, images_per_class=3, overwrite=True, progress=False)
    assert len(lines(out / "CUB_200_2011/images.txt")) == 6
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(SyntheticBirdsError, match="version 0"):
        render(out, 1)
    generate(out, num_classes=2, images_per_class=3, progress=False)
    assert json.loads((out / MANIFEST).read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_killed_generation_leaves_nothing_behind(tmp_path):
    out = tmp_path / "birds"
    command = [sys.executable, "-m", "data_prep.synthetic_birds", "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".birds.partial-*/new/CUB_200_2011/images/*/*.jpg")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists() and list(tmp_path.glob(".birds.partial-*"))
    generate(out, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]
    assert len(lines(out / "CUB_200_2011/images.txt")) == 12


@pytest.mark.parametrize(
    "options",
    [{"num_classes": 1}, {"images_per_class": 1}, {"image_size": 8}, {"seed": -1}, {"label_noise": 0.9}],
)
def test_bad_options(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(tmp_path / "birds", **options)
    assert not list(tmp_path.iterdir())


def test_bad_changes(birds):
    with pytest.raises(ValueError, match="unknown trait 'primary_color'"):
        render(birds, 1, changes={"primary_color": "red"})
    with pytest.raises(ValueError, match="unknown value 'mauve' of nape_color"):
        render(birds, 1, changes={"nape_color": "mauve"})


def test_goes_through_the_cub_reader(birds, tmp_path):
    from data_prep.cub200 import prepare
    from spectra_jax.data import open_dataset

    dataset = open_dataset(prepare(birds, tmp_path, validation_fraction=0.0, progress=False))
    info = dataset.info
    assert (info.num_classes, info.num_attributes, info.attribute_source, info.num_missing_images) == (
        3,
        312,
        "image",
        0,
    )
    assert info.attribute_names[185] == "has_nape_color::purple"
    assert info.class_names[0] == "Purple_naped_Finch"
    example = dataset.example("train", 0)
    drawing = render(birds, int(example["image_id"]))
    np.testing.assert_array_equal(np.asarray(example["attributes"]) > 0, drawing.attributes)
