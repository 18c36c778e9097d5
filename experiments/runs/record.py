"""What a training writes to its run folder: metrics and checkpoints on the way, figures and arrays at the end."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.runs.folder import CHECKPOINTS, METRICS, SUMMARY, RunFolder, read_json
from experiments.runs.stored import TestSplit, write_test_split
from spectra_jax import (
    Head,
    attackability,
    attackability_summary,
    certified_accuracy,
    certified_radius,
    encoder_rounding,
    lipschitz_bound,
)
from spectra_jax.checkpoint import Checkpoints
from spectra_jax.logging import Console, MetricsFile, write_json
from spectra_jax.models import Model, Params
from spectra_jax.training import Predictions, Progress, TrainConfig, TrainState, evaluate

# Shown on the console. Plain attribute accuracy is not among them: on CUB "absent" is right 92 % of the time.
# The metrics of an evaluation that the console shows, and what it calls them.
SHOWN = {
    "class_accuracy": "class accuracy",
    "attribute_balanced_accuracy": "balanced accuracy of the attributes",
    "attribute_f1": "their F1",
    "attribute_map": "mean average precision",
    "reconstruction_psnr": "PSNR of the reconstruction, dB",
}
_CERTIFIED = "certified_accuracy_"


class Record:
    """The metrics and checkpoints of a run, taken up where its folder stands.

    Args:
        run: its folder.
        state: the one before the first step.
        console: told about evaluations and damaged checkpoints.
    """

    def __init__(self, run: RunFolder | Path, state: TrainState, *, console: Console):
        self.state, self.progress, self.remark, self.epoch = state, Progress(), "", 0.0
        self._console = console
        self._checkpoints = Checkpoints(run / CHECKPOINTS)
        restored = self._checkpoints.restore(state)
        position = 0
        if restored is not None:
            for step, reason in restored.damaged.items():
                console.say(f"checkpoint {step} was damaged and is not used: {reason}")
            self.state, self.progress = restored.state, Progress(**restored.host["progress"])
            position, self.epoch = restored.host["position"], restored.host["epoch"]
        self.seconds_before = self.progress.seconds
        self._metrics = MetricsFile(run / METRICS, position=position) if jax.process_index() == 0 else None

    def log(self, record: dict[str, Any]) -> None:
        """Appends to metrics.jsonl; shows an evaluation on the console."""
        self.epoch = record["epoch"]
        if self._metrics is not None:
            self._metrics.append(record)
        if record["split"] == "train":
            self.remark = f"loss {record['loss']:.4f}" if "loss" in record else ""
        else:
            words = {name: f"accuracy proven within L2 {name.removeprefix(_CERTIFIED)}"
                     for name in record if name.startswith(_CERTIFIED)}  # fmt: skip
            figures = [f"{word} {record[name]:.3f}" for name, word in (SHOWN | words).items() if name in record]
            self._console.say(f"epoch {self.epoch:g}, {record['split']}: {', '.join(figures)}")

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts a checkpoint that includes how far metrics.jsonl was written."""
        position = 0
        if self._metrics is not None:
            self._metrics.sync()
            position = self._metrics.position
        host = {"progress": dataclasses.asdict(progress), "position": position, "epoch": self.epoch}
        self._checkpoints.save(progress.step, state, host)

    def close(self) -> None:
        """Waits for the last checkpoint."""
        self._checkpoints.close()
        if self._metrics is not None:
            self._metrics.close()


def certified_figures(model: Model, params: Params, predictions: Predictions, config: TrainConfig) -> dict[str, float]:
    """Certified accuracy at half the radius trained for, at the radius and at twice it.

    Args:
        model: of which `lipschitz_bound` knows something.
        params: in float64, folded.
        predictions: with these parameters.
        config: how it is trained.
    """
    side = config.image_size
    certificate = certified_radius(
        jax.device_get(model.head(params)),
        predictions.attributes,
        lipschitz=lipschitz_bound(model, params).value,
        rounding=encoder_rounding(model, params, (side, side, 3)),
    )
    radii = [factor * config.certified_radius for factor in (0.5, 1, 2)]
    shares = certified_accuracy(certificate, predictions.labels, radii)
    return {f"{_CERTIFIED}{radius:g}": float(share) for radius, share in zip(radii, shares, strict=True)}


def summarize(
    run: RunFolder,
    head: Head,
    predictions: Predictions,
    proven: dict[str, float],
    progress: Progress,
    record: Record,
    *,
    began: float,
) -> None:
    """Writes the figures on the test split, and the arrays that later scripts work on.

    Args:
        run: the folder to write into.
        head: of the trained model.
        predictions: on the test split.
        proven: figures of `certified_figures`, where there are any.
        progress: at the end of training; its time is that of the loop, kept as train/seconds.
        record: logs the figures.
        began: time.monotonic() when this command did. To its time, "seconds", that of earlier commands is added as far
            as it is known: all of those that finished training, the training loop of those that were stopped.
    """
    figures = evaluate(predictions) | proven
    record.log({"step": progress.step, "epoch": record.epoch, "split": "test", **figures})
    ratios = attackability(jax.device_get(head), jnp.asarray(predictions.attributes))
    for name, value in attackability_summary(ratios).items():
        is_margin = name.startswith("relative_margin")
        figures[name.replace("margin", "margin_mean") if is_margin else f"attackability_{name}"] = value
    if jax.process_index() == 0:
        write_test_split(run.path, TestSplit(*jax.device_get((predictions.attributes, predictions.labels, head))))
        summary = {f"test/{name}": value for name, value in figures.items()}
        earlier = {"train/seconds": progress.seconds, "seconds": record.seconds_before}
        earlier |= _seconds_before(run / SUMMARY, earlier)
        seconds = {"train/seconds": earlier["train/seconds"], "seconds": earlier["seconds"] + time.monotonic() - began}
        write_json(run / SUMMARY, summary | seconds)


def _seconds_before(path: Path, names: Iterable[str]) -> dict[str, float]:
    """The times in the summary of a training that had finished before; of a damaged one, which is replaced, none."""
    try:
        stored = read_json(path)
        return {name: stored[name] for name in names if isinstance(stored[name], int | float)}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
