"""Activation maps against a derivative known by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.normal(size=(4, 5, 3))
SECOND = RANDOM.normal(size=(4, 5, 3))
IMAGES = jnp.asarray(RANDOM.uniform(size=(2, 4, 5, 3)), jnp.float32)


def encode(images):
    """Attribute 0 is linear in the pixels, attribute 1 quadratic, attribute 2 constant."""
    linear = jnp.sum(images * jnp.asarray(FIRST, images.dtype)[None], axis=(1, 2, 3))
    quadratic = jnp.sum(jnp.square(images) * jnp.asarray(SECOND, images.dtype)[None], axis=(1, 2, 3))
    return jnp.stack([linear, quadratic, jnp.ones_like(linear)], axis=1)


def test_map_is_the_largest_derivative_over_the_channels():
    linear = sj.activation_map(encode, IMAGES, 0, top_k=None)
    np.testing.assert_allclose(linear, np.broadcast_to(np.abs(FIRST).max(axis=-1), (2, 4, 5)), rtol=1e-6)
    quadratic = sj.activation_map(encode, IMAGES, 1, top_k=None)
    np.testing.assert_allclose(quadratic, np.abs(2 * np.asarray(IMAGES) * SECOND).max(axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(sj.activation_map(encode, IMAGES, 2), 0)


@pytest.mark.parametrize("top_k", [1, 7, 19])
def test_only_the_strongest_pixels_are_kept(top_k):
    full = np.asarray(sj.activation_map(encode, IMAGES, 1, top_k=None))
    kept = np.asarray(sj.activation_map(encode, IMAGES, 1, top_k=top_k))
    for picture, strongest in zip(full, kept, strict=True):
        threshold = np.sort(picture, axis=None)[-top_k]
        np.testing.assert_array_equal(strongest, np.where(picture >= threshold, picture, 0))
        assert np.count_nonzero(strongest) == top_k


def test_as_many_as_there_are_keeps_all_and_is_the_papers_default():
    full = sj.activation_map(encode, IMAGES, 1, top_k=None)
    np.testing.assert_array_equal(sj.activation_map(encode, IMAGES, 1, top_k=20), full)
    np.testing.assert_array_equal(sj.activation_map(encode, IMAGES, 1), full)  # 500 of 20 pixels
    wide = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 30, 20, 3)), jnp.float32)
    flat = lambda x: jnp.sum(jnp.square(x), axis=(1, 2, 3))[:, None]  # noqa: E731
    assert np.count_nonzero(sj.activation_map(flat, wide, 0)) == 500


def test_of_equal_pixels_the_first_are_kept():
    flat = lambda x: jnp.sum(x, axis=(1, 2, 3))[:, None]  # noqa: E731
    kept = np.asarray(sj.activation_map(flat, IMAGES, 0, top_k=3)).reshape(2, -1)
    np.testing.assert_array_equal(kept, np.broadcast_to(np.arange(20) < 3, (2, 20)))


def test_the_images_of_a_batch_do_not_touch_each_other():
    both = sj.activation_map(encode, IMAGES, 1, top_k=5)
    np.testing.assert_array_equal(sj.activation_map(encode, IMAGES[1:], 1, top_k=5)[0], both[1])


def test_under_jit_with_a_traced_attribute():
    compiled = jax.jit(functools.partial(sj.activation_map, encode, top_k=5))
    constant = jax.jit(lambda f: sj.activation_map(encode, IMAGES, f, top_k=5))  # images known, yet inside a trace
    np.testing.assert_array_equal(constant(1), compiled(IMAGES, 1))
    for attribute in (0, 1):
        np.testing.assert_allclose(
            compiled(IMAGES, attribute), sj.activation_map(encode, IMAGES, attribute, top_k=5), rtol=1e-6
        )


@pytest.mark.usefixtures("x64")
def test_float64():
    result = sj.activation_map(encode, jnp.asarray(np.asarray(IMAGES), jnp.float64), np.int64(1), top_k=4)
    assert result.dtype == jnp.float64 and np.count_nonzero(result) == 8


@pytest.mark.parametrize(
    ("images", "attribute", "top_k", "message"),
    [
        (IMAGES, 3, 5, "attribute is 3; expected an index from 0 to 2"),
        (IMAGES, -1, 5, "attribute is -1"),
        (IMAGES, 0.5, 5, "expected one integer index"),
        (IMAGES, 0, 0, "top_k is 0"),
        (IMAGES[0], 0, 5, "batch, height, width, channels"),
        (255 * IMAGES, 0, 5, "divide 8-bit values by 255"),
        (jnp.full_like(IMAGES, jnp.nan), 0, 5, "NaN"),
        (np.zeros((1, 4, 5, 3), np.uint8), 0, 5, "divide uint8 images by 255"),
    ],
)
def test_bad_input_is_named(images, attribute, top_k, message):
    with pytest.raises(ValueError, match=message):
        sj.activation_map(encode, images, attribute, top_k=top_k)
