"""Counterfactuals among the images of a generator: the same search as over pixels, within what it can draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inversion import IMAGES, KERNEL, WEIGHTS, least_likely, linear

import spectra_jax as sj

PIXELS, LATENTS = IMAGES[0].size, 12
BASIS = np.linalg.qr(np.random.default_rng(7).normal(size=(PIXELS, LATENTS)))[0].T
CENTRE = np.full(PIXELS, 0.5)


def draw(basis, latents):
    """Images in a plane through grey: D(z) = 1/2 + z B with orthonormal rows B."""
    flat = 0.5 + jnp.matmul(latents, basis, precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(len(latents), *IMAGES.shape[1:])


def place(basis, images):
    return jnp.matmul(images.reshape(len(images), -1) - 0.5, basis.T, precision=jax.lax.Precision.HIGHEST)


def plane(dtype=np.float32, *, latents=LATENTS, **options):
    basis = jnp.asarray(BASIS[:latents], dtype)
    return sj.Manifold(functools.partial(draw, basis), functools.partial(place, basis), **options)


def config(method, **options):
    return sj.InversionConfig(method=method, **{"max_steps": 200, **options})


def about_grey(kernel, images):
    return linear(kernel, images - 0.5)


@functools.cache
def drawn(dtype=np.float32):
    """A problem whose images are nearly grey, so that the images of the plane that have the targets are not far."""
    encode = functools.partial(about_grey, jnp.asarray(10 * KERNEL, dtype))
    head, images = sj.Head(jnp.asarray(WEIGHTS, dtype)), jnp.asarray(0.45 + 0.1 * IMAGES, dtype)
    targets, wanted = least_likely(seen(images), WEIGHTS)
    return encode, head, images, jnp.asarray(wanted, dtype), jnp.asarray(targets)


def seen(images):
    """The same encoder in NumPy."""
    return 10 * (np.asarray(images, np.float64).reshape(len(images), -1) - CENTRE) @ KERNEL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_over_the_pixels_themselves_it_is_adam(dtype):
    with jax.enable_x64(dtype == np.float64):
        shape = IMAGES.shape[1:]
        pixels = sj.Manifold(
            lambda latents: latents.reshape(-1, *shape), lambda images: images.reshape(len(images), -1), step_size=0.002
        )
        given = drawn.__wrapped__(dtype)
        ours = sj.invert(*given, config=config(pixels))
        theirs = sj.invert(*given, config=config(sj.Adam(step_size=0.002)))
    assert ours.success.all() and ours.images.dtype == dtype and np.ptp(ours.num_steps) > 0
    np.testing.assert_array_equal(ours.num_steps, theirs.num_steps)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)
    np.testing.assert_array_equal(ours.reason, theirs.reason)


def test_every_answer_is_an_image_of_the_generator_and_has_the_target():
    encode, head, images, wanted, targets = drawn()
    result = sj.invert(encode, head, images, wanted, targets, config=config(plane(step_size=0.02)))
    flat = np.asarray(result.images, np.float64).reshape(len(images), -1) - CENTRE
    np.testing.assert_allclose(flat @ BASIS.T @ BASIS, flat, atol=1e-5)
    assert result.success.all() and np.ptp(result.num_steps) > 0
    logits = seen(result.images) @ WEIGHTS.T
    np.testing.assert_array_equal(logits.argmax(axis=1), targets)
    np.testing.assert_allclose(result.realised, result.attributes - encode(images), atol=1e-4)


def test_where_the_plane_is_too_small_it_ends_at_the_least_squares_solution():
    with jax.enable_x64(True):
        encode, head, images, _, targets = drawn.__wrapped__(np.float64)
        wanted = encode(images) + 0.1
        given = (encode, head, images, wanted, targets)
        asked = config(plane(np.float64, latents=5, step_size=0.003), margin=1e6, ssim_weight=0.0, max_steps=1500)
        result = sj.invert(*given, config=asked)
    assert not result.success.any() and np.isin(result.reason, [sj.Status.BUDGET, sj.Status.STALLED]).all()
    jacobian = BASIS[:5] @ (10 * KERNEL)  # of the attributes with respect to the latents
    best = np.asarray(wanted) @ np.linalg.pinv(jacobian) @ jacobian  # fewer latents than attributes
    np.testing.assert_allclose(result.attributes, best, atol=1e-3)


def test_a_region_keeps_the_rest_of_the_original():
    encode, head, images, wanted, targets = drawn()
    region = np.zeros(images.shape[:3], bool)
    region[:, 2:] = True
    result = sj.invert(
        encode, head, images, wanted, targets, config=config(plane(step_size=0.1)), region=jnp.asarray(region)
    )
    np.testing.assert_array_equal(result.images[:, :2], images[:, :2])
    assert result.success.all() and not np.allclose(result.images[:, 2:], images[:, 2:], atol=1e-3)


def test_neither_the_batch_nor_a_transformation_decides_what_is_found():
    given = drawn()
    whole = sj.invert(*given, config=config(plane(step_size=0.02)))
    single = sj.invert(*given, config=config(plane(step_size=0.02), batch_size=1))
    np.testing.assert_array_equal(single.num_steps, whole.num_steps)
    np.testing.assert_allclose(single.images, whole.images, atol=1e-5)

    @jax.jit
    def compiled(basis, images, wanted):
        method = sj.Manifold(functools.partial(draw, basis), functools.partial(place, basis), step_size=0.02)
        return sj.invert(given[0], given[1], images, wanted, given[4], config=config(method))

    inside = compiled(jnp.asarray(BASIS, jnp.float32), given[2], given[3])
    np.testing.assert_allclose(inside.images, whole.images, atol=1e-4)


def test_what_it_cannot_do_is_refused_in_one_sentence():
    given = drawn()
    half = sj.Manifold(lambda latents: draw(jnp.asarray(BASIS, jnp.float32), latents)[:, 1:], plane().encode)
    with pytest.raises(ValueError, match=r"decode returns shape \(4, 11, 13, 3\); expected \(4, 12, 13, 3\)"):
        sj.invert(*given, config=config(half))
    with pytest.raises(ValueError, match='shrink_steps is 3; expected 0 for the method "manifold"'):
        config(plane(), shrink_steps=3)
    with pytest.raises(ValueError, match="step_size is 0"):
        plane(step_size=0)
