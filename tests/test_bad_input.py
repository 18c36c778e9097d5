"""What every public edge says of input that cannot be right, and its documented answers where there is one.

NaN images, 0-255 images, wrong widths, unknown classes and attributes, and a target that is the predicted class.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from data_prep.synthetic_birds import generate
from experiments.cli.command import UserError
from experiments.invert import __main__ as invert
from experiments.runs.loading import load_run, load_test_split
from experiments.saliency import __main__ as saliency
from experiments.train import __main__ as train

RANDOM = np.random.default_rng(0)
CLASSES, ATTRIBUTES = 5, 7
HEAD = sj.Head(jnp.asarray(RANDOM.normal(size=(CLASSES, ATTRIBUTES)), jnp.float32))
MATRIX = jnp.asarray(RANDOM.normal(size=(12 * 13 * 3, ATTRIBUTES)) / 10, jnp.float32)
IMAGES = jnp.asarray(RANDOM.uniform(0.2, 0.8, size=(2, 12, 13, 3)), jnp.float32)
BROKEN = IMAGES.at[0, 2, 3, 1].set(jnp.nan)


def encode(images):
    return images.reshape(len(images), -1) @ MATRIX


GOALS = encode(IMAGES)
PREDICTED = jnp.argmax(sj.head_logits(HEAD, GOALS), axis=-1).astype(jnp.int32)
EDGES = {
    "invert": lambda images: sj.invert(encode, HEAD, images, GOALS, PREDICTED),
    "activation_map": lambda images: sj.activation_map(encode, images, 0),
    "psnr": lambda images: sj.psnr(images, IMAGES),
    "ssim": lambda images: sj.ssim(images, IMAGES),
    "image_distances": lambda images: sj.image_distances(images, IMAGES),
    "frequency_split": lambda images: sj.frequency_split(images, IMAGES),
}


@pytest.mark.parametrize("name", EDGES)
def test_images_from_0_to_255_are_refused_with_the_remedy(name):
    for images in (IMAGES * 255, (np.asarray(IMAGES) * 255).astype(np.uint8)):
        with pytest.raises(ValueError, match=r"divide (8-bit values|uint8|uint8 images) by 255"):
            EDGES[name](images)


@pytest.mark.parametrize("name", ["invert", "activation_map"])
def test_a_nan_image_is_refused_where_values_are_known(name):
    with pytest.raises(ValueError, match="images contains NaN or infinite values; expected finite numbers"):
        EDGES[name](BROKEN)
    with pytest.raises(ValueError, match="NaN or infinite"):
        EDGES[name](IMAGES.at[1, 0, 0, 0].set(jnp.inf))


def test_a_nan_image_inside_jit_fails_alone_and_with_its_reason():
    solve = jax.jit(lambda images: sj.invert(encode, HEAD, images, GOALS + 1, (PREDICTED + 1) % CLASSES,
                                             config=sj.InversionConfig(max_steps=3)))  # fmt: skip
    result, whole = solve(BROKEN), solve(IMAGES)
    assert result.reason[0] == sj.Status.NOT_FINITE and not result.success[0]
    assert not result.survives_rounding[0]
    np.testing.assert_array_equal(result.images[1], whole.images[1])
    maps = jax.jit(lambda images: sj.activation_map(lambda x: jnp.square(encode(x)), images, 0, top_k=4))(BROKEN)
    assert np.isnan(maps[0]).any() and np.isfinite(maps[1]).all()


def test_metrics_of_a_nan_image_are_nan_for_it_alone():
    for name in ("psnr", "ssim"):
        value = EDGES[name](BROKEN)
        assert np.isnan(value[0]) and not np.isnan(value[1])
    for value in (*sj.image_distances(BROKEN, IMAGES)[1:], *sj.frequency_split(BROKEN, IMAGES)):
        assert np.isnan(value[0]) and value[1] == 0
    ratio = sj.perturbation_noise_ratio(BROKEN - IMAGES, jnp.ones((2, 3)))
    assert np.isnan(ratio[0]) and ratio[1] == 0
    logits = jnp.asarray([[jnp.nan, 1.0], [0.0, 1.0]])
    change = sj.class_change(logits, logits, jnp.zeros(2, jnp.int32))
    assert np.isnan(change.target_after[0]) and np.isfinite(change.target_after[1])


SOLVERS = {
    "boundary": sj.boundary_perturbation,
    "pinv": sj.pinv_perturbation,
    "projection": sj.projection_perturbation,
    "single": sj.single_attribute_perturbations,
}


project = jax.jit(sj.projection_perturbation)  # compiled once for all margins


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_name_a_wrong_width_and_a_nan(name):
    e = GOALS[0]
    with pytest.raises(ValueError, match=f"expected a last axis of {ATTRIBUTES}"):
        SOLVERS[name](HEAD, e[:-1], 0)
    with pytest.raises(ValueError, match=f"expected a last axis of {ATTRIBUTES}"):
        SOLVERS[name](HEAD, jnp.append(e, 1.0), 0)
    with pytest.raises(ValueError, match="attributes contains NaN or infinite values"):
        SOLVERS[name](HEAD, e.at[3].set(jnp.nan), 0)
    with pytest.raises(ValueError, match=f"target is {CLASSES}; expected a class index from 0 to {CLASSES - 1}"):
        SOLVERS[name](HEAD, e, CLASSES)
    with pytest.raises(ValueError, match="target is -1"):
        SOLVERS[name](HEAD, e, -1)


def test_everything_at_once_names_a_wrong_width():
    for call in (sj.all_pairs_norms, sj.best_single_attributes, sj.attackability, sj.head_logits):
        with pytest.raises(ValueError, match=f"expected a last axis of {ATTRIBUTES}"):
            call(HEAD, GOALS[:, :-1])


def test_inversion_names_a_wrong_width_of_goal_and_of_encoder():
    with pytest.raises(ValueError, match=f"expected a last axis of {ATTRIBUTES}"):
        sj.invert(encode, HEAD, IMAGES, GOALS[:, :-1], PREDICTED)
    with pytest.raises(ValueError, match=r"encode_fn returns shape .* the width of the head"):
        sj.invert(lambda images: encode(images)[:, :-1], HEAD, IMAGES, GOALS, PREDICTED)
    with pytest.raises(ValueError, match="one row and one target for each of"):
        sj.invert(encode, HEAD, IMAGES, GOALS[:1], PREDICTED)


def test_a_model_names_images_of_another_size():
    model = sj.build_model("linear", num_attributes=ATTRIBUTES, num_classes=CLASSES)
    params = model.init(jax.random.key(0), (12, 13, 3))
    with pytest.raises(ValueError, match="are the images of the size the parameters were initialised for"):
        sj.activation_map(functools.partial(model.encode, params), jnp.zeros((1, 13, 13, 3)), 0)


def test_the_predicted_class_as_target_needs_no_change():
    e, i = GOALS[0], int(PREDICTED[0])
    logits = np.sort(np.asarray(sj.head_logits(HEAD, e)))
    lead = float(logits[-1] - logits[-2])
    for margin in (0.0, lead / 2):
        np.testing.assert_array_equal(sj.boundary_perturbation(HEAD, e, i, margin=margin), 0)
        single = sj.single_attribute_perturbations(HEAD, e, i, margin=margin)
        np.testing.assert_array_equal(single.delta, 0)
        assert np.all(single.feasible)
        exact = project(HEAD, e, i, margin=margin)
        np.testing.assert_array_equal(exact.delta, 0)
        assert exact.feasible and exact.norm == 0
    # pinv has no such answer: it makes all classes tie, and says so in its docstring
    tied = np.asarray(sj.head_logits(HEAD, e + sj.pinv_perturbation(HEAD, e, i)))
    np.testing.assert_allclose(tied, tied[0], atol=1e-4)


def test_the_predicted_class_has_to_move_where_it_lacks_the_margin():
    e, i = GOALS[0], int(PREDICTED[0])
    logits = np.sort(np.asarray(sj.head_logits(HEAD, e)))
    margin = float(logits[-1] - logits[-2]) + 1
    exact = project(HEAD, e, i, margin=margin)
    moved = np.asarray(sj.head_logits(HEAD, e + exact.delta))
    assert exact.norm > 0 and moved[i] - np.delete(moved, i).max() == pytest.approx(margin, abs=1e-4)


@pytest.mark.parametrize("method", ["boundary", "pinv", "projection"])
def test_the_predicted_class_costs_nothing_in_all_pairs(method):
    norms = np.asarray(sj.all_pairs_norms(HEAD, GOALS, method=method))
    np.testing.assert_array_equal(norms[np.arange(2), PREDICTED], 0)


def test_inverting_towards_the_predicted_class_leaves_the_image_alone():
    result = sj.invert(encode, HEAD, IMAGES, GOALS + 3, PREDICTED)
    np.testing.assert_array_equal(result.images, IMAGES)
    assert np.all(result.success) and np.all(result.num_steps == 0)
    change = sj.class_change(sj.head_logits(HEAD, GOALS), sj.head_logits(HEAD, result.attributes), PREDICTED)
    assert not change.changed.any()
    np.testing.assert_array_equal(sj.psnr(result.images, IMAGES), np.inf)
    np.testing.assert_allclose(sj.ssim(result.images, IMAGES), 1, atol=1e-6)
    selectivity = sj.attribute_selectivity(result.attributes - GOALS, jnp.ones_like(GOALS))
    assert np.isnan(selectivity.share).all()  # nothing changed, so there is no share of it


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of the smallest model on drawn birds."""
    folder = tmp_path_factory.mktemp("bad-input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRA_JAX_CACHE", str(folder / "cache"))
        birds = generate(folder / "birds", num_classes=3, images_per_class=12, workers=1, progress=False)
        command = ["--model", "linear", "--data-dir", str(birds), "--run-dir", str(folder / "run"), "--epochs", "1"]
        assert train.main([*command, "--quiet"]) == 0
        yield folder / "run"


def test_scripts_suggest_the_nearest_names(run_dir, tmp_path):
    names = load_run(run_dir).info.class_names
    base = ["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--quiet"]
    wrong = names[1][:-2] + "zz"
    for script, arguments, message in (
        (invert, ["--source", wrong], f"no class named '{wrong}'; did you mean .*{names[1]}"),
        (invert, ["--targets", wrong], f"no class named '{wrong}'; did you mean .*{names[1]}"),
        (invert, ["--targets", "99"], "no class has the 0-based id 99 here; there are 3"),
        (saliency, ["--attribute", "has_wing_colour::blue"], "did you mean has_wing_color::blue"),
        (saliency, ["--attribute", "qqq"], "no attribute named 'qqq'"),
    ):
        with pytest.raises(UserError, match=message):
            script.main([*base, *arguments])
    assert not (tmp_path / "out").exists()  # nothing is written for a question that has no answer


def test_scripts_name_a_folder_that_is_no_run(tmp_path):
    for script in (invert, saliency):
        with pytest.raises(UserError, match=r"is not a run folder: it has no config\.json"):
            script.main(["--run-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"])


def test_invert_never_asks_for_the_predicted_class(run_dir, tmp_path):
    run = load_run(run_dir)
    attributes = load_test_split(run_dir).attributes
    predicted = np.asarray(sj.head_logits(run.model.head(run.params), attributes)).argmax(-1)
    common = int(np.bincount(predicted).argmax())
    command = ["--run-dir", str(run_dir), "--out", str(tmp_path / "out"), "--quiet"]
    with pytest.raises(UserError, match=f"not classified as {run.info.class_names[common]} already"):
        invert.main([*command, "--targets", str(run.info.class_ids[common]), "--num-pairs", str(len(predicted))])
