"""SPECTRA keeps the contract of Foolbox's attacks, and Foolbox's attacks run on our models."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_tools import NUM_CLASSES, examples, make_problem, plain_step

import spectra_jax as sj
from data_prep.synthetic_birds import generate
from experiments.foolbox_attack.__main__ import main as compare
from experiments.train.__main__ import main as train
from spectra_jax.training import forward

bridge = pytest.importorskip("experiments.attacks.foolbox", reason="needs the extra 'bench'", exc_type=ImportError)
foolbox = bridge.foolbox
CONFIG = sj.InversionConfig(method=sj.Adam(step_size=0.02), max_steps=100, margin=0.01, ssim_weight=0.0)


@functools.cache
def problem():
    """A trained linear model as Foolbox sees it, eight test images and their predicted classes."""
    model, _, state = make_problem()
    batch, step = examples(128), plain_step()
    for _ in range(60):
        state, _ = step(state, batch)
    judged = bridge.BottleneckModel(functools.partial(model.encode, state.params), model.head(state.params))
    images = jnp.asarray(examples(8, seed=1).inputs)
    np.testing.assert_allclose(judged(images), forward(model, state.params, images)[1], atol=1e-5)
    return judged, images, jnp.argmax(judged(images), axis=-1)


def flat_length(change):
    return np.linalg.norm(np.asarray(change).reshape(len(change), -1), axis=1)


@pytest.mark.parametrize("targeted", [False, True])
def test_attack_keeps_foolbox_contract(targeted):
    model, images, labels = problem()
    targets = (labels + 1) % NUM_CLASSES
    criterion = (
        foolbox.criteria.TargetedMisclassification(targets) if targeted else foolbox.criteria.Misclassification(labels)
    )
    epsilons = [None, 0.0, 0.3, 100.0]
    raw, clipped, success = bridge.SpectraAttack(config=CONFIG)(model, images, criterion, epsilons=epsilons)
    assert len(raw) == len(clipped) == len(epsilons) and success.shape == (4, 8)
    for result in (*raw, *clipped):
        assert isinstance(result, jax.Array) and result.shape == images.shape and result.dtype == images.dtype
        assert result.min() >= 0 and result.max() <= 1
    for epsilon, cut, flags in zip(epsilons, clipped, np.asarray(success), strict=True):
        named = np.asarray(model(cut)).argmax(axis=-1)
        np.testing.assert_array_equal(flags, named == targets if targeted else named != labels)
        if epsilon is not None:
            assert (flat_length(cut - images) <= epsilon * (1 + 1e-5) + 1e-6).all()
    assert success[0].all() and success[3].all() and not success[1].any()
    np.testing.assert_array_equal(clipped[0], raw[0])


def test_success_is_what_invert_says():
    """A budget too small for all: Foolbox's flags are our own, and failures come back as they were."""
    model, images, labels = problem()
    targets = (labels + 1) % NUM_CLASSES
    config = dataclasses.replace(CONFIG, max_steps=6)
    attributes = model.attributes(images)
    solve = jax.vmap(lambda e, t: sj.projection_perturbation(model.head, e, t, margin=1.0).delta)
    change = jax.jit(solve)(attributes, targets)
    own = sj.invert(model.encode_fn, model.head, images, attributes + change, targets, config=config)
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    _, found, success = bridge.SpectraAttack(config=config)(model, images, criterion, epsilons=None)
    won = np.asarray(own.success)
    assert 0 < won.sum() < len(won)
    np.testing.assert_array_equal(success, won)
    np.testing.assert_allclose(found[won], own.images[won], atol=1e-6)
    np.testing.assert_array_equal(found[~won], images[~won])


def test_images_that_are_adversarial_already_do_not_change():
    model, images, labels = problem()
    wrong = (labels + 2) % NUM_CLASSES
    for criterion in (foolbox.criteria.Misclassification(wrong), foolbox.criteria.TargetedMisclassification(labels)):
        _, found, success = bridge.SpectraAttack(config=CONFIG)(model, images, criterion, epsilons=None)
        np.testing.assert_array_equal(found, images)
        assert success.all()


def test_untargeted_attack_takes_the_nearest_class():
    model, images, labels = problem()
    _, found, _ = bridge.SpectraAttack(config=CONFIG)(model, images, labels, epsilons=None)  # labels: Misclassification
    norms = np.array(sj.all_pairs_norms(model.head, model.attributes(images)))
    norms[np.arange(len(norms)), labels] = np.inf
    np.testing.assert_array_equal(np.asarray(model(found)).argmax(axis=-1), norms.argmin(axis=1))


def test_a_classifier_without_attributes_is_left_by_the_shortest_way():
    model, images, labels = problem()
    logits_fn = lambda x: sj.head_logits(model.head, model.encode_fn(x))  # noqa: E731
    bare = bridge.BottleneckModel(logits_fn, sj.Head(jnp.eye(NUM_CLASSES)))
    nearest = sj.InversionConfig(method="nearest", max_steps=100, ssim_weight=0.0)
    _, found, success = bridge.SpectraAttack(config=nearest)(bare, images, labels, epsilons=None)
    _, other, _ = bridge.SpectraAttack(config=nearest)(model, images, labels, epsilons=None)
    assert success.all()
    np.testing.assert_allclose(flat_length(found - images), flat_length(other - images), rtol=1e-3)
    _, ddn, flipped = foolbox.attacks.DDNAttack(steps=100)(model, images, labels, epsilons=None)
    assert flipped.all() and np.median(flat_length(found - images) / flat_length(ddn - images)) < 1.05


def test_mistakes_are_named():
    model, images, labels = problem()
    attack = bridge.SpectraAttack(config=CONFIG)
    stranger = foolbox.models.JAXModel(lambda x: x[:, 0, 0], bounds=(0, 1))
    with pytest.raises(ValueError, match="JAXModel; SpectraAttack needs a BottleneckModel"):
        attack(stranger, images, labels, epsilons=None)
    both = foolbox.criteria.Misclassification(labels) & foolbox.criteria.Misclassification(labels)
    with pytest.raises(ValueError, match="expected Misclassification or TargetedMisclassification"):
        attack(model, images, both, epsilons=None)
    with pytest.raises(TypeError, match="starting_points"):
        attack(model, images, labels, epsilons=None, starting_points=images)


def test_foolbox_attacks_run_on_our_models():
    """DDN finds images within a whisker of the shortest change, which is known for a linear model."""
    model, images, labels = problem()
    _, found, success = foolbox.attacks.DDNAttack(steps=100)(model, images, labels, epsilons=None)
    assert success.all() and found.min() >= 0 and found.max() <= 1
    gradients = jax.jacrev(lambda image: model(image[None])[0])(images[0]).reshape(NUM_CLASSES, -1)
    logits, label = np.asarray(model(images[:1]))[0], int(labels[0])
    others = [k for k in range(NUM_CLASSES) if k != label]
    shortest = min((logits[label] - logits[k]) / np.linalg.norm(gradients[label] - gradients[k]) for k in others)
    assert shortest * (1 - 1e-4) <= flat_length(found - images)[0] <= 1.3 * shortest


def test_command_compares_the_two(tmp_path, capsys):
    birds = generate(tmp_path / "birds", num_classes=4, images_per_class=8, image_size=48, workers=1, progress=False)
    options = ["--model", "linear", "--image-size", "16", "--batch-size", "8", "--epochs", "2", "--quiet"]
    assert train([*options, "--data-dir", str(birds), "--run-dir", str(tmp_path / "run")]) == 0
    assert compare(["--run-dir", str(tmp_path / "run"), "--num-images", "4", "--max-steps", "20"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["SpectraAttack", "DDNAttack"]
    assert all("within 0.5" in line for line in lines[-2:])


def test_the_page_about_foolbox_says_how():
    model, images, labels = problem()
    page = (Path(__file__).resolve().parents[1] / "docs" / "foolbox.md").read_text()
    names = {"encode_fn": model.encode_fn, "head": model.head, "images": images, "labels": labels, "CONFIG": CONFIG}
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(code.replace("SpectraAttack()", "SpectraAttack(config=CONFIG)"), names)  # SSIM needs 11 pixels
    assert names["raw"].shape == images.shape and names["success"].all()
