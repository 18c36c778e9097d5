"""The auto-encoder: shapes, statistics of its latents, what it learns, and what its training leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectra_jax.models import build_autoencoder
from spectra_jax.models._layers import pixel_shuffle, pixel_unshuffle

SMALL = build_autoencoder(image_size=16, channels=3, widths=(8, 16))


def pictures(count, size=16, seed=0):
    """Discs of a random colour at a random place on a random background."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] + 0.5
    place, colours = rng.uniform(4, size - 4, (count, 2, 1, 1)), rng.uniform(size=(count, 2, 1, 1, 3))
    inside = (rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2 < 9
    return np.where(inside[..., None], colours[:, 0], colours[:, 1]).astype(np.float32)


def test_a_square_of_four_pixels_becomes_four_channels_and_back():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    packed = pixel_unshuffle(x)
    assert packed.shape == (2, 2, 3, 12)
    # Channels of a square in reading order: the pixel right of the first one comes second.
    np.testing.assert_array_equal(packed[1, 1, 2], np.concatenate([x[1, i, j] for i in (2, 3) for j in (4, 5)]))
    np.testing.assert_array_equal(pixel_shuffle(packed), x)


def test_latents_are_a_grid_of_channels_and_images_lie_in_the_unit_range():
    params, images = SMALL.init(jax.random.key(0)), jnp.asarray(pictures(3))
    assert (SMALL.grid, SMALL.num_latents) == (4, 48)
    latents = jax.jit(SMALL.encode)(params, images)
    decoded = jax.jit(SMALL.decode)(params, latents)
    assert latents.shape == (3, 48) and decoded.shape == images.shape
    assert 0 <= decoded.min() < decoded.max() <= 1
    # No image depends on the others of its batch.
    alone = jax.jit(SMALL.encode)(params, images.at[1:].set(0.3))
    np.testing.assert_allclose(alone[0], latents[0], atol=1e-5)


def test_it_has_as_many_parameters_as_its_formula_says():
    def convolution(inside, outside, kernel=3):
        return kernel**2 * inside * outside + outside

    def block(width):
        return 2 * (9 * width**2 + 2 * width)

    encoder = convolution(12, 8) + block(8) + convolution(32, 16) + block(16) + convolution(16, 3, 1)
    decoder = convolution(3, 16) + block(16) + convolution(16, 32) + block(8) + convolution(8, 12)
    params = SMALL.init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == encoder + decoder + 2 * SMALL.num_latents


def test_statistics_standardise_the_latents_and_leave_the_images_as_they_are():
    params, images = SMALL.init(jax.random.key(1)), jnp.asarray(pictures(40))
    encode, decode = jax.jit(SMALL.encode), jax.jit(SMALL.decode)
    standard = SMALL.with_statistics(params, encode(params, images))
    latents = np.asarray(encode(standard, images))
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(decode(standard, latents), decode(params, encode(params, images)), atol=1e-4)
    again = SMALL.with_statistics(standard, encode(standard, images))  # they are standard already
    for name in ("latent_mean", "latent_std"):
        np.testing.assert_allclose(again[name], standard[name], rtol=1e-3, atol=1e-4)


def test_it_learns_to_draw_pictures_it_has_not_seen():
    params, train, test = SMALL.init(jax.random.key(0)), jnp.asarray(pictures(256)), pictures(64, seed=1)
    optimizer = optax.adam(5e-3)

    def loss(params, images):
        return jnp.mean(jnp.square(SMALL.decode(params, SMALL.encode(params, images)) - images))

    @jax.jit
    def step(params, state, images):
        gradient = jax.grad(loss)(params, images)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for turn in range(120):
        rows = np.random.default_rng(turn).integers(0, 256, 32)
        params, state = step(params, state, train[rows])
    mean_picture = np.mean(np.square(np.asarray(train).mean(axis=0) - test))
    assert float(loss(params, jnp.asarray(test))) < 0.2 * mean_picture


def test_bad_sizes_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="image_size is 20; expected a multiple of 8"):
        build_autoencoder(image_size=20)
    with pytest.raises(ValueError, match="channels is 0"):
        build_autoencoder(image_size=16, channels=0)
    params = SMALL.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"images has shape \(2, 8, 8, 3\)"):
        SMALL.encode(params, jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"expected \(b, 48\)"):
        SMALL.decode(params, jnp.zeros((2, 47)))
