"""Medians and ranks found digit by digit must be exactly those of NumPy, whatever the order of the data."""

import numpy as np
import pytest

from spectra_jax import sweep_statistics
from spectra_jax.sweep_statistics import Moments, count_groups, median_interval_ranks, medians, select


def pieces(groups, values, size):
    """The chunks of a stream, always the same ones."""
    return lambda: ((groups[i : i + size], values[i : i + size]) for i in range(0, len(values), size))


def awkward_numbers(rng, size, dtype):
    """Over many magnitudes, with ties, zeros, infinities and the smallest numbers there are."""
    values = (10.0 ** rng.uniform(-30, 30, size)).astype(dtype)
    special = np.array([0, np.inf, 1, 1, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max])
    chosen = rng.random(size) < 0.4
    values[chosen] = rng.choice(special.astype(dtype), int(chosen.sum()))
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("counters", [1 << 23, 64])  # 16 bits a pass, and one
def test_medians_equal_numpy(dtype, counters, monkeypatch):
    monkeypatch.setattr(sweep_statistics, "_COUNTERS", counters)
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 2000) * (rng.random(2000) < 0.9)  # uneven sizes
    groups[groups == 7] = 8  # an empty group
    groups[groups == 9] = 10
    groups[0] = 9  # a group of one
    values = awkward_numbers(rng, 2000, dtype)
    chunks = pieces(groups, values, 170)
    counts = count_groups(chunks, 31)
    np.testing.assert_array_equal(counts, np.bincount(groups, minlength=31))
    assert counts[7] == 0 and counts[9] == 1
    found = medians(chunks, counts)
    for group in range(31):
        own = np.sort(values[groups == group]).astype(np.float64)
        if not len(own):
            assert np.isnan(found[group])
            continue
        low, high = own[(len(own) - 1) // 2], own[len(own) // 2]
        assert found[group] == (low + (high - low) / 2 if high > low else low)
    finite = pieces(groups, np.where(np.isfinite(values), values, 1).astype(dtype), 170)
    wanted = [np.median(np.where(np.isfinite(values), values, 1)[groups == g].astype(np.float64)) for g in (0, 1, 2)]
    np.testing.assert_allclose(medians(finite, counts)[:3], wanted, rtol=1e-12)


def test_every_rank_is_found():
    rng = np.random.default_rng(1)
    values = awkward_numbers(rng, 101, np.float32)
    groups = np.zeros(101, np.int64)
    for rank in (0, 1, 50, 99, 100):
        assert select(pieces(groups, values, 13), np.array([rank]))[0] == np.sort(values)[rank]
    assert np.isnan(select(pieces(groups, values, 13), np.array([-1]))[0])


def test_the_interval_of_a_median_covers_it_19_times_of_20():
    rng = np.random.default_rng(2)
    low, high = median_interval_ranks(200)
    samples = np.sort(rng.exponential(size=(4000, 200)), axis=1)
    covered = np.mean((samples[:, low] <= np.log(2)) & (np.log(2) <= samples[:, high]))
    assert 0.94 < covered < 0.975
    assert median_interval_ranks(1) == (0, 0)


def test_moments_of_a_stream_equal_those_of_the_whole():
    rows = np.random.default_rng(3).normal(1000, 0.01, (500, 3)).astype(np.float32)
    moments = Moments()
    for start in range(0, 500, 77):
        moments.add(rows[start : start + 77])
    moments.add(rows[:0])
    np.testing.assert_allclose(moments.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, rows.astype(np.float64).std(axis=0), rtol=1e-9)
    assert np.isnan(Moments().mean) and np.isnan(Moments().deviation)
