"""Class and attribute indices in every integer type: more classes than a small type counts change nothing."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import spectra_jax as sj
from spectra_jax.metrics import class_accuracy

pytestmark = pytest.mark.slow

CLASSES, ATTRIBUTES = 300, 290
RANDOM = np.random.default_rng(0)
HEAD = sj.Head(jnp.asarray(RANDOM.normal(size=(CLASSES, ATTRIBUTES)), jnp.float32))
MATRIX = jnp.asarray(RANDOM.normal(size=(12 * 13 * 3, ATTRIBUTES)) / 40, jnp.float32)
IMAGES = jnp.asarray(RANDOM.uniform(0.2, 0.8, size=(2, 12, 13, 3)), jnp.float32)


def encode(images):
    return images.reshape(len(images), -1) @ MATRIX


@pytest.fixture(params=["uint8", "int8", "int32", "uint32", "uint64", "int64"])
def dtype(request):
    """One integer type after the other, those of 64 bits in the mode that has them."""
    with jax.enable_x64(True) if "64" in request.param else contextlib.nullcontext():
        yield np.dtype(request.param)


def test_classification_loss_counts_every_class(dtype):
    logits = np.zeros((3, CLASSES), np.float32)
    # Class 256 reads as class 0 where indices are built in uint8, and the sample as half right.
    logits[:, 256], logits[:, 1] = 30, 20
    labels = np.array([0, 1, 100])
    expected = np.mean(logsumexp(logits, axis=1) - logits[np.arange(3), labels])
    loss = sj.classification_loss(jnp.asarray(logits), jnp.asarray(labels, dtype))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_classification_loss_of_random_logits_is_that_of_numpy(dtype):
    logits, labels = RANDOM.normal(size=(200, CLASSES)) * 4, RANDOM.integers(0, 120, 200)
    expected = np.mean(logsumexp(logits, axis=1) - logits[np.arange(200), labels])
    loss = sj.classification_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, dtype))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_class_accuracy_does_not_take_class_256_for_class_0(dtype):
    logits = np.zeros((4, CLASSES), np.float32)
    logits[[0, 1, 2, 3], [256, 0, 283, 27]] = 1
    assert float(class_accuracy(jnp.asarray(logits), jnp.asarray([0, 0, 27, 27], dtype))) == 0.5


def test_causal_split_counts_every_class_and_attribute(dtype):
    # Class 261 reads as class 5 where indices are built in uint8.
    head = sj.Head(jnp.zeros((CLASSES, 2), jnp.float32).at[261, 0].set(1).at[5, 1].set(1))
    region = jnp.zeros((2, 12, 13), bool).at[:, :6].set(True)
    change = jnp.zeros(IMAGES.shape, jnp.float32).at[:, :6].set(0.1)

    def means(images):  # class 261 grows with the image's brightness, class 5 with its darkness
        mean = jnp.mean(images, axis=(1, 2, 3))
        return jnp.stack([mean - 0.4, 0.4 - mean], axis=-1)

    arguments = (means, head, IMAGES + change, IMAGES, region)
    wrong = sj.causal_split(*arguments, jnp.asarray([5, 5], dtype), jnp.asarray([0, 0], dtype))
    assert not wrong.flips_inside.any() and not wrong.flips_outside.any()
    np.testing.assert_allclose(wrong.share_inside, 1, atol=1e-5)
    if np.iinfo(dtype).max >= 261:
        right = sj.causal_split(*arguments, jnp.asarray([261, 261], dtype), jnp.asarray([0, 0], dtype))
        assert right.flips_inside.all() and right.flips_outside.all()


def test_inversion_reaches_the_class_and_not_its_namesake(dtype):
    targets = np.array([3, 44])
    goals = jnp.asarray(HEAD.weights)[targets] * 2
    expected = sj.invert(encode, HEAD, IMAGES, goals, jnp.asarray(targets, jnp.int32))
    found = sj.invert(encode, HEAD, IMAGES, goals, jnp.asarray(targets, dtype))
    np.testing.assert_array_equal(found.images, expected.images)
    named = np.asarray(encode(found.images) @ HEAD.weights.T).argmax(-1)
    assert expected.success.all() and (named == targets).all()


SOLVERS = {
    "boundary": sj.boundary_perturbation,
    "pinv": sj.pinv_perturbation,
    "projection": lambda *problem: sj.projection_perturbation(*problem).delta,
    "single": lambda *problem: sj.single_attribute_perturbations(*problem).delta,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_take_any_integer_type_of_target(name, dtype):
    head = sj.Head(HEAD.weights[:, :5])
    attributes = jnp.asarray(RANDOM.normal(size=5), jnp.float32)
    solve = jax.jit(SOLVERS[name])
    np.testing.assert_array_equal(
        solve(head, attributes, jnp.asarray(99, dtype)), solve(head, attributes, jnp.asarray(99, jnp.int32))
    )


def test_activation_map_and_class_change_take_any_integer_type(dtype):
    np.testing.assert_array_equal(
        sj.activation_map(encode, IMAGES, jnp.asarray(120, dtype)), sj.activation_map(encode, IMAGES, 120)
    )
    logits = jnp.asarray(RANDOM.normal(size=(2, CLASSES)), jnp.float32)
    change = sj.class_change(logits, logits, jnp.asarray([7, 100], dtype))
    expected = np.asarray(jax.nn.softmax(logits))[[0, 1], [7, 100]]
    np.testing.assert_allclose(change.target_after, expected, rtol=1e-6)


def test_part_discs_of_whole_numbers_count_every_pixel():
    centres, visible = np.array([[[250, 3]]]), np.ones((1, 1), bool)
    expected = np.zeros((1, 6, 300), bool)
    expected[0] = np.hypot(np.arange(300)[None] + 0.5 - 250, np.arange(6)[:, None] + 0.5 - 3) <= 2
    for dtype in (np.uint8, np.int16, np.float16, np.float32):
        discs = sj.part_discs(
            jnp.asarray(centres, dtype), jnp.asarray(visible), jnp.asarray([2], dtype), height=6, width=300
        )
        np.testing.assert_array_equal(discs, expected)


def test_an_index_beyond_32_bits_is_refused_and_not_cut_off():
    target = np.int64(2**32 + 3)
    with pytest.raises(ValueError, match="target is 4294967299; expected a class index"):
        sj.boundary_perturbation(HEAD, HEAD.weights[0], target)
    with pytest.raises(ValueError, match="targets contains 4294967299"):
        sj.invert(encode, HEAD, IMAGES, encode(IMAGES), np.array([3, 2**32 + 3]))
