"""The nearest class among many: a few rivals are looked at, and the answer is that of all of them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.perturbations.few_rivals import few_rivals, make_rivals

pytestmark = pytest.mark.optimized

NUM_CLASSES, NUM_ATTRIBUTES = 2100, 20  # many, and no whole groups of classes


def problem(seed=0, samples=30, planted=0.0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)).astype(np.float32)
    bias = rng.normal(size=NUM_CLASSES).astype(np.float32)
    attributes = rng.normal(size=(samples, NUM_ATTRIBUTES)) + planted * weights[rng.integers(0, NUM_CLASSES, samples)]
    return weights, bias, attributes.astype(np.float32)


def expected(weights, bias, attributes):
    """(b, c) distances in float64; inf at the predicted class and where equal rows keep a class ahead."""
    weights, bias, attributes = (np.asarray(array, np.float64) for array in (weights, bias, attributes))
    logits = attributes @ weights.T + bias
    predicted = logits.argmax(axis=1)
    gaps = logits.max(axis=1)[:, None] - logits
    lengths = np.linalg.norm(weights[predicted][:, None] - weights[None], axis=-1)
    distances = np.where(lengths > 0, gaps / np.where(lengths > 0, lengths, 1), np.where(gaps > 0, np.inf, 0))
    distances[np.arange(len(logits)), predicted] = np.inf
    return distances


def head(weights, bias):
    return sj.Head(jnp.asarray(weights), jnp.asarray(bias))


@pytest.mark.parametrize("planted", [0.0, 30.0])
@pytest.mark.parametrize("rivals", [1, 32])
def test_it_is_the_nearest_of_all_however_few_are_looked_at(monkeypatch, planted, rivals):
    monkeypatch.setattr(sys.modules["spectra_jax.perturbations.few_rivals"], "_RIVALS", rivals)
    weights, bias, attributes = problem(planted=planted)
    problem_head = head(weights, bias)
    found = jax.jit(lambda e: sj.nearest_class(problem_head, e, block_size=6 + rivals))(attributes)  # compiled here
    distances = expected(weights, bias, attributes)
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-4, atol=1e-5)
    chosen = distances[np.arange(len(attributes)), found.target]
    np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("planted", [0.0, 30.0])
def test_what_is_called_proven_is_right(planted):
    weights, bias, attributes = problem(1, 200, planted)
    rivals = make_rivals(jnp.asarray(weights), jnp.asarray(bias))
    choice, proven, _ = few_rivals(rivals, jnp.asarray(attributes), twins=1e-3)
    distances = expected(weights, bias, attributes)
    proven = np.asarray(proven)
    np.testing.assert_array_equal(choice.nearest[proven], distances.argmin(axis=1)[proven])
    if planted:  # a sample far within its class has many rivals at about one distance
        assert proven.mean() < 0.8
    else:
        assert proven.mean() > 0.9


def test_ties_go_to_the_lowest_class_and_masked_classes_are_none():
    weights, bias, attributes = problem(2)
    bias[[3, 150, 2099]] = -np.inf
    found = sj.nearest_class(head(weights, bias), jnp.asarray(attributes))
    assert not np.isin(found.target, [3, 150, 2099]).any()
    np.testing.assert_array_equal(found.target, expected(weights, bias, attributes).argmin(axis=1))
    # Without a bias all classes tie at the origin: class 0 is predicted and 1 is the nearest.
    origin = sj.nearest_class(sj.Head(jnp.asarray(weights)), jnp.zeros((2, NUM_ATTRIBUTES)))
    np.testing.assert_array_equal(origin.target, [1, 1])
    np.testing.assert_array_equal(origin.distance, [0, 0])
    # The nearest class with every row twice is the other of the same row, at distance 0.
    twice = np.concatenate([weights[:1050], weights[:1050]])
    found = sj.nearest_class(head(twice, np.zeros(NUM_CLASSES, np.float32)), jnp.asarray(attributes))
    np.testing.assert_array_equal(found.distance, np.zeros(len(attributes)))
    np.testing.assert_array_equal(found.target, (attributes.astype(float) @ weights[:1050].T).argmax(axis=1) + 1050)


def test_a_common_part_of_all_rows_does_not_matter():
    weights, bias, attributes = problem(3)
    # A power of two adds exactly to weights of so few digits.
    weights = np.round(weights * 256) / 256
    ours, shifted = (
        sj.nearest_class(head(rows, bias), jnp.asarray(attributes)) for rows in (weights, weights + np.float32(64))
    )
    np.testing.assert_array_equal(ours.target, shifted.target)
    np.testing.assert_allclose(ours.distance, shifted.distance, rtol=1e-3, atol=1e-4)


def test_a_nan_spoils_its_own_sample_and_no_other():
    weights, bias, attributes = problem(4)
    attributes[7, 3] = np.nan
    found = jax.jit(sj.nearest_class)(head(weights, bias), jnp.asarray(attributes))
    np.testing.assert_array_equal(np.isnan(found.distance), np.arange(len(attributes)) == 7)
    others = np.arange(len(attributes)) != 7
    np.testing.assert_array_equal(found.target[others], expected(weights, bias, problem(4)[2]).argmin(axis=1)[others])


def test_it_has_the_derivatives_of_the_distance():
    weights, bias, attributes = problem(5, 4, 1.0)
    problem_head, samples = head(weights, bias), jnp.asarray(attributes)
    gradient = jax.grad(lambda e: jnp.sum(sj.nearest_class(problem_head, e).distance))(samples)
    found = sj.nearest_class(problem_head, samples)
    predicted = (attributes @ weights.T + bias).argmax(axis=1)
    normal = weights[predicted] - weights[np.asarray(found.target)]
    np.testing.assert_allclose(gradient, normal / np.linalg.norm(normal, axis=1)[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_is_right_to_its_last_digits():
    weights, bias, attributes = (array.astype(np.float64) for array in problem(6))
    found = sj.nearest_class(head(weights, bias), jnp.asarray(attributes))
    np.testing.assert_allclose(found.distance, expected(weights, bias, attributes).min(axis=1), rtol=1e-11)


@pytest.mark.parametrize("size", [7, 1000])
def test_block_sizes_do_not_show(size):
    weights, bias, attributes = problem(7)
    found = sj.attackability(head(weights, bias), jnp.asarray(attributes), block_size=size)
    lengths = np.linalg.norm(attributes, axis=1)
    np.testing.assert_allclose(1 / found, expected(weights, bias, attributes).min(axis=1) / lengths, rtol=1e-4)


def test_block_sizes_that_mean_nothing_are_refused():
    weights, bias, attributes = (jnp.asarray(array) for array in problem(8))
    for function in (sj.nearest_class, sj.attackability):
        with pytest.raises(ValueError, match=r"block_size is 0; expected 1 or more samples"):
            function(head(weights, bias), attributes, block_size=0)
    with pytest.raises(ValueError, match=r'block_size is 8 with method "pinv"; expected None'):
        sj.attackability(head(weights, bias), attributes, method="pinv", block_size=8)
