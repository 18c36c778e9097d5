"""A folder of images with one table: what is read and refused, and the commands on data that are not birds."""

import csv
import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_words import words

from data_prep import digits
from data_prep.image_table import read_image_table
from data_prep.problems import DataError
from data_prep.sources import find_table, prepare_source
from experiments.cli.command import UserError
from experiments.cli.options import DataConfig, preset
from experiments.counterfactuals.options import PairConfig
from experiments.invert import __main__ as invert
from experiments.quickstart import __main__ as quickstart
from experiments.runs.loading import default_model
from experiments.saliency import __main__ as saliency
from experiments.sweep_attackability import __main__ as sweep_attackability
from experiments.train import __main__ as train
from spectra_jax.data import open_dataset
from spectra_jax.logging import Console
from spectra_jax.training import PRESETS

HEADER = ["file", "class", "split", "striped", "size::large", "tame"]
ROWS = [  # two classes of five images
    [f"{name}/{i}.png", name, split, str((i + k) % 2), str(k), "0.25"]
    for k, name in enumerate(("zebra crossing", "cat"))
    for i, split in enumerate(("train", "train", "val", "test", "test"))
]


def write_folder(folder, rows=ROWS, header=HEADER, *, table="table.csv", images=True):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / table).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    for i, row in enumerate(ROWS if images else []):
        (folder / row[0]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 16), (25 * i, 100, 200)).save(folder / row[0])
    return folder


def prepared(folder, tmp_path):
    return open_dataset(prepare_source(folder, tmp_path / "cache", progress=False))


# What is read


def test_classes_attributes_and_splits_come_from_the_table(tmp_path):
    dataset = prepared(write_folder(tmp_path / "pets"), tmp_path)
    info = dataset.info
    assert (info.name, info.class_names, info.part_names) == ("pets", ("cat", "zebra crossing"), ())
    assert info.attribute_names == ("striped", "size::large", "tame")
    assert info.num_images == {"train": 4, "validation": 2, "test": 4}
    assert info.class_attributes.tolist() == [[50, 100, 25], [50, 0, 25]]
    assert info.find_class("zebra crossing") == info.find_class("Zebra_Crossing") == 1
    example = dataset.example("test", 1)
    assert (example["path"], example["label"], example["image"].shape) == ("zebra crossing/4.png", 1, (16, 24, 3))
    assert example["attributes"].tolist() == [0, 0, 0.25] and example["parts"].shape == (0, 3)
    assert info.notes == ("Nothing can be learnt of attributes that all training images share: tame.",)


def test_columns_in_any_order_from_csv_and_parquet_say_the_same(tmp_path):
    folder = write_folder(tmp_path / "pets")
    one = read_image_table(folder / "table.csv")
    order = [4, 0, 3, 5, 2, 1]
    shuffled = [[row[k] for k in order] for row in ROWS]
    write_folder(folder, shuffled, [HEADER[k] for k in order], table="other.csv")
    columns = {name: [row[k] for row in ROWS] for k, name in enumerate(HEADER)}
    columns["striped"] = [value == "1" for value in columns["striped"]]
    columns["size::large"] = [int(value) for value in columns["size::large"]]
    columns["tame"] = [float(value) for value in columns["tame"]]
    pq.write_table(pa.table(columns), folder / "typed.parquet")
    with (folder / "spreadsheet.csv").open("w", encoding="utf-8-sig") as file:  # as a spreadsheet program saves it
        words = [[*row[:3], str(row[3] == "1").upper(), *row[4:]] for row in ROWS]
        file.write("".join(", ".join(row) + "\r\n" for row in [HEADER, *words]))
    for name in ("other.csv", "typed.parquet", "spreadsheet.csv"):
        other = read_image_table(folder / name)
        assert (other.files, other.class_names, other.splits) == (one.files, one.class_names, one.splits)
        places = [other.attribute_names.index(attribute) for attribute in one.attribute_names]
        np.testing.assert_array_equal(other.values[:, places], one.values)


def test_numbers_are_class_names_too_and_lie_in_their_order(tmp_path):
    rows = [[row[0], "10" if row[1] == "cat" else "007", *row[2:]] for row in ROWS]
    info = prepared(write_folder(tmp_path / "agents", rows), tmp_path).info
    assert info.class_names == ("007", "10") and info.find_class("10") == 1


def test_splits_that_the_table_does_not_say_are_drawn_of_each_class(tmp_path):
    folder = write_folder(tmp_path / "pets")
    header, rows = HEADER[:2] + HEADER[3:], [row[:2] + row[3:] for row in ROWS]
    write_folder(folder, rows, header, images=False)
    first, second = read_image_table(folder / "table.csv"), read_image_table(folder / "table.csv")
    assert first.splits == second.splits
    for k in range(2):
        of_class = [split for split, label in zip(first.splits, first.labels, strict=True) if label == k]
        assert sorted(of_class) == ["test", "train", "train", "train", "validation"]
    assert "no column 'split'" in first.notes[0] and "drawn for test" in first.notes[0]
    write_folder(folder, [[*row[:2], "train" if row[2] == "val" else row[2], *row[3:]] for row in ROWS], images=False)
    found = read_image_table(folder / "table.csv")
    assert found.splits.count("test") == 4 and found.splits.count("validation") == 2
    assert "no row of the split 'val'" in found.notes[0]


def test_images_of_every_kind_become_upright_rgb(tmp_path):
    folder = write_folder(tmp_path / "pets")
    files = [folder / row[0] for row in ROWS]
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    wide = Image.fromarray(np.stack([grey, grey + 5, grey + 10], axis=-1))
    Image.fromarray(grey).save(files[0])
    Image.fromarray(grey.astype(np.uint16) * 257).save(files[1])
    clear = np.dstack([np.zeros((3, 4, 3), np.uint8), np.full((3, 4), 255, np.uint8)])
    clear[0, 0] = (9, 9, 9, 0)  # a colour that nobody sees
    Image.fromarray(clear).save(files[5])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see it
    wide.save(files[6], exif=exif)
    wide.save(files[7], "GIF")  # a val image whose name does not say what it is
    dataset = prepared(folder, tmp_path)
    shown = {dataset.example("train", i)["path"]: dataset.example("train", i)["image"] for i in range(4)}
    for k in (0, 1):
        np.testing.assert_array_equal(shown[ROWS[k][0]], np.stack([grey] * 3, axis=-1))
    assert shown[ROWS[5][0]][0, 0].tolist() == [255] * 3 and not shown[ROWS[5][0]][1:].any()
    np.testing.assert_array_equal(shown[ROWS[6][0]], np.rot90(np.asarray(wide), -1))
    assert dataset.example("validation", 1)["image"].shape == (3, 4, 3)


def test_a_changed_image_or_cell_is_prepared_again(tmp_path):
    folder, cache = write_folder(tmp_path / "pets"), tmp_path / "cache"
    seen = {prepare_source(folder, cache, progress=False), prepare_source(folder / "table.csv", cache, progress=False)}
    assert len(seen) == 1
    path = folder / ROWS[0][0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x83")  # the same size
    seen.add(prepare_source(folder, cache, progress=False))
    write_folder(folder, [[*row[:5], "0.5"] for row in ROWS], images=False)
    seen.add(prepare_source(folder, cache, progress=False))
    assert len(seen) == 3


# What is refused


def test_every_problem_of_a_table_is_named_at_once(tmp_path):
    rows = [list(row) for row in ROWS]
    rows[1][3], rows[2][4], rows[3][5] = "yes", "", "1.5"
    rows[4][0], rows[5][0], rows[6][0], rows[7][1], rows[8][2] = "gone.png", ROWS[0][0], "../a.png", "", "dev"
    header = [*HEADER, "remark", "Striped"]
    folder = write_folder(tmp_path / "pets", [[*row, "nice", "1"] for row in rows], header)
    with pytest.raises(DataError) as error:
        read_image_table(folder / "table.csv")
    text = str(error.value)
    for part in (
        "'yes' in row 2 (zebra crossing/1.png)",
        "column 'size::large' holds nothing in row 3",
        "column 'tame' holds '1.5' in row 4",
        "1 of 10 files are not in",
        "gone.png (row 5)",
        "zebra crossing/0.png (rows 1 and 6)",
        "outside the table's folder: ../a.png (row 7)",
        "column 'class' is empty in row 8",
        "'dev' (row 9); expected train, val or test",
        "column 'remark' holds 'nice' in row 1 (zebra crossing/0.png)",
        "delete the column if it is no attribute",
        "two columns are called 'striped'",
    ):
        assert part in text, part
    assert text.count("\n  - ") == 10


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        (["image", "klass", "striped"], [["a", "b", "1"]], "no column 'class'.*rename 'klass'"),
        (["file", "class"], ROWS, "there is no attribute"),
        (HEADER, [], "there are no rows"),
        (HEADER, [row[:5] for row in ROWS], "row 1, 2, 3, 4, 5 and 5 more has not 6 cells"),
        (HEADER, [[row[0], "cat", *row[2:]] for row in ROWS], "all images are of the class 'cat'"),
        (HEADER, [[*row[:2], "test", *row[3:]] for row in ROWS[:5]] + ROWS[5:], "training images: zebra crossing;"),
        (HEADER, [[*row[:2], "train", *row[3:]] for row in ROWS], "there are no test images"),
        (HEADER, [[*row[:3], "1", "1", "0"] for row in ROWS], "no attribute differs between the 4 test images"),
        (["file;class;striped"], [["a;b;1"]], "expected names with commas between them"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path, header, rows, expected):
    folder = write_folder(tmp_path / "pets", rows, header)
    with pytest.raises(DataError, match=re.compile(expected, re.DOTALL)):
        read_image_table(folder / "table.csv")


def test_files_that_are_no_tables(tmp_path):
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 no")
        with pytest.raises(DataError, match=f"{name}: not a whole (CSV|PARQUET) file"):
            read_image_table(tmp_path / name)
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(DataError, match="its first line is ''"):
        read_image_table(tmp_path / "a.csv")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damage_to_a_table_is_read_or_refused(tmp_path_factory, data):
    folder = write_folder(tmp_path_factory.getbasetemp() / "damaged")
    path = folder / "table.csv"
    if data.draw(st.booleans()):
        path = folder / "typed.parquet"
        pq.write_table(pa.table({name: [row[k] for row in ROWS] for k, name in enumerate(HEADER)}), path)
    kept = path.read_bytes()
    start = data.draw(st.integers(0, len(kept)))
    stop = start + data.draw(st.integers(0, 12))
    path.write_bytes(kept[:start] + data.draw(st.binary(max_size=6)) + kept[stop:])
    try:
        table = read_image_table(path)
        assert table.values.shape == (len(table.files), len(table.attribute_names))
    except DataError as error:
        assert path.name in str(error)


def test_all_images_that_cannot_be_read_are_named(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for row in (0, 4):  # of two splits
        (folder / ROWS[row][0]).write_bytes(b"\x89PNG")
    Image.fromarray(np.zeros((3, 4), np.float32)).save(folder / "float.tiff")
    (folder / "float.tiff").rename(folder / ROWS[9][0])
    with pytest.raises(DataError) as error:
        prepare_source(folder, tmp_path / "cache", progress=False)
    for row in (0, 4, 9):
        assert ROWS[row][0] in str(error.value)
    assert "floating-point pixels" in str(error.value) and list((tmp_path / "cache").iterdir()) == []


def test_folders_of_neither_layout_and_of_several_tables(tmp_path):
    (tmp_path / "neither").mkdir()
    with pytest.raises(DataError, match=r"holds nothing\. It needs one of\n(?s:.*)file, class(?s:.*)images\.txt"):
        find_table(tmp_path / "neither")
    folder = write_folder(tmp_path / "pets")
    (folder / "notes.csv").write_text("a,b\n")
    assert find_table(folder) == folder / "table.csv"  # called as a table is
    (folder / "table.csv").rename(folder / "labels.csv")
    with pytest.raises(DataError, match=r"several tables: labels\.csv, notes\.csv\. Name the one"):
        find_table(folder)
    with pytest.raises(DataError, match="--attributes 112 selects from CUB's"):
        prepare_source(folder / "labels.csv", tmp_path / "cache", attributes=112, progress=False)
    (tmp_path / "neither" / "classes.txt").write_text("1 a\n")
    with pytest.raises(DataError, match=r"CUB-200-2011's layout; missing: .*images\.txt, .*attributes\.txt"):
        prepare_source(tmp_path / "neither", tmp_path / "cache", progress=False)


# What the commands make of it


def test_images_of_a_table_are_not_mirrored_unless_asked_for(tmp_path):
    folder = write_folder(tmp_path / "pets")
    assert PRESETS["cnn"].flip and preset(["--model", "cnn"]).flip
    assert preset([f"--data-dir={folder}"]) == preset(["--data_dir", str(folder / "table.csv")])
    assert preset(["--data-dir", str(folder)]) == dataclasses.replace(PRESETS["cnn"], flip=False)
    with pytest.raises(UserError, match="is no data set"):
        preset(["--data-dir", str(folder / "cat")])


def test_the_quickstart_picks_its_model_by_the_size_of_the_images(tmp_path):
    dataset = prepared(write_folder(tmp_path / "pets"), tmp_path)
    assert default_model(dataset) == "cnn"
    for row in ROWS:
        Image.new("RGB", (200, 100)).save(tmp_path / "pets" / row[0])
    assert default_model(prepared(tmp_path / "pets", tmp_path)) == "efficientnet_lite0"
    assert DataConfig(tmp_path / "pets" / "table.csv").name == DataConfig(tmp_path / "pets").name == "pets"


def test_the_attributes_of_drawn_digits():
    ring, stem = np.zeros((2, 8, 8))
    ring[[0, 7], 1:7] = ring[:, [1, 6]] = 1
    stem[:, 3:5] = 1
    found = {name: values.tolist() for name, values in digits.attributes(np.stack([ring, stem])).items()}
    for name in ("bar::top", "bar::bottom", "side::upper_left", "side::lower_right", "loop::whole"):
        assert found[name] == [True, False], name
    assert found["bar::middle"] == found["loop::upper"] == found["leans::left"] == found["heavy::top"] == [False] * 2
    assert found["stem"] == found["narrow"] == [False, True]
    assert found["symmetry::left_right"] == found["symmetry::top_bottom"] == [True] * 2
    eight, seven = ring.copy(), np.zeros((8, 8))
    eight[3] = ring[3] + 1 > 0
    seven[0], seven[range(8), range(7, -1, -1)] = 1, 1
    found = digits.attributes(np.stack([np.minimum(eight, 1), seven]))
    assert found["loop::upper"][0] and found["loop::lower"][0] and not found["loop::whole"][0]
    assert found["leans::right"][1] and found["heavy::top"][1] and not found["loop::upper"][1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.write(folder)
    with pytest.raises(ValueError, match="is there already"):
        digits.write(folder)
    return folder


@pytest.fixture(scope="module")
def run_dir(data_dir, tmp_path_factory):
    """The quickstart with the smallest model."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [
        *("--data-dir", str(data_dir), "--run-dir", str(folder / "run"), "--image-size", "32", "--quiet"),
        *("--model", "linear", "--epochs", "4", "--num-pairs", "4", "--batch-size", "4"),
    ]
    assert quickstart.main(command) == 0
    yield folder / "run"


def about_the_data(folder):
    """The texts of a report and its figures must not speak of birds where there are none."""
    text = "".join(words(folder / name) for name in ("report.html", "summary.json"))
    found = re.findall(r"(?i)\b(?:birds?|cub\w*|plumage|species|nape|beak|wings?|photographs?)\b", text)
    assert not found, found
    return text


@pytest.mark.slow
def test_train(data_dir, tmp_path):
    run = tmp_path / "run"
    command = ["--data-dir", str(data_dir), "--run-dir", str(run), "--image-size", "32", "--epochs", "2", "--quiet"]
    assert train.main(command) == 0
    assert "cnn on digits" in about_the_data(run)
    config = json.loads((run / "config.json").read_text())["run"]["train"]
    assert (config["model"], config["image_size"], config["flip"]) == ("cnn", 32, False)
    assert json.loads((run / "summary.json").read_text())["test/class_accuracy"] > 0.5  # ten classes, two epochs


@pytest.mark.slow
def test_quickstart(run_dir):
    page = about_the_data(run_dir)
    assert "linear on digits" in page and "1,797 images of 10 classes, 18 attributes" in page
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["test/class_accuracy"] > 0.5 and summary["invert/num_success"] == 4


@pytest.mark.slow
def test_invert_between_named_classes(run_dir, tmp_path):
    command = ["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--num-pairs", "2", "--batch-size", "2"]
    assert invert.main([*command, "--source", "3", "--targets", "8", "--quiet"]) == 0
    about_the_data(tmp_path / "out")
    with np.load(tmp_path / "out" / "counterfactuals.npz") as found:
        assert found["label"].tolist() == [3, 3] and found["target"].tolist() == [8, 8]


@pytest.mark.slow
def test_saliency_goes_without_parts(run_dir, tmp_path, capsys):
    command = ["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--num-images", "2"]
    assert saliency.main([*command, "--attribute", "stem", "loop::upper"]) == 0
    page = about_the_data(tmp_path / "out")
    sentence = "This data set has no part points"
    assert sentence in page and sentence in capsys.readouterr().err
    assert "named part?" not in page and "Lift" not in page and "White rings" not in page
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["saliency/num_maps"] == 4


@pytest.mark.slow
def test_sweep(run_dir, tmp_path):
    assert sweep_attackability.main(["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "loop: lower" in about_the_data(tmp_path / "out")


@pytest.mark.slow
def test_robustness(run_dir, tmp_path):
    pytest.importorskip("experiments.attacks.foolbox", reason="needs the extra 'bench'", exc_type=ImportError)
    from experiments.robustness import __main__ as robustness

    command = ["--run-dirs", str(run_dir), "--out", str(tmp_path / "out"), "--quiet", "--num-images", "4"]
    short = ["--pgd-steps", "2", "--ddn-steps", "3", "--carlini-steps", "0", "--batch-size", "4"]
    assert robustness.main([*command, *short]) == 0
    about_the_data(tmp_path / "out")


def test_images_too_small_for_ssim_go_without(tmp_path, capsys):
    folder = write_folder(tmp_path / "pets")
    run = ["--run-dir", str(tmp_path / "run")]
    small = ["--data-dir", str(folder), "--model", "linear", "--image-size", "8", "--epochs", "2", "--quiet"]
    assert train.main([*small, *run]) == 0
    about_the_data(tmp_path / "run")
    assert invert.main([*run, "--out", str(tmp_path / "out"), "--num-pairs", "2", "--batch-size", "2"]) == 0
    assert "smaller than SSIM's window of 11; SSIM is not used" in capsys.readouterr().err
    with np.load(tmp_path / "out" / "counterfactuals.npz") as found:
        assert found["images"].shape == (2, 8, 8, 3) and np.isnan(found["ssim"]).all()
    config = PairConfig()
    assert config.fitting(11, console=Console(quiet=True)) is config
