"""Four devices must train exactly like one, up to the order of floating-point sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_tools import CONFIG, EndlessBatches, examples, make_problem

from spectra_jax.checkpoint import Checkpoints
from spectra_jax.sharding import (
    any_process,
    data_mesh,
    initialize_distributed,
    pad_rows,
    place_batch,
    replicate,
    replicated,
)
from spectra_jax.training import make_eval_step, make_train_step, predict
from spectra_jax.types import Batch

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (virtual) devices")


def train(devices, *, steps=6, batch_size=16):
    """Parameters, metrics of each step, and the step and mesh, after training on `devices`."""
    model, optimizer, state = make_problem()
    mesh = data_mesh(devices)
    state = replicate(state, mesh)
    step = make_train_step(model, optimizer, CONFIG, sharding=replicated(mesh))
    batches = EndlessBatches(examples(64), batch_size)
    history = []
    for _ in range(steps):
        state, metrics = step(state, place_batch(next(batches), mesh))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history, model, mesh


# 16 rows divide by 4; 14 rows need two padded ones.
@pytest.mark.parametrize("batch_size", [16, 14])
def test_four_devices_equal_one(batch_size):
    one, history_one, _, _ = train(jax.devices()[:1], batch_size=batch_size)
    four, history_four, _, _ = train(jax.devices()[:4], batch_size=batch_size)
    for a, b in zip(history_one, history_four, strict=True):
        for name in a:  # loss and gradient norm of every step: an un-averaged gradient would be 4 times as large
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_state_stays_replicated_and_batches_are_split():
    state, _, _, mesh = train(jax.devices()[:4], steps=1)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    batch = place_batch(next(EndlessBatches(examples(64), 16)), mesh)
    assert [shard.data.shape[0] for shard in batch.inputs.addressable_shards] == [4, 4, 4, 4]


def test_predictions_do_not_depend_on_the_number_of_devices():
    data = examples(30)
    batches = [Batch(*(leaf[i : i + 10] for leaf in data)) for i in range(0, 30, 10)]  # 10 rows: padded to 12
    state, _, model, mesh = train(jax.devices()[:4], steps=1)
    host = jax.device_get(state.params)
    one = predict(make_eval_step(model), host, batches)
    four = predict(
        make_eval_step(model, sharding=replicated(mesh)), state.params, batches, place=lambda b: place_batch(b, mesh)
    )
    assert four.logits.shape == (30, 4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_checkpoint_of_four_devices_goes_on_with_one_and_back(tmp_path):
    four, _, _, mesh_four = train(jax.devices()[:4], steps=2)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, four, {})
    mesh_one = data_mesh(jax.devices()[:1])
    for mesh in (mesh_one, mesh_four):
        _, _, template = make_problem()
        restored = checkpoints.restore(replicate(template, mesh))
        assert restored is not None
        for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(restored.state), strict=True):
            assert b.sharding == replicated(mesh)
            if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(jax.random.key_data(four.key), jax.random.key_data(restored.state.key))
    checkpoints.close()


def test_replicate_does_not_alias_its_input():
    array = np.zeros(8, np.float32)
    copy = replicate({"x": jnp.asarray(array)}, data_mesh())["x"]
    array[:] = 1
    np.testing.assert_array_equal(copy, np.zeros(8))


def test_pad_rows_marks_what_it_adds():
    batch = examples(5)
    padded = pad_rows(batch, 4)
    assert padded.valid.tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(padded.inputs[:5], batch.inputs)
    assert pad_rows(batch, 5) is batch


def test_one_process_needs_no_coordinator():
    assert initialize_distributed(environment={}) is False
    assert initialize_distributed(environment={"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is False
    assert initialize_distributed(coordinator_address="x:1", num_processes=1, process_id=0, environment={}) is False
    assert any_process(True) and not any_process(False)


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "missing: coordinator_address, process_id"),
        ({"coordinator_address": "x:1", "num_processes": 2, "process_id": 2}, {}, r"0 \.\.\. 1 .* not 2"),
        ({}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a whole number, not 'two'"),
    ],
)
def test_wrong_multi_process_settings_are_explained(settings, environment, message):
    with pytest.raises(ValueError, match=message):
        initialize_distributed(**settings, environment=environment)
