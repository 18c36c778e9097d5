"""The four counterfactuals against independent oracles: SciPy NNLS, NumPy, brute force and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import region_distances

import spectra_jax as sj

pytestmark = pytest.mark.usefixtures("x64")


def random_problem(seed, num_samples, num_classes, num_attributes, bias=False):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(num_classes, num_attributes))
    offsets = rng.normal(size=num_classes) if bias else None
    head = sj.Head(jnp.asarray(weights), None if offsets is None else jnp.asarray(offsets))
    return head, jnp.asarray(rng.normal(size=(num_samples, num_attributes)))


def class_indices(head):
    return jnp.arange(head.weights.shape[0], dtype=jnp.int32)


def per_pair(function, head, attributes):
    """function(attributes_of_one, target) for all pairs."""
    return jax.jit(jax.vmap(jax.vmap(function, (None, 0)), (0, None)))(attributes, class_indices(head))


# Compiled once per shape and shared by the tests: the margin is an argument, not a constant.
@jax.jit
def project_all(head, attributes, margin):
    one = lambda e, j: sj.projection_perturbation(head, e, j, margin=margin)  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(attributes, class_indices(head))


@jax.jit
def project_norms(head, attributes, margin):
    return sj.all_pairs_norms(head, attributes, margin=margin)


project_one = jax.jit(sj.projection_perturbation)


@functools.partial(jax.jit, static_argnames="methods")
def norms_by(head, attributes, *, methods=("boundary", "projection", "pinv")):
    return {method: sj.all_pairs_norms(head, attributes, method=method) for method in methods}


def degenerate_heads():
    rng = np.random.default_rng(7)
    repeated = rng.normal(size=(12, 20))
    repeated[5], repeated[7], repeated[9] = repeated[3], 2 * repeated[2], 0
    plane = rng.normal(size=(30, 2))
    return {
        "random": (rng.normal(size=(12, 20)), None),
        "bias": (rng.normal(size=(12, 20)), rng.normal(size=12)),
        "more classes than attributes": (rng.normal(size=(24, 6)), np.zeros(24)),
        "more classes than attributes, bias": (rng.normal(size=(24, 6)), rng.normal(size=24)),
        "duplicate, collinear and zero rows": (repeated, None),
        "duplicate rows, bias": (repeated, 0.1 * rng.normal(size=12)),
        "tiny scale": (1e-4 * rng.normal(size=(12, 20)), None),
        "huge scale": (1e5 * rng.normal(size=(12, 20)), None),
        "two classes": (rng.normal(size=(2, 20)), None),
        "one attribute": (rng.normal(size=(6, 1)), rng.normal(size=6)),
        "two attributes, empty regions": (plane, 0.5 * rng.normal(size=30)),
        "simplex": (np.eye(12, 20) - 1 / 12, None),
        # integers, so that the rank is 4 in float32 too
        "low rank": (rng.integers(-3, 4, size=(12, 4)) @ rng.integers(-3, 4, size=(4, 20)) / 4, None),
        "common offset": (rng.normal(size=(12, 20)) + 100 * rng.normal(size=20), None),
        "integers, ties": (np.sign(rng.normal(size=(12, 20))), None),
        "more active rivals than the usual working set": (
            np.eye(40, 38) + 0.02 * rng.normal(size=(40, 38)),
            5.0 * (np.arange(40) < 38),
        ),
    }


@pytest.mark.parametrize("name", degenerate_heads())
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_projection_equals_the_nnls_oracle(name, margin):
    weights, bias = degenerate_heads()[name]
    head = sj.Head(jnp.asarray(weights), None if bias is None else jnp.asarray(bias))
    attributes = jnp.asarray(np.random.default_rng(1).normal(size=(2, weights.shape[1])))
    margin = margin * float(np.abs(weights).max())
    result = project_all(head, attributes, margin)
    expected = region_distances(head, attributes, margin)
    np.testing.assert_array_equal(result.feasible, np.isfinite(expected))
    np.testing.assert_allclose(result.norm, expected, rtol=1e-8, atol=1e-9 * np.abs(expected[expected < np.inf]).max())
    assert np.all(np.asarray(result.kkt_residual) < 1e-9)
    # the sweep gives the same numbers, with the predicted class set to 0
    norms = np.array(project_norms(head, attributes, margin))
    predicted = np.argmax(np.asarray(sj.head_logits(head, attributes)), axis=1)
    expected[np.arange(2), predicted] = 0
    np.testing.assert_allclose(norms, expected, rtol=1e-8, atol=1e-9 * np.abs(expected[expected < np.inf]).max())


def test_projected_point_is_classified_as_the_target():
    head, attributes = random_problem(0, 2, 12, 20)
    result = project_all(head, attributes, 1e-3)
    reached = jnp.argmax(sj.head_logits(head, attributes[:, None, :] + result.delta), axis=-1)
    np.testing.assert_array_equal(reached, np.broadcast_to(class_indices(head), reached.shape))


def test_infeasible_target_comes_with_a_certificate():
    weights = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # class 2 lies between the others: it can only tie
    head = sj.Head(jnp.asarray(weights))
    result = project_one(head, jnp.asarray([1.0, 1.0]), 2, margin=0.1)
    assert not result.feasible and np.isinf(result.norm) and np.all(np.isinf(result.delta))
    multipliers = np.asarray(result.multipliers)
    assert np.all(multipliers >= 0) and multipliers.sum() > 0
    np.testing.assert_allclose(multipliers @ (weights[2] - weights), 0, atol=1e-12)
    gaps = weights @ [1, 1] - weights[2] @ [1, 1] + 0.1
    assert multipliers[:2] @ gaps[:2] > 0
    tie = project_one(head, jnp.asarray([1.0, 1.0]), 2, margin=0.0)
    assert tie.feasible and tie.norm == pytest.approx(1.0)


def test_immutable_attributes_do_not_move_and_the_rest_is_optimal():
    head, attributes = random_problem(3, 2, 10, 20, bias=True)
    mutable = np.arange(20) % 3 != 0
    solve = lambda e, j: sj.projection_perturbation(head, e, j, mutable=jnp.asarray(mutable))  # noqa: E731
    result = per_pair(solve, head, attributes)
    np.testing.assert_array_equal(np.asarray(result.delta)[..., ~mutable], 0)
    np.testing.assert_allclose(result.norm, region_distances(head, attributes, 0.0, mutable), rtol=1e-9, atol=1e-12)


def test_target_that_already_wins_needs_no_change_and_a_larger_margin_does():
    head, attributes = random_problem(4, 2, 12, 20)
    sample = attributes[0]
    predicted = int(jnp.argmax(sj.head_logits(head, sample)))
    assert project_all(head, attributes, 0.0).norm[0, predicted] == 0
    assert project_all(head, attributes, 100.0).norm[0, predicted] > 0


@pytest.mark.parametrize("bias", [False, True])
def test_order_of_norms_and_equality_of_the_minima(bias):
    head, attributes = random_problem(5, 6, 40, 60, bias=bias)
    norms = {method: np.array(found) for method, found in norms_by(head, attributes).items()}
    slack = 1e-8 * norms["pinv"].max()
    assert np.all(norms["boundary"] <= norms["projection"] + slack)
    assert np.all(norms["projection"] <= norms["pinv"] + slack)
    others = norms["boundary"] > 0
    nearest = {key: np.where(others, value, np.inf).min(axis=1) for key, value in norms.items()}
    np.testing.assert_allclose(nearest["boundary"], nearest["projection"], rtol=1e-8)


def test_boundary_reaches_a_tie_with_the_predicted_class():
    head, attributes = random_problem(6, 3, 12, 20, bias=True)
    deltas = per_pair(lambda e, j: sj.boundary_perturbation(head, e, j, margin=0.25), head, attributes)
    logits = sj.head_logits(head, attributes)
    predicted = jnp.argmax(logits, axis=-1)
    after = sj.head_logits(head, attributes[:, None, :] + deltas)
    for sample in range(3):
        for target in range(12):
            if target != predicted[sample]:
                lead = after[sample, target, target] - after[sample, target, predicted[sample]]
                assert lead == pytest.approx(0.25, abs=1e-9)
    np.testing.assert_allclose(
        jnp.where(jnp.arange(12)[None, :] == predicted[:, None], 0, jnp.linalg.norm(deltas, axis=-1)),
        sj.all_pairs_norms(head, attributes, method="boundary", margin=0.25),
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("shape", "bias", "margin"),
    [
        ((12, 20), False, 0.0),
        ((12, 20), True, 0.5),
        ((20, 6), False, 0.0),
        ((20, 6), True, 0.0),
        ((20, 6), False, 0.5),
    ],
)
def test_pinv_equals_numpy_per_pair_and_the_shared_factorisation(shape, bias, margin):
    head, attributes = random_problem(8, 3, *shape, bias=bias)
    deltas = per_pair(lambda e, j: sj.pinv_perturbation(head, e, j, margin=margin), head, attributes)
    weights, logits = np.asarray(head.weights), np.asarray(sj.head_logits(head, attributes))
    for sample in range(3):
        for target in range(shape[0]):
            global_weights = np.delete(weights[target] - weights, target, axis=0)
            global_gaps = np.delete(logits[sample] - logits[sample, target] + margin, target)
            expected = np.linalg.pinv(global_weights) @ global_gaps
            np.testing.assert_allclose(deltas[sample, target], expected, atol=1e-10)
    norms = np.linalg.norm(deltas, axis=-1)
    norms[np.arange(3), logits.argmax(axis=1)] = 0
    np.testing.assert_allclose(
        sj.all_pairs_norms(head, attributes, method="pinv", margin=margin), norms, rtol=1e-10, atol=1e-10
    )


def test_without_an_exact_tie_pinv_bounds_nothing():
    head, attributes = random_problem(18, 4, 20, 3, bias=True)  # c - 1 > n with a bias: inconsistent equations
    delta = per_pair(lambda e, j: sj.pinv_perturbation(head, e, j), head, attributes)
    after = sj.head_logits(head, attributes[:, None, :] + delta)
    assert float(jnp.min(jnp.ptp(after, axis=-1))) > 0.1  # no tie
    norms = {method: np.array(found) for method, found in norms_by(head, attributes).items()}
    finite = np.isfinite(norms["projection"])
    assert np.any(norms["pinv"][finite] < norms["projection"][finite] - 1e-6)
    assert np.all(norms["boundary"][finite] <= norms["projection"][finite] + 1e-9)
    assert np.all(np.isfinite(norms["pinv"])) and not finite.all()


def test_pinv_norms_with_logits_that_are_not_the_heads_own():
    head, attributes = random_problem(16, 2, 9, 4)
    free = jnp.asarray(np.random.default_rng(17).normal(size=(2, 9)))
    weights, logits = np.asarray(head.weights), np.asarray(free)
    expected = np.zeros((2, 9))
    for sample in range(2):
        for target in range(9):
            gaps = logits[sample] - logits[sample, target]
            expected[sample, target] = np.linalg.norm(np.linalg.pinv(weights[target] - weights) @ gaps)
    expected[np.arange(2), logits.argmax(axis=1)] = 0
    np.testing.assert_allclose(sj.all_pairs_norms(head, attributes, method="pinv", logits=free), expected, atol=1e-10)


def test_pinv_is_one_tie_for_all_targets_and_minus_e_at_full_rank():
    head, attributes = random_problem(9, 2, 15, 30)
    deltas = per_pair(lambda e, j: sj.pinv_perturbation(head, e, j), head, attributes)
    centring = np.eye(15) - 1 / 15
    weights, logits = np.asarray(head.weights), np.asarray(sj.head_logits(head, attributes))
    expected = -(np.linalg.pinv(centring @ weights) @ centring @ logits.T).T
    np.testing.assert_allclose(deltas, np.broadcast_to(expected[:, None], deltas.shape), atol=1e-8)
    tie = sj.head_logits(head, attributes[:, None, :] + deltas)
    np.testing.assert_allclose(tie, np.broadcast_to(tie.mean(-1, keepdims=True), tie.shape), atol=1e-8)
    tall, samples = random_problem(10, 2, 30, 12)  # rank(C W) = n: the answer is to erase the sample
    erased = per_pair(lambda e, j: sj.pinv_perturbation(tall, e, j), tall, samples)
    np.testing.assert_allclose(erased, np.broadcast_to(-samples[:, None], erased.shape), atol=1e-8)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_single_attribute_intervals_against_a_fine_grid(margin):
    head, attributes = random_problem(11, 1, 6, 8)
    sample = attributes[0]
    grid = np.linspace(-30, 30, 24_001)
    for target in range(6):
        result = sj.single_attribute_perturbations(head, sample, target, margin=margin)
        for f in range(8):
            logits = np.asarray(head.weights) @ (np.asarray(sample)[:, None] + np.eye(8)[f][:, None] * grid)
            lead = logits[target] - np.delete(logits, target, axis=0).max(axis=0)
            wins = grid[lead >= margin]
            inside = (grid > float(result.lower[f])) & (grid < float(result.upper[f]))
            if not result.feasible[f]:
                assert wins.size == 0 and np.isinf(result.delta[f])
            else:
                np.testing.assert_array_equal(grid[inside], wins)
                if wins.size:
                    assert abs(float(result.delta[f])) == pytest.approx(np.abs(wins).min(), abs=5e-3)
                at_delta = np.asarray(head.weights) @ (np.asarray(sample) + np.eye(8)[f] * float(result.delta[f]))
                assert at_delta[target] - np.delete(at_delta, target).max() >= margin - 1e-9


def test_equal_rows_tie_for_ever():
    weights = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    sample = jnp.asarray([1.0, 1.0])
    head = sj.Head(weights)
    assert project_one(head, sample, 1, margin=0.0).norm == 0
    assert not project_one(head, sample, 1, margin=1e-6).feasible
    assert np.all(np.isinf(sj.boundary_perturbation(head, sample, 1, margin=1e-6)))
    assert not sj.single_attribute_perturbations(head, sample, 1, margin=1e-6).feasible.any()
    assert sj.all_pairs_norms(head, sample[None], method="boundary")[0, 1] == 0


def test_scaling_the_weights_or_the_sample_scales_the_answer():
    head, attributes = random_problem(13, 2, 12, 20)
    norms = project_norms(head, attributes, 0.0)
    tiny = sj.Head(head.weights * 1e-4)
    np.testing.assert_allclose(project_norms(tiny, attributes, 0.0), norms, rtol=1e-9)
    np.testing.assert_allclose(project_norms(head, 1e5 * attributes, 0.0), 1e5 * norms, rtol=1e-9)


def test_float32_agrees_with_float64():
    head, attributes = random_problem(14, 6, 40, 60)
    small = sj.Head(head.weights.astype(jnp.float32))
    exact = sj.Head(small.weights.astype(jnp.float64))
    samples = attributes.astype(jnp.float32)
    single, double = norms_by(small, samples), norms_by(exact, samples.astype(jnp.float64))
    for method, norms in single.items():
        assert norms.dtype == jnp.float32
        np.testing.assert_allclose(norms, double[method], rtol=2e-5)
    assert np.max(project_all(small, samples, jnp.float32(0)).kkt_residual) < 1e-5


@pytest.mark.parametrize("name", degenerate_heads())
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_float32_is_right_on_degenerate_heads(name, margin):
    weights, bias = degenerate_heads()[name]
    # The oracle solves the rounded problem, so that only the solver's own error is seen.
    single = sj.Head(jnp.asarray(weights, jnp.float32), None if bias is None else jnp.asarray(bias, jnp.float32))
    attributes = jnp.asarray(np.random.default_rng(1).normal(size=(2, weights.shape[1])), jnp.float32)
    margin = float(np.float32(margin * np.abs(weights).max()))
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), single)
    expected = region_distances(exact, np.asarray(attributes, np.float64), margin)
    # What one rounding of the weights does to the answer: where that is much, float32 cannot do better.
    nudge = np.random.default_rng(2).choice([-1, 1], size=weights.shape) * np.finfo(np.float32).eps
    nudged = region_distances(
        exact._replace(weights=exact.weights * (1 + nudge)), np.asarray(attributes, np.float64), margin
    )
    finite = np.isfinite(expected) & np.isfinite(nudged)
    shift = np.abs(np.where(finite, nudged, 0) - np.where(finite, expected, 0))
    allowed = 30 * shift + 2e-5 * expected[finite].max()
    result = project_all(single, attributes, jnp.float32(margin))
    norms = np.array(project_norms(single, attributes, jnp.float32(margin)))
    predicted = np.argmax(np.asarray(sj.head_logits(single, attributes)), axis=1)
    norms[np.arange(2), predicted] = np.asarray(result.norm)[np.arange(2), predicted]
    for found in (np.asarray(result.norm), norms):
        assert not np.isnan(found).any()
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        assert np.all(np.abs(found[finite] - expected[finite]) <= allowed[finite])


@pytest.mark.parametrize("masked", [-1e5, -1e6, -1e9, -np.inf])
def test_one_masked_class_does_not_blur_the_others(masked):
    rng = np.random.default_rng(19)
    weights, bias = rng.normal(size=(10, 12)).astype(np.float32), np.zeros(10, np.float32)
    attributes = jnp.asarray(rng.normal(size=(6, 12)), jnp.float32)
    bias[3] = masked
    with_mask = project_norms(sj.Head(jnp.asarray(weights), jnp.asarray(bias)), attributes, jnp.float32(0.05))
    others = np.delete(np.arange(10), 3)
    without = project_norms(
        sj.Head(jnp.asarray(weights[others]), jnp.asarray(bias[others])), attributes, jnp.float32(0.05)
    )
    np.testing.assert_allclose(np.asarray(with_mask)[:, others], without, rtol=1e-5, atol=1e-6)


def test_a_nan_is_never_answered_with_a_number():
    head, attributes = random_problem(20, 2, 12, 20)
    broken = attributes.at[0, 3].set(jnp.nan)
    for method in ("boundary", "projection", "pinv"):
        with pytest.raises(ValueError, match="NaN"):
            sj.all_pairs_norms(head, broken, method=method)
    for norms in (project_norms(head, broken, 0.0), *norms_by(head, broken, methods=("boundary", "pinv")).values()):
        assert np.isnan(norms[0]).sum() >= 11 and np.isfinite(norms[1]).all()
    result = project_all(head, broken, 0.1)
    assert np.isnan(result.norm[0]).all() and not result.feasible[0].any()
    delta, attribute = jax.jit(sj.best_single_attributes)(head, broken)
    assert not np.isfinite(delta[0]).any() and np.all(np.asarray(attribute)[0] == -1)


def test_numpy_arrays_are_welcome():
    head, attributes = random_problem(21, 2, 5, 7)
    plain = sj.Head(np.asarray(head.weights))
    expected = project_norms(head, attributes, 0.0)
    np.testing.assert_allclose(sj.all_pairs_norms(plain, np.asarray(attributes)), expected)
    assert sj.projection_perturbation(plain, np.asarray(attributes)[0], np.int64(2)).feasible
