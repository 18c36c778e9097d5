"""best_single_attributes against all intervals of all pairs computed the slow way, also on degenerate heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.perturbations import envelope
from spectra_jax.perturbations.geometry import relative_logits

pytestmark = pytest.mark.optimized

# The margin is known while tracing, or it is not: the two compile to different code.
best_known = jax.jit(sj.best_single_attributes, static_argnames=("margin",))
best = jax.jit(sj.best_single_attributes)


def slow(weights, bias, attributes, margin=0.0, scale=None, mutable=None):
    """Every interval of every (sample, target, attribute) from its definition, O(c^2 n) a sample, in NumPy."""
    weights = np.asarray(weights)
    logits = np.asarray(relative_logits(sj.Head(jnp.asarray(weights), bias), jnp.asarray(attributes)))
    unit = np.ones(weights.shape[1], weights.dtype) if scale is None else np.asarray(scale, weights.dtype)
    delta = np.full(logits.shape, np.inf, weights.dtype)
    attribute = np.full(logits.shape, -1)
    for sample, row in enumerate(logits):
        for target in range(len(weights)):
            gain = np.delete(weights[target] - weights, target, axis=0)
            ahead = np.delete(row - row[target] + weights.dtype.type(margin), target)[:, None]
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                t = ahead / gain
            lower = np.where(gain > 0, t, -np.inf).max(axis=0)
            upper = np.where(gain < 0, t, np.inf).min(axis=0)
            feasible = (lower <= upper) & ~((gain == 0) & (ahead > 0)).any(axis=0)
            feasible &= (lower < np.inf) & (upper > -np.inf) & (True if mutable is None else np.asarray(mutable))
            nearest = np.where(feasible, np.minimum(np.maximum(lower, 0), upper), np.inf)
            winner = np.argmin(np.abs(nearest) / unit)
            if feasible[winner]:
                delta[sample, target], attribute[sample, target] = nearest[winner], winner
    return delta, attribute


def per_pair(head, attributes, margin=0.0):
    """The library's own intervals, one pair at a time: the definition the envelope must reproduce to the last bit."""
    classes = jnp.arange(head.weights.shape[0], dtype=jnp.int32)
    solve = functools.partial(sj.single_attribute_perturbations, margin=margin)
    result = jax.jit(jax.vmap(jax.vmap(solve, (None, None, 0)), (None, 0, None)))(head, attributes, classes)
    chosen = jnp.argmin(jnp.abs(result.delta), axis=-1)
    delta = jnp.take_along_axis(result.delta, chosen[..., None], axis=-1)[..., 0]
    return delta, jnp.where(jnp.isfinite(delta), chosen, -1)


def draw(seed, num_classes, num_attributes, num_samples=4, bias=True):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(num_classes, num_attributes))
    return weights, rng.normal(size=num_classes) if bias else None, rng.normal(size=(num_samples, num_attributes))


def as_head(weights, bias=None):
    return sj.Head(jnp.asarray(weights), None if bias is None else jnp.asarray(bias))


def check(weights, bias, attributes, margin=0.0, **options):
    head, samples = as_head(weights, bias), jnp.asarray(attributes)
    delta, attribute = best(head, samples, margin=jnp.asarray(margin, samples.dtype), **options)
    expected = slow(weights, None if bias is None else jnp.asarray(bias), attributes, margin, **options)
    np.testing.assert_array_equal(attribute, expected[1])
    np.testing.assert_allclose(delta, expected[0], rtol=1e-12 if delta.dtype == jnp.float64 else 1e-6)
    assert attribute.dtype == jnp.int32 and delta.dtype == np.asarray(weights).dtype
    return np.asarray(delta), np.asarray(attribute)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("num_classes", "num_attributes"), [(2, 5), (3, 1), (40, 30)])
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_equals_the_definition(num_classes, num_attributes, margin):
    weights, bias, attributes = draw(num_classes, num_classes, num_attributes)
    check(weights, bias, attributes, margin)


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_float32_has_the_choices_of_the_definition_and_its_digits(margin):
    weights, bias, attributes = draw(1, 60, 50, 8)
    head = as_head(weights.astype(np.float32), bias.astype(np.float32))
    samples = jnp.asarray(attributes, jnp.float32)
    delta, attribute = best_known(head, samples, margin=margin)
    expected, chosen = per_pair(head, samples, margin)
    np.testing.assert_array_equal(attribute, chosen)
    np.testing.assert_allclose(delta, expected, rtol=1e-6)
    assert delta.dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_a_thousand_classes():
    weights, _, attributes = draw(2, 1000, 3, 2, bias=False)
    check(weights, None, attributes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_small_whole_numbers_where_lines_are_parallel_equal_and_meet_in_threes(seed, margin):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-2, 3, size=(14, 9)).astype(float)
    weights[3], weights[8] = weights[2], weights[2]  # the same class three times
    bias = rng.integers(-2, 3, size=14).astype(float)
    bias[3] = bias[2]
    attributes = rng.integers(-2, 3, size=(20, 9)).astype(float)
    delta, _ = check(weights, bias, attributes, margin)
    assert np.isinf(delta).any() and np.isfinite(delta).any() and (delta == 0).any()
    if margin:
        assert np.isinf(delta[:, 2:4]).all()  # two equal classes never lead each other
    attributes[-1], bias[:] = 0, 0
    check(weights, bias, attributes, margin)  # in the last sample all classes tie at t = 0


@pytest.mark.usefixtures("x64")
def test_lines_through_one_point_all_touch_it():
    # Slopes -1, 0, 1, 2 through (3, 0): class 0 is predicted, the others win or tie exactly at t = 3.
    weights = np.array([[-1.0], [0.0], [1.0], [2.0]])
    bias = -3 * weights[:, 0]
    delta, attribute = check(weights, bias, np.zeros((1, 1)))
    np.testing.assert_array_equal(delta, [[0, 3, 3, 3]])
    np.testing.assert_array_equal(attribute, 0)
    led, _ = check(weights, bias, np.zeros((1, 1)), 0.5)
    np.testing.assert_array_equal(led, [[0, np.inf, np.inf, 3.5]])


@pytest.mark.usefixtures("x64")
def test_the_predicted_class_needs_only_what_its_margin_lacks():
    weights, bias, attributes = draw(5, 10, 8, 30)
    logits = attributes @ weights.T + bias
    ordered = np.sort(logits, axis=1)
    lead, predicted = ordered[:, -1] - ordered[:, -2], logits.argmax(axis=1)
    margin = float(np.median(lead))
    delta, _ = check(weights, bias, attributes, margin)
    own = delta[np.arange(30), predicted]
    np.testing.assert_array_equal(own == 0, lead >= margin)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("factor", [1e-150, 1e-4, 1e5, 1e150])
def test_scales_do_not_matter(factor):
    weights, bias, attributes = draw(6, 12, 10)
    delta, attribute = check(weights, bias, attributes, 0.2)
    scaled, chosen = check(factor * weights, factor * bias, attributes, 0.2 * factor)
    np.testing.assert_array_equal(chosen, attribute)
    np.testing.assert_allclose(scaled, delta, rtol=1e-9)


def test_float32_at_the_ends_of_its_range():
    weights, bias, attributes = (x.astype(np.float32) for x in draw(6, 12, 10))
    for factor in (np.float32(2.0**-60), np.float32(2.0**60)):
        check(factor * weights, factor * bias, attributes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_ranking_in_units_of_each_attribute_and_immutable_attributes(margin):
    weights, bias, attributes = draw(7, 15, 12, 6)
    rng = np.random.default_rng(8)
    scale, mutable = jnp.asarray(rng.uniform(0.1, 10, size=12)), jnp.asarray(rng.uniform(size=12) > 0.5)
    plain, _ = check(weights, bias, attributes, margin)
    ranked, chosen = check(weights, bias, attributes, margin, scale=scale)
    reach = np.isfinite(plain)
    np.testing.assert_array_equal(np.isfinite(ranked), reach)
    assert np.any(ranked[reach] != plain[reach]) and np.all(np.abs(ranked[reach]) >= np.abs(plain[reach]) * (1 - 1e-12))
    _, allowed = check(weights, bias, attributes, margin, mutable=mutable)
    assert set(np.unique(allowed)) <= {-1, *np.flatnonzero(mutable).tolist()} and np.any(allowed != chosen)
    check(weights, bias, attributes, margin, scale=scale, mutable=mutable)
    delta, none = check(weights, bias, attributes, margin, mutable=jnp.zeros(12, bool))
    assert np.isinf(delta).all() and (none == -1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_classes_tie_wherever_they_stand_in_the_weights(dtype):
    # The sum of a logit is ordered by the place of its row: the last of nine rows often ends a rounding error apart.
    with jax.enable_x64(dtype == np.float64):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(9, 20)).astype(dtype)
        weights[-1] = weights[4] = weights[0]
        head, samples = as_head(weights), jnp.asarray(rng.normal(size=(12, 20)).astype(dtype))

        @jax.jit
        def three(sample):
            places = (0, 4, 8)
            alone = jnp.stack([sj.single_attribute_perturbations(head, sample, k).delta for k in places])
            boundary = jnp.stack([sj.boundary_perturbation(head, sample, k) for k in places])
            few = jnp.stack([sj.sparse_perturbation(head, sample, k, max_changes=1).norm for k in places])
            return alone, boundary, few, *sj.best_single_attributes(head, sample[None], margin=0.0)

        reached = 0
        for sample in samples:
            alone, boundary, few, delta, attribute = three(sample)
            for same in (alone, boundary, few, delta[0, ::4], attribute[0, ::4]):
                np.testing.assert_array_equal(same[1:], same[:1].repeat(2, axis=0))
            np.testing.assert_allclose(few, np.abs(delta[0, ::4]), rtol=1e-6)
            reached += bool(np.isfinite(alone).any())
        assert reached > 2


def test_what_is_no_number_stays_none():
    weights, bias, attributes = (x.astype(np.float32) for x in draw(9, 6, 5))
    broken = jnp.asarray(attributes).at[1, 2].set(jnp.nan)
    delta, attribute = best(as_head(weights, bias), broken)
    np.testing.assert_array_equal(np.isnan(delta), np.arange(4)[:, None] == np.full(6, 1)[None, :])
    assert (np.asarray(attribute)[1] == -1).all()
    np.testing.assert_array_equal(
        np.delete(delta, 1, 0), np.delete(best(as_head(weights, bias), jnp.asarray(attributes))[0], 1, 0)
    )
    bias[4] = -np.inf  # a class that is switched off
    masked, chosen = best(as_head(weights, bias), jnp.asarray(attributes))
    others = np.array([0, 1, 2, 3, 5])
    without = best(as_head(weights[others], bias[others]), jnp.asarray(attributes))
    assert np.isinf(masked[:, 4]).all() and (np.asarray(chosen)[:, 4] == -1).all()
    np.testing.assert_array_equal(np.asarray(masked)[:, others], without[0])
    weights[0, 0] = np.inf
    assert np.isnan(best(as_head(weights, bias), jnp.asarray(attributes))[0]).all()


def test_blocks_of_samples_do_not_show(monkeypatch):
    weights, bias, attributes = (x.astype(np.float32) for x in draw(10, 9, 7, 11))
    whole = sj.best_single_attributes(as_head(weights, bias), jnp.asarray(attributes))
    monkeypatch.setattr(envelope, "_SAMPLES_ON_CPU", 4)
    blocks = sj.best_single_attributes(as_head(weights, bias), jnp.asarray(attributes))
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_array_equal(one, other)
    empty = sj.best_single_attributes(as_head(weights, bias), jnp.zeros((0, 7)))
    assert empty[0].shape == empty[1].shape == (0, 9)


@pytest.mark.usefixtures("x64")
def test_derivatives_against_finite_differences():
    weights, bias, attributes = map(jnp.asarray, draw(11, 8, 6, 3))
    rng = np.random.default_rng(12)
    cotangent = jnp.asarray(rng.normal(size=(3, 8)))

    @jax.jit
    def scalar(weights, bias, attributes, margin):
        delta, _ = sj.best_single_attributes(sj.Head(weights, bias), attributes, margin=margin)
        return jnp.sum(jnp.where(jnp.isfinite(delta), cotangent * delta, 0))

    point = (weights, bias, attributes, jnp.asarray(0.1))
    direction = tuple(jnp.asarray(rng.normal(size=np.shape(x))) for x in point)
    up, down = (jax.tree.map(lambda x, d, s=s: x + s * d, point, direction) for s in (1e-6, -1e-6))
    expected = (scalar(*up) - scalar(*down)) / 2e-6
    gradients = jax.grad(scalar, (0, 1, 2, 3))(*point)
    reverse = sum(jnp.sum(g * d) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(reverse, expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(scalar, point, direction)[1], reverse, rtol=1e-9)


def test_transforms_in_any_order_and_one_compilation():
    weights, bias, attributes = (jnp.asarray(x, jnp.float32) for x in draw(13, 7, 6, 5))
    solve = jax.jit(lambda head, e: sj.best_single_attributes(head, e, margin=0.1))
    heads = sj.Head(jnp.stack([weights, 2 * weights]), jnp.stack([bias, bias]))
    several = jax.vmap(solve, (0, None))(heads, attributes)
    for index in range(2):
        head = jax.tree.map(lambda x, i=index: x[i], heads)
        single = solve(head, attributes)
        np.testing.assert_array_equal(several[1][index], single[1])
        np.testing.assert_allclose(several[0][index], single[0], rtol=1e-6)
    solve(head, attributes + 1)
    assert solve._cache_size() == 1
