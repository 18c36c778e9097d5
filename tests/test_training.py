"""The step, the loop, and the files they leave, on a problem that trains in a second."""

import dataclasses
import gc
import io
import json
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_tools import CONFIG, SIDE, EndlessBatches, examples, make_problem, plain_step

from spectra_jax.checkpoint import CheckpointError, Checkpoints
from spectra_jax.logging import Console, MetricsFile, duration, read_metrics, write_json
from spectra_jax.losses import attribute_loss, classification_loss
from spectra_jax.models import build_model
from spectra_jax.training import (
    PRESETS,
    NonFiniteError,
    Progress,
    TrainConfig,
    balanced_positive_weight,
    evaluate,
    fit,
    forward,
    init_state,
    learning_rate_schedule,
    make_eval_step,
    make_optimizer,
    make_train_step,
    predict,
    trained_part,
)
from spectra_jax.types import Batch

# Where one array of a damaged checkpoint cannot be read, orbax closes its event loop on the reads still under way;
# their coroutines are collected some time later. Nothing of ours is left unread or unhandled.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. (<coroutine object _read_array_index|None):pytest.PytestUnraisableExceptionWarning"
)


def host(tree):
    """A copy of a tree on the host, random keys as data."""
    return jax.tree.map(
        lambda leaf: np.array(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf),
        tree,
    )


def same(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_training_learns_the_problem():
    model, _, state = make_problem()
    logged = []
    state, progress = fit(
        state,
        plain_step(),
        EndlessBatches(examples(128), 16),
        num_steps=60,
        steps_per_epoch=8,
        log=logged.append,
        log_every=20,
    )
    test = examples(50, seed=1)
    batches = [Batch(*(leaf[i : i + 16] for leaf in test)) for i in range(0, 50, 16)]
    scores = evaluate(predict(make_eval_step(model), state.params, batches))
    assert progress.step == int(state.step) == 60
    assert scores["class_accuracy"] > 0.95 and scores["attribute_balanced_accuracy"] > 0.9
    assert [record["step"] for record in logged] == [20, 40, 60]
    assert logged[-1]["loss"] < logged[0]["loss"] and logged[-1]["epoch"] == 7.5


def test_loss_is_the_weighted_sum_of_the_paper():
    model, _, state = make_problem()
    batch = examples(16)
    attributes, logits = forward(model, state.params, jnp.asarray(batch.inputs))
    expected = 0.7 * attribute_loss(attributes, batch.attributes)
    expected += 0.3 * classification_loss(logits, batch.labels, label_smoothing=0.1)
    _, metrics = plain_step()(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_padded_rows_change_nothing():
    _, _, state = make_problem()
    batch = examples(16)
    padded = Batch(*(np.concatenate([leaf, np.zeros_like(leaf[:5])]) for leaf in batch))
    padded.inputs[16:] = 0.25
    step = plain_step()
    state_whole, whole = step(jax.tree.map(jnp.copy, state), batch)
    state_padded, with_padding = step(state, padded)
    np.testing.assert_allclose(with_padding["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(with_padding["gradient_norm"], whole["gradient_norm"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state_whole.params), jax.tree.leaves(state_padded.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_state_is_donated_and_step_compiles_once():
    model, optimizer, state = make_problem()
    step = make_train_step(model, optimizer, CONFIG)
    old = state.params["bottleneck"]["kernel"]
    batches = EndlessBatches(examples(64), 16)
    for _ in range(3):
        state, _ = step(state, next(batches))
    assert old.is_deleted()
    assert step._cache_size() == 1


def test_weight_decay_spares_biases_scales_and_statistics():
    config = dataclasses.replace(CONFIG, weight_decay=0.5, warmup=0.0)
    _, optimizer, state = make_problem(config)
    params = jax.tree.map(jnp.ones_like, state.params)
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):  # optax alone does not pass the strict setting
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert np.all(updates["bottleneck"]["bias"] == 0)
    assert np.all(updates["bottleneck"]["kernel"] < 0) and np.all(updates["head"]["weights"] < 0)


def frozen_problem(num_steps=30):
    model = dataclasses.replace(
        build_model("cnn", num_attributes=6, num_classes=4, widths=(8, 8, 8, 8), grid=1, dropout_rate=0.3),
        frozen_backbone=True,
    )
    optimizer = make_optimizer(model, CONFIG, num_steps)
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), (SIDE, SIDE, 3))
    features = np.random.default_rng(0).normal(3.0, 2.0, (64, 8)).astype(np.float32)
    params = model.with_feature_statistics(params, features.mean(0), features.std(0))
    return model, optimizer, init_state(model, optimizer, params, jax.random.key(1)), features


def test_frozen_backbone_trains_only_bottleneck_and_head():
    model, optimizer, state, features = frozen_problem()
    assert set(trained_part(model, state.params)) == {"bottleneck", "head"}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 4]
    assert not moments, "a frozen convolution has optimiser state"
    before = host(state.params)
    batches = EndlessBatches(examples(64)._replace(inputs=features), 16)
    state, _ = fit(
        state, make_train_step(model, optimizer, CONFIG), batches, num_steps=30, steps_per_epoch=4, log_every=30
    )
    after = host(state.params)
    assert same(before["backbone"], after["backbone"])
    for name in ("feature_mean", "feature_std"):
        np.testing.assert_array_equal(before["bottleneck"][name], after["bottleneck"][name])
    assert not np.array_equal(before["bottleneck"]["kernel"], after["bottleneck"]["kernel"])


def test_images_and_their_precomputed_features_give_the_same_logits():
    model, _, state, _ = frozen_problem()
    images = jnp.asarray(examples(4).inputs)
    features = model.features(state.params, images)
    for a, b in zip(forward(model, state.params, images), forward(model, state.params, features), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_dropout_depends_on_the_step_not_on_the_past():
    model, optimizer, state, features = frozen_problem()
    step = make_train_step(model, optimizer, CONFIG)
    batch = examples(16)._replace(inputs=features[:16])
    later = jax.tree.map(jnp.copy, state)._replace(step=jnp.asarray(7, jnp.int32))
    again = jax.tree.map(jnp.copy, later)
    losses = [float(step(s, batch)[1]["loss"]) for s in (state, later, again)]
    assert losses[0] != losses[1] == losses[2]


def test_balanced_positive_weight():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(balanced_positive_weight(labels), [0.1, 3.0, 10.0])


def test_schedule_warms_up_to_the_peak_and_ends_at_zero():
    schedule = learning_rate_schedule(dataclasses.replace(CONFIG, warmup=0.1), 100)
    values = [float(schedule(step)) for step in (0, 10, 100)]
    np.testing.assert_allclose(values, [0, CONFIG.learning_rate, 0], atol=1e-9)
    assert float(learning_rate_schedule(CONFIG, 1)(0)) == pytest.approx(CONFIG.learning_rate)


class PoisonedBatches(EndlessBatches):
    """One batch with a NaN pixel."""

    def __next__(self):
        batch = super().__next__()
        if self.position == 8:
            batch.inputs[3, 2, 1, 0] = np.nan
        return batch


def test_non_finite_step_stops_and_names_step_and_checkpoint():
    _, _, state = make_problem()
    saved = []
    with pytest.raises(NonFiniteError, match=r"Step 8: .*loss.* last good checkpoint is step 5.*learning_rate"):
        fit(
            state,
            plain_step(),
            PoisonedBatches(examples(64), 16),
            num_steps=20,
            steps_per_epoch=4,
            save=lambda state, progress: saved.append((progress.step, host(state))),
            save_every=5,
        )
    assert [step for step, _ in saved] == [5]


def test_non_finite_step_can_be_skipped_and_is_counted():
    _, _, state = make_problem()
    logged = []
    state, progress = fit(
        state,
        plain_step(),
        PoisonedBatches(examples(64), 16),
        num_steps=20,
        steps_per_epoch=4,
        log=logged.append,
        log_every=10,
        non_finite="skip",
    )
    assert progress.skipped == 1 and logged[-1]["skipped_steps"] == 1 and np.isfinite(logged[0]["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host(state)))


def test_non_finite_step_leaves_parameters_and_optimiser_alone():
    _, _, state = make_problem()
    batch = examples(16)
    batch.inputs[0] = np.inf
    before = host(state)
    after, metrics = plain_step()(state, batch)
    assert not metrics["finite"]
    assert same(before.params, host(after.params)) and same(before.opt_state, host(after.opt_state))


def run_with_checkpoints(folder, *, lives: int = 30):
    """One life of a run, at most `lives` steps long: restores what is there, trains on, returns state and progress."""
    _, _, state = make_problem()
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(state)
    progress, position = Progress(), 0
    if restored is not None:
        state, progress, position = restored.state, Progress(**restored.host["progress"]), restored.host["position"]
    metrics = MetricsFile(folder / "metrics.jsonl", position=position)
    end = progress.step + lives

    def save(state, progress):
        host = {"progress": dataclasses.asdict(progress), "position": metrics.position}
        checkpoints.save(progress.step, state, host)

    state, progress = fit(
        state,
        plain_step(),
        EndlessBatches(examples(64), 16),
        num_steps=30,
        steps_per_epoch=4,
        progress=progress,
        log=metrics.append,
        log_every=7,
        save=save,
        save_every=5,
        evaluate=lambda params: {"validation": {"norm": float(optax.tree.norm(params))}},
        evaluate_every=6,
        should_stop=lambda: progress.step >= end,
    )
    checkpoints.close()
    metrics.close()
    return host(state), progress


def records(folder):
    """The metrics of a run without its timings."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder / "metrics.jsonl")]


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, _ = run_with_checkpoints(tmp_path / "whole")
    for lives in (3, 4, 11, 30):
        # Stopped between two logs, too: the mean over the window goes on where it was.
        state, progress = run_with_checkpoints(tmp_path / "pieces", lives=lives)
    assert progress.step == 30 and same(whole, state)
    assert records(tmp_path / "whole") == records(tmp_path / "pieces")


@pytest.mark.parametrize("damage", ["truncate", "flip", "flip_position", "delete_item", "delete_files"])
def test_damaged_latest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    whole, _ = run_with_checkpoints(tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "30"
    files = sorted((f for f in latest.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_size)
    if damage == "truncate":
        files[0].write_bytes(files[0].read_bytes()[:100])
    elif damage == "flip":
        data = bytearray(files[0].read_bytes())
        data[len(data) // 2] ^= 1
        files[0].write_bytes(data)
    elif damage == "flip_position":
        # Still valid JSON, but it would take up metrics and data at another place.
        host_file = latest / "host" / "metadata"
        text = host_file.read_text()
        assert 'step\\": 30' in text
        host_file.write_text(text.replace('step\\": 30', 'step\\": 20'))
    elif damage == "delete_item":
        shutil.rmtree(latest / "params")
    else:
        for file in files[::2]:
            file.unlink()
    before = records(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    if damage == "delete_item":
        assert checkpoints.restore_params()[0] == 25
    checkpoints.close()
    state, progress = run_with_checkpoints(tmp_path / "run")
    assert progress.step == 30 and same(whole, state) and records(tmp_path / "run") == before
    gc.collect()  # the abandoned reads, while their warning is still expected


def test_all_checkpoints_damaged_is_an_error_that_says_so(tmp_path):
    run_with_checkpoints(tmp_path / "run")
    for item in (tmp_path / "run" / "checkpoints").glob("*/params"):
        shutil.rmtree(item)
    with pytest.raises(CheckpointError, match=r"step 30: .*step 25: .*delete the folder"):
        run_with_checkpoints(tmp_path / "run")


def test_restore_params_for_inference(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Checkpoints(tmp_path / "none").restore_params()
    state, _ = run_with_checkpoints(tmp_path / "run")
    step, params = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).restore_params()
    assert step == 30 and same(params, state.params)
    assert list(params) == sorted(["backbone", "bottleneck", "head"])


def test_metrics_file_drops_torn_and_later_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1, "loss": np.float32(0.5)})
    kept = file.position
    file.append({"step": 2, "loss": float("nan")})
    file.close()
    assert read_metrics(path)[1] == {"step": 2, "loss": None}
    with open(path, "a") as torn:
        torn.write('{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    file = MetricsFile(path, position=kept)
    file.append({"step": 2, "loss": 0.25})
    file.close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    # A position beyond the end (the file was cut by hand) keeps whole lines only.
    path.write_text('{"step": 1}\n{"st')
    MetricsFile(path, position=1000).close()
    assert path.read_text() == '{"step": 1}\n'


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": np.float32(1.5), "b": [np.int64(2), float("inf")]})
    assert json.loads(path.read_text()) == {"a": 1.5, "b": [2, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["a"] == 1.5 and [f.name for f in tmp_path.iterdir()] == ["summary.json"]


def test_console_writes_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Console(stream=stream, every=0.0).progress("training", 10, start=2) as task:
        task.update(6, "loss 0.5")
    assert stream.getvalue().startswith("training: 6/10, ") and "left" in stream.getvalue()
    assert [duration(s) for s in (47.6, 200, 7500)] == ["48 s", "3 min 20 s", "2 h 5 min"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"seed": -1}, "a whole number from 0 to 4294967295"),
        ({"epochs": 0}, "a finite number > 0"),
        ({"learning_rate": -1.0}, "a finite number > 0"),
        ({"stability_distance": 0.0}, "a finite number > 0"),
        ({"adversarial_steps": 0}, "a finite number > 0"),
        ({"image_size": -1}, "a finite number >= 0"),
        ({"lambda_stability": -0.1}, "a finite number >= 0"),
        ({"lambda_sparsity": float("nan")}, "a finite number >= 0"),
        ({"adversarial_radius": -1.0}, "a finite number >= 0"),
        ({"adversarial_radius": float("inf")}, "a finite number >= 0"),
        ({"warmup": 1.0}, "a number from 0 to below 1"),
        ({"stability_form": "linear"}, "one of ('log_relative', 'squared', 'hinge')"),
        ({"stability_method": "nearest"}, "one of ('boundary', 'projection', 'pinv')"),
        ({"stability_logits": "free"}, "one of ('own', 'detached', 'learned')"),
        ({"adversarial_norm": "l1"}, "one of ('l2', 'linf')"),
    ],
)
def test_configuration_errors_name_the_field_and_the_value(wrong, expected):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; expected {expected}")):
        TrainConfig(**wrong)


def test_consistency_needs_attacked_images():
    with pytest.raises(ValueError, match=r"lambda_consistency is 1, which compares .*; set adversarial_radius"):
        TrainConfig(lambda_consistency=1.0)


def test_every_preset_builds_its_model():
    for name, config in PRESETS.items():
        options: dict[str, Any] = {k: float(v) for k, v in (option.split("=") for option in config.model_options)}
        if config.lambda_parts:  # what the data set says
            options |= {"regions": ((0,), (1,)), "attribute_regions": (0, 0, 1, 1, -1, -1)}
        model = build_model(name, num_attributes=6, num_classes=4, **options)
        assert config.model == name == model.name and bool(config.weights) == model.frozen_backbone
