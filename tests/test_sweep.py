"""A block of a sweep against the single solvers, on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax.sweep as sweep_module
from spectra_jax import Head, all_pairs_norms, attackability, head_logits, single_attribute_perturbations
from spectra_jax.sweep import SweepAnswers, make_sweep, sweep_block

METHODS = ("projection", "boundary", "pinv")


def problem(*, num_samples=11, num_classes=6, num_attributes=5, bias=True):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(num_classes, num_attributes)).astype(np.float32)
    head = Head(jnp.asarray(weights), jnp.asarray(rng.normal(size=num_classes), jnp.float32) if bias else None)
    return head, rng.normal(size=(num_samples, num_attributes)).astype(np.float32)


def solve(head, attributes, **options):
    """One program, as a sweep compiles it."""
    return jax.jit(lambda head, attributes: sweep_block(head, attributes, **options))(head, jnp.asarray(attributes))


def test_a_block_equals_the_solvers():
    head, attributes = problem()
    found = solve(head, attributes, methods=METHODS, deltas=True)
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    np.testing.assert_array_equal(found.samples.predicted, predicted)
    for method, pairs in zip(METHODS, found.pairs, strict=True):
        norms = all_pairs_norms(head, jnp.asarray(attributes), method=method)
        np.testing.assert_allclose(pairs.norm, norms, rtol=1e-4, atol=1e-6, err_msg=method)
        np.testing.assert_allclose(np.linalg.norm(pairs.delta, axis=-1), norms, rtol=1e-4, atol=1e-6, err_msg=method)
        assert pairs.feasible.all()
    projection, boundary, pinv = found.pairs
    np.testing.assert_array_equal(projection.active_constraints == 0, np.arange(6) == predicted[:, None])
    assert projection.active_constraints.max() > 1 and float(projection.residual.max()) < 1e-5
    np.testing.assert_array_equal(boundary.active_constraints, np.arange(6) != predicted[:, None])
    assert np.isnan(boundary.residual).all() and np.isnan(pinv.residual).all() and (pinv.active_constraints == -1).all()
    samples = found.samples
    ratios = attackability(head, jnp.asarray(attributes), method="projection")
    np.testing.assert_allclose(samples.attackability, ratios, rtol=1e-4)
    nearest = np.where(np.arange(6) == predicted[:, None], np.inf, projection.norm).argmin(axis=-1)
    np.testing.assert_array_equal(samples.nearest, nearest)
    np.testing.assert_allclose(samples.distance, np.asarray(projection.norm)[np.arange(11), nearest], rtol=1e-6)


@pytest.mark.parametrize("methods", [("projection",), ("boundary",)])
def test_with_a_margin_and_immutable_attributes_the_changes_keep_both(methods):
    head, attributes = problem()
    mutable, margin = np.array([True, False, True, True, True]), 0.25
    options = {"methods": methods, "margin": margin, "mutable": jnp.asarray(mutable), "deltas": True}
    found = solve(head, attributes, **options)
    (pairs,), predicted = found.pairs, np.asarray(found.samples.predicted)
    deltas, norms = np.asarray(pairs.delta), np.asarray(pairs.norm)
    assert np.isfinite(norms).all() and not deltas[..., 1].any()
    np.testing.assert_allclose(np.linalg.norm(deltas, axis=-1), norms, rtol=1e-4)
    logits = np.asarray(head_logits(head, jnp.asarray(attributes[:, None] + deltas)))
    for sample in range(len(attributes)):
        for target in range(6):
            if target != predicted[sample]:
                rivals = [predicted[sample]] if methods == ("boundary",) else [k for k in range(6) if k != target]
                lead = logits[sample, target, target] - logits[sample, target, rivals].max()
                np.testing.assert_allclose(lead, margin, atol=1e-4)
    assert (np.asarray(found.samples.single_attribute) != 1).all()
    assert (np.asarray(found.samples.largest_attribute) != 1).all()
    # The component that changes most, of the change to the nearest class.
    nearest = np.asarray(found.samples.nearest)
    change = deltas[np.arange(len(deltas)), nearest]
    np.testing.assert_array_equal(found.samples.largest_attribute, np.abs(change).argmax(axis=-1))
    np.testing.assert_allclose(found.samples.largest_delta, change[np.arange(len(change)), np.abs(change).argmax(-1)],
                               rtol=1e-3)  # fmt: skip


def test_the_single_attribute_is_the_cheapest_in_units_of_spread():
    head, attributes = problem()
    spread = np.array([1, 5, 0.2, 0, 2], np.float32)  # one attribute never varies: it has no unit
    samples = solve(head, attributes, methods=("boundary",), spread=jnp.asarray(spread)).samples
    for i, row in enumerate(attributes):
        delta = np.asarray(single_attribute_perturbations(head, jnp.asarray(row), samples.nearest[i]).delta)
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = np.where(spread > 0, np.abs(delta) / spread, np.inf)
        assert int(samples.single_attribute[i]) == (cost.argmin() if np.isfinite(cost).any() else -1)
        if np.isfinite(cost).any():
            np.testing.assert_allclose(samples.single_delta[i], delta[cost.argmin()], rtol=1e-5)


def test_targets_out_of_reach_are_infeasible_and_never_nearest():
    head, attributes = problem()
    twice = Head(jnp.concatenate([head.weights, head.weights[:1]]), jnp.append(head.bias, head.bias[0]))
    found = solve(twice, attributes, methods=("projection", "boundary"), margin=0.1, deltas=True)
    norms, predicted = np.asarray(found.pairs[0].norm), np.asarray(found.samples.predicted)
    twins = (predicted != 0)[:, None] & np.isin(np.arange(7), [0, 6])[None, :]
    assert twins.any() and np.isinf(norms[twins]).all() and not np.asarray(found.pairs[0].feasible)[twins].any()
    assert np.isinf(np.asarray(found.pairs[0].delta)[twins]).all()
    assert not np.isin(found.samples.nearest[predicted != 0], [0, 6]).any()
    alike = Head(jnp.ones((3, 5), jnp.float32), jnp.asarray([0, -1, -2], jnp.float32))
    lost = solve(alike, attributes, methods=("boundary",)).samples
    assert (lost.nearest == -1).all() and np.isinf(lost.distance).all() and not lost.attackability.any()
    assert (lost.single_attribute == -1).all() and np.isnan(lost.single_delta).all()
    assert (lost.largest_attribute == -1).all() and np.isnan(lost.largest_delta).all()


def assert_same(one: SweepAnswers, other: SweepAnswers) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (virtual) devices")
def test_four_devices_equal_one_and_each_shape_is_compiled_once(monkeypatch):
    head, attributes = problem(num_samples=29)
    traces = []

    def counted(head, attributes, **options):
        traces.append(attributes.shape)
        return sweep_block(head, attributes, **options)

    monkeypatch.setattr(sweep_module, "sweep_block", counted)
    spread = attributes.std(axis=0)
    told: list[int] = []
    options = {"rows_per_device": 3, "spread": spread, "methods": ("boundary", "pinv"), "deltas": True}
    four = make_sweep(head, devices=jax.devices()[:4], **options)
    found = four(attributes, on_rows=told.append)
    assert told == [12, 24, 29]
    again = four(attributes[:7])
    assert traces == [(3, 5)]  # one compilation: whole blocks, the last one and another number of rows alike
    one = make_sweep(head, devices=jax.devices()[:1], **options)
    assert_same(found, one(attributes))
    assert_same(again, jax.tree.map(lambda leaf: leaf[:7], found))
    assert traces == [(3, 5), (3, 5)]
    assert found.pairs[0].norm.shape == (29, 6) and isinstance(found.pairs[0].norm, np.ndarray)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (virtual) devices")
def test_what_is_solved_together_does_not_show():
    head, attributes = problem(num_samples=29)
    solve_rows = make_sweep(head, rows_per_device=3, devices=jax.devices()[:4])
    told: list[int] = []
    parts = attributes[:10], attributes[10:11], attributes[11:]
    whole = solve_rows(*parts, on_rows=told.append)
    assert told == [10, 20, 29]  # blocks of 3, 3, 3, 1 | 1, 3, 3, 3 | 3, 3, 3: none reaches over the end of its part
    alone = make_sweep(head, rows_per_device=3, devices=jax.devices()[:1])
    assert_same(whole, jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(alone, parts)))


def test_in_float64(x64):
    head, attributes = problem()
    head = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), head)
    found = make_sweep(head, rows_per_device=4, methods=("projection",))(attributes.astype(np.float64))
    assert found.pairs[0].norm.dtype == np.float64 and float(found.pairs[0].residual.max()) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "one or more different"),
        ({"methods": ("boundary", "boundary")}, "one or more different"),
        ({"methods": ("bound",)}, "expected one of 'boundary', 'pinv', 'projection'"),
        ({"methods": ("pinv",), "mutable": np.ones(5, bool)}, 'mutable is given with the method "pinv"'),
        ({"margin": -1.0}, "margin is -1"),
        ({"mutable": np.ones(4, bool)}, r"mutable has shape \(4,\)"),
    ],
)
def test_questions_that_have_no_answer_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        make_sweep(problem()[0], rows_per_device=4, **options)


def wedge():
    """Class 0 wins only in a wedge too thin to be told from an empty one; 1 and 2 are the same class twice."""
    weights = np.array([[0, 1e-9], [-1, 0], [-1, 0], [1, 0]], np.float32)
    samples = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    return Head(jnp.asarray(weights)), samples * np.sign(samples[:, 1:]) * np.array([[1, -1]], np.float32)


def test_an_unresolved_class_is_never_taken_for_unreachable():
    head, attributes = wedge()
    found = solve(head, attributes)
    assert np.isnan(found.pairs[0].norm).any()
    # Without a margin the nearest boundary is as far as the nearest projection, resolved or not.
    weights, exact = np.asarray(head.weights, np.float64), attributes.astype(np.float64)
    logits, own = exact @ weights.T, np.asarray(found.samples.predicted)
    gaps, apart = logits.max(axis=1)[:, None] - logits, np.linalg.norm(weights[own][:, None] - weights, axis=-1)
    boundaries = np.where(gaps > 0, gaps / np.where(apart > 0, apart, 1), 0)
    boundaries[np.arange(len(own)), own] = np.inf
    with np.errstate(divide="ignore"):  # the class that is there twice ties with itself
        expected = np.linalg.norm(exact, axis=1) / boundaries.min(axis=1)
    np.testing.assert_allclose(found.samples.attackability, expected, rtol=1e-4)
    with_margin = solve(head, attributes, methods=("projection",), margin=0.01)
    norms, samples = np.asarray(with_margin.pairs[0].norm), with_margin.samples
    others = np.arange(4) != np.asarray(samples.predicted)[:, None]
    bounds = np.asarray(all_pairs_norms(head, jnp.asarray(attributes), method="boundary", margin=0.01))
    known = np.where(others & ~np.isnan(norms), norms, np.inf).min(axis=1)
    nearer = (others & np.isnan(norms) & (bounds < known[:, None])).any(axis=1)
    assert nearer.any() and not nearer.all()
    np.testing.assert_array_equal(np.isnan(samples.distance), nearer)
    np.testing.assert_array_equal(np.isnan(samples.attackability), nearer)
    assert (np.asarray(samples.nearest)[nearer] == -1).all()
    np.testing.assert_array_equal(np.asarray(samples.distance)[~nearer], known[~nearer])
