"""Distances, frequencies, confidences and selectivity against hand values, NumPy and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.filters import butterworth
from skimage.metrics import mean_squared_error

import spectra_jax as sj

RANDOM = np.random.default_rng(0)


def pair(height=9, width=12, size=0.3):
    reference = RANDOM.uniform(size=(3, height, width, 3)).astype(np.float32)
    images = np.clip(reference + size * RANDOM.normal(size=reference.shape), 0, 1).astype(np.float32)
    images[2] = reference[2]
    return jnp.asarray(images), jnp.asarray(reference)


def test_distances_by_hand():
    images = np.zeros((2, 2, 3, 3), np.float32)
    images[0, 0, 0] = [0.3, 0, 0.4]  # one pixel, two channels
    images[0, 1, 2] = [0, 0.5, 0]
    distances = jax.jit(sj.image_distances)(jnp.asarray(images), jnp.zeros_like(images))
    np.testing.assert_array_equal(distances.l0, [2, 0])
    np.testing.assert_allclose(distances.l1, [1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(distances.l2, [np.sqrt(0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(distances.linf, [0.5, 0], rtol=1e-6)


def test_distances_equal_numpy_and_scikit_image():
    images, reference = pair()
    distances = sj.image_distances(images, reference)
    change = (np.asarray(images, float) - np.asarray(reference, float)).reshape(3, -1)
    np.testing.assert_allclose(distances.l1, np.linalg.norm(change, 1, axis=1), rtol=1e-5)
    np.testing.assert_allclose(distances.linf, np.linalg.norm(change, np.inf, axis=1), rtol=1e-5)
    squares = [
        mean_squared_error(*map(np.asarray, rows)) * change.shape[1] for rows in zip(images, reference, strict=True)
    ]
    np.testing.assert_allclose(distances.l2, np.sqrt(squares), rtol=1e-5)


def test_every_single_8_bit_level_counts_and_half_a_level_does_not():
    levels = np.arange(255, dtype=np.float32)
    reference = (levels / np.float32(255)).reshape(1, 15, 17, 1)
    above = ((levels + 1) / np.float32(255)).reshape(reference.shape)
    assert sj.image_distances(jnp.asarray(above), jnp.asarray(reference)).l0 == 255
    assert sj.image_distances(jnp.asarray(reference + 0.5 / 255), jnp.asarray(reference)).l0 == 0
    assert sj.image_distances(jnp.asarray(above), jnp.asarray(reference), threshold=2 / 255).l0 == 0
    assert sj.image_distances(jnp.asarray(reference + 0.5 / 255), jnp.asarray(reference), threshold=0.4 / 255).l0 == 255


def test_a_pixel_that_is_not_finite_counts_and_spoils_its_own_image_only():
    images, reference = pair()
    broken = images.at[2, 0, 0, 0].set(jnp.nan)
    distances, whole = sj.image_distances(broken, reference), sj.image_distances(images, reference)
    assert distances.l0[2] == 1 and np.isnan([distances.l1[2], distances.l2[2], distances.linf[2]]).all()
    np.testing.assert_array_equal(distances.l2[:2], whole.l2[:2])
    assert np.isnan(sj.psnr(broken, reference)[2]) and np.isfinite(sj.psnr(broken, reference)[:2]).all()


@pytest.mark.parametrize("shape", [(8, 8), (9, 12), (1, 5)])
def test_the_two_frequency_parts_add_up_to_the_whole(shape):
    images, reference = pair(*shape)
    parts = jax.jit(sj.frequency_split)(images, reference)
    np.testing.assert_allclose(jnp.hypot(parts.low, parts.high), sj.image_distances(images, reference).l2, rtol=1e-5)


@pytest.mark.parametrize(("period", "low"), [(16, True), (8, True), (5, False), (2, False)])
def test_a_wave_lies_on_its_side_of_the_cutoff(period, low):
    wave = 0.5 + 0.4 * np.cos(2 * np.pi * np.arange(80) / period)
    images = np.broadcast_to(wave[None, None, :, None], (1, 4, 80, 3)).astype(np.float32)
    for turned in (images, images.transpose(0, 2, 1, 3)):
        parts = sj.frequency_split(jnp.asarray(turned), jnp.full_like(turned, 0.5))
        length = 0.4 * np.sqrt(np.square(np.cos(2 * np.pi * np.arange(80) / period)).sum() * 12)
        np.testing.assert_allclose(np.ravel(parts if low else parts[::-1]), (length, 0), atol=2e-5)


def test_the_coarse_part_is_that_of_an_ideal_filter_of_scikit_image():
    images, reference = pair(32, 32)
    change = np.asarray(images - reference, float)[0]
    # A Butterworth filter of very high order is an ideal one if no coefficient lies at its edge: none of 32 x 32 has a
    # radius between sqrt(20) and sqrt(25).
    cutoff = np.sqrt(22.4) / 32
    coarse = butterworth(change, cutoff, high_pass=False, order=200, squared_butterworth=False, channel_axis=-1)
    parts = sj.frequency_split(images, reference, cutoff=cutoff)
    np.testing.assert_allclose(parts.low[0], np.linalg.norm(coarse), rtol=1e-5)


def test_white_noise_is_mostly_fine():
    noise = RANDOM.uniform(size=(1, 128, 128, 3)).astype(np.float32)
    parts = sj.frequency_split(jnp.asarray(noise), jnp.full_like(noise, 0.5))
    share = parts.high[0] ** 2 / (parts.low[0] ** 2 + parts.high[0] ** 2)
    assert share == pytest.approx(1 - np.pi * 0.125**2, abs=0.01)


def test_confidences_by_hand():
    before = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]], jnp.float32))
    after = jnp.log(jnp.asarray([[0.3, 0.1, 0.6], [0.8, 0.1, 0.1]], jnp.float32))
    change = jax.jit(sj.class_change)(before, after, jnp.asarray([2, 0], jnp.int32))
    np.testing.assert_array_equal(change.before, [0, 0])
    np.testing.assert_array_equal(change.after, [2, 0])
    np.testing.assert_array_equal(change.changed, [True, False])
    expected = ([0.7, 0.5], [0.3, 0.8], [0.1, 0.5], [0.6, 0.8])  # in row 1 the target is the class named before
    np.testing.assert_allclose(change[3:], expected, rtol=1e-5)


def test_selectivity_by_hand():
    realised = jnp.asarray([[1.0, -3.0, 0.0], [2.0, 2.0, 4.0], [0.0, 0.0, 0.0]], jnp.float32)
    requested = jnp.asarray([[0.0, -3.0, 0.0], [1.0, 0.0, 2.0], [1.0, 0.0, 0.0]], jnp.float32)
    plain = jax.jit(sj.attribute_selectivity)(realised, requested)
    np.testing.assert_allclose(plain.share, [0.75, 0.75, np.nan])
    np.testing.assert_allclose(plain.cosine, [3 / np.sqrt(10), 10 / np.sqrt(120), np.nan], rtol=1e-6)
    scale = jnp.asarray([1.0, 10.0, 0.0], jnp.float32)  # attribute 1 spreads widely, attribute 2 never varies
    scaled = sj.attribute_selectivity(realised, requested, scale=scale)
    np.testing.assert_allclose(scaled.share[:2], [0.3 / 1.3, 2 / 2.2], rtol=1e-6)
    chosen = jnp.asarray([[True, False, False]] * 3)
    np.testing.assert_allclose(sj.attribute_selectivity(realised, requested, chosen=chosen).share[:2], [0.25, 0.25])


def test_selectivity_of_an_exact_answer_is_one_and_of_an_infeasible_request_undefined():
    delta = jnp.asarray(RANDOM.normal(size=(2, 5)), jnp.float32).at[1].set(jnp.inf)
    moved = jnp.where(jnp.isfinite(delta), delta, 1)
    result = sj.attribute_selectivity(moved, delta, scale=jnp.arange(5, dtype=jnp.float32))
    np.testing.assert_allclose(result.cosine, [1, np.nan], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64():
    images, reference = (jnp.asarray(np.asarray(a), jnp.float64) for a in pair())
    rows = images[:, 0, :, 0]
    results = (
        *sj.image_distances(images, reference)[1:],
        *sj.frequency_split(images, reference),
        *sj.class_change(rows, rows + 1, jnp.zeros(3, jnp.int64))[3:],
        *sj.attribute_selectivity(rows, rows, scale=rows[0]),
    )
    assert {array.dtype for array in results} == {jnp.dtype("float64")}


def test_gradients_of_distances_are_those_of_the_norms():
    images, reference = (array[:1] for array in pair())
    gradient = jax.grad(lambda x: sj.image_distances(x, reference).l2[0])(images)
    np.testing.assert_allclose(jnp.linalg.norm(gradient), 1, rtol=1e-5)
    low = jax.grad(lambda x: sj.frequency_split(x, reference).low[0])(images)
    np.testing.assert_allclose(jnp.linalg.norm(low), 1, rtol=1e-5)


IMAGES = np.zeros((1, 4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sj.image_distances(IMAGES, IMAGES[:, :3]), "expected one shape"),
        (lambda: sj.image_distances(IMAGES[0], IMAGES[0]), "expected one shape"),
        (lambda: sj.image_distances(IMAGES + 255, IMAGES), "images reaches 255"),
        (lambda: sj.image_distances(IMAGES, IMAGES.astype(np.uint8)), "divide uint8 by 255"),
        (lambda: sj.image_distances(IMAGES, IMAGES, threshold=1), None),
        (lambda: sj.image_distances(IMAGES, IMAGES, threshold=0), r"threshold is 0; expected a number in \(0, 1\]"),
        (lambda: sj.frequency_split(IMAGES, IMAGES, cutoff=0.6), "cutoff is 0.6"),
        (lambda: sj.frequency_split(IMAGES + 255, IMAGES), "divide 8-bit values by 255"),
        (lambda: sj.class_change(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2, int)), r"\(b, c\) twice and \(b,\)"),
        (lambda: sj.class_change(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 3])), "spans 0 to 3; .* 0 to 2"),
        (lambda: sj.attribute_selectivity(np.zeros((2, 3)), np.zeros((2, 4))), r"\(b, n\) each"),
        (lambda: sj.attribute_selectivity(np.zeros((2, 3)), np.zeros((2, 3)), scale=np.ones(2)), "one number"),
    ],
)  # fmt: skip
def test_wrong_input_is_explained(call, message):
    if message is None:
        call()
        return
    with pytest.raises(ValueError, match=message):
        call()
