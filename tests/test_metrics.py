"""Figures of merit against scikit-image, scikit-learn and hand-computed values, including their edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

import spectra_jax as sj
from spectra_jax.metrics import attribute_metrics, class_accuracy

similarity = jax.jit(sj.ssim)


def pictures(height, width, channels=3, seed=0):
    """Three pairs (image, reference) in [0, 1]: a little noise, unrelated, and a brightness shift of a smooth ramp."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(size=(3, height, width, channels))
    ramp = np.linspace(0, 0.8, height)[:, None, None] + np.linspace(0, 0.1, width)[None, :, None]
    reference[2] = np.broadcast_to(ramp, reference[2].shape)
    images = rng.uniform(size=reference.shape)
    images[0] = np.clip(reference[0] + 0.05 * rng.normal(size=reference[0].shape), 0, 1)
    images[2] = reference[2] + 0.1
    return images.astype(np.float32), reference.astype(np.float32)


def scikit_image_ssim(image, reference):
    return structural_similarity(
        image,
        reference,
        data_range=1.0,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        win_size=11,
    )


@pytest.mark.parametrize(("height", "width", "channels"), [(11, 11, 3), (12, 31, 1), (40, 17, 3), (64, 64, 3)])
def test_ssim_equals_scikit_image(height, width, channels):
    images, reference = pictures(height, width, channels)
    # scikit-image averages over the pixels whose whole window lies in the image, as ours does
    expected = [scikit_image_ssim(*pair) for pair in zip(images.astype(float), reference.astype(float), strict=True)]
    value = similarity(jnp.asarray(images), jnp.asarray(reference))
    np.testing.assert_allclose(value[:2], expected[:2], atol=1e-6)
    # A ramp has next to no texture: dm-pix loses more to float32 there, and nothing in float64 (next test).
    np.testing.assert_allclose(value[2], expected[2], atol=3e-5)


@pytest.mark.usefixtures("x64")
def test_ssim_in_float64():
    images, reference = (array.astype(np.float64) for array in pictures(13, 20))
    value = similarity(jnp.asarray(images), jnp.asarray(reference))
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, [scikit_image_ssim(*p) for p in zip(images, reference, strict=True)], atol=1e-12)


def special_images():
    rng = np.random.default_rng(1)
    noise = rng.uniform(size=(12, 13, 3))
    return {
        "identical": (noise, noise),
        "constant": (np.full((12, 13, 3), 0.5), np.full((12, 13, 3), 0.5)),
        "black": (np.zeros((12, 13, 3)), np.zeros((12, 13, 3))),
        "white": (np.ones((12, 13, 3)), np.ones((12, 13, 3))),
        "black and white": (np.zeros((12, 13, 3)), np.ones((12, 13, 3))),
        "black and noise": (np.zeros((12, 13, 3)), noise),
    }


similarity_and_gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda x, y: sj.ssim(x[None], y[None])[0])))


def test_ssim_gradient_is_finite_at_identical_constant_and_black_images():
    first, second = (np.stack(side).astype(np.float32) for side in zip(*special_images().values(), strict=True))
    value, gradient = similarity_and_gradient(jnp.asarray(first), jnp.asarray(second))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value[:4], 1, atol=1e-6)
    assert np.all(np.asarray(value[4:]) < 0.1)
    # 1 is the maximum, so nothing pulls an image away from its reference
    np.testing.assert_allclose(gradient[:4], 0, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_ssim_gradient_equals_finite_differences():
    images, reference = (jnp.asarray(array[:2], jnp.float64) for array in pictures(12, 14))
    direction = jnp.asarray(np.random.default_rng(2).normal(size=images.shape))
    value, gradient = similarity_and_gradient(images, reference)
    above, _ = similarity_and_gradient(images + 1e-6 * direction, reference)
    below, _ = similarity_and_gradient(images - 1e-6 * direction, reference)
    slope = jnp.sum(gradient * direction, axis=(1, 2, 3))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)
    np.testing.assert_allclose(value, similarity(images, reference), rtol=1e-12)


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (np.zeros((1, 10, 40, 3), np.float32), np.zeros((1, 10, 40, 3), np.float32), "10x40 pixels; expected"),
        (np.zeros((1, 12, 12, 3), np.float32), np.zeros((1, 12, 13, 3), np.float32), "expected one"),
        (np.zeros((12, 12, 3), np.float32), np.zeros((12, 12, 3), np.float32), "expected one"),
        (np.zeros((1, 12, 12, 3), np.uint8), np.zeros((1, 12, 12, 3), np.uint8), "divide uint8 by 255"),
        (np.full((1, 12, 12, 3), 200, np.float32), np.zeros((1, 12, 12, 3), np.float32), "images reaches 200"),
        (np.zeros((1, 12, 12, 3), np.float32), np.full((1, 12, 12, 3), 9, np.float32), "reference reaches 9"),
    ],
)  # fmt: skip
def test_ssim_of_wrong_input_is_an_error(images, reference, message):
    with pytest.raises(ValueError, match=message):
        sj.ssim(images, reference)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (40, 17)])
def test_psnr_equals_scikit_image(height, width):
    images, reference = pictures(height, width)
    expected = [
        peak_signal_noise_ratio(y, x, data_range=1.0)
        for x, y in zip(images.astype(float), reference.astype(float), strict=True)
    ]
    np.testing.assert_allclose(sj.psnr(jnp.asarray(images), jnp.asarray(reference)), expected, rtol=1e-5)


def test_psnr_of_identical_images_is_infinite_beside_finite_ones():
    images = jnp.asarray(np.stack([np.full((2, 2, 3), 0.5), np.full((2, 2, 3), 0.6), np.zeros((2, 2, 3))]), jnp.float32)
    reference = images.at[1].add(-0.1).at[2].add(1.0)
    np.testing.assert_allclose(jax.jit(sj.psnr)(images, reference), [np.inf, 20, 0], atol=1e-4)
    gradient = jax.grad(lambda x: jnp.sum(jnp.where(jnp.isfinite(sj.psnr(x, reference)), sj.psnr(x, reference), 0)))(
        images
    )
    assert np.isfinite(gradient).all()


def test_psnr_of_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="expected one shape"):
        sj.psnr(jnp.zeros((1, 2, 2, 3)), jnp.zeros((2, 2, 2, 3)))
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        sj.psnr(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="reaches 255"):
        sj.psnr(jnp.full((1, 2, 2, 3), 255.0), jnp.zeros((1, 2, 2, 3)))


def test_attack_success_rate_counts_every_attempt():
    success = jnp.asarray([True, False, True, False])
    assert sj.attack_success_rate(success) == 0.5
    attempted = jnp.asarray([True, True, True, False])
    assert sj.attack_success_rate(success, attempted=attempted) == pytest.approx(2 / 3)
    # a success outside the attempts is padding and no success
    assert sj.attack_success_rate(success, attempted=jnp.asarray([False, True, False, True])) == 0
    assert np.isnan(sj.attack_success_rate(success, attempted=jnp.zeros(4, bool)))
    assert jax.jit(sj.attack_success_rate)(success) == 0.5


def test_perturbation_noise_ratio():
    pixels = np.zeros((4, 3, 5, 3), np.float32)
    pixels[0, 0, 0] = [3, 0, 4]
    pixels[1, 1:, 2] = 0.5
    pixels[2, 0, 0, 0] = 1
    latent = np.array([[0, 2], [3, 4], [0, 0], [0, 0]], np.float32)
    ratio = sj.perturbation_noise_ratio(jnp.asarray(pixels), jnp.asarray(latent))
    np.testing.assert_allclose(ratio, [2.5, np.sqrt(6 * 0.25) / 5, np.inf, np.nan], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_metrics_in_float64_under_strict_promotion():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 3, 3)))
    assert sj.psnr(images, images).dtype == sj.perturbation_noise_ratio(images, images[:, 0, 0]).dtype == jnp.float64
    assert class_accuracy(jnp.eye(3), jnp.asarray([0, 1, 1], jnp.int32)) == pytest.approx(2 / 3)


def test_class_accuracy_leaves_padding_out():
    logits = jnp.asarray([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0]])
    labels = jnp.asarray([0, 0, 1], jnp.int32)
    assert class_accuracy(logits, labels) == pytest.approx(1 / 3)
    assert class_accuracy(logits, labels, valid=jnp.asarray([True, False, False])) == 1


def scores_and_labels(samples=60, attributes=7):
    rng = np.random.default_rng(4)
    labels = (rng.uniform(size=(samples, attributes)) < np.linspace(0.05, 0.9, attributes)).astype(np.float32)
    return (labels - 0.4 + rng.normal(size=labels.shape)).astype(np.float32), labels


def test_attribute_metrics_equal_scikit_learn_column_by_column():
    scores, labels = scores_and_labels()
    scores[:, 3] = np.round(scores[:, 3])  # tied scores
    metrics = attribute_metrics(jnp.asarray(scores), jnp.asarray(labels))
    columns = list(zip(labels.T.astype(int), scores.T, strict=True))
    assert metrics["balanced_accuracy"] == pytest.approx(
        np.mean([balanced_accuracy_score(y, s > 0) for y, s in columns])
    )
    assert metrics["f1"] == pytest.approx(np.mean([f1_score(y, s > 0) for y, s in columns]))
    assert metrics["map"] == pytest.approx(np.mean([average_precision_score(y, s) for y, s in columns]))
    assert metrics["num_attributes"] == 7


def test_attributes_without_both_answers_are_left_out_and_counted():
    scores, labels = scores_and_labels()
    labels[:, 0], labels[:, 1] = 0, 1
    metrics = attribute_metrics(scores, labels)
    rest = attribute_metrics(scores[:, 2:], labels[:, 2:])
    assert metrics["num_attributes"] == 5
    assert metrics["balanced_accuracy"] == pytest.approx(rest["balanced_accuracy"])
    assert metrics["map"] == pytest.approx(rest["map"])
    # f1 is defined wherever the attribute occurs: column 1 counts, column 0 does not
    assert metrics["f1"] == pytest.approx((5 * rest["f1"] + f1_score(labels[:, 1], scores[:, 1] > 0)) / 6)


def test_a_constant_no_scores_one_half():
    _, labels = scores_and_labels()
    metrics = attribute_metrics(np.full(labels.shape, -1.0), labels)
    assert metrics["balanced_accuracy"] == 0.5 and metrics["f1"] == 0
    assert metrics["map"] == pytest.approx(labels.mean())  # average precision of no information is the frequency


def test_one_attribute_is_one_attribute():
    scores, labels = scores_and_labels()
    metrics = attribute_metrics(scores[:, 4:5], labels[:, 4:5])
    assert metrics["num_attributes"] == 1
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels[:, 4], scores[:, 4] > 0))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "expected one shape"),
        (np.zeros(4), np.zeros(4), "expected one shape"),
        (np.full((4, 2), np.nan), np.eye(4, 2), "NaN or infinite"),
        (np.zeros((4, 2)), np.zeros((4, 2)), "nothing can be scored"),
    ],
)
def test_attribute_metrics_of_nonsense_are_an_error(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        attribute_metrics(scores, labels)
