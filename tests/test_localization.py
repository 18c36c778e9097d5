"""Lift, pointing, causal split and discs against numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj


def pictures():
    """One 4x5 picture of two channels: changes 0.3 and 0.4 in one pixel of the region, 0.5 in one outside."""
    reference = np.full((1, 4, 5, 2), 0.25, np.float32)
    images = reference.copy()
    images[0, 1, 2] += np.array([0.3, 0.4], np.float32)  # energy 0.25
    images[0, 3, 4, 0] += np.float32(0.5)  # energy 0.25
    region = np.zeros((1, 4, 5), bool)
    region[0, :2, 1:3] = True  # 4 of 20 pixels
    return jnp.asarray(images), jnp.asarray(reference), jnp.asarray(region)


def test_lift_by_hand():
    images, reference, region = pictures()
    found = sj.energy_lift(images, reference, region)
    np.testing.assert_allclose(found.share, [0.5], rtol=1e-5)
    np.testing.assert_allclose(found.area, [0.2], rtol=1e-6)
    np.testing.assert_allclose(found.lift, [2.5], rtol=1e-5)
    even = sj.energy_lift(reference + 0.1, reference, region)
    np.testing.assert_allclose(even.lift, [1], rtol=1e-5)


def test_lift_of_nothing_and_of_an_empty_region_is_not_a_number():
    images, reference, region = pictures()
    still = sj.energy_lift(reference, reference, region)
    assert np.isnan(still.share).all() and np.isnan(still.lift).all()
    empty = sj.energy_lift(images, reference, jnp.zeros_like(region))
    assert empty.share == 0 and np.isnan(empty.lift).all()


def test_pointing_by_hand():
    images, reference, region = pictures()
    assert not sj.pointing_hit(reference, reference, region)[0]
    tie = images.at[0, 3, 4, 0].set(0.25)
    assert sj.pointing_hit(tie, reference, region)[0]
    assert not sj.pointing_hit(tie, reference, ~region)[0]
    stronger = images.at[0, 3, 4, 1].set(0.5)
    assert not sj.pointing_hit(stronger, reference, region)[0]


def test_discs_by_hand():
    centres = jnp.asarray([[[2.5, 1.5], [0.5, 3.5]], [[2.5, 1.5], [0.5, 3.5]]], jnp.float32)
    visible = jnp.asarray([[True, True], [True, False]])
    found = np.asarray(sj.part_discs(centres, visible, jnp.asarray([1.0, 0.4], jnp.float32), height=4, width=5))
    expected = np.zeros((2, 4, 5), bool)
    expected[0, 1, 1:4] = expected[0, 0:3, 2] = True  # the pixel and its four neighbours
    expected[0, 3, :2] = expected[0, 2, 0] = True  # the same, cut by the corner
    expected[1, 1, 2] = True
    np.testing.assert_array_equal(found, expected)


def linear_encoder(weights, images):
    return images.reshape(len(images), -1) @ weights


def test_causal_split_by_hand():
    images, reference, region = pictures()
    pixels = reference[0].size
    weights = np.zeros((pixels, 2), np.float32)
    weights[np.ravel_multi_index((1, 2, 0), (4, 5, 2)), 0] = 1  # sees + 0.3 of the inside
    weights[np.ravel_multi_index((3, 4, 0), (4, 5, 2)), 0] = -0.2  # and - 0.1 of the outside
    encode = functools.partial(linear_encoder, jnp.asarray(weights))
    before = float(encode(reference)[0, 0])
    head = sj.Head(jnp.asarray([[0.0, 0.0], [1.0, 0.0]]), jnp.asarray([0.0, -(before + 0.15)]))
    f, target = jnp.asarray([0], jnp.int32), jnp.asarray([1], jnp.int32)
    found = sj.causal_split(encode, head, images, reference, region, target, f)
    assert found.flips_inside[0] and not found.flips_outside[0]
    np.testing.assert_allclose(found.share_inside, [0.3 / 0.2], rtol=1e-4)
    np.testing.assert_allclose(found.share_outside, [-0.1 / 0.2], rtol=1e-4)
    still = sj.causal_split(encode, head, images, reference, region, target, jnp.asarray([1], jnp.int32))
    assert np.isnan(still.share_inside).all() and np.isnan(still.share_outside).all()


def test_transforms_and_float64(x64):
    images, reference, region = pictures()
    images, reference = (jnp.asarray(np.asarray(array), jnp.float64) for array in (images, reference))
    eager, jitted = sj.energy_lift(images, reference, region), jax.jit(sj.energy_lift)(images, reference, region)
    assert eager.lift.dtype == jnp.float64
    np.testing.assert_allclose(eager.lift, jitted.lift, rtol=1e-12)
    assert jax.jit(sj.pointing_hit)(images, reference, region).shape == (1,)
    one = jax.vmap(lambda x, y, r: sj.energy_lift(x[None], y[None], r[None]).lift[0])(images, reference, region)
    np.testing.assert_allclose(one, eager.lift, rtol=1e-12)
    encode = functools.partial(linear_encoder, jnp.ones((40, 2)))
    head = sj.Head(jnp.asarray([[0.0, 0.0], [1.0, 0.0]]))
    split = jax.jit(functools.partial(sj.causal_split, encode, head))
    index = jnp.asarray([0], jnp.int32)
    np.testing.assert_allclose(split(images, reference, region, index, index).share_inside, [0.7 / 1.2], rtol=1e-6)


def test_mistakes_are_explained():
    images, reference, region = pictures()
    index = jnp.asarray([0], jnp.int32)
    head = sj.Head(jnp.ones((2, 2)))
    encode = functools.partial(linear_encoder, jnp.ones((40, 2)))
    for attribute in (2, -1):
        with pytest.raises(ValueError, match="expected indices from 0 to 1"):
            sj.causal_split(encode, head, images, reference, region, index, jnp.asarray([attribute], jnp.int32))
    with pytest.raises(ValueError, match=r"\(b, h, w\)"):
        sj.energy_lift(images, reference[:, :3], region)
    with pytest.raises(ValueError, match="booleans"):
        sj.pointing_hit(images, reference, region.astype(jnp.float32))
    with pytest.raises(ValueError, match="divide 8-bit"):
        sj.energy_lift(images * 255, reference * 255, region)
    with pytest.raises(ValueError, match=r"\(b, p, 2\), \(b, p\) and \(b,\)"):
        sj.part_discs(jnp.ones((1, 2, 2)), jnp.ones((1, 3), bool), jnp.ones(1), height=4, width=4)
    with pytest.raises(ValueError, match="positive"):
        sj.part_discs(jnp.ones((1, 2, 2)), jnp.ones((1, 2), bool), jnp.ones(1), height=0, width=4)
    with pytest.raises(ValueError, match="one of each for each of 1 images"):
        sj.causal_split(encode, head, images, reference, region, index, jnp.asarray([0, 1], jnp.int32))
    with pytest.raises(ValueError, match="targets contains 2"):
        sj.causal_split(encode, head, images, reference, region, index + 2, index)
