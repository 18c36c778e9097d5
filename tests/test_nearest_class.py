"""The nearest class of every sample: against float64, on the heads that solvers fail on, and block by block."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

NUM_CLASSES, NUM_ATTRIBUTES = 12, 30


def problem(seed=0, samples=50):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)).astype(np.float32)
    bias = rng.normal(size=NUM_CLASSES).astype(np.float32)
    return weights, bias, rng.normal(size=(samples, NUM_ATTRIBUTES)).astype(np.float32)


def expected(weights, bias, attributes):
    """(b, c) distances in float64, pair by pair; a class of equal weights is reached where it ties, else never."""
    weights, bias, attributes = (np.asarray(array, np.float64) for array in (weights, bias, attributes))
    logits = attributes @ weights.T + bias
    predicted = logits.argmax(axis=1)
    rows = weights[predicted][:, None] - weights[None]
    gaps = np.einsum("bcn,bn->bc", rows, attributes) + bias[predicted][:, None] - bias
    lengths = np.linalg.norm(rows, axis=-1)
    distances = np.where(lengths > 0, gaps / np.where(lengths > 0, lengths, 1), np.where(gaps > 0, np.inf, 0))
    distances[np.arange(len(logits)), predicted] = np.inf
    return distances


def check(found, weights, bias, attributes):
    distances = expected(weights, bias, attributes)
    least, lengths = distances.min(axis=1), np.linalg.norm(attributes, axis=1)
    # Next to a boundary a distance is known to the rounding of the logits: as a part of ||e||, to a few 1e-8.
    rounding = 2e-7 * lengths.max()
    np.testing.assert_allclose(found.distance, least, rtol=1e-5, atol=rounding)
    # Its own target, which of two at the same distance may be either.
    np.testing.assert_allclose(distances[np.arange(len(least)), found.target], least, rtol=1e-5, atol=rounding)
    np.testing.assert_allclose(1 / found.attackability, least / lengths, rtol=1e-5, atol=2e-7)


def test_it_is_the_minimum_over_all_projections():
    weights, bias, attributes = problem()
    head = sj.Head(jnp.asarray(weights), jnp.asarray(bias))
    found = sj.nearest_class(head, jnp.asarray(attributes))
    check(found, weights, bias, attributes)
    table = sj.nearest_target(sj.all_pairs_norms(head, jnp.asarray(attributes)))
    np.testing.assert_array_equal(found.target, table.target)
    np.testing.assert_allclose(found.distance, table.distance, rtol=1e-5)
    assert found.target.dtype == jnp.int32 and found.distance.shape == (len(attributes),)


@pytest.mark.parametrize("samples", [1, 5, 12, 13, 41])
@pytest.mark.parametrize("table", [0, 8192])
def test_blocks_and_tables_do_not_show(monkeypatch, samples, table):
    module = sys.modules["spectra_jax.perturbations.nearest_class"]
    monkeypatch.setattr(module, "_LOGITS_ON_CPU", 5 * NUM_CLASSES)
    monkeypatch.setattr(module, "_TABLE", table)
    weights, bias, attributes = problem(1, samples)
    head = sj.Head(jnp.asarray(weights), jnp.asarray(bias))
    found = jax.jit(lambda e: sj.nearest_class(head, e))(jnp.asarray(attributes))  # compiled here, with these sizes
    check(found, weights, bias, attributes)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
def test_nearly_equal_rows_are_right(apart):
    rng = np.random.default_rng(3)
    weights, _, _ = problem(2)
    weights = np.repeat(weights[: NUM_CLASSES // 2], 2, axis=0)
    weights[1::2] += (apart * rng.normal(size=weights[1::2].shape)).astype(np.float32)
    attributes = rng.normal(size=(60, NUM_ATTRIBUTES)).astype(np.float32)
    found = sj.nearest_class(sj.Head(jnp.asarray(weights)), jnp.asarray(attributes))
    check(found, weights, np.zeros(NUM_CLASSES), attributes)


def test_rows_with_a_large_common_part_are_as_right_as_all_pairs():
    weights, _, attributes = problem(9)
    weights += 100  # inner products of such rows and logits agree in most of their digits
    head = sj.Head(jnp.asarray(weights))
    found = sj.nearest_class(head, jnp.asarray(attributes))
    table = sj.nearest_target(sj.all_pairs_norms(head, jnp.asarray(attributes), method="boundary"))
    np.testing.assert_array_equal(found.target, table.target)
    np.testing.assert_allclose(found.distance, table.distance, rtol=1e-6, atol=1e-6)
    check(found, weights, np.zeros(NUM_CLASSES), attributes)


@pytest.mark.usefixtures("x64")
def test_float64_is_right_to_its_last_digits():
    weights, bias, attributes = (array.astype(np.float64) for array in problem(5))
    found = sj.nearest_class(sj.Head(jnp.asarray(weights), jnp.asarray(bias)), jnp.asarray(attributes))
    np.testing.assert_allclose(found.distance, expected(weights, bias, attributes).min(axis=1), rtol=1e-12)


def test_ties_equal_rows_and_masked_classes():
    weights = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    head = sj.Head(weights, jnp.asarray([0.0, 0.0, 0.0, -jnp.inf]))
    found = sj.nearest_class(head, jnp.asarray([[2.0, 2.0], [3.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found.distance, [0, 0, np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_array_equal(found.target, [1, 2, 0])  # the masked class, by far the largest, is never one
    np.testing.assert_array_equal(found.attackability, [np.inf, np.inf, found.attackability[2]])
    alone = sj.nearest_class(sj.Head(weights[:2], jnp.asarray([0.0, -jnp.inf])), jnp.asarray([[1.0, 2.0]]))
    np.testing.assert_array_equal([leaf[0] for leaf in alone], [np.inf, -1, 0])
    parallel = sj.nearest_class(sj.Head(weights[:1].repeat(2, axis=0), jnp.asarray([1.0, 0.0])), jnp.ones((1, 2)))
    np.testing.assert_array_equal([leaf[0] for leaf in parallel], [np.inf, -1, 0])


def test_a_nan_spoils_its_own_sample_and_no_other():
    weights, bias, attributes = problem(6)
    attributes[7, 3] = np.nan
    head = sj.Head(jnp.asarray(weights), jnp.asarray(bias))
    found = jax.jit(sj.nearest_class)(head, jnp.asarray(attributes))
    np.testing.assert_array_equal(np.isnan(found.distance), np.arange(len(attributes)) == 7)
    assert found.target[7] == -1 and np.isnan(found.attackability[7])
    others, whole = np.arange(len(attributes)) != 7, sj.nearest_class(head, jnp.asarray(problem(6)[2]))
    np.testing.assert_allclose(found.attackability[others], whole.attackability[others], rtol=1e-6)
    with pytest.raises(ValueError, match="attributes contains NaN"):
        sj.nearest_class(head, jnp.asarray(attributes))
    with pytest.raises(ValueError, match="expected one floating type"):
        sj.nearest_class(head, jnp.ones((2, NUM_ATTRIBUTES), jnp.int32))


def test_no_samples_give_no_answers():
    weights, bias, attributes = problem(7)
    found = sj.nearest_class(sj.Head(jnp.asarray(weights), jnp.asarray(bias)), jnp.asarray(attributes[:0]))
    assert [leaf.shape for leaf in found] == [(0,)] * 3
