"""All pairs at once: every stage of the queue, float32 to its last digits, one compilation, several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from oracles import region_distance, region_distances

import spectra_jax as sj
from spectra_jax.perturbations import pair_search
from spectra_jax.perturbations.geometry import relative_logits


def random_problem(num_classes, num_attributes, num_samples, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(num_classes, num_attributes)).astype(np.float32)
    return sj.Head(jnp.asarray(weights)), jnp.asarray(rng.normal(size=(num_samples, num_attributes)), jnp.float32)


def test_pairs_queue_for_lanes_and_float32_keeps_its_digits():
    head, attributes = random_problem(60, 12, 40)
    num_pairs = 60 * 40
    assert num_pairs > 2 * pair_search._LANES_ON_CPU, "each lane must take several pairs"
    found = jax.jit(sj.all_pairs_projection)(head, attributes)
    expected = region_distances(head, attributes)
    away = expected > 0
    assert away.sum() == num_pairs - 40
    np.testing.assert_allclose(np.asarray(found.norms)[away], expected[away], rtol=2e-6)
    assert np.all(np.asarray(found.norms)[~away] == 0)
    assert np.all(found.feasible)
    assert np.all(np.asarray(found.kkt_residual) < 1e-6)
    one = functools.partial(sj.projection_perturbation, head, attributes[3])
    single = jax.jit(jax.vmap(one))(jnp.arange(60, dtype=jnp.int32))
    other = np.arange(60) != np.argmax(np.asarray(sj.head_logits(head, attributes[3])))
    np.testing.assert_array_equal(found.num_active[3][other], np.sum(single.multipliers > 0, axis=1)[other])
    np.testing.assert_allclose(found.norms[3], single.norm, rtol=1e-6)


def test_pairs_that_need_many_slots_go_through_every_stage(x64):
    rng = np.random.default_rng(2)
    weights = np.eye(82, 80) + 0.02 * rng.normal(size=(82, 80))
    bias = 5.0 * (np.arange(82) < 80)  # towards the last two classes all of the first 80 are in the way
    head = sj.Head(jnp.asarray(weights), jnp.asarray(bias))
    attributes = jnp.asarray(rng.normal(size=(2, 80)))
    found = jax.jit(sj.all_pairs_projection)(head, attributes)
    assert np.max(found.num_active) > pair_search._MORE_SLOTS
    assert np.all(np.asarray(found.kkt_residual) < 1e-12)
    for sample in range(2):
        for target in (0, 80, 81):
            expected = region_distance(head, attributes[sample], target)
            np.testing.assert_allclose(found.norms[sample, target], expected, rtol=1e-9)


def test_logit_differences_keep_their_digits_next_to_a_boundary():
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(30, 300)).astype(np.float32)
    bias = rng.normal(size=30).astype(np.float32)
    samples = (rng.normal(size=(200, 300)) * np.exp(rng.normal(size=(200, 300)))).astype(np.float32)
    # Every sample is moved to within 1e-3 of the boundary between its two strongest classes.
    exact = samples.astype(np.float64) @ weights.T.astype(np.float64) + bias
    order = np.argsort(exact, axis=1)
    first, second = order[:, -1], order[:, -2]
    normals = weights[first].astype(np.float64) - weights[second]
    gaps = exact[np.arange(200), first] - exact[np.arange(200), second] - 1e-3
    samples = (samples - gaps[:, None] / np.sum(normals**2, axis=1)[:, None] * normals).astype(np.float32)
    exact = samples.astype(np.float64) @ weights.T.astype(np.float64) + bias
    exact -= exact.max(axis=1, keepdims=True)
    head = sj.Head(jnp.asarray(weights), jnp.asarray(bias))
    found = np.asarray(jax.jit(relative_logits)(head, jnp.asarray(samples)), np.float64)
    away = exact < -1e-6
    assert np.sort(-exact, axis=1)[:, 1].max() < 1e-2
    np.testing.assert_allclose(found[away], exact[away], rtol=2e-4)
    plain = np.asarray(sj.head_logits(head, jnp.asarray(samples)), np.float64)
    plain -= plain.max(axis=1, keepdims=True)
    error, before = (np.max(np.abs(each - exact)) for each in (found, plain))
    assert error < before / 4


def test_one_compilation_a_shape_whatever_the_margin():
    traces = []

    @jax.jit
    def solve(head, attributes, margin):
        traces.append(1)
        return sj.all_pairs_projection(head, attributes, margin=margin).norms

    head, attributes = random_problem(5, 4, 3)
    for margin in (0.0, 0.1, 0.2):
        solve(head, attributes, jnp.float32(margin))
    solve(sj.Head(2 * head.weights), attributes + 1, jnp.float32(0.1))
    assert len(traces) == 1


def test_devices_that_solve_their_own_rows_agree_with_one():
    head, attributes = random_problem(7, 5, 8)
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    rows = PartitionSpec("rows")
    solve = functools.partial(sj.all_pairs_norms, margin=0.1)
    spread = jax.jit(jax.shard_map(solve, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows))
    np.testing.assert_allclose(spread(head, attributes), jax.jit(solve)(head, attributes), rtol=1e-6)


@pytest.mark.parametrize("num_classes", [30, 120])
def test_float32_is_right_where_neighbours_nearly_coincide(num_classes):
    """Class directions around a circle: most of the dual sum cancels."""
    angles = 2 * np.pi * np.arange(num_classes) / num_classes
    weights = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    samples = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    found = np.asarray(sj.all_pairs_norms(sj.Head(jnp.asarray(weights)), jnp.asarray(samples)), np.float64)
    expected = region_distances(sj.Head(weights), samples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_no_samples_have_no_norms():
    head, attributes = random_problem(5, 4, 0)
    assert sj.all_pairs_norms(head, attributes).shape == (0, 5)


def test_plainly_empty_regions_are_proven_so_in_float64(x64):
    # 300 directions of the plane: nearly all classes lie inside the hull of the others and never win by a margin.
    rng = np.random.default_rng(1)
    weights, samples = rng.normal(size=(300, 2)), rng.normal(size=(3, 2))
    found = jax.jit(sj.all_pairs_projection)(sj.Head(jnp.asarray(weights)), jnp.asarray(samples), margin=0.1)
    norms, residual = np.asarray(found.norms), np.asarray(found.kkt_residual)
    assert not np.isnan(norms).any() and np.isinf(norms).sum() > 800
    assert residual[np.isinf(norms)].max() < 1e-10
