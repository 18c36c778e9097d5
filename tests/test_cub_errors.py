"""What the CUB reader refuses: every error names file and line or archive member, and leaves nothing behind."""

import gzip
import io
import os
import shutil
import tarfile
import time

import pytest
from cub_folder import edit_line, write_archive, write_cub_folder, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.cub200 import CubError, prepare
from data_prep.cub_files import locate, read_cub
from experiments.cli.command import UserError
from experiments.runs.loading import DataConfig, prepare_data
from spectra_jax.data import open_dataset
from spectra_jax.logging import Console


@pytest.fixture
def folder(tmp_path):
    return write_cub_folder(tmp_path / "source")


DAMAGE = {
    "field too many": ("images.txt", 2, "2 a b", r"images\.txt:2: .*expected 'image-id class-folder/file'"),
    "id beyond 32 bits": ("images.txt", 2, "2147483648 a/b.jpg", r"images\.txt:2: image id 2147483648 is too large"),
    "id of many digits": ("images.txt", 2, "9" * 5000 + " a/b.jpg", r"images\.txt:2: image id 9+ is too large"),
    "id not a number": ("images.txt", 2, "x a/b.jpg", r"images\.txt:2:"),
    "duplicate id": ("images.txt", 2, "1 a/b.jpg", r"images\.txt:2: image id 1 was already given"),
    "duplicate file": ("images.txt", 2, "2 001.Fixture_A/Fixture_A_0000.jpg", r"images\.txt: the same file"),
    "image outside": ("images.txt", 3, "3 ../../secret.jpg", r"images\.txt:3: .*points outside"),
    "image absolute": ("images.txt", 3, "3 /etc/passwd", r"images\.txt:3: .*points outside"),
    "class out of range": (
        "image_class_labels.txt",
        5,
        "5 4",
        r"labels\.txt:5: got 4, expected a class id from 1 to 3",
    ),
    "class not whole": ("image_class_labels.txt", 5, "5 1.5", r"image_class_labels\.txt:5:"),
    "label of unknown image": ("image_class_labels.txt", 5, "99 1", r"labels\.txt:5: image id 99 is not in images"),
    "label twice": ("image_class_labels.txt", 5, "4 1", r"labels\.txt:5: this entry was already given"),
    "label missing": ("image_class_labels.txt", 5, None, r"labels\.txt: 17 lines; expected 18; image 5 is missing"),
    "split not 0 or 1": ("train_test_split.txt", 7, "7 2", r"split\.txt:7: got 2, expected 0 or 1"),
    "box short": ("bounding_boxes.txt", 4, "4 1.0 2.0 3.0", r"boxes\.txt:4: got 4 fields .*expected 5 numbers"),
    "box not a number": ("bounding_boxes.txt", 4, "4 1 2 x 4", r"boxes\.txt:4: .*expected 5 numbers"),
    "box nan": ("bounding_boxes.txt", 4, "4 1 2 nan 4", r"boxes\.txt:4:"),
    "box empty": ("bounding_boxes.txt", 4, "4 1 2 0 4", r"boxes\.txt:4: got 0, expected a positive width"),
    "class numbering": ("classes.txt", 2, "3 003.Fixture_C", r"classes\.txt:2: .*expected '2 name'"),
    "attribute numbering": ("../attributes.txt", 4, "7 has_x::y", r"attributes\.txt:4: .*expected '4 name'"),
    "percentages short": (
        "attributes/class_attribute_labels_continuous.txt",
        2,
        "1 2",
        r":2: .*expected 6 percentages",
    ),
    "percentage range": ("attributes/class_attribute_labels_continuous.txt", 3, "1 2 3 4 5 101", r":3: got 101"),
    "class missing": (
        "attributes/class_attribute_labels_continuous.txt",
        3,
        None,
        r"2 lines; expected 3, one per class",
    ),
    "part unknown": (
        "parts/part_locs.txt",
        16,
        "2 16 1 1 1",
        r"part_locs\.txt:16: got 16, expected an id from 1 to 15",
    ),
    "part missing": ("parts/part_locs.txt", 16, None, r"part_locs\.txt: 269 lines.*entry 1 of image 2 is missing"),
    "visible not 0 or 1": ("parts/part_locs.txt", 16, "2 1 1 1 5", r"part_locs\.txt:16: got 5"),
    "label present": ("attributes/image_attribute_labels.txt", 8, "2 2 7 4 1.0", r":8: got 7, expected present"),
    "label certainty": ("attributes/image_attribute_labels.txt", 8, "2 2 1 5 1.0", r":8: got 5, expected a certainty"),
    "label short": ("attributes/image_attribute_labels.txt", 8, "2 2 1", r":8: got 3 fields"),
    "labels incomplete": ("attributes/image_attribute_labels.txt", 8, None, r"expected 108 .*attribute 2 of image 2"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_by_file_and_line(folder, tmp_path, damage):
    name, number, line, message = DAMAGE[damage]
    edit_line(folder / "CUB_200_2011" / name, number, line)
    with pytest.raises(CubError, match=message):
        prepare(folder, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("emptied", [False, True])
def test_missing_and_empty_files_are_named(folder, emptied):
    root = folder / "CUB_200_2011"
    percentages = [*root.glob("a*/class*.txt")] if emptied else []  # these may be missing
    for path in [folder / "attributes.txt", *root.glob("*.txt"), *root.glob("parts/*.txt"), *percentages]:
        kept = path.read_bytes()
        if emptied:
            path.write_bytes(b"")
        else:
            path.unlink()
        with pytest.raises(CubError, match=path.name):
            read_cub(locate(folder))
        path.write_bytes(kept)
    read_cub(locate(folder))


def test_all_missing_files_are_named_at_once(folder):
    root = folder / "CUB_200_2011"
    gone = ["images.txt", "classes.txt", "parts/parts.txt", "../attributes.txt"]
    gone += ["attributes/image_attribute_labels.txt", "attributes/class_attribute_labels_continuous.txt"]
    for name in gone:
        (root / name).unlink()
    with pytest.raises(CubError) as error:
        locate(folder)
    for name in gone:
        assert name.removeprefix("../") in str(error.value)
    assert "bounding_boxes.txt" not in str(error.value) and "\n" not in str(error.value)


def test_parts_and_percentages_may_be_missing(folder, tmp_path):
    root = folder / "CUB_200_2011"
    shutil.rmtree(root / "parts")
    (root / "attributes" / "class_attribute_labels_continuous.txt").unlink()
    dataset = open_dataset(prepare(folder, tmp_path / "cache", progress=False))
    assert dataset.info.part_names == () and dataset.example("train", 0)["parts"].shape == (0, 3)
    present = [[100 * ((c + a) % 2 == 0) for a in range(6)] for c in range(3)]  # what the training images show
    assert dataset.info.class_attributes.tolist() == present
    by_class = open_dataset(prepare(folder, tmp_path / "cache", labels="class", progress=False))
    assert (by_class.arrays("test", image_size=4).attributes == dataset.arrays("test", image_size=4).attributes).all()


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(CubError, match="not found"):
        prepare(tmp_path / "nowhere", tmp_path / "cache", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CubError, match=r"missing: .*images\.txt"):
        prepare(tmp_path / "empty", tmp_path / "cache", progress=False)
    (tmp_path / "text.tgz").write_text("not an archive")
    with pytest.raises(CubError, match=r"text\.tgz: damaged or truncated at its start"):
        prepare(tmp_path / "text.tgz", tmp_path / "cache", progress=False)


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty"])
def test_a_corrupt_photograph_is_named(folder, tmp_path, kind):
    path = folder / "CUB_200_2011" / "images" / "002.Fixture_B" / "Fixture_B_0003.jpg"
    path.write_bytes({"truncated": path.read_bytes()[:-200], "garbage": b"\xff\xd8 no", "empty": b""}[kind])
    for source in (folder, write_archive(folder, tmp_path / "birds.tgz")):
        with pytest.raises(CubError, match=r"Fixture_B_0003\.jpg: not a whole image") as error:
            prepare(source, tmp_path / "cache", progress=False)
        assert str(error.value).startswith(str(source))  # the archive, not the temporary folder
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_box_beside_the_photograph_is_named(folder, tmp_path):
    edit_line(folder / "CUB_200_2011" / "bounding_boxes.txt", 1, "1 100 0 5 5")
    with pytest.raises(CubError, match=r"Fixture_A_0000\.jpg: the box 100 0 5 5 .* misses the image of 60x40"):
        prepare(folder, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("kind", ["dangling", "circular", "to the folder above"])
def test_links_that_lead_nowhere_are_named(folder, tmp_path, kind):
    link = folder / "CUB_200_2011" / "images" / "001.Fixture_A" / "link.jpg"
    link.symlink_to({"dangling": "nowhere.jpg", "circular": "link.jpg"}.get(kind, ".."))
    with pytest.raises(CubError, match=r"link\.jpg.*: (cannot be read \(.*\)|a symbolic link back).*remove it"):
        prepare(folder, tmp_path / "cache", progress=False)


def test_a_file_name_that_is_not_utf8_is_named(folder, tmp_path):
    (folder / "CUB_200_2011" / "images" / "\udcff.jpg").write_bytes(b"")
    with pytest.raises(CubError, match=r"images: the name b'\\xff\.jpg' is not UTF-8; rename"):
        prepare(folder, tmp_path / "cache", progress=False)


def test_a_class_folder_may_be_a_link_and_a_pipe_is_no_photograph(folder, tmp_path):
    images = folder / "CUB_200_2011" / "images"
    moved = (images / "002.Fixture_B").rename(tmp_path / "elsewhere")
    (images / "002.Fixture_B").symlink_to(moved)
    pipe = images / "003.Fixture_C" / "Fixture_C_0002.jpg"
    pipe.unlink()
    os.mkfifo(pipe)  # reading it would wait for ever
    info = open_dataset(prepare(folder, tmp_path / "cache", progress=False)).info
    assert info.num_classes == 3 and sum(info.num_images.values()) == 17 and info.num_missing_images == 1


@pytest.mark.parametrize("pixels", [(9000, 7000), (20000, 20000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(folder, tmp_path, pixels):
    path = folder / "CUB_200_2011" / "images" / "002.Fixture_B" / "Fixture_B_0003.jpg"
    Image.new("1", pixels).save(path, "PNG")  # some kB that stand for gigabytes
    began = time.monotonic()
    with pytest.raises(CubError, match=r"Fixture_B_0003\.jpg: .*pixels"):
        prepare(folder, tmp_path / "cache", progress=False)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("split", "mark"), [("train", 0), ("test", 1)])
def test_a_data_set_without_training_or_test_images_is_said_before_training(folder, tmp_path, monkeypatch, split, mark):
    monkeypatch.setenv("SPECTRA_JAX_CACHE", str(tmp_path / "cache"))
    lines = [f"{number} {mark}" for number in range(1, 19)]
    write_lines(folder / "CUB_200_2011" / "train_test_split.txt", lines)
    with pytest.raises(UserError, match=f"has no images in the {split} split: train_test_split.txt says {1 - mark}"):
        prepare_data(DataConfig(folder), console=Console(quiet=True))


def test_no_photograph_at_all(folder, tmp_path):
    shutil.rmtree(folder / "CUB_200_2011" / "images")
    with pytest.raises(CubError, match="none of the 18 images"):
        prepare(folder, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_archives_are_refused(folder, tmp_path, share):
    archive = write_archive(folder, tmp_path / "birds.tgz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CubError, match=r"birds\.tgz: .*truncated"):
        prepare(archive, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_ends_between_two_members_is_refused(folder, tmp_path):
    # tarfile alone takes the shortened file for a whole one.
    archive, short = write_archive(folder, tmp_path / "birds.tgz"), tmp_path / "short.tar"
    with gzip.open(archive) as file, tarfile.open(archive) as tar:
        short.write_bytes(file.read(tar.getmembers()[-2].offset))
    with pytest.raises(CubError, match=r"short\.tar: truncated after CUB_200_2011/"):
        prepare(short, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_reaches_outside_leaves_nothing(folder, tmp_path):
    archive = tmp_path / "evil.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "CUB_200_2011", "CUB_200_2011")
        tar.addfile(tarfile.TarInfo(f"/{tmp_path}/evil.txt"), io.BytesIO(b""))
    with pytest.raises(CubError, match=r"evil\.tgz: member '//.*' points outside"):
        prepare(archive, tmp_path / "cache" / "deep", progress=False)
    assert not list(tmp_path.rglob("evil.txt"))
    assert list((tmp_path / "cache" / "deep").iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"attributes": 100}, {"crop": "tight"}, {"labels": "both"}, {"validation_fraction": 1.0}]
)
def test_options_out_of_range(folder, tmp_path, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        prepare(folder, tmp_path / "cache", progress=False, **options)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_text_files_is_read_or_refused(folder, data):
    files = sorted([folder / "attributes.txt", *(folder / "CUB_200_2011").rglob("*.txt")])
    path = data.draw(st.sampled_from(files))
    kept = path.read_bytes()
    start = data.draw(st.integers(0, len(kept)))
    stop = start + data.draw(st.integers(0, 12))
    path.write_bytes(kept[:start] + data.draw(st.binary(max_size=6)) + kept[stop:])
    try:
        read_cub(locate(folder))
    except CubError as error:
        assert ".txt" in str(error)  # often the damaged file, sometimes one that it now contradicts
    finally:
        path.write_bytes(kept)
