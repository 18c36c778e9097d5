"""Every way of searching, whatever types the encoder, the goals, the head and the images have."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from test_inversion import METHODS as ALL
from test_inversion import config

import spectra_jax as sj

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
MATRIX, WEIGHTS = RANDOM.normal(size=(12 * 12 * 3, 6)) / 20, RANDOM.normal(size=(4, 6))
PIXELS, TARGETS = RANDOM.integers(60, 200, size=(3, 12, 12, 3)) / 256, jnp.asarray([0, 1, 2], jnp.int32)

METHODS = ALL | {"gradient_descent": sj.GradientDescent(step_size=5.0)}


def product(matrix, images):
    return images.reshape(len(images), -1).astype(matrix.dtype) @ matrix


def encoder(dtype):
    return functools.partial(product, jnp.asarray(MATRIX, dtype))


def search(method, encode, images, head_type, goal_type):
    head = sj.Head(jnp.asarray(WEIGHTS, head_type))
    goals = jnp.asarray(PIXELS.reshape(3, -1) @ MATRIX + 2 * WEIGHTS[:3], goal_type)
    return sj.invert(encode, head, images, goals, TARGETS, config=config(METHODS[method], margin=0.3))


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_encoder_is_searched_in_float32(method):
    images = jnp.asarray(PIXELS, jnp.float32)
    found = search(method, encoder(jnp.bfloat16), images, jnp.float32, jnp.float32)
    assert {leaf.dtype for leaf in (found.images, found.attributes, found.loss)} == {jnp.dtype(jnp.float32)}
    assert found.success.all()
    named = np.asarray(encoder(jnp.bfloat16)(found.images), np.float32) @ WEIGHTS.T
    np.testing.assert_array_equal(named.argmax(-1), TARGETS)


@pytest.mark.parametrize("method", METHODS)
def test_float64_goals_and_head_are_taken_in_the_type_of_the_images(method, x64):
    images = jnp.asarray(PIXELS, jnp.float32)
    expected = search(method, encoder(jnp.float32), images, jnp.float32, jnp.float32)
    found = search(method, encoder(jnp.float32), images, jnp.float64, jnp.float64)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.success.all() and found.images.dtype == jnp.float32
    whole = search(method, encoder(jnp.float32), jnp.asarray(PIXELS, jnp.float64), jnp.float32, jnp.float32)
    assert whole.images.dtype == jnp.float64 and whole.success.all()


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_throughout_is_searched_in_float32(method):
    seen = []

    def encode(images):
        seen.append(images.dtype)
        return images.reshape(len(images), -1) @ jnp.asarray(MATRIX, jnp.float16)

    found = search(method, encode, jnp.asarray(PIXELS, jnp.float16), jnp.float16, jnp.float16)
    assert found.success.all() and found.images.dtype == jnp.float32
    assert set(seen) == {jnp.dtype(jnp.float16)}  # the encoder is shown what it was given


def test_a_bfloat16_search_with_an_encoder_in_float32_still_confirms(x64):
    head, goals = sj.Head(jnp.asarray(WEIGHTS)), jnp.asarray(PIXELS.reshape(3, -1) @ MATRIX + 2 * WEIGHTS[:3])
    options = sj.InversionConfig(method="gauss_newton", encoder_dtype="bfloat16")
    found = sj.invert(encoder(jnp.float32), head, jnp.asarray(PIXELS, jnp.float32), goals, TARGETS, config=options)
    assert found.success.all()
