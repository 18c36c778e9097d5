"""CANARY's metrics against values worked out by hand, as defined and as its public code has them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from spectra_jax import canary
from spectra_jax.canary_score import canary_score, clipped, irt_ability, scaled

READINGS = canary.READINGS


def logits(*probabilities):
    return jnp.log(jnp.asarray(probabilities, jnp.float32))


def test_deflection_counts_the_samples_named_correctly_before():
    before = logits((0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.1, 0.8, 0.1))  # the third one is wrong from the start
    after = logits((0.3, 0.6, 0.1), (0.5, 0.4, 0.1), (0.1, 0.1, 0.8))
    found = canary.deflection(before, after, jnp.array([0, 0, 0]), targets=jnp.array([1, 1, 2]))
    np.testing.assert_allclose(found, (1 / 2, 1 / 2, (0.4 - 0.1) / 2, (0.4 + 0.1) / 2), atol=1e-6)
    assert np.isnan(canary.deflection(before, after, jnp.array([0, 0, 0])).tas)


def test_attention_change_is_a_cosine_and_blank_maps_have_none():
    before = jnp.array([[[1.0, 0.0]], [[3.0, 4.0]], [[0.0, 0.0]]])
    after = jnp.array([[[1.0, 1.0]], [[3.0, 4.0]], [[1.0, 1.0]]])
    np.testing.assert_allclose(canary.attention_change(before, after), (math.sqrt(0.5), 1, np.nan), atol=1e-6)


@pytest.mark.parametrize(("reading", "expected"), [("as defined", (0.3, 0.7)), ("as coded", (0.2, 0.7))])
def test_average_attention_change(reading, expected):
    adversarial, true = jnp.array([0.2, 0.4, 0.9]), jnp.array([0.7, jnp.nan, 0.1])
    found = canary.average_attention_change(adversarial, true, jnp.array([True, True, False]), reading=reading)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_transfer_rate_asks_models_that_knew_the_sample():
    before = logits((0.9, 0.1), (0.9, 0.1), (0.1, 0.9))[None].repeat(2, axis=0)
    before = before.at[1, 0].set(jnp.log(jnp.array([0.2, 0.8])))  # the second model was wrong about the first sample
    after = logits((0.1, 0.9), (0.9, 0.1), (0.1, 0.9))[None].repeat(2, axis=0)
    rate = canary.transfer_rate(before, after, jnp.array([0, 0, 0]), jnp.array([True, True, True]))
    np.testing.assert_allclose(rate, (1 / 2 + 0 / 1) / 2)


@pytest.mark.parametrize(("reading", "expected"), [("as defined", 2.0), ("as coded", 3.0)])
def test_average_drops_failures_as_coded_only(reading, expected):
    values, valid = jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])
    assert canary.average(values, valid, jnp.array([False, True, True]), reading=reading) == expected


def cosine_wave(cycles, side=32):
    """Grey pictures around .5 and .5 with a wave of amplitude .1 along the rows."""
    wave = 0.1 * np.cos(2 * np.pi * cycles * np.arange(side) / side)
    flat = np.full((1, side, side, 3), 0.5, np.float32)
    return jnp.asarray(flat + wave[None, :, None, None], jnp.float32), jnp.asarray(flat)


def test_distances_as_defined():
    images, reference = cosine_wave(3)
    found = canary.disturbance(images, reference)
    root_mean_square, kept = 0.1 / math.sqrt(2), math.exp(-(3**2) / (2 * 5**2))
    np.testing.assert_allclose(found.md, 0.1, atol=1e-6)
    np.testing.assert_allclose(found.ed, root_mean_square, rtol=1e-5)
    np.testing.assert_allclose(found.ed_lf, kept * root_mean_square, rtol=1e-4)
    np.testing.assert_allclose(found.ed_hf, (1 - kept) * root_mean_square, rtol=1e-4)


def test_distances_as_coded():
    images, reference = cosine_wave(3)
    found = canary.disturbance(images, reference, reading="as coded")
    length, kept = 0.1 / math.sqrt(2), math.exp(-(3**2) / (2 * 5**2))
    values, greys = 32 * 32 * 3, 32 * 32
    np.testing.assert_allclose(found.md, 0.1, atol=1e-6)
    np.testing.assert_allclose(found.ed, length * math.sqrt(values) / (values / 2), rtol=1e-5)
    # The bands change places, and the grey pictures have a third of the values.
    np.testing.assert_allclose(found.ed_hf, kept * length * math.sqrt(greys) / (greys / 2), rtol=1e-4)
    np.testing.assert_allclose(found.ed_lf, (1 - kept) * length * math.sqrt(greys) / (greys / 2), rtol=1e-4)


@pytest.mark.parametrize(("reading", "expected"), [("as defined", 2 / 1024), ("as coded", 3 / 3072)])
def test_changed_pixels(reading, expected):
    reference = jnp.full((1, 32, 32, 3), 100.4 / 255)
    images = reference.at[0, 0, 0, :2].set(101 / 255).at[0, 1, 1, 0].set(100.6 / 255)
    images = images.at[0, 2, 2, 2].set(99.8 / 255)  # the same level when rounded, another one when cut
    np.testing.assert_allclose(canary.disturbance(images, reference, reading=reading).pcr, expected)


def test_multi_scale_gmsd_of_a_change_of_chroma_alone():
    to_rgb = np.linalg.inv([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    reference = np.full((1, 24, 24, 3), 0.5)
    images = reference + to_rgb @ np.array([0, 0.03, 0.04])
    gamma = 2 / 1.32 - 1  # nothing but colour: no deviation of the luma
    found = canary.multi_scale_gmsd(jnp.asarray(images, jnp.float32), jnp.asarray(reference, jnp.float32))
    np.testing.assert_allclose(found, (1 - gamma) * 0.01 * 255 * 0.05, rtol=1e-3)


def test_multi_scale_gmsd_of_a_change_of_luma_alone():
    rng = np.random.default_rng(0)
    grey = rng.uniform(0.2, 0.8, size=(2, 25, 30))
    pictures, total = [255 * picture for picture in grey], 0.0
    for scale, weight in enumerate((0.096, 0.596, 0.289, 0.019)):
        if scale:
            odd = max(side % 2 for side in pictures[0].shape)
            pictures = [np.pad(p, ((0, odd), (0, odd))) for p in pictures]
            pictures = [p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in pictures]
            pictures = [(p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in pictures]
        prewitt = np.array([[-1, 0, 1]] * 3) / 3
        x, y = (np.hypot(correlate2d(p, prewitt, "same"), correlate2d(p, prewitt.T, "same")) for p in pictures)
        total += weight * np.var((1.5 * x * y + 170) / (x**2 + y**2 - 0.5 * x * y + 170))
    deviation = math.sqrt(total)
    gamma = 2 / (1 + 0.32 * math.exp(-15 * deviation)) - 1
    images, reference = (jnp.asarray(g[None, :, :, None].repeat(3, axis=-1), jnp.float32) for g in grey)
    residue = (0.5959 - 0.2746 - 0.3213, 0.2115 - 0.5227 + 0.3112)  # the published matrix gives grey no chroma
    assert np.allclose(residue, 0)
    np.testing.assert_allclose(canary.multi_scale_gmsd(images, reference), gamma * deviation, rtol=1e-4)
    assert canary.disturbance(images[:, :16, :16], reference[:, :16, :16]).lms.shape == (1,)
    assert np.isnan(canary.disturbance(images[:, :16, :16], reference[:, :16, :16]).lms).all()


def test_grad_cam_of_a_linear_layer():
    """The map of class k is relu(mean of its weights over places, per channel, times the channels)."""
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 3, 2)), jnp.float32)
    weights = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])  # (channels, classes), the same at every place
    maps = canary.grad_cam(lambda x: 2 * x, lambda m: jnp.sum(m, axis=(1, 2)) @ weights, images, jnp.array([0, 1]))
    expected = [2 * images[0] @ np.array([1.0, 0.5]), np.maximum(2 * images[1] @ np.array([-2.0, 3.0]), 0)]
    np.testing.assert_allclose(maps, expected, rtol=1e-5)


def test_gradients_and_jit_pass_through():
    images, reference = cosine_wave(3)
    measure = jax.jit(canary.disturbance, static_argnames="reading")
    np.testing.assert_allclose(measure(images, reference).ed, canary.disturbance(images, reference).ed, rtol=1e-6)


@pytest.mark.parametrize(("reading", "true"), [("as defined", 0.4), ("as coded", 1.0)])
def test_clipping(reading, true):
    metrics = {"MR": 0.9, "ACAMC_A": 0.4, "ACAMC_T": 0.8, "AED": 0.2, "AMD": 8 / 255, "AQN": 25_000}
    found = clipped(metrics, reading=reading)
    assert found == pytest.approx({"MR": 0.9, "ACAMC_A": 1, "ACAMC_T": true, "AED": 0, "AMD": 0.75, "AQN": 0.5})


def test_scaling_leaves_what_never_varies():
    np.testing.assert_allclose(scaled(np.array([[1, 5, 0.3], [3, 5, 0.1], [2, 5, 0.2]])).T,
                               [[0, 1, 0.5], [5, 5, 5], [1, 0, 0.5]])  # fmt: skip


def test_bad_input_is_named():
    images, reference = cosine_wave(3)
    with pytest.raises(ValueError, match="reading is 'coded'"):
        canary.disturbance(images, reference, reading="coded")
    with pytest.raises(ValueError, match="expected one shape"):
        canary.disturbance(images, reference[:, :8])
    with pytest.raises(ValueError, match="'XYZ'"):
        clipped({"XYZ": 1.0})
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        irt_ability(np.array([[0.5, 2.0]]))


@pytest.mark.slow
def test_item_response_theory_ranks_attacks():
    pytest.importorskip("numpyro")
    table = np.array([[0.9, 1.0, 0.8, 1.0], [0.5, 0.4, 0.6, 0.5], [0.0, 0.1, 0.0, 0.2]])
    ability, r_hat = irt_ability(table)
    assert ability[0] > ability[1] > ability[2] and r_hat < 1.02
    attacks = {
        name: dict(MR=row[0], AIAC=row[1], AED=0.1 * (1 - row[2])) for name, row in zip("abc", table, strict=True)
    }
    score = canary_score(attacks, [("MR", "AIAC"), ("AED",)])
    assert score["a"] == 1 and 0 < score["b"] < 1 and score["c"] == 0
