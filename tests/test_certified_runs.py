"""A certified model from its training to the pages that show what is proven."""

import json

import numpy as np
import pytest

from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.counterfactuals.find import check_sandwich, choose_pairs, find_counterfactuals, pair_metrics
from experiments.counterfactuals.options import InversionOptions, PairConfig
from experiments.quickstart.certified import find_again
from experiments.runs.loading import load_run, load_test_split
from experiments.runs.store import Store
from experiments.train.__main__ import main as train
from spectra_jax import certified_accuracy, certify
from spectra_jax.logging import Console

QUIET = Console(quiet=True)
SEARCH = InversionOptions(method="nearest", margin=0.01, max_steps=60)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A small lipschitz_cnn on tiny birds, in the folder that training leaves."""
    root = tmp_path_factory.mktemp("certified")
    birds = generate(root / "birds", num_classes=4, images_per_class=24, image_size=48, workers=1, progress=False)
    options = ["--model-options", "stem=[4]", "widths=[48]", "blocks=[1]", "features=32", "dense_blocks=1"]
    options += ["--image-size", "24", "--batch-size", "16", "--epochs", "24", "--learning-rate", "0.01", "--quiet"]
    more = ["--certified-radius", "0.5", "--data-dir", str(birds), "--run-dir", str(root / "run")]
    assert train(["--model", "lipschitz_cnn", *options, *more]) == 0
    return root / "run"


def test_training_says_what_is_certified(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [record for record in records if record["split"] != "train"]
    assert all({f"certified_accuracy_{r}" for r in ("0.25", "0.5", "1")} <= record.keys() for record in evaluated)
    summary = json.loads((run_dir / "summary.json").read_text())
    shares = [summary[f"test/certified_accuracy_{radius}"] for radius in ("0.25", "0.5", "1")]
    assert summary["test/class_accuracy"] >= shares[0] >= shares[1] >= shares[2] and shares[0] > 0.3
    # Once more, from the images themselves.
    run, split = load_run(run_dir), load_test_split(run_dir)
    images = run.dataset.images("test", np.arange(len(split.labels)), image_size=24).astype(np.float32) / 255
    again = certified_accuracy(certify(run.model, run.params, images), split.labels, [0.25, 0.5, 1.0])
    np.testing.assert_allclose(again, shares, atol=1e-9)


@pytest.fixture(scope="module")
def flips(run_dir, tmp_path_factory):
    run, split = load_run(run_dir), load_test_split(run_dir)
    config = PairConfig(num_pairs=4, batch_size=4, inversion=SEARCH)
    pairs = choose_pairs(run, split.attributes, split.labels, config, seed=0)
    store = Store(tmp_path_factory.mktemp("flips"), [])
    found = find_counterfactuals(run, split.labels, *pairs, config, store, console=QUIET)
    return run, split, config, found


def test_every_flip_lies_beyond_its_certificate(flips):
    run, split, _, found = flips
    measured = pair_metrics(run.model.head(run.params), found, split.attributes.std(axis=0))
    assert found.success.any()
    assert np.all(found.certified > 0)
    assert np.all(measured["certified_l2"][found.success] <= measured["l2"][found.success])


def test_a_flip_nearer_than_its_certificate_is_said_to_be_one_where_float64_agrees(flips):
    run, _, _, found = flips
    images, original = np.asarray(found.results), found.images.astype(np.float32) / 255
    near, far, flipped = np.full(len(images), 0.5), np.full(len(images), 0.7), np.asarray(found.success)
    with pytest.raises(RuntimeError, match=r"found at distance 0.5, but the certificate excludes any nearer than 0.7"):
        check_sandwich(run, far, near, images, found.target, flipped)
    check_sandwich(run, far, near, images, found.target, np.zeros_like(flipped))
    check_sandwich(run, far, near, original, found.target, flipped)  # of float32's making: these are no flips
    check_sandwich(run, near, far, images, found.target, flipped)


def test_the_same_flips_are_shown_on_both_models(flips, run_dir):
    run, _, config, found = flips
    shown = find_again(run_dir, "first", run, found, config, console=QUIET)
    assert len(shown) in (4, 8)
    for first, its_change, second, _ in zip(*(shown[place::4] for place in range(4)), strict=True):
        assert "first: " in first.caption and "not known" in first.caption and "what changed" in its_change.caption
        assert "lipschitz_cnn: " in second.caption and "no such image is nearer than" in second.caption
        assert first.caption.split(".")[0].removeprefix("first") in second.caption  # the same classes


def test_other_models_are_refused_a_radius(run_dir, tmp_path):
    data = str(run_dir.parent / "birds")
    command = ["--model", "linear", "--data-dir", data, "--certified-radius", "1", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="certified_radius is 1, but nothing is proven about model 'linear'"):
        train(command)
