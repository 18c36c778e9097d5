"""Bounds that hold of every head: an attackability that breaks one of them is a mistake in whatever computed it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

TWINS = Path(__file__).resolve().parents[1].parent / "shared" / "cases" / "near_equal_rows_head.npz"
# Distances are good to 1e-6 in float32 and to 1e-12 in float64, relative; ten times that.
SLACK = {np.float32: 1e-5, np.float64: 1e-11}


def problem(kind, dtype, *, bias):
    random = np.random.default_rng(list(kind.encode()))
    if kind == "trained twins":
        if not TWINS.exists():
            pytest.skip(f"{TWINS} not found")
        weights = np.load(TWINS)["weights"][:12].astype(float)
    else:
        weights = random.normal(size=(12, 9))
    if kind == "twins":
        weights[1] = weights[0] + 1e-4 * random.normal(size=9)
    size = np.linalg.norm(weights - weights.mean(axis=0), axis=1).mean()
    samples = size * random.normal(size=(20, weights.shape[1]))
    offsets = jnp.asarray(0.3 * size**2 * random.normal(size=len(weights)), dtype) if bias else None
    return sj.Head(jnp.asarray(weights, dtype), offsets), jnp.asarray(samples, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["random", "twins", "trained twins"])
def test_without_a_bias_no_class_is_farther_than_nothing_at_all(kind, dtype):
    """At e = 0 all classes tie: every distance is at most ||e||, and attackability at least 1."""
    with jax.enable_x64(dtype == np.float64):
        head, samples = problem(kind, dtype, bias=False)
        lengths = np.linalg.norm(np.asarray(samples, float), axis=1)
        for method in ("boundary", "projection", "pinv"):
            norms = np.asarray(sj.all_pairs_norms(head, samples, method=method), float)
            assert np.all(norms <= lengths[:, None] * (1 + SLACK[dtype])), method
        for method in ("boundary", "pinv"):
            assert np.all(np.asarray(sj.attackability(head, samples, method=method)) >= 1 - SLACK[dtype])
        assert np.all(np.asarray(sj.nearest_class(head, samples).attackability) >= 1 - SLACK[dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["random", "twins", "trained twins"])
def test_no_class_is_farther_than_the_nearest_sample_that_has_it(kind, bias, dtype):
    with jax.enable_x64(dtype == np.float64):
        head, samples = problem(kind, dtype, bias=bias)
        norms = np.asarray(sj.all_pairs_norms(head, samples), float)
        nearest = np.asarray(sj.nearest_class(head, samples).distance, float)
        named = np.asarray(sj.head_logits(head, samples)).argmax(axis=1)
    points = np.asarray(samples, float)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    of_class = np.where(named[None, :, None] == np.arange(len(head.weights)), apart[:, :, None], np.inf).min(axis=1)
    assert np.all(norms <= of_class * (1 + SLACK[dtype]))
    others = np.where(named[:, None] != named[None], apart, np.inf).min(axis=1)
    assert np.isfinite(others).all() and np.all(nearest <= others * (1 + SLACK[dtype]))


def test_a_bias_lets_attackability_fall_below_one():
    """The first bound needs that all classes tie somewhere: with a bias the nearest other class may be any way off."""
    head = sj.Head(jnp.eye(2), jnp.array([100.0, 0.0]))
    assert sj.attackability(head, jnp.array([[1.0, 0.0]]))[0] < 0.02
