"""The CUB-200-2011 builder: what it stores, and that interruptions leave nothing half-made."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from cub_folder import BOX, FRAME, NUM_ATTRIBUTES, edit_line, example_key, picture, write_archive, write_cub_folder
from PIL import Image

from data_prep import cub200
from data_prep.cub200 import CubError, prepare
from data_prep.cub_files import locate, read_cub
from data_prep.cub_labels import CBM_ATTRIBUTE_IDS, attribute_labels, class_labels, is_official
from data_prep.prepared import metadata
from spectra_jax.data import open_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    return write_cub_folder(tmp_path / "source")


def content(prepared, splits=("train", "validation", "test")):
    """Everything decoded, and the metadata."""
    dataset = open_dataset(prepared)
    examples = {s: [example_key(dataset.example(s, i)) for i in range(dataset.num_examples(s))] for s in splits}
    return examples, metadata(prepared)


# What is stored


def test_archive_folder_and_parent_give_the_same_content(folder, tmp_path):
    archive = write_archive(folder, tmp_path / "CUB_200_2011.tgz")
    prepared = [
        prepare(source, tmp_path / "cache", progress=False) for source in (folder, folder / "CUB_200_2011", archive)
    ]
    assert prepared[0] == prepared[1] != prepared[2]
    assert content(prepared[0]) == content(prepared[2])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted({p.name for p in prepared})


def test_carriage_returns_and_line_order_do_not_matter(folder, tmp_path):
    expected = content(prepare(folder, tmp_path / "cache", progress=False))
    other = shutil.copytree(folder, tmp_path / "other")
    for path in other.rglob("*.txt"):
        lines = path.read_text().splitlines()
        joined_by_id = path.name not in ("attributes.txt", "classes.txt", "parts.txt") and "continuous" not in path.name
        path.write_bytes("\r\n".join(lines[::-1] if joined_by_id else lines).encode())
    assert content(prepare(other, tmp_path / "cache", progress=False)) == expected


def test_crops_move_the_parts_and_keep_the_box(folder, tmp_path):
    dataset = open_dataset(prepare(folder, tmp_path / "cache", progress=False))
    x, y, width, height = BOX
    example = dataset.example("train", 0)
    assert example["image"].shape == (height, width, 3)
    np.testing.assert_array_equal(example["box"], BOX)
    np.testing.assert_array_equal(example["parts"][0], 0)  # invisible
    np.testing.assert_array_equal(example["parts"][3], [13 - x, 11 - y, 1])
    with Image.open(folder / "CUB_200_2011" / "images" / example["path"]) as photo:
        direct = np.asarray(photo.crop((int(x), int(y), int(x + width), int(y + height))), np.float32)
    assert np.abs(example["image"] - direct).mean() < 2  # encoded once more


def test_full_frames_are_stored_byte_for_byte(folder, tmp_path):
    dataset = open_dataset(prepare(folder, tmp_path / "cache", crop="full", progress=False))
    example, record = dataset.example("train", 0), dataset.source("train")[0]
    assert record["image"] == (folder / "CUB_200_2011" / "images" / example["path"]).read_bytes()
    assert example["image"].shape == (FRAME[1], FRAME[0], 3)
    np.testing.assert_array_equal(example["parts"][3], [13, 11, 1])
    assert dataset.info.image_kind == "full"


@pytest.mark.parametrize("crop", ["box", "full"])
def test_grayscale_becomes_rgb(folder, tmp_path, crop):
    dataset = open_dataset(prepare(folder, tmp_path / "cache", crop=crop, progress=False))
    image = dataset.example("test", 0)["image"]
    assert image.shape[-1] == 3
    assert np.ptp(image.astype(int), axis=-1).max() <= (1 if crop == "box" else 0)


def test_boxes_are_clipped_to_the_photograph(folder, tmp_path):
    edit_line(folder / "CUB_200_2011" / "bounding_boxes.txt", 1, "1 -1.0 20.5 62.0 20.0")
    files = read_cub(locate(folder))
    assert files.boxes[0].tolist() == [-1, 20.5, 62, 20]
    dataset = open_dataset(prepare(folder, tmp_path / "cache", validation_fraction=0, progress=False))
    example = dataset.example("train", 0)
    np.testing.assert_array_equal(example["box"], [0, 20.5, 60, 19.5])
    assert example["image"].shape == (20, 60, 3)


def test_ready_made_crops_fill_in_for_missing_photographs(folder, tmp_path):
    images, name = folder / "CUB_200_2011" / "images", "002.Fixture_B"
    shutil.rmtree(images / name)
    shutil.rmtree(images / "003.Fixture_C")
    (folder / "crops227" / name).mkdir(parents=True)
    for i in range(4):
        picture(i, 1, (227, 227)).save(folder / "crops227" / name / f"Fixture_B_{i:04}.jpg")
    dataset = open_dataset(prepare(folder, tmp_path / "cache", progress=False))
    info = dataset.info
    assert info.class_names == ("Fixture_A", "Fixture_B")
    assert (sum(info.num_images.values()), info.num_missing_images) == (10, 8)
    example = dataset.example("test", 3)
    assert example["path"].startswith(name)
    assert dataset.source("test")[3]["image"] == (folder / "crops227" / example["path"]).read_bytes()
    expected = [(13 - BOX[0]) * 227 / BOX[2], (11 - BOX[1]) * 227 / BOX[3], 1]
    np.testing.assert_allclose(example["parts"][3], expected, rtol=1e-6)
    full = open_dataset(prepare(folder, tmp_path / "cache", crop="full", progress=False)).info
    assert (full.class_names, full.num_missing_images) == (("Fixture_A",), 12)


def test_classes_are_compact_and_keep_their_ids(folder, tmp_path):
    shutil.rmtree(folder / "CUB_200_2011" / "images" / "001.Fixture_A")
    dataset = open_dataset(prepare(folder, tmp_path / "cache", progress=False))
    assert dataset.info.class_ids == (1, 2)
    assert set(dataset.arrays("train", image_size=8).labels.tolist()) == {0, 1}
    np.testing.assert_array_equal(dataset.info.class_attributes[0], [12.5, 80] * 3)


def test_validation_is_stratified_and_decided_by_the_seed(tmp_path):
    source = write_cub_folder(tmp_path / "source", per_class=20)

    def split(**options):
        dataset = open_dataset(prepare(source, tmp_path / "cache", progress=False, **options))
        arrays = {s: dataset.arrays(s, image_size=4) for s in ("train", "validation", "test")}
        return {s: a.image_ids.tolist() for s, a in arrays.items()}, np.bincount(
            arrays["validation"].labels, minlength=3
        )

    ids, per_class = split(validation_fraction=0.2)
    assert per_class.tolist() == [2, 2, 2]
    assert sorted(ids["train"] + ids["validation"]) == list(range(1, 61, 2))
    assert ids["test"] == list(range(2, 61, 2))
    assert split(validation_fraction=0.2, seed=1)[0]["validation"] != ids["validation"]
    none, per_class = split(validation_fraction=0)
    assert none["validation"] == [] and per_class.tolist() == [0, 0, 0]


# Attribute labels


def test_image_labels_are_used_where_they_exist(folder, tmp_path):
    path = folder / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    edit_line(path, 1, "1 1 0 2 9.0")  # image 1 differs from its class
    dataset = open_dataset(prepare(folder, tmp_path / "cache", validation_fraction=0, progress=False))
    assert dataset.info.attribute_source == "image"
    np.testing.assert_array_equal(dataset.example("train", 0)["attributes"], [0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(dataset.example("train", 0)["certainty"], [2, 4, 4, 4, 4, 4])
    path.unlink()
    dataset = open_dataset(prepare(folder, tmp_path / "cache", validation_fraction=0, progress=False))
    assert dataset.info.attribute_source == "class"
    np.testing.assert_array_equal(dataset.example("train", 0)["attributes"], [1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(dataset.example("train", 0)["certainty"], 0)
    with pytest.raises(CubError, match=r"image_attribute_labels\.txt: missing"):
        prepare(folder, tmp_path / "cache", labels="image", progress=False)


def test_several_workers_vote_at_the_highest_certainty(folder):
    path = folder / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    more = ["1 2 1 4 1.0", "1 4 1 3 1.0", "1 4 1 2 1.0", "1 6 1 4 1.0", "1 6 0 4 1.0"]
    path.write_text(path.read_text() + "\n".join(more) + "\n")
    files = read_cub(locate(folder))
    # Attribute 2: no, yes at certainty 4: a tie is a yes. 4: the less certain do not count. 6: no, yes, no.
    assert files.image_attributes[0].tolist() == [1, 1, 1, 0, 1, 0]
    assert files.image_certainties[0].tolist() == [4] * 6


def test_class_labels_are_the_majority_of_the_visible_training_labels(folder):
    path = folder / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt"
    rows = {
        (1, 2): "1 4",
        (3, 2): "0 1",
        (5, 2): "0 1",
        (1, 1): "0 4",
        (3, 1): "0 3",
        (1, 3): "0 4",
        (5, 3): "0 1",
        (2, 5): "0 4",
    }
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        key = tuple(map(int, line.split()[:2]))
        if key in rows:
            lines[i] = f"{key[0]} {key[1]} {rows[key]} 1.0"
    path.write_text("\n".join(lines))
    files = read_cub(locate(folder))
    labels = class_labels(files, files.is_train)
    # Class 0, training images 1 3 5. Attribute 2: one yes, two "not visible" noes that do not count: yes. Attribute 1:
    # two noes against a yes: no. Attribute 3: one yes, one no that counts: yes. Attribute 5: only a test image says no.
    assert labels[0].tolist() == [False, True, True, False, True, False]
    np.testing.assert_array_equal(labels[1:], files.class_percentages[1:] >= 50)
    nobody = class_labels(files, np.zeros_like(files.is_train))
    np.testing.assert_array_equal(nobody, files.class_percentages >= 50)


def test_the_reduced_set_follows_the_rule_elsewhere(tmp_path):
    source = write_cub_folder(tmp_path / "source", num_classes=21, per_class=2)
    info = open_dataset(prepare(source, tmp_path / "cache", attributes=112, progress=False)).info
    assert info.attribute_ids == (0, 1, 2, 3, 4, 5)  # each in 10 or 11 of 21 classes
    assert info.attribute_source == "class"
    files = read_cub(locate(source))
    files.image_attributes[files.classes == 1, 1] = 0  # 9 classes left with attribute 1
    kept = attribute_labels(files, attributes=112, source="auto", is_train=files.is_train)
    assert kept.ids.tolist() == [0, 2, 3, 4, 5]
    assert kept.values.shape == (42, 5)
    kept = attribute_labels(files, attributes=112, source="image", is_train=files.is_train)
    np.testing.assert_array_equal(kept.values, files.image_attributes[:, kept.ids])


def test_the_reduced_set_needs_ten_classes(folder, tmp_path):
    with pytest.raises(CubError, match="at least 10 classes have"):
        prepare(folder, tmp_path / "cache", attributes=112, progress=False)


def test_the_published_list_has_112_ids():
    assert len(set(CBM_ATTRIBUTE_IDS)) == 112
    assert list(CBM_ATTRIBUTE_IDS) == sorted(CBM_ATTRIBUTE_IDS)
    assert CBM_ATTRIBUTE_IDS[0] >= 0 and CBM_ATTRIBUTE_IDS[-1] < 312


# Caching and interruptions


def test_a_second_call_returns_at_once_and_options_get_their_own_folder(folder, tmp_path, monkeypatch):
    first = prepare(folder, tmp_path / "cache", progress=False)
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr(cub200, "_prepare_into", lambda *_, **__: pytest.fail("prepared again"))
    assert prepare(folder, tmp_path / "cache", progress=False) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == stamps
    monkeypatch.undo()
    others = [{"crop": "full"}, {"seed": 1}, {"validation_fraction": 0.5}, {"labels": "class"}]
    assert len({first, *(prepare(folder, tmp_path / "cache", progress=False, **other) for other in others)}) == 5


def test_changed_sources_are_prepared_again(folder, tmp_path):
    seen = {prepare(folder, tmp_path / "cache", progress=False)}
    edit_line(folder / "CUB_200_2011" / "image_class_labels.txt", 1, "1 2")
    seen.add(prepare(folder, tmp_path / "cache", progress=False))
    (folder / "CUB_200_2011" / "images" / "001.Fixture_A" / "Fixture_A_0000.jpg").unlink()
    seen.add(prepare(folder, tmp_path / "cache", progress=False))
    assert len(seen) == 3


def test_a_prepared_folder_that_lost_a_file_is_made_anew(folder, tmp_path):
    first = prepare(folder, tmp_path / "cache", progress=False)
    expected = content(first)
    next(first.rglob("*test.array_record*")).unlink()
    assert prepare(folder, tmp_path / "cache", progress=False) == first
    assert content(first) == expected


def test_strict_refuses_missing_photographs_prepared_or_not(folder, tmp_path):
    (folder / "CUB_200_2011" / "images" / "001.Fixture_A" / "Fixture_A_0000.jpg").unlink()
    for _ in range(2):
        with pytest.raises(CubError, match=r"1 of the images .* are missing"):
            prepare(folder, tmp_path / "cache", strict=True, progress=False)
        prepare(folder, tmp_path / "cache", progress=False)


KILLED = """
import os, signal, sys
from data_prep import cub200, cub_builder
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
where, source, cache = sys.argv[1:]
if where == "extracting":
    cub200.read_cub = die
elif where == "writing":
    cub_builder.Cub200._keyed = lambda self, future, keyed=cub_builder.Cub200._keyed: (
        die() if future.result()["image_id"] > 8 else keyed(self, future))
else:
    cub200.Path.rename = die
cub200.prepare(source, cache, progress=False)
"""


@pytest.mark.parametrize("where", ["extracting", "writing", "renaming"])
def test_a_killed_preparation_leaves_nothing_that_counts(folder, tmp_path, where):
    source, cache = write_archive(folder, tmp_path / "birds.tgz"), tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, where, str(source), str(cache)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name[0] for path in cache.iterdir()] == [".", "."]  # a lock and a temporary folder
    prepared = prepare(folder, cache, progress=False)  # another source: cleans up after the dead one all the same
    assert [path.name for path in cache.iterdir()] == [prepared.name]
    assert content(prepare(source, cache, progress=False)) == content(prepared)


def test_processes_that_ask_at_the_same_time_prepare_once(folder, tmp_path, monkeypatch):
    builds, results = [], []
    original = cub200._prepare_into

    def counted(*arguments, **options):
        builds.append(1)
        original(*arguments, **options)

    monkeypatch.setattr(cub200, "_prepare_into", counted)
    work = [
        threading.Thread(target=lambda: results.append(prepare(folder, tmp_path / "cache", progress=False)))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(builds) == 1 and len(set(results)) == 1 and len(results) == 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [results[0].name]


def test_preparing_and_reading_is_quiet_and_never_touches_the_network(folder, tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with warnings.catch_warnings(action="error"):
        content(prepare(folder, tmp_path / "cache", progress=False))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_command_line(folder, tmp_path):
    shutil.rmtree(folder / "CUB_200_2011" / "images" / "003.Fixture_C")
    command = [sys.executable, "-m", "data_prep.cub200", "--source", str(folder), "--out", str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONWARNINGS": "error::ResourceWarning"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "12 (4 train, 2 validation, 6 test), 6 missing" in done.stdout
    assert f"attributes  {NUM_ATTRIBUTES}, labels from the image" in done.stdout
    with pytest.raises(CubError, match="6 of the images"):
        cub200.main(cub200.Arguments(folder, tmp_path / "cache", strict=True))


# The real thing


@pytest.fixture(scope="session")
def prepared_cub(cub_dir, tmp_path_factory):
    return prepare(cub_dir, tmp_path_factory.mktemp("cub"), progress=False)


@pytest.mark.cub
def test_real_cub_counts(prepared_cub):
    info = open_dataset(prepared_cub).info
    assert info.name == "cub200"
    assert info.num_images["train"] + info.num_images["validation"] == 3179
    assert info.num_images["test"] == 3033
    assert (info.num_classes, info.num_attributes, info.num_missing_images) == (106, 312, 5576)
    assert info.attribute_source == "class"
    assert info.find_attribute("has_nape_color::purple") == info.find_attribute(185) == 185
    assert info.find_class("Laysan_Albatross") == info.find_class(1)
    assert info.class_attributes.shape == (106, 312)
    assert json.loads(next(prepared_cub.glob("*/*/metadata.json")).read_text())["num_ready_made_crops"] == 5902


@pytest.mark.cub
def test_real_cub_parts_lie_inside_their_images(prepared_cub):
    dataset = open_dataset(prepared_cub)
    for index in range(0, dataset.num_examples("test"), 97):
        example = dataset.example("test", index)
        height, width, _ = example["image"].shape
        visible = example["parts"][example["parts"][:, 2] > 0]
        assert len(visible) > 3
        inside = (visible[:, :2] > -0.1 * width) & (visible[:, :2] < np.array([1.1 * width, 1.1 * height]))
        assert inside.mean() > 0.9


@pytest.mark.cub
def test_real_cub_reduced_set_and_full_frames(cub_dir, tmp_path):
    info = open_dataset(prepare(cub_dir, tmp_path, attributes=112, crop="full", progress=False)).info
    assert info.attribute_ids == CBM_ATTRIBUTE_IDS
    assert (sum(info.num_images.values()), info.num_classes, info.num_missing_images) == (310, 6, 11478)


@pytest.mark.cub
def test_real_percentages_do_not_reproduce_the_published_selection(cub_dir):
    files = read_cub(locate(cub_dir))
    assert is_official(files)
    thresholded = set(np.flatnonzero((files.class_percentages >= 50).sum(axis=0) >= 10).tolist())
    assert len(thresholded) == 108 and len(thresholded & set(CBM_ATTRIBUTE_IDS)) == 104
