"""Randomised smoothing where the truth is known: linear encoders, whose majority under noise has a flat boundary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import spectra_jax as sj
from spectra_jax.smoothing import clopper_pearson

SIGMA = 0.25
KEY = jax.random.key(0)
# Orthogonal directions of length 1 in images of 4 x 4 pixels.
DIRECTIONS = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
SIGNS = sj.Head(jnp.asarray([[1.0], [-1.0]]))


def along(distances, direction=0):
    """Images at these distances from the hyperplane through the grey image, on the side the direction points to."""
    offsets = np.asarray(distances)[:, None] * DIRECTIONS[direction]
    return jnp.asarray(0.5 + offsets, jnp.float32).reshape(-1, 4, 4, 1)


def encode(directions, images):
    return (images.reshape(len(images), -1) - 0.5) @ directions.T


ONE = functools.partial(encode, jnp.asarray(3 * DIRECTIONS[:1], jnp.float32))
FIVE = functools.partial(encode, jnp.asarray(3 * DIRECTIONS[:5], jnp.float32))


def quantile_error(quantiles, num_samples):
    """What a standard error of a share makes of its quantile."""
    share = scipy.stats.norm.cdf(quantiles)
    return np.sqrt(share * (1 - share) / num_samples) / scipy.stats.norm.pdf(quantiles)


def ceiling(error, num_samples):
    """The quantile that a unanimous vote proves."""
    return scipy.stats.norm.ppf(error ** (1 / num_samples))


def test_a_linear_classifier_is_certified_up_to_its_boundary():
    distances = np.array([-0.5, -0.3, -0.1, 0.05, 0.2, 0.4])
    found = sj.smoothed_certificate(ONE, SIGNS, along(distances), key=KEY, sigma=SIGMA, num_samples=20_000)
    true = np.abs(distances)
    # The bound is 3.1 standard errors below what is counted.
    slack = 7 * SIGMA * quantile_error(true / SIGMA, 20_000)
    np.testing.assert_array_equal(found.answer, distances < 0)
    assert (found.radius <= true).all() and (found.radius >= true - slack).all() and (slack < 0.05).all()
    assert found.confidence == 0.999 and "20000" in found.how


def test_a_linear_attribute_is_certified_up_to_its_threshold():
    scale, offset = np.full(5, 2.0), np.array([0.6, -0.6, 1.8, 0.0, -1.2])
    found = sj.smoothed_attribute_certificate(
        FIVE, along([0.2]), key=KEY, sigma=SIGMA, num_samples=20_000, scale=scale, offset=offset
    )
    signed = np.array([0.2, 0, 0, 0, 0]) + offset / 2 / 3
    true = np.abs(signed)
    decided = true > 0
    assert found.answer[0, decided].tolist() == (signed > 0)[decided].tolist()
    slack = 8 * SIGMA * quantile_error(true / SIGMA, 20_000)
    assert (found.radius[0] <= true).all() and (found.radius[0] >= true - slack).all()


@pytest.mark.parametrize("distance", [0.0, 0.06, 0.3])
def test_no_more_certificates_are_wrong_than_the_confidence_says(distance):
    images, confidence = along([distance] * 1000), 0.8  # each with noise of its own
    settings = {"key": KEY, "sigma": SIGMA, "num_samples": 400, "confidence": confidence, "batch_size": 4096}
    most = 0.2 + 3 * np.sqrt(0.2 * 0.8 / 1000)
    found = sj.smoothed_certificate(ONE, SIGNS, images, **settings)
    wrong = np.where(found.answer == 0, found.radius > distance, found.radius > 0)
    assert 0.1 < wrong.mean() <= most
    # All five attributes together: four of them are on their hyperplanes, where nothing at all is true.
    found = sj.smoothed_attribute_certificate(FIVE, images, **settings)
    true = np.array([distance, 0, 0, 0, 0])
    wrong = np.where(found.answer | (true == 0), found.radius > true, found.radius > 0).any(axis=1)
    assert 0.1 < wrong.mean() <= most


def test_the_bounds_are_those_of_clopper_and_pearson():
    for total, error in ((10, 0.2), (1000, 0.001), (5000, 1e-6)):
        counts = np.array([1, total // 2, total - 1, total])
        found = clopper_pearson(counts, total, error)
        # Were the share no larger, so many would be seen with a probability of `error`.
        np.testing.assert_allclose(scipy.stats.binom.sf(counts - 1, total, found), error, rtol=1e-9)
        tests = [scipy.stats.binomtest(int(count), total, alternative="greater") for count in counts]
        np.testing.assert_allclose(found, [test.proportion_ci(1 - error).low for test in tests], atol=1e-9)
        assert clopper_pearson(np.array([0]), total, error) == 0


THREE = sj.Head(jnp.asarray([[-1.0], [0.0], [1.0]]), jnp.asarray([-0.3, 0.0, -0.3]))  # by e < -.3, between, e > .3


def shares(position):
    """Of the three classes under noise, where e / 3 is `position`."""
    ends = scipy.stats.norm.cdf((np.array([-0.1, 0.1]) - position) / SIGMA)
    return np.array([ends[0], ends[1] - ends[0], 1 - ends[1]])


def test_targets_are_certified_farther_than_the_class_and_never_too_far():
    position, count = 0.2, 20_000
    run = functools.partial(
        sj.smoothed_certificate, ONE, THREE, along([position]), key=KEY, sigma=SIGMA, num_samples=count
    )
    found = run(targets=np.array([[0, 1, 2]]))
    alone = run(confidence=1 - 0.001 / 4)  # 4 bounds share the error
    assert found.answer == alone.answer == 2 and found.radius[0, 2] == 0
    assert (found.radius[0, :2] >= alone.radius).all() and found.radius[0, 0] > 1.5 * alone.radius
    quantiles = scipy.stats.norm.ppf(shares(position))
    ideal = SIGMA / 2 * (quantiles[2] - quantiles[:2])
    slack = 4.5 * SIGMA * quantile_error(quantiles, count).max()
    assert (found.radius[0, :2] <= ideal).all() and (found.radius[0, :2] >= ideal - slack).all() and slack < 0.05
    positions = np.linspace(-1, 1, 4001)
    most = np.array([shares(other).argmax() for other in positions])
    for target in (0, 1):
        nearest = np.abs(positions[most == target] - position).min(initial=np.inf)
        assert found.radius[0, target] <= nearest
    np.testing.assert_array_equal(run(targets=np.array([1])).radius.shape, (1,))


def test_bounds_that_hold_together_share_the_error():
    def constant(images):
        return jnp.ones_like(images[:, :3, 0, 0])

    images, head = along([0.1, 0.2]), sj.Head(jnp.eye(3), jnp.asarray([0.0, 1.0, 0.0]))
    settings = {"key": KEY, "sigma": SIGMA, "num_samples": 50, "confidence": 0.9}
    found = sj.smoothed_certificate(constant, head, images, **settings)
    np.testing.assert_allclose(found.radius, SIGMA * ceiling(0.1, 50))
    assert found.answer.tolist() == [1, 1] and found.answer.dtype == np.int32
    found = sj.smoothed_certificate(constant, head, images, targets=np.array([[0, 2], [1, 0]]), **settings)
    far = SIGMA * ceiling(0.1 / 3, 50)
    np.testing.assert_allclose(found.radius, [[far, far], [0, far]])
    found = sj.smoothed_attribute_certificate(constant, images, **settings)
    np.testing.assert_allclose(found.radius, np.full((2, 3), SIGMA * ceiling(0.1 / 6, 50)))
    assert found.answer.all()


def test_the_batch_size_decides_nothing():
    images, head = along([0.1, -0.2, 0.3]), sj.Head(jnp.eye(5))
    settings = {"sigma": SIGMA, "num_samples": 150}
    expected = sj.smoothed_certificate(FIVE, head, images, key=KEY, **settings)
    attributes = sj.smoothed_attribute_certificate(FIVE, images, key=KEY, batch_size=1000, **settings)
    assert 0 < (attributes.radius > 0).sum() < attributes.radius.size
    found = sj.smoothed_attribute_certificate(FIVE, images, key=KEY, batch_size=7, **settings)
    np.testing.assert_array_equal(found.radius, attributes.radius)
    old = jax.random.PRNGKey(0)  # the same key, of the old kind
    found = sj.smoothed_certificate(FIVE, head, images[:2], key=old, batch_size=7, **settings)
    np.testing.assert_array_equal(found.radius, expected.radius[:2])


def test_what_is_open_or_not_finite_is_not_certified():
    found = sj.smoothed_certificate(ONE, SIGNS, along([0.0, 0.4]), key=KEY, sigma=SIGMA)
    assert found.answer.tolist() == [-1, 0] and found.radius[0] == 0 < found.radius[1]

    def broken(images):
        return jnp.log(-1 - ONE(images) ** 2)

    images = along([0.4])
    with jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow"):
        found = sj.smoothed_certificate(broken, SIGNS, images, key=KEY, sigma=SIGMA)
        attributes = sj.smoothed_attribute_certificate(broken, images, key=KEY, sigma=SIGMA)
    assert found.answer == -1 and found.radius == 0 and attributes.radius == 0


def test_noise_of_half_precision_images_is_as_fine_as_that_of_float32():
    distances = np.array([0.1, 0.3])
    images = along(distances).astype(jnp.bfloat16)
    seen = []

    def shown(images):
        seen.append(images.dtype)
        return ONE(images.astype(jnp.float32))

    found = sj.smoothed_certificate(shown, SIGNS, images, key=KEY, sigma=SIGMA, num_samples=5000)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)} and (np.abs(found.radius - distances) < 0.04).all()


IMAGES = along([0.1, 0.2])
CALLS = {
    "sigma is 0": {"sigma": 0.0},
    "sigma is inf": {"sigma": np.inf},
    "sigma is '1'": {"sigma": "1"},
    "num_samples is 0": {"num_samples": 0},
    "confidence is 1.0": {"confidence": 1.0},
    "confidence is 0": {"confidence": 0},
    "batch_size is 1.5": {"batch_size": 1.5},
    "key is 3": {"key": 3},
    "key has shape \\(2,\\)": {"key": jax.random.split(KEY)},
    "images has type int32": {"images": jnp.zeros((2, 4, 4, 1), jnp.int32)},
    "images is empty": {"images": IMAGES[:0]},
    "encode_fn returns shape \\(2, 16, 1\\)": {"encode_fn": lambda images: images.reshape(2, 16, 1)},
    "encode_fn returns type int32": {"encode_fn": lambda images: jnp.zeros((len(images), 1), jnp.int32)},
}
OF_CLASSES = {
    "targets has shape \\(3,\\)": {"targets": np.zeros(3, int)},
    "targets contains 2": {"targets": np.array([0, 2])},
    "targets has type float64": {"targets": np.zeros(2)},
    "head is of type tuple": {"head": (SIGNS.weights, None)},
    "encode_fn returns 5 attributes; expected 1": {"encode_fn": FIVE},
}
OF_ATTRIBUTES = {
    "scale has shape \\(2,\\)": {"scale": np.ones(2)},
    "scale goes down to -1": {"scale": -np.ones(1)},
    "offset has shape \\(\\)": {"offset": 0.5},
}


def classes(encode_fn=ONE, head=SIGNS, images=IMAGES, **settings):
    return sj.smoothed_certificate(encode_fn, head, images, **{"key": KEY, "sigma": SIGMA, **settings})


def attributes(encode_fn=ONE, images=IMAGES, **settings):
    return sj.smoothed_attribute_certificate(encode_fn, images, **{"key": KEY, "sigma": SIGMA, **settings})


@pytest.mark.parametrize("message", [*CALLS, *OF_CLASSES, *OF_ATTRIBUTES])
def test_what_is_wrong_is_named(message):
    for call, table in ((classes, {**CALLS, **OF_CLASSES}), (attributes, {**CALLS, **OF_ATTRIBUTES})):
        if message in table:
            with pytest.raises(ValueError, match=message):
                call(**table[message])


def test_votes_are_not_counted_under_tracing():
    for call in (classes, attributes):
        with pytest.raises(ValueError, match="is traced"):
            jax.jit(lambda images, call=call: call(images=images).radius)(IMAGES)
