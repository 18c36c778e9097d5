"""Attackability against brute force in NumPy, its invariances, and the summary read beside the paper's mean."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from experiments.reporting.tail import mean_note

attack = jax.jit(sj.attackability, static_argnames="method")


@functools.cache
def problem(bias=False, num_classes=9, num_attributes=14, seed=0):
    """float64 NumPy weights, bias and attributes; `attack` converts them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(num_classes, num_attributes))
    return weights, rng.normal(size=num_classes) if bias else None, rng.normal(size=(5, num_attributes))


def head_of(weights, bias=None):
    return sj.Head(jnp.asarray(weights), None if bias is None else jnp.asarray(bias))


def brute_force(weights, bias, attributes):
    """||e|| over the smallest distance to any pairwise boundary of the predicted class, one loop a definition."""
    answers = []
    for sample in attributes:
        logits = weights @ sample + (0 if bias is None else bias)
        best = int(np.argmax(logits))
        distances = [
            (logits[best] - logits[k]) / np.linalg.norm(weights[best] - weights[k])
            for k in range(len(weights))
            if k != best
        ]
        answers.append(np.linalg.norm(sample) / min(distances))
    return np.array(answers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["boundary", "projection"])
def test_equals_brute_force_and_both_methods_agree(bias, method, dtype):
    weights, offsets, attributes = problem(bias)
    with jax.enable_x64(dtype == np.float64):
        value = attack(head_of(weights, offsets), jnp.asarray(attributes), method=method)
    assert value.dtype == dtype
    rtol = 1e-8 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(value, brute_force(weights, offsets, attributes), rtol=rtol)


@pytest.mark.usefixtures("x64")
def test_pinv_attackability_is_1_whatever_the_model_without_bias_at_full_rank():
    weights, _, attributes = problem(num_classes=14, num_attributes=6, seed=1)
    value = attack(head_of(weights), jnp.asarray(attributes), method="pinv")
    np.testing.assert_allclose(value, 1, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["boundary", "projection", "pinv"])
def test_scale_of_weights_and_of_attributes_does_not_matter(method):
    weights, _, attributes = problem()
    value = attack(head_of(weights), jnp.asarray(attributes), method=method)
    np.testing.assert_allclose(
        attack(head_of(1e-4 * weights), jnp.asarray(attributes), method=method), value, rtol=1e-8
    )
    np.testing.assert_allclose(attack(head_of(weights), jnp.asarray(1e3 * attributes), method=method), value, rtol=1e-8)


@pytest.mark.parametrize("method", ["boundary", "projection"])
def test_a_sample_on_a_boundary_is_infinitely_attackable(method):
    head = sj.Head(jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    attributes = jnp.asarray([[2.0, 2.0], [3.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    value = attack(head, attributes, method=method)
    # a tie of different rows, a tie of equal rows, no attributes at all; the last one is sqrt(2) from its boundary
    np.testing.assert_allclose(value, [np.inf, np.inf, np.inf, np.sqrt(2)], rtol=1e-6)


def test_unreachable_classes_give_0_and_broken_samples_nan():
    parallel = sj.Head(jnp.asarray([[1.0, 2.0], [1.0, 2.0]]), jnp.asarray([1.0, 0.0]))
    value = attack(parallel, jnp.asarray([[3.0, 4.0]]))
    np.testing.assert_array_equal(value, [0])
    head = sj.Head(jnp.asarray([[1.0, 2.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(np.isnan(attack(head, jnp.asarray([[3.0, 4.0], [np.nan, 4.0]]))), [False, True])


@pytest.mark.usefixtures("x64")
def test_gradient_against_finite_differences():
    weights, bias, attributes = map(jnp.asarray, problem(True))
    rng = np.random.default_rng(7)
    point = (weights, bias, attributes)
    direction = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in point)

    @jax.jit
    def value(w, b, e):
        found = sj.nearest_class(sj.Head(w, b), e)  # its attackability is `attackability`
        return jnp.sum(jnp.log(found.attackability)) + jnp.sum(found.distance)

    up, down = (jax.tree.map(lambda x, d, s=s: x + s * d, point, direction) for s in (1e-6, -1e-6))
    slope = sum(jnp.sum(g * d) for g, d in zip(jax.grad(value, (0, 1, 2))(*point), direction, strict=True))
    np.testing.assert_allclose(slope, (value(*up) - value(*down)) / 2e-6, rtol=1e-6)


def test_gradient_is_finite_where_nothing_is_to_be_reached():
    head = sj.Head(jnp.asarray([[1.0, 2.0], [1.0, 2.0]]), jnp.asarray([1.0, 0.0]))
    gradient = jax.grad(lambda e: attack(head, e)[0])(jnp.asarray([[3.0, 4.0]]))
    np.testing.assert_array_equal(gradient, 0)


def heavy_tailed(count):
    return 1 / np.abs(np.random.default_rng(3).normal(size=count))


def test_summary_of_finite_values():
    values = heavy_tailed(250)
    summary = sj.attackability_summary(values, num_resamples=300)
    assert all(type(value) is float for value in summary.values())
    assert summary["mean"] == pytest.approx(values.mean())
    assert summary["median"] == pytest.approx(np.median(values))
    assert summary["relative_margin"] == pytest.approx((1 / values).mean())
    for percent in (5, 25, 75, 95, 99):
        assert summary[f"quantile_{percent:02d}"] == pytest.approx(np.percentile(values, percent))
    assert summary["maximum"] == values.max()
    assert summary["top_1_percent_share"] == pytest.approx(np.sort(values)[-3:].sum() / values.sum())
    assert (summary["num_samples"], summary["num_infinite"], summary["num_zero"]) == (250, 0, 0)
    for name in ("median", "relative_margin"):
        assert summary[f"{name}_low"] < summary[name] < summary[f"{name}_high"]
    assert not {"mean_low", "mean_high"} & summary.keys()  # no interval of a mean that may be infinite
    top = np.sort(values)[::-1][:26]
    assert summary["tail_index"] == pytest.approx(25 / np.log(top[:25] / top[25]).sum())


def test_summary_accepts_jax_arrays_and_repeats_itself():
    values = jnp.asarray(heavy_tailed(40), jnp.float32)
    first = sj.attackability_summary(values, num_resamples=100)
    assert first == sj.attackability_summary(np.asarray(values), num_resamples=100)
    other = sj.attackability_summary(values, num_resamples=100, seed=1)
    assert other["median_low"] != first["median_low"] and other["mean"] == first["mean"]


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    margins = np.random.default_rng(4).uniform(1, 2, size=400)
    summary = sj.attackability_summary(1 / margins)
    width = 2 * 1.96 * margins.std() / np.sqrt(400)
    assert summary["relative_margin_high"] - summary["relative_margin_low"] == pytest.approx(width, rel=0.1)


def test_intervals_cover_what_they_claim_where_margins_are_uniform_at_zero():
    # The mean is infinite there. 300 simulated data sets: an honest 95 % interval covers 285 +- 4 of them.
    random = np.random.default_rng(8)
    summaries = [
        sj.attackability_summary(1 / random.uniform(size=100), num_resamples=400, seed=turn) for turn in range(300)
    ]
    for name, truth in (("median", 2.0), ("relative_margin", 0.5)):
        covered = np.mean([found[f"{name}_low"] <= truth <= found[f"{name}_high"] for found in summaries])
        assert 0.91 <= covered <= 0.985, (name, covered)
    indices = np.array([found["tail_index"] for found in summaries])
    assert np.median(indices) == pytest.approx(1, abs=0.1)  # at the limit of an infinite mean
    assert indices.std() < 0.5


def test_pages_say_what_the_mean_hangs_on():
    summary = {"test/attackability_top_1_percent_share": 0.42, "test/attackability_tail_index": 1.043}
    assert mean_note(summary, "test") == (
        "mean, as the paper defines it; the top 1 % of the samples account for 42% of it; tail index 1.04: the "
        "population mean is infinite if it is <= 1"
    )
    few = {"sweep/attackability_tail_index": None, "sweep/attackability_top_1_percent_share": float("nan")}
    assert mean_note(few, "sweep") == mean_note({}, "test") == "mean, as the paper defines it"


@pytest.mark.parametrize("index", [0.7, 1.0, 1.5, 3.0])
def test_tail_index_of_a_power_law_is_its_exponent(index):
    values = np.random.default_rng(6).uniform(size=20_000) ** (-1 / index)
    found = sj.attackability_summary(values, num_resamples=10)["tail_index"]
    assert found == pytest.approx(index, rel=3 / np.sqrt(2000))


def test_resampling_in_small_batches_gives_an_interval_too(monkeypatch):
    values = heavy_tailed(50)
    monkeypatch.setattr(sys.modules["spectra_jax.attackability"], "_RESAMPLED_AT_ONCE", 120)
    summary = sj.attackability_summary(values, num_resamples=200)
    assert summary["median_low"] < summary["median"] < summary["median_high"]


def test_summary_counts_the_infinite_and_ranks_them_last():
    values = np.append(heavy_tailed(97), [np.inf, np.inf, np.inf])
    finite = values[:97]
    summary = sj.attackability_summary(values, num_resamples=200)
    assert summary["num_infinite"] == 3
    assert summary["mean"] == pytest.approx(finite.mean()) and summary["maximum"] == finite.max()
    assert summary["quantile_99"] == np.inf and summary["quantile_25"] == pytest.approx(
        np.sort(values)[[24, 25]] @ [0.25, 0.75]
    )
    assert summary["median"] == pytest.approx(np.sort(values)[49:51].mean())
    assert summary["relative_margin"] == pytest.approx((1 / finite).sum() / 100)
    assert not any(np.isnan(value) for value in summary.values())
    assert summary["tail_index"] == sj.attackability_summary(finite, num_resamples=10)["tail_index"]


def test_summary_of_hardly_anything():
    alone = sj.attackability_summary(np.array([2.0]))
    assert alone["mean"] == alone["median"] == alone["quantile_05"] == alone["maximum"] == 2
    assert np.isnan(alone["median_low"]) and alone["top_1_percent_share"] == 1 and np.isnan(alone["tail_index"])
    assert sj.attackability_summary(np.full(80, 3.0), num_resamples=10)["tail_index"] == np.inf  # no tail at all
    assert np.isnan(sj.attackability_summary(np.zeros(80), num_resamples=10)["tail_index"])
    ties = sj.attackability_summary(np.full(4, np.inf), num_resamples=50)
    assert ties["mean"] == ties["median"] == ties["median_low"] == np.inf and ties["relative_margin"] == 0
    safe = sj.attackability_summary(np.array([0.0, 4.0, 4.0]), num_resamples=50)
    assert safe["num_zero"] == 1 and safe["relative_margin"] == 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.nan]), "NaN or negative"),
        (np.array([-1.0]), "NaN or negative"),
        (np.array([]), "N >= 1"),
        (np.ones((2, 2)), "expected"),
    ],
)
def test_summary_of_nonsense_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        sj.attackability_summary(values)
