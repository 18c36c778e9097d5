"""The loop around the step: when to log, evaluate, checkpoint and stop."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import numpy as np

from spectra_jax.models import Params
from spectra_jax.training._step import Metrics, TrainState
from spectra_jax.types import AnyBatch


class ResumableBatches(Protocol):
    """An endless source of batches that can be put back to where it was."""

    def __next__(self) -> AnyBatch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """Where a run stands, on the host; plain numbers that fit into JSON, so that a checkpoint can hold it.

    Attributes:
        step: steps taken.
        seconds: time spent in the loop, over all resumed parts.
        skipped: steps skipped because they were not finite.
        sums: sums of the metrics since they were last logged, and `count` of how many steps.
        count: see `sums`.
        data: the state of the batches.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    data: dict[str, Any] | None = None


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is NaN or infinite; no checkpoint holds that step or a later one."""


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]],
    batches: ResumableBatches,
    *,
    num_steps: int,
    steps_per_epoch: int,
    progress: Progress | None = None,
    place: Callable[[AnyBatch], AnyBatch] = lambda batch: batch,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
    log_every: int = 50,
    evaluate: Callable[[Params], Mapping[str, Mapping[str, float]]] | None = None,
    evaluate_every: int = 0,
    save: Callable[[TrainState, Progress], None] | None = None,
    save_every: int = 0,
    non_finite: Literal["stop", "skip"] = "stop",
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda step: None,
    block: bool = False,
) -> tuple[TrainState, Progress]:
    """Trains until `num_steps` steps are taken or `should_stop` says so.

    Resuming from a checkpoint means passing its state and progress: the run then goes on exactly as if it had never
    stopped. Metrics stay on the device until they are logged, so the host does not wait for each step.

    Args:
        state: donated.
        train_step: from `make_train_step`.
        batches: endless; set back to `progress.data` when that is given.
        num_steps: in all, those already taken included.
        steps_per_epoch: only to say in which epoch a step was.
        progress: from a checkpoint; changed in place.
        place: moves a batch to the devices.
        log: receives {"step", "epoch", "split", name: number ...}: the mean since the last log for split "train".
        log_every: steps between two logs.
        evaluate: params -> {split: metrics}, every `evaluate_every` steps and after the last (0: only after the last).
        evaluate_every: see `evaluate`.
        save: stores a checkpoint, every `save_every` steps (0: never in between), after the last and when stopped.
        save_every: see `save`.
        non_finite: "stop" with an error or "skip" the step.
        should_stop: asked after every step.
        on_step: told the number of steps taken, after every step.
        block: wait for each step. Several processes on CPU devices hang without it.

    Returns:
        The last state and the progress; progress.step < num_steps when it was stopped.

    Raises:
        NonFiniteError: a loss or gradient was not finite and `non_finite` is "stop".
    """
    progress = Progress() if progress is None else progress
    if progress.data is not None:
        batches.set_state(progress.data)
    began, seconds_before, saved = time.monotonic(), progress.seconds, progress.step
    pending: list[Metrics] = []

    def drain() -> None:
        first = progress.step - len(pending) + 1
        for step, metrics in enumerate(jax.device_get(pending), start=first):
            if not metrics.pop("finite"):
                if non_finite == "stop":
                    raise NonFiniteError(_explain(step, metrics, saved))
                progress.skipped += 1
                continue
            progress.count += 1
            for name, value in metrics.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + float(value)
        pending.clear()

    def record(split: str, metrics: Mapping[str, float]) -> None:
        log({"step": progress.step, "epoch": round(progress.step / steps_per_epoch, 4), "split": split, **metrics})

    def checkpoint() -> None:
        nonlocal saved
        if save is not None and saved != progress.step:
            drain()
            progress.seconds = seconds_before + time.monotonic() - began
            progress.data = batches.get_state()
            save(state, dataclasses.replace(progress, sums=dict(progress.sums)))
            saved = progress.step

    while progress.step < num_steps:
        state, metrics = train_step(state, place(next(batches)))
        progress.step += 1
        pending.append(metrics)
        if block:
            jax.block_until_ready(state)
        last = progress.step == num_steps
        if last or progress.step % log_every == 0:
            drain()
            means = {name: total / progress.count for name, total in progress.sums.items()} if progress.count else {}
            progress.seconds = seconds_before + time.monotonic() - began
            record("train", {**means, "skipped_steps": progress.skipped, "seconds": round(progress.seconds, 3)})
            progress.sums, progress.count = {}, 0
        if evaluate is not None and (last or (evaluate_every and progress.step % evaluate_every == 0)):
            drain()
            for split, result in evaluate(state.params).items():
                record(split, result)
        if last or (save_every and progress.step % save_every == 0):
            checkpoint()
        on_step(progress.step)
        if should_stop():
            checkpoint()
            break
    progress.seconds = seconds_before + time.monotonic() - began
    return state, progress


def _explain(step: int, metrics: Mapping[str, Any], saved: int) -> str:
    bad = ", ".join(name for name, value in metrics.items() if not np.isfinite(value)) or "the gradient"
    if saved:
        kept = f"The last good checkpoint is step {saved}: repeating the command continues from there"
    else:
        kept = "There is no checkpoint yet: repeating the command starts afresh"
    return (
        f"Step {step}: {bad} is not finite. {kept} and, with the same data and settings, meets that step again. Look "
        "for bad examples, or start a new run with a lower learning_rate or with non_finite='skip', which skips such "
        "steps."
    )
