"""Training a network that draws images: what the decoder of a run and the auto-encoder of the cited systems share."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.runs.record import Record
from experiments.runs.signals import stop_on_signals
from spectra_jax.batches import BatchIterator
from spectra_jax.logging import Console
from spectra_jax.models import Params
from spectra_jax.training import Metrics, TrainState, fit
from spectra_jax.types import AnyBatch

CHUNK = 64  # rows that pass a network at once


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, warmed up over a twentieth of the steps, then down a cosine."""
    warmup = steps // 20
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1)))


def make_step(
    loss: Callable[[Params, Params, AnyBatch], Float[Array, ""]],
    fixed: Params,
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]]:
    """The jitted step of a scalar loss(params, fixed, batch); the state passed in is donated.

    Args:
        loss: of the parameters that are trained, those that stay, and a batch.
        fixed: the parameters that stay.
        optimizer: of those that are trained.
    """

    def step(state: TrainState, fixed: Params, batch: AnyBatch) -> tuple[TrainState, Metrics]:
        value, gradient = jax.value_and_grad(loss)(state.params, fixed, batch)
        norm = optax.tree.norm(gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": norm, "finite": jnp.isfinite(value) & jnp.isfinite(norm)}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    jitted = jax.jit(step, donate_argnums=0)
    return lambda state, batch: jitted(state, fixed, batch)


def train(
    record: Record,
    state: TrainState,
    step: Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]],
    batches: BatchIterator,
    *,
    title: str,
    num_steps: int,
    every: int,
    console: Console,
    evaluate: Callable[[Params], dict[str, dict[str, float]]] | None = None,
    save: Callable[..., None] | None = None,
) -> tuple[TrainState, int]:
    """Trains, or resumes, with metrics and checkpoints in the folder of `record`.

    Args:
        record: of the training; closed in the end, like `batches`.
        state: to go on from.
        step: from `make_step`.
        batches: without end.
        title: of the progress.
        num_steps: of the whole training.
        every: steps between two checkpoints, and two evaluations.
        console: shows the progress.
        evaluate: of `fit`.
        save: keeps a state with its progress; default: `record.save`.

    Returns:
        The last state; and 0, or the exit code where the user stopped it.
    """
    with (
        contextlib.closing(batches),
        contextlib.closing(record),
        stop_on_signals() as stop,
        console.progress(title, num_steps, start=record.progress.step) as task,
    ):
        state, progress = fit(
            state,
            step,
            batches,
            num_steps=num_steps,
            steps_per_epoch=batches.batches_per_epoch,
            progress=record.progress,
            log=record.log,
            evaluate=evaluate,
            evaluate_every=every if evaluate else 0,
            save=save or record.save,
            save_every=every,
            should_stop=stop,
            on_step=lambda step: task.update(step, record.remark),
        )
        return state, 0 if progress.step == num_steps else stop.exit_code


def in_chunks(apply: Callable[[Params, Any], jax.Array], params: Params, rows: np.ndarray) -> np.ndarray:
    """apply(params, rows) in padded chunks of one size, so that it is compiled once."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        padded = np.concatenate([part, np.zeros((CHUNK - len(part), *part.shape[1:]), part.dtype)])
        parts.append(np.asarray(apply(params, jnp.asarray(padded)))[: len(part)])
    return np.concatenate(parts)
