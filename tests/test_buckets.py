"""Another number of samples compiles nothing within a bucket, and no answer shows the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from spectra_jax.buckets import bucket_size

NUM_CLASSES, NUM_ATTRIBUTES = 5, 7
CALLS = {
    "nearest_class": sj.nearest_class,
    "attackability": sj.attackability,
    "boundary": lambda head, e: sj.all_pairs_norms(head, e, method="boundary"),
    "pinv": lambda head, e: sj.all_pairs_norms(head, e, method="pinv"),
    "projection": sj.all_pairs_norms,
    "all_pairs_projection": sj.all_pairs_projection,
    "best_single_attributes": sj.best_single_attributes,
}


def problem(samples, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)).astype(np.float32)
    return sj.Head(jnp.asarray(weights)), jnp.asarray(rng.normal(size=(samples, NUM_ATTRIBUTES)), jnp.float32)


def test_buckets_are_few_and_waste_little():
    sizes = [bucket_size(count) for count in range(5000)]
    assert sizes[:2] == [0, 1] and all(size >= count for count, size in enumerate(sizes))
    assert len(set(sizes)) < 40
    assert all(size <= 1.25 * count for count, size in enumerate(sizes) if count > 64)
    assert all(bucket_size(size) == size for size in sizes)


@pytest.mark.parametrize("name", CALLS)
def test_another_number_of_samples_compiles_nothing(name):
    head, attributes = problem(16)
    compiled = []
    jax.block_until_ready(CALLS[name](head, attributes))
    jax.block_until_ready(CALLS[name](head, np.asarray(attributes)[:9]))  # where arrays of NumPy are converted
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        for count in (9, 10, 13, 15, 16):
            rows = np.asarray(attributes)[:count]
            for given in (rows, jax.device_put(rows)):
                answer = jax.block_until_ready(CALLS[name](head, given))
                assert all(len(leaf) == count for leaf in jax.tree.leaves(answer))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "backend_compile" in event]


@pytest.mark.parametrize("name", CALLS)
def test_padding_does_not_show(name):
    head, attributes = problem(11, seed=1)
    padded, alone = CALLS[name](head, attributes), jax.jit(CALLS[name])(head, attributes)
    for ours, theirs in zip(jax.tree.leaves(padded), jax.tree.leaves(alone), strict=True):
        assert isinstance(ours, jax.Array) and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tracing_devices_and_derivatives_are_as_before():
    head, attributes = problem(11, seed=2)
    assert jax.eval_shape(sj.nearest_class, head, attributes).distance.shape == (11,)
    assert jax.make_jaxpr(lambda: sj.nearest_class(head, attributes).distance)().out_avals[0].shape == (11,)
    gradient = jax.grad(lambda weights: jnp.sum(sj.all_pairs_norms(sj.Head(weights), attributes, method="boundary")))
    assert gradient(head.weights).shape == head.weights.shape
    device = jax.devices()[-1]
    there = jax.device_put((head, attributes), device)
    assert sj.nearest_class(*there).distance.devices() == {device}
    logits = sj.head_logits(head, attributes)
    assert sj.all_pairs_norms(head, attributes, method="boundary", logits=logits).shape == (11, NUM_CLASSES)
