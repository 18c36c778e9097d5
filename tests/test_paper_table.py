"""The paper's table on a tiny drawn data set: stopped anywhere it goes on, and its texts say what its summary says."""

import contextlib
import csv
import dataclasses
import json
import re
import signal

import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.counterfactuals import find
from experiments.counterfactuals.options import PairConfig
from experiments.paper_table import __main__ as paper_table
from experiments.paper_table import measure as paper_measure
from experiments.paper_table.measure import PLANS, Row, list_rows
from experiments.paper_table.page import IMAGES, QUALITY, over_seeds, table_markdown
from experiments.reporting.intervals import median_interval, rate
from experiments.runs.loading import DataConfig
from experiments.runs.record import Record
from spectra_jax.logging import read_metrics

pytestmark = pytest.mark.slow

NAMES = ("linear/plain", "linear/stability", "cnn/plain", "cnn/stability")


@contextlib.contextmanager
def interrupted_in(owner, name):
    """Ctrl-C right after the first call of a function: at a moment that no fast machine can miss."""
    genuine = getattr(owner, name)

    def call_and_interrupt(*args, **kwargs):
        patch.undo()
        result = genuine(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call_and_interrupt)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two models, both variants, two seeds of the cheap one; stopped in a training and between two batches of pairs."""
    folder = tmp_path_factory.mktemp("table")
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        # In place of the network, a second linear model on smaller images: it compiles in a fraction of the time.
        small = dataclasses.replace(PLANS["linear"].train, image_size=16)
        patch.setitem(PLANS, "cnn", PLANS["cnn"]._replace(train=small))
        birds = generate(folder / "birds", num_classes=4, images_per_class=16, image_size=64, workers=1, progress=False)
        command = [
            *("--data-dir", str(birds), "--out", str(out), "--models", "linear", "cnn", "--seeds", "2", "--quiet"),
            *("--epochs-scale", "0.3", "--num-pairs", "4", "--batch-size", "2", "--inversion.max-steps", "4"),
            *("--foolbox-images", "4", "--lambda-stability", "0.5"),
        ]
        with interrupted_in(Record, "log"):
            assert paper_table.main(command) == 130
        assert not (out / "summary.json").exists()
        pairs = out / "linear-plain-seed0" / "counterfactuals"
        with interrupted_in(find, "_one_batch"), pytest.raises(KeyboardInterrupt):
            paper_table.main(command)
        kept = {path.name: path.stat().st_mtime_ns for path in pairs.glob("pairs-*.npz")}
        assert paper_table.main(command) == 0
        stored = {path.name: path.stat().st_mtime_ns for path in pairs.glob("pairs-*.npz")}
        assert kept and kept.items() <= stored.items()
        yield out, command


def read_summary(out):
    return json.loads((out / "summary.json").read_text())


def test_every_row_has_its_figures(finished):
    out, _ = finished
    summary = read_summary(out)
    for name in NAMES:
        assert summary[f"{name}/num_pairs"] == 4
        for figure in (*QUALITY, *IMAGES):
            assert f"{name}/{figure.key}" in summary, (name, figure.key)
        for key in ("class_accuracy", "success_rate", "relative_margin_mean"):
            assert summary[f"{name}/{key}_low"] <= summary[f"{name}/{key}"] <= summary[f"{name}/{key}_high"]
    for variant in ("plain", "stability"):
        two = [summary[f"linear/{variant}{seed}/class_accuracy"] for seed in ("", "/seed1")]
        assert summary[f"linear/{variant}/class_accuracy_mean_over_seeds"] == pytest.approx(np.mean(two))
        assert summary[f"linear/{variant}/class_accuracy_lowest"] == min(two)
    records = read_metrics(out / "metrics.jsonl")
    assert [(r["model"], r["variant"], r["seed"]) for r in records] == [
        *((*name.split("/"), 0) for name in NAMES), ("linear", "plain", 1), ("linear", "stability", 1),
    ]  # fmt: skip


def test_variants_differ_in_the_stability_loss_alone_and_share_their_images(finished):
    out, _ = finished
    configs, pairs = [], []
    for variant in ("plain", "stability"):
        row = out / f"cnn-{variant}-seed0"
        configs.append(json.loads((row / "run" / "config.json").read_text())["run"]["train"])
        stored = [np.load(path) for path in sorted((row / "counterfactuals").glob("pairs-*.npz"))]
        pairs.append({int(i): int(t) for part in stored for i, t in zip(part["index"], part["target"], strict=True)})
        for part in stored:
            assert np.all(part["target"] != part["predicted"])
    assert [(config.pop("lambda_stability"), config.pop("stability_form")) for config in configs] == [
        (0, "log_relative"), (0.5, "hinge"),
    ]  # fmt: skip
    assert configs[0] == configs[1]
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 4


def test_rates_count_every_pair(finished):
    out, _ = finished
    summary = read_summary(out)
    for name in NAMES:
        folder = out / f"{name.replace('/', '-')}-seed0" / "counterfactuals"
        success = np.concatenate([np.load(path)["success"] for path in sorted(folder.glob("pairs-*.npz"))])
        assert len(success) == 4 and summary[f"{name}/success_rate"] == success.mean()


def test_tables_agree_with_the_summary(finished):
    out, _ = finished
    summary, text = read_summary(out), (out / "table.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads = [place for place, line in enumerate(lines) if line[0] == "Model"]
    for head, figures, ends in ((heads[0], QUALITY, "_low"), (heads[1], IMAGES, "_low")):
        for line in lines[head + 2 : head + 6]:
            for figure, cell in zip(figures, line[2:], strict=True):
                scale = 100 if figure.unit == "%" else 1
                value = summary[f"{line[0]}/{line[1]}/{figure.key}"]
                shown = re.findall(r"[\d.]+", cell.replace(",", ""))
                if value is None:
                    assert not shown
                    continue
                assert float(shown[0]) == pytest.approx(scale * value, abs=0.51 * 10**-figure.decimals)
                low = summary.get(f"{line[0]}/{line[1]}/{figure.key}{ends}")
                if low is not None:
                    assert float(shown[1]) == pytest.approx(scale * low, abs=0.51 * 10**-figure.decimals)
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 6
    for row in rows[:4]:
        assert float(row["class_accuracy"]) == summary[f"{row['model']}/{row['variant']}/class_accuracy"]
    page = (out / "report.html").read_text()
    assert page.count("<table") >= 3 and "They do not show that a model is robust" in page and 'src="http' not in page


def test_repeating_the_command_computes_nothing(finished, monkeypatch):
    out, command = finished
    before, table = read_summary(out), (out / "table.md").read_text()
    for module, name in ((paper_table, "train"), (paper_measure, "measure_row")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    assert paper_table.main(command) == 0
    assert read_summary(out) == before and (out / "table.md").read_text() == table


def test_another_budget_measures_again(finished, monkeypatch):
    out, command = finished
    measured = []
    monkeypatch.setattr(paper_table, "train", lambda *_: pytest.fail("the trainings are the same"))
    real = paper_measure.measure_row

    def measure(row, *others, **options):
        measured.append(row.name)
        return real(row, *others, **options)

    monkeypatch.setattr(paper_measure, "measure_row", measure)
    changed = [word if word != "cnn" else "linear" for word in command]
    place = changed.index("linear")
    del changed[place]
    changed[changed.index("--num-pairs") + 1] = "3"
    changed[changed.index("--foolbox-images") + 1] = "0"
    assert paper_table.main([*changed, "--variants", "plain"]) == 0
    assert measured == ["linear/plain"] and read_summary(out)["linear/plain/num_pairs"] == 3
    assert "linear/plain/foolbox_flip_rate" not in read_summary(out) and "| – | – |" in (out / "table.md").read_text()


def test_rows_come_seed_0_first_and_only_cheap_models_have_more():
    rows = list_rows(["linear", "resnet"], ["plain", "stability"], 3)
    assert [row.seed for row in rows] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert all(row.attacked == (row.seed == 0) for row in rows)
    assert {row.model for row in rows if row.seed} == {"linear"}
    assert all(plan.stability["lambda_stability"] > 0 and plan.train.lambda_stability == 0 for plan in PLANS.values())


def test_intervals_are_those_of_textbooks():
    wilson = rate("r", 8, 10)
    assert (wilson["r"], wilson["r_low"], wilson["r_high"]) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    assert rate("r", 0, 5)["r_low"] == 0 and rate("r", 0, 5)["r_high"] > 0.4
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = median_interval("m", values)
    assert found["m"] == np.median(values)
    # The median of n normal values has a standard error of about 1.2533 / sqrt(n).
    assert found["m_high"] - found["m_low"] == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.3)
    assert np.isnan(median_interval("m", np.array([1.0]))["m_low"]) and np.isnan(median_interval("m", [])["m"])


def test_missing_figures_are_a_dash_and_one_seed_has_no_spread():
    figures = dict.fromkeys([figure.key for figure in (*QUALITY, *IMAGES)])
    results = {Row("cnn", "plain", 0, True): figures | {"num_test": 5, "num_pairs": 2, "seconds": 1.0}}
    assert over_seeds(results) == {}
    text = table_markdown(results, DataConfig(), PairConfig())
    assert "| cnn | plain | – |" in text and "nan" not in text and "None" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "half towards the nearest and half towards a random class"),
        ({"targets": "random"}, "each towards a random class"),
        ({"targets": "Laysan_Albatross", "source": "Least_Auklet"},
         "all towards the class Laysan_Albatross, all of images of the class Least_Auklet"),
    ],
)  # fmt: skip
def test_the_table_says_which_targets_were_asked_for(options, said):
    figures = dict.fromkeys([figure.key for figure in (*QUALITY, *IMAGES)])
    results = {Row("cnn", "plain", 0, True): figures | {"num_test": 5, "num_pairs": 2, "seconds": 1.0}}
    text = table_markdown(results, DataConfig(), PairConfig(**options))
    assert f"2 pairs, {said};" in text


@pytest.mark.parametrize(
    "words", (["--models", "vgg"], ["--seeds", "0"], ["--epochs-scale", "0"], ["--foolbox-images", "-1"])
)
def test_impossible_options_are_refused(words, tmp_path):
    with pytest.raises(UserError, match=r"choose among linear, cnn|--seeds 1 or more"):
        paper_table.main([*words, "--out", str(tmp_path)])
