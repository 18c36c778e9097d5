"""Ranges, few changes and one-hot groups: each against brute force, none silently ignored."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import constraints_of, nearest_point

import spectra_jax as sj

C, N, B = 9, 7, 6  # one shape for most tests, so that little has to be compiled

box = jax.jit(
    jax.vmap(
        lambda head, e, j, low, high, margin, mutable: sj.box_perturbation(
            head, e, j, lower=low, upper=high, margin=margin, mutable=mutable
        ),
        (None, 0, 0, 0, 0, None, None),
    )
)
one_hot = jax.jit(
    jax.vmap(
        lambda head, e, j, groups, threshold, margin, mutable: sj.one_hot_perturbation(
            head, e, j, groups=groups, threshold=threshold, margin=margin, mutable=mutable
        ),
        (None, 0, 0, None, None, None, None),
    )
)


@functools.cache
def sparse(count):
    solve = functools.partial(sj.sparse_perturbation, max_changes=count)
    return jax.jit(
        jax.vmap(
            lambda head, e, j, margin, mutable: solve(head, e, j, margin=margin, mutable=mutable),
            (None, 0, 0, None, None),
        )
    )


def draw(seed, num_classes=C, num_attributes=N, num_samples=B):
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(num_classes, num_attributes)), rng.normal(size=num_classes)
    attributes = rng.normal(size=(num_samples, num_attributes))
    return weights, bias, attributes, rng.integers(0, num_classes, num_samples).astype(np.int32)


def as_head(weights, bias):
    return sj.Head(jnp.asarray(weights), jnp.asarray(bias))


def shortest_in(weights, bias, sample, target, margin, low, high, mutable=None):
    """The shortest change within ranges of the attributes, spelt out as constraints, and its length."""
    mutable = np.ones(len(sample), bool) if mutable is None else np.asarray(mutable)
    if np.any(~mutable & ((sample < low) | (sample > high))):
        return np.full(len(sample), np.inf), np.inf
    normals, offsets = constraints_of(weights, bias, sample, target, margin)
    unit = np.eye(len(sample))
    normals, offsets = np.vstack([normals, unit, -unit]), np.concatenate([offsets, low - sample, sample - high])
    delta, norm = nearest_point(normals[:, mutable], offsets)
    whole = np.zeros(len(sample)) if np.isfinite(norm) else np.full(len(sample), np.inf)
    whole[mutable] = delta
    return whole, norm


def ranges(seed, attributes, width):
    rng = np.random.default_rng(seed)
    low = attributes - width * rng.uniform(-0.1, 1, size=attributes.shape)  # some samples start outside
    high = np.maximum(attributes + width * rng.uniform(-0.1, 1, size=attributes.shape), low)
    low[:, 0], high[:, 1], low[:, 2], high[:, 2] = -np.inf, np.inf, -np.inf, np.inf
    high[0, 3] = low[0, 3]  # a range of one point
    return low, high


def proves_empty(weights, bias, sample, target, margin, low, high, mutable, result, i):
    """Farkas: the weighted rows cancel on what may change, and yet they add up to more than 0 >= 0."""
    multipliers, held = np.asarray(result.multipliers[i]), np.asarray(result.bound_multipliers[i])
    logits = weights @ sample + bias
    rows, gaps = weights[target] - weights, logits - logits[target] + margin
    assert np.all(multipliers >= 0) and multipliers[target] == 0
    terms = multipliers @ np.linalg.norm(rows, axis=1)
    left = np.linalg.norm((multipliers @ rows + held)[mutable])
    np.testing.assert_allclose(result.kkt_residual[i], left / (terms or 1), atol=1e-12)
    assert result.kkt_residual[i] <= 1e-6  # attributes without an end are cancelled, those with one leant on
    ends = np.where(held > 0, low - sample, high - sample)
    # An immutable attribute stays where it is; one within its range may be leant on at 0.
    ends = np.where(mutable | (np.abs(held) == 1) & ((sample < low) | (sample > high)), ends, 0)
    assert multipliers @ np.where(multipliers > 0, gaps, 0) + held[held != 0] @ ends[held != 0] > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_ranges_give_the_projection_onto_everything_at_once(seed, width):
    weights, bias, attributes, targets = draw(seed)
    low, high = ranges(seed, attributes, width)
    mutable = np.arange(N) != 4 if seed % 2 else np.ones(N, bool)
    result = box(as_head(weights, bias), attributes, targets, low, high, 0.2, mutable)
    for i in range(B):
        delta, norm = shortest_in(weights, bias, attributes[i], targets[i], 0.2, low[i], high[i], mutable)
        assert bool(result.feasible[i]) == np.isfinite(norm)
        if not np.isfinite(norm):
            assert result.norm[i] == np.inf and np.all(np.isinf(result.delta[i]))
            proves_empty(weights, bias, attributes[i], targets[i], 0.2, low[i], high[i], mutable, result, i)
            continue
        np.testing.assert_allclose(result.norm[i], norm, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(result.delta[i], delta, atol=1e-8)
        after = attributes[i] + np.asarray(result.delta[i])
        assert np.all(after >= low[i] - 1e-12) and np.all(after <= high[i] + 1e-12)
        assert np.all(np.asarray(result.delta[i])[~mutable] == 0)
        logits = weights @ after + bias
        assert logits[targets[i]] - np.delete(logits, targets[i]).max() >= 0.2 - 1e-9
        # The evidence: multipliers and bound multipliers add up to delta, and tell which constraints bind.
        rows = weights[targets[i]] - weights
        held = np.asarray(result.bound_multipliers[i])
        rebuilt = np.asarray(result.multipliers[i]) @ rows + held
        np.testing.assert_allclose(np.where(mutable, rebuilt, 0), result.delta[i], atol=1e-9)
        assert np.all(np.asarray(result.multipliers[i]) >= -1e-12)
        np.testing.assert_allclose(after[mutable & (held > 1e-9)], low[i][mutable & (held > 1e-9)])
        np.testing.assert_allclose(after[mutable & (held < -1e-9)], high[i][mutable & (held < -1e-9)])
        assert result.kkt_residual[i] < 1e-10


@pytest.mark.usefixtures("x64")
def test_an_immutable_attribute_outside_its_range_is_the_evidence():
    weights, bias, attributes, targets = draw(23)
    low, high = attributes - 1.0, attributes + 1.0
    low[:, 2], high[:, 4] = attributes[:, 2] + 0.5, attributes[:, 4] - 0.5
    high[:, 2], low[:, 4] = np.inf, -np.inf
    mutable = ~np.isin(np.arange(N), [2, 4, 5])
    result = box(as_head(weights, bias), attributes, targets, low, high, 0.0, mutable)
    assert not result.feasible.any() and np.all(np.isinf(result.norm))
    np.testing.assert_array_equal(result.multipliers, 0)
    np.testing.assert_array_equal(result.bound_multipliers, np.tile([0, 0, 1, 0, -1, 0, 0], (B, 1)))
    np.testing.assert_array_equal(result.kkt_residual, 0)


def test_a_large_sample_is_no_excuse_for_a_wrong_change():
    # An attribute that no class looks at, and a small change beside it: its size must not cover up an error.
    weights, bias, attributes, targets = draw(24)
    weights[:, 0], attributes[:, 0] = 0, 3e5
    single = [np.float32(x) for x in (weights, bias, attributes)]
    low, high = single[2] - np.float32(0.5), single[2] + np.float32(0.5)
    result = box(as_head(*single[:2]), single[2], targets, low, high, np.float32(0.0), np.ones(N, bool))
    double = [np.float64(x) for x in single]
    told = 0
    for i in range(B):
        _, norm = shortest_in(*double[:2], double[2][i], targets[i], 0.0, np.float64(low[i]), np.float64(high[i]))
        if not np.isnan(result.norm[i]):
            np.testing.assert_allclose(result.norm[i], norm, rtol=2e-3, atol=1e-6)
            told += 1
    assert told >= B - 1


@pytest.mark.usefixtures("x64")
def test_without_ends_it_is_the_projection():
    weights, bias, attributes, targets = draw(20)
    open_end = np.full((B, N), np.inf)
    result = box(as_head(weights, bias), attributes, targets, -open_end, open_end, 0.1, np.ones(N, bool))
    solve = jax.jit(jax.vmap(functools.partial(sj.projection_perturbation, margin=0.1), (None, 0, 0)))
    expected = solve(as_head(weights, bias), jnp.asarray(attributes), jnp.asarray(targets))
    np.testing.assert_array_equal(result.feasible, expected.feasible)
    np.testing.assert_allclose(result.norm, expected.norm, rtol=1e-9)
    np.testing.assert_array_equal(result.bound_multipliers[expected.feasible], 0)


def test_ranges_in_float32_and_on_a_wide_head():
    weights, bias, attributes, targets = draw(21, 60, 80, 4)
    low, high = ranges(21, attributes, 0.4)
    single = [np.float32(x) for x in (weights, bias, attributes, low, high)]
    result = box(as_head(*single[:2]), single[2], targets, *single[3:], np.float32(0.1), np.ones(80, bool))
    assert result.norm.dtype == jnp.float32
    double = [np.float64(x) for x in single]
    for i in range(4):
        _, norm = shortest_in(*double[:2], double[2][i], targets[i], 0.1, double[3][i], double[4][i])
        assert bool(result.feasible[i]) == np.isfinite(norm)
        np.testing.assert_allclose(result.norm[i], norm, rtol=1e-5)
        assert not result.feasible[i] or result.kkt_residual[i] < 1e-5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_ranges_on_degenerate_heads(margin):
    rng = np.random.default_rng(22)
    weights = rng.integers(-1, 2, size=(C, N)).astype(float)
    weights[3], weights[4] = weights[2], 0
    bias, attributes = np.zeros(C), rng.integers(-1, 2, size=(B, N)).astype(float)
    low, high = attributes - 1.0, attributes + 2.0
    for targets in (np.arange(6, dtype=np.int32), np.full(6, 3, np.int32)):
        result = box(as_head(weights, bias), attributes, targets, low, high, margin, np.ones(N, bool))
        for i in range(B):
            _, norm = shortest_in(weights, bias, attributes[i], targets[i], margin, low[i], high[i])
            assert bool(result.feasible[i]) == np.isfinite(norm)
            np.testing.assert_allclose(result.norm[i], norm, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_derivatives_with_ranges():
    weights, bias, attributes, targets = draw(2)
    low, high = ranges(2, attributes, 1.0)
    plain = np.ones(N, bool)
    start = box(as_head(weights, bias), attributes, targets, low, high, 0.2, plain)
    index = int(np.flatnonzero(np.asarray(start.feasible) & np.any(np.abs(start.bound_multipliers) > 1e-3, axis=1))[0])
    ends = np.isfinite(low[index]), np.isfinite(high[index])
    rng = np.random.default_rng(3)
    cotangent = jnp.asarray(rng.normal(size=N))
    pick = slice(index, index + 1)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=tuple(range(6)))
    def scalar(weights, bias, e, low, high, margin):
        result = box(sj.Head(weights, bias), e[None], targets[pick], low[None], high[None], margin, plain)
        return jnp.sum(cotangent * result.delta[0]) + result.norm[0]

    point = tuple(map(jnp.float64, (weights, bias, attributes[index], low[index], high[index], 0.2)))
    direction = [jnp.asarray(rng.normal(size=np.shape(x))) for x in point]
    direction[3], direction[4] = (jnp.where(e, d, 0) for e, d in zip(ends, direction[3:5], strict=True))
    up, down = ([x + s * d for x, d in zip(point, direction, strict=True)] for s in (1e-6, -1e-6))
    slope = sum(jnp.sum(g * d) for g, d in zip(scalar(*point)[1], direction, strict=True))
    np.testing.assert_allclose(slope, (scalar(*up)[0] - scalar(*down)[0]) / 2e-6, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count", [1, 2, N])
def test_few_changes_against_every_set_of_attributes(count):
    exact, total = 0, 0
    for seed in range(4):
        weights, bias, attributes, targets = draw(30 + seed)
        mutable = np.arange(N) != 2 if seed % 2 else np.ones(N, bool)
        result = sparse(count)(as_head(weights, bias), attributes, targets, 0.1, mutable)
        for i in range(B):
            best = np.inf
            for chosen in itertools.combinations(np.flatnonzero(mutable), min(count, mutable.sum())):
                only = np.isin(np.arange(N), chosen)
                free = np.full(N, np.inf)
                best = min(best, shortest_in(weights, bias, attributes[i], targets[i], 0.1, -free, free, only)[1])
            norm, bound, delta = float(result.norm[i]), float(result.lower_bound[i]), np.asarray(result.delta[i])
            assert bound <= best * (1 + 1e-9) + 1e-12  # the bound is one
            if not np.isfinite(best):
                assert not result.feasible[i] and (norm == np.inf) == bool(result.proven[i])
                continue
            assert result.feasible[i] and norm >= best * (1 - 1e-9)
            assert np.count_nonzero(delta) <= count and not delta[~mutable].any()
            assert not np.any((delta != 0) & ~np.asarray(result.chosen[i]))
            logits = weights @ (attributes[i] + delta) + bias
            assert logits[targets[i]] - np.delete(logits, targets[i]).max() >= 0.1 - 1e-9
            assert not result.proven[i] or norm == pytest.approx(best, rel=1e-7, abs=1e-12)
            exact, total = exact + (norm <= best * (1 + 1e-8) + 1e-12), total + 1
    assert total >= 12 and exact / total >= (0.9 if count == 2 else 1)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_few_changes():
    weights, bias, attributes, targets = draw(31)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    def norm(weights, bias, e, margin, target):
        return sparse(2)(sj.Head(weights, bias), e[None], target[None], margin, np.ones(N, bool)).norm[0]

    rows = (tuple(map(jnp.float64, (weights, bias, e, 0.1))) for e in attributes)
    point, target = next((p, j) for p, j in zip(rows, targets, strict=True) if 0.1 < norm(*p, j)[0] < np.inf)
    direction = [jnp.asarray(np.random.default_rng(5).normal(size=np.shape(x))) for x in point]
    up, down = ([x + s * d for x, d in zip(point, direction, strict=True)] for s in (1e-6, -1e-6))
    slope = sum(jnp.sum(g * d) for g, d in zip(norm(*point, target)[1], direction, strict=True))
    np.testing.assert_allclose(slope, (norm(*up, target)[0] - norm(*down, target)[0]) / 2e-6, rtol=1e-5)


GROUPS = np.array([0, 1, 0, -1, 1, 0, 1], np.int32)  # {0, 2, 5}, {1, 4, 6} and one attribute of its own


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_one_value_of_every_group_against_every_choice(threshold):
    exact, total = 0, 0
    for seed in range(5):
        weights, bias, attributes, targets = draw(40 + seed)
        mutable = np.arange(N) != 2 if seed % 2 else np.ones(N, bool)
        result = one_hot(as_head(weights, bias), attributes, targets, GROUPS, threshold, 0.1, mutable)
        for i in range(B):
            best = np.inf
            for choice in itertools.product(*(np.flatnonzero(g == GROUPS) for g in (0, 1))):
                on, grouped = np.isin(np.arange(N), choice), GROUPS >= 0
                low = np.where(on, threshold, -np.inf)
                high = np.where(grouped & ~on, -threshold, np.inf)
                args = weights, bias, attributes[i], targets[i], 0.1, low, high, mutable
                best = min(best, shortest_in(*args)[1])
            norm, bound, delta = float(result.norm[i]), float(result.lower_bound[i]), np.asarray(result.delta[i])
            assert bound <= best * (1 + 1e-9) + 1e-12
            if not np.isfinite(best):
                assert not result.feasible[i] and (norm == np.inf) == bool(result.proven[i])
                continue
            assert result.feasible[i] and norm >= best * (1 - 1e-9)
            after, active = attributes[i] + delta, np.asarray(result.chosen[i])
            assert not delta[~mutable].any() and not active[3]
            for g in (0, 1):
                members = g == GROUPS
                assert active[members].sum() == 1
                assert np.all(after[members & active] >= threshold - 1e-12)
                assert np.all(after[members & ~active] <= -threshold + 1e-12)
            logits = weights @ after + bias
            assert logits[targets[i]] - np.delete(logits, targets[i]).max() >= 0.1 - 1e-9
            assert not result.proven[i] or norm == pytest.approx(best, rel=1e-7, abs=1e-12)
            exact, total = exact + (norm <= best * (1 + 1e-8)), total + 1
    assert total >= 20 and exact / total >= 0.9


@pytest.mark.usefixtures("x64")
def test_a_group_that_cannot_be_put_in_order_has_no_answer():
    weights, bias, attributes, targets = draw(50)
    attributes[:, [0, 2]], attributes[1:, 2] = 1.0, -1.0
    frozen = np.isin(np.arange(N), [1, 3, 4, 5, 6])  # attributes 0 and 2 must stay: both on in the first sample
    result = one_hot(as_head(weights, bias), attributes, targets, GROUPS, 0.1, 0.0, frozen)
    assert not result.feasible[0] and result.norm[0] == np.inf and result.proven[0]
    assert np.all(np.asarray(result.chosen)[1:][np.asarray(result.feasible)[1:], 0])


@pytest.mark.usefixtures("x64")
def test_a_nan_is_never_answered_with_a_number():
    weights, bias, attributes, targets = draw(51)
    broken = attributes.copy()
    broken[0, 3] = np.nan
    head, plain = as_head(weights, bias), np.ones(N, bool)
    ends = np.full((B, N), 5.0)
    for result in (
        box(head, broken, targets, -ends, ends, 0.0, plain),
        sparse(2)(head, broken, targets, 0.0, plain),
        one_hot(head, broken, targets, GROUPS, 0.0, 0.0, plain),
    ):
        assert np.isnan(result.norm[0]) and np.isfinite(result.norm[1:]).any()
        np.testing.assert_array_equal(result.status == sj.Status.NOT_FINITE, np.arange(B) == 0)
        np.testing.assert_array_equal(result.feasible, np.isfinite(result.norm))


def test_ranges_under_jit_with_one_end_or_numpy_ends():
    weights, bias, attributes, _ = draw(21)
    head = as_head(weights.astype(np.float32), bias.astype(np.float32))
    e, low = attributes[0].astype(np.float32), attributes[0].astype(np.float32) - np.float32(0.1)
    solve = functools.partial(sj.box_perturbation, head, target=2, lower=low, margin=0.1)
    expected = shortest_in(np.float64(head.weights), np.float64(head.bias), np.float64(e), 2, 0.1, low, np.inf)[1]
    np.testing.assert_allclose(jax.jit(solve)(attributes=jnp.asarray(e)).norm, expected, rtol=1e-4)
    both = jax.eval_shape(functools.partial(solve, upper=e + 9), attributes=jnp.asarray(e))
    assert both.norm.shape == () and both.norm.dtype == jnp.float32
