"""The nearest class of a table of distances: unresolved entries are passed over and reported, never an answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from experiments.reporting import pages

NAN, INF = np.nan, np.inf
TABLE = np.array(
    [
        [0, 26, NAN, 2],  # argmin names class 2: the entry that is no number
        [3, 0, 1, 2],
        [0, 0, 5, 4],  # class 1 is in a tie with the predicted one
        [INF, 0, INF, INF],
        [NAN, 0, INF, NAN],
        [NAN, NAN, NAN, NAN],
        [0, 4, 4, INF],
    ],
    np.float32,
)


def test_the_nearest_class_of_every_row():
    found = sj.nearest_target(jnp.asarray(TABLE))
    np.testing.assert_array_equal(found.target, [3, 2, 1, -1, -1, -1, 1])
    np.testing.assert_array_equal(found.distance, [2, 1, 0, INF, NAN, NAN, 4])
    np.testing.assert_array_equal(found.num_unresolved, [1, 0, 0, 0, 2, 4, 0])
    assert found.target.dtype == found.num_unresolved.dtype == jnp.int32
    assert TABLE.argmin(axis=1)[0] == 2  # what it is there to replace


def test_only_allowed_classes_count():
    allowed = jnp.asarray(np.arange(4) != np.array([3, 2, 1, 1, 0, 0, 1])[:, None])
    found = sj.nearest_target(jnp.asarray(TABLE), allowed=allowed)
    np.testing.assert_array_equal(found.target, [0, 1, 0, -1, 1, -1, 0])
    np.testing.assert_array_equal(found.num_unresolved, [1, 0, 0, 0, 1, 3, 0])
    none = sj.nearest_target(jnp.asarray(TABLE), allowed=jnp.zeros(TABLE.shape, bool))
    assert (np.asarray(none.target) == -1).all() and np.isinf(none.distance).all()


def test_it_is_the_argmin_of_a_whole_table_and_knows_the_predicted_class():
    random = np.random.default_rng(0)
    head = sj.Head(jnp.asarray(random.normal(size=(9, 6)), jnp.float32))
    attributes = jnp.asarray(random.normal(size=(30, 6)), jnp.float32)
    norms = sj.all_pairs_norms(head, attributes, method="boundary")
    found = jax.jit(sj.nearest_target)(norms)
    without = np.where(np.asarray(norms) == 0, INF, norms)
    np.testing.assert_array_equal(found.target, without.argmin(axis=1))
    np.testing.assert_array_equal(found.distance, without.min(axis=1))
    ratio = np.linalg.norm(attributes, axis=1) / found.distance
    np.testing.assert_allclose(sj.attackability(head, attributes), ratio, rtol=1e-4)
    np.testing.assert_array_equal(sj.nearest_target(np.asarray(norms)).target, found.target)


def test_its_distance_has_the_derivatives_of_the_entry():
    gradient = jax.grad(lambda norms: jnp.sum(sj.nearest_target(norms).distance[:3]))(jnp.asarray(TABLE))
    expected = np.zeros(TABLE.shape)
    expected[[0, 1, 2], [3, 2, 1]] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_attackability_does_not_pass_over_a_class_that_may_be_the_nearest(monkeypatch):
    # A table with a NaN stands for an unresolved pair, which no input gives reliably.
    head, attributes = sj.Head(jnp.eye(4, dtype=jnp.float32)), jnp.asarray([[3.0, 1, 1, 1], [2.0, 1, 0, 0]])
    table = sj.all_pairs_norms(head, attributes).at[0, 2].set(NAN)
    module = __import__("sys").modules["spectra_jax.attackability"]
    monkeypatch.setattr(module, "all_pairs_norms", lambda *_, **__: table)
    found = sj.attackability(head, attributes, method="projection")
    assert np.isnan(found[0]) and np.isfinite(found[1])


def test_pages_pass_over_the_unresolved_and_say_nan_where_nothing_is_left():
    norms = np.array([[0, NAN, 3], [NAN, 0, NAN]])
    found = pages.relative_margins(norms, np.array([1.0, 1.0]), np.array([0, 1]))
    np.testing.assert_array_equal(found, [3, NAN])


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match="norms is of type list; expected an array"):
        sj.nearest_target([[0.0, 1.0]])
    with pytest.raises(ValueError, match="norms has shape"):
        sj.nearest_target(jnp.zeros(3))
    with pytest.raises(ValueError, match="expected booleans of shape"):
        sj.nearest_target(jnp.zeros((2, 3)), allowed=jnp.ones((2, 3)))
