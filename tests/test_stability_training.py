"""Training with the whole of Eq. 7: what each term does to the step, the files of a run, and to stability itself."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_tools import CONFIG, EndlessBatches, examples, make_problem

from experiments.cli.command import UserError
from experiments.runs.folder import CONFIG as CONFIG_FILE
from experiments.runs.folder import RunFolder, read_config
from experiments.runs.loading import load_run
from spectra_jax.attackability import attackability
from spectra_jax.losses import stability_loss, total_loss
from spectra_jax.sharding import data_mesh, place_batch, replicate, replicated
from spectra_jax.training import (
    NonFiniteError,
    TrainConfig,
    fit,
    forward,
    init_state,
    make_optimizer,
    make_train_step,
    with_loss_parameters,
)
from spectra_jax.types import Batch

# Every variant of the stability loss, at a weight that leaves the accuracy of the problem alone.
FULL = {
    name: dataclasses.replace(CONFIG, **options)
    for name, options in {
        "log_relative": {"lambda_stability": 0.005},
        "hinge": {
            "lambda_stability": 0.3,
            "stability_form": "hinge",
            "stability_distance": 1.0,
            "lambda_sparsity": 0.1,
        },
        "squared": {"lambda_stability": 0.005, "stability_form": "squared"},
        "detached": {"lambda_stability": 0.05, "stability_logits": "detached"},
        "learned": {"lambda_stability": 0.05, "stability_logits": "learned", "lambda_sparsity": 0.1},
    }.items()
}


# One example fewer than four devices share: one row is padded.
BATCH, STEPS = 15, 60


@functools.cache
def compiled_step(config, devices=1):
    """The step for `config`, compiled once for all tests."""
    model, _, _ = make_problem(config)
    sharding = replicated(data_mesh(jax.devices()[:devices]))
    return make_train_step(model, make_optimizer(model, config, STEPS), config, sharding=sharding)


def problem(config, *, devices=1):
    """Model, first state with the parameters of the loss, and mesh."""
    model, _, plain = make_problem(config)
    params = with_loss_parameters(model, plain.params, config, jax.random.key(7))
    mesh = data_mesh(jax.devices()[:devices])
    state = init_state(model, make_optimizer(model, config, STEPS), params, plain.key)
    return model, replicate(state, mesh), mesh


def one_step(config, state, batch):
    """State and metrics after one step; the state is not donated."""
    return compiled_step(config)(jax.tree.map(jnp.copy, state), place_batch(batch, data_mesh(jax.devices()[:1])))


def padded(batch, rows, value=0.0):
    longer = Batch(*(np.concatenate([leaf, np.zeros_like(leaf[:rows])]) for leaf in batch))
    longer.inputs[len(batch.labels) :] = value
    return longer


@pytest.mark.parametrize("form", ["log_relative", "squared", "hinge"])
def test_step_lowers_the_total_loss_of_the_paper_and_names_its_terms(form):
    config = FULL[form]
    model, state, _ = problem(config)
    batch = examples(BATCH)
    attributes, _ = forward(model, state.params, jnp.asarray(batch.inputs))
    head = model.head(state.params)
    expected = total_loss(
        head,
        attributes,
        jnp.asarray(batch.attributes),
        jnp.asarray(batch.labels),
        lambda_stability=config.lambda_stability,
        lambda_sparsity=config.lambda_sparsity,
        stability_form=form,
        stability_distance=config.stability_distance,
        label_smoothing=0.1,
    )
    _, metrics = one_step(config, state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    stability = stability_loss(head, attributes, form=form, required_distance=config.stability_distance)
    np.testing.assert_allclose(metrics["stability_loss"], stability, rtol=1e-5)
    weights = {"attribute_loss": 0.7, "class_loss": 0.3, "stability_loss": config.lambda_stability}
    if config.lambda_sparsity:
        weights["sparsity_loss"] = config.lambda_sparsity
    np.testing.assert_allclose(metrics["loss"], sum(w * metrics[name] for name, w in weights.items()), rtol=1e-5)


def test_terms_that_are_off_are_not_reported():
    _, state, _ = problem(CONFIG)
    _, metrics = one_step(CONFIG, state, examples(BATCH))
    assert not {"stability_loss", "sparsity_loss", "reconstruction_loss"} & metrics.keys()


@pytest.mark.parametrize("config", FULL.values(), ids=FULL.keys())
def test_padded_rows_are_masked_in_every_variant(config):
    _, state, _ = problem(config)
    batch = examples(BATCH - 5)
    state_whole, whole = compiled_step(config)(jax.tree.map(jnp.copy, state), batch)
    state_padded, with_padding = one_step(config, state, padded(batch, 5, 0.25))
    for name in (name for name in whole if name.endswith("loss")):
        np.testing.assert_allclose(with_padding[name], whole[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(with_padding["gradient_norm"], whole["gradient_norm"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(state_whole.params), jax.tree.leaves(state_padded.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def train(config, *, num_steps=STEPS, devices=1, **options):
    """The model and its parameters after `num_steps`."""
    model, state, mesh = problem(config, devices=devices)
    state, _ = fit(
        state,
        compiled_step(config, devices),
        EndlessBatches(examples(128), BATCH),
        num_steps=num_steps,
        steps_per_epoch=8,
        place=lambda batch: place_batch(batch, mesh),
        **options,
    )
    return model, state.params


def relative_margins(model, params):
    test = examples(200, seed=1)
    attributes, logits = forward(model, params, jnp.asarray(test.inputs))
    return 1 / np.asarray(attackability(model.head(params), attributes)), np.mean(logits.argmax(-1) == test.labels)


@pytest.mark.parametrize("name", ["log_relative", "hinge", "learned"])
def test_stability_training_moves_boundaries_away(name):
    plain = dataclasses.replace(CONFIG, lambda_sparsity=FULL[name].lambda_sparsity)
    before, accuracy_before = relative_margins(*train(plain))
    after, accuracy_after = relative_margins(*train(FULL[name]))
    assert accuracy_after >= accuracy_before - 0.02
    assert np.median(after) > 1.05 * np.median(before)


def test_learned_logits_are_parameters_of_their_own_and_only_on_request():
    model, _, plain = make_problem()
    for config in (CONFIG, FULL["log_relative"], dataclasses.replace(CONFIG, stability_logits="learned")):
        assert set(with_loss_parameters(model, plain.params, config, jax.random.key(7))) == {
            "backbone",
            "bottleneck",
            "head",
        }
    config = FULL["learned"]
    first = np.asarray(with_loss_parameters(model, plain.params, config, jax.random.key(7))["free_logits"])
    probabilities = np.exp(first) / np.exp(first).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.diag(probabilities), 0.9, rtol=1e-5)
    _, params = train(config, num_steps=20)
    assert np.abs(np.asarray(params["free_logits"]) - first).max() > 1e-3


def test_learned_logits_reach_the_loss_by_the_true_class():
    config = FULL["learned"]
    model, state, _ = problem(config)
    free = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    state = state._replace(params={**state.params, "free_logits": jnp.asarray(free)})
    batch = examples(BATCH)
    attributes, _ = forward(model, state.params, jnp.asarray(batch.inputs))
    expected = stability_loss(model.head(state.params), attributes, logits=jnp.asarray(free[batch.labels]))
    np.testing.assert_allclose(one_step(config, state, batch)[1]["stability_loss"], expected, rtol=1e-5)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (virtual) devices")
@pytest.mark.parametrize("name", ["hinge", "learned"])
def test_four_devices_train_like_one(name):
    config = FULL[name]
    logs = ([], [])
    trained = [
        train(config, num_steps=5, devices=count, log=log.append, log_every=1)[1]
        for count, log in zip((1, 4), logs, strict=True)
    ]
    for a, b in zip(*logs, strict=True):
        for figure in ("loss", "stability_loss", "sparsity_loss", "gradient_norm"):
            np.testing.assert_allclose(a[figure], b[figure], rtol=1e-4, err_msg=figure)
    for a, b in zip(*map(jax.tree.leaves, trained), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_papers_unbounded_form_trains_and_is_guarded():
    config = FULL["squared"]
    logged = []
    model, params = train(config, log=logged.append, log_every=20)
    assert logged[-1]["stability_loss"] < logged[0]["stability_loss"] < 0
    assert relative_margins(model, params)[1] > 0.9
    # Let loose it runs away until float32 ends; the run stops there instead of saving what is left.
    wild = dataclasses.replace(config, lambda_stability=1e4, learning_rate=1e30, warmup=0.0)
    with pytest.raises(NonFiniteError, match=r"^Step \d+: .*loss.* is not finite"):
        train(wild)


def test_run_folders_from_before_these_settings_are_still_read(tmp_path):
    new = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    old = {name: value for name, value in new.items() if not name.startswith(("stability", "lambda_s", "lambda_r"))}
    assert len(old) < len(new)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"run": {"train": old, "data": "x"}, "prepared": "gone"}))
    assert read_config(tmp_path)["run"]["train"] == new
    RunFolder(tmp_path, {"train": new, "data": "x"}).close()  # a repeated command resumes it
    with pytest.raises(UserError, match="lambda_stability"):
        RunFolder(tmp_path, {"train": {**new, "lambda_stability": 0.1}, "data": "x"})
    (tmp_path / CONFIG_FILE).write_text(
        json.dumps({"run": {"train": {**old, "flux": 1}, "data": "x"}, "prepared": "gone"})
    )
    with pytest.raises(UserError, match=r"another version.*flux"):
        load_run(tmp_path)
