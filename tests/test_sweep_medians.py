"""Medians over the pairs of a sweep must be exactly those of NumPy, whatever the order of the data."""

import numpy as np
import pytest

from experiments.cli.command import UserError
from experiments.sweep_attackability import medians
from experiments.sweep_attackability.ratios import median_interval_ranks, ratios
from spectra_jax import attackability_summary

NUM_CLASSES = 7


def awkward_numbers(rng, size, dtype=np.float32):
    """Over many magnitudes, with ties, zeros, infinities and the smallest numbers there are."""
    values = (10.0 ** rng.uniform(-30, 30, size)).astype(dtype)
    special = np.array([0, np.inf, 1, 1, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max])
    chosen = rng.random(size) < 0.4
    values[chosen] = rng.choice(special.astype(dtype), int(chosen.sum()))
    return values


def middle(values):
    """The mean of the two middle numbers, inf where the upper one is and they differ."""
    own = np.sort(values).astype(np.float64)
    low, high = own[(len(own) - 1) // 2], own[len(own) // 2]
    return low + (high - low) / 2 if high > low else low


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at_once", [1 << 26, 4000, 100])  # one pass, several, and several for one class
def test_medians_by_class_equal_numpy(dtype, at_once, monkeypatch):
    monkeypatch.setattr(medians, "_PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    own = np.sort(rng.integers(0, NUM_CLASSES - 1, 600))  # of the last class there is nothing
    own[own == 2] = 3  # nor of this one
    label, target = np.repeat(own, NUM_CLASSES).astype(np.int32), np.tile(np.arange(NUM_CLASSES, dtype=np.int32), 600)
    norm = awkward_numbers(rng, len(label), dtype)
    norm[rng.random(len(norm)) < 0.1] = np.nan
    order = rng.permutation(len(norm))

    def parts():
        return ((label[rows], target[rows], norm[rows]) for rows in np.array_split(order, 5))

    sizes = np.bincount(own, minlength=NUM_CLASSES)
    pieces = list(medians._pieces(sizes))
    held = [sizes[p.first : p.last].sum() * (p.last_target - p.first_target) for p in pieces]
    assert len(pieces) == 1 if at_once > len(norm) else max(held) <= max(at_once, sizes.max()) and len(pieces) > 1
    found, counts = medians.class_medians(parts, sizes)
    for one in range(NUM_CLASSES):
        for other in range(NUM_CLASSES):
            known = norm[(label == one) & (target == other) & ~np.isnan(norm)]
            assert counts[one, other] == len(known)
            expected = middle(known) if len(known) else np.nan
            np.testing.assert_array_max_ulp(found[one, other], np.float64(min(expected, np.inf)), maxulp=1)


def test_what_duckdb_cannot_do_is_explained(monkeypatch):
    monkeypatch.setattr(medians, "_QUERY", "select nonsense from rows where ? > 0")
    one = np.zeros(1, np.int32)
    with pytest.raises(UserError, match=r"(?s)cannot be computed .*The pairs are kept"):
        medians.class_medians(lambda: [(one, one, one.astype(float))], np.ones(1, int))


@pytest.mark.parametrize("size", [1, 2, 101, 1000])
def test_the_median_of_all_equals_numpy(size):
    values = awkward_numbers(np.random.default_rng(size), size)
    assert medians.median(lambda: np.array_split(values, 7)) == middle(values)
    assert np.isnan(medians.median(lambda: [values[:0]]))


def test_ratios_are_those_of_the_summary():
    values = np.random.default_rng(1).lognormal(2, 1.5, 1001).astype(np.float32)
    found, expected = ratios(values), attackability_summary(values, num_resamples=2)
    assert found["sweep/attackability_median"] == expected["median"]
    for name in ("mean", "top_1_percent_share", "tail_index"):
        assert found[f"sweep/attackability_{name}"] == pytest.approx(expected[name], rel=1e-6)
    assert found["sweep/relative_margin_mean"] == pytest.approx(expected["relative_margin"], rel=1e-6)
    low, high = found["sweep/relative_margin_mean_low"], found["sweep/relative_margin_mean_high"]
    assert (low + high) / 2 == pytest.approx(expected["relative_margin"]) and high > low


def test_ratios_of_awkward_samples():
    values = np.array([np.inf, 0, 4, np.nan, 2], np.float32)
    found = ratios(values)
    counts = {name: found[f"sweep/samples_{name}"] for name in ("on_a_boundary", "beyond_reach", "unresolved")}
    assert counts == {"on_a_boundary": 1, "beyond_reach": 1, "unresolved": 1}
    assert found["sweep/attackability_median"] == 3 and found["sweep/attackability_mean"] == 2
    assert found["sweep/relative_margin_mean"] == pytest.approx((0 + 1 / 4 + 1 / 2) / 3)
    none = ratios(np.full(3, np.nan, np.float32))
    assert np.isnan(none["sweep/attackability_median"]) and none["sweep/samples_unresolved"] == 3


def test_the_interval_of_a_median_covers_it_19_times_of_20():
    rng = np.random.default_rng(2)
    low, high = median_interval_ranks(200)
    samples = np.sort(rng.exponential(size=(4000, 200)), axis=1)
    covered = np.mean((samples[:, low] <= np.log(2)) & (np.log(2) <= samples[:, high]))
    assert 0.94 < covered < 0.975
    assert median_interval_ranks(1) == (0, 0)
