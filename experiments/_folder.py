"""The folder of one training run: whose it is, its metrics and checkpoints, and how the user stops it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax import Head, attackability
from spectra_jax.checkpoint import Checkpoints
from spectra_jax.logging import Console, MetricsFile, write_json
from spectra_jax.training import Predictions, Progress, TrainState, evaluate

CONFIG, METRICS, SUMMARY, CHECKPOINTS = "config.json", "metrics.jsonl", "summary.json", "checkpoints"
# Shown on the console. Plain attribute accuracy is not among them: on CUB "absent" is right 92 % of the time.
SHOWN = ("class_accuracy", "attribute_balanced_accuracy", "attribute_f1", "attribute_map")


class UserError(Exception):
    """A mistake in what was asked for; shown as one message, without a traceback."""


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path: made if absent.
        identity: JSON-able facts that a resumed run must share; written to config.json.
        extra: further facts for config.json that may differ.

    Raises:
        UserError: the folder holds another run or something else, or another process is writing it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, extra: Mapping[str, Any] | None = None):
        self.path = path
        primary = jax.process_index() == 0
        config = json.loads(json.dumps(dict(identity)))
        if path.exists() and not path.is_dir():
            raise UserError(f"--run-dir {path} is a file; name a folder.")
        stored = path / CONFIG
        if stored.exists():
            _compare(path, read_config(path)["run"], config)
        elif path.exists() and (others := [p.name for p in path.iterdir() if not p.name.startswith(".")]):
            raise UserError(
                f"--run-dir {path} is not empty ({', '.join(sorted(others)[:3])}) and holds no {CONFIG}: it is not the "
                "folder of a run. Choose another one."
            )
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path) if primary else None
        if primary and not stored.exists():
            write_json(stored, {"run": config, **(extra or {})})

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock is not None:
            os.close(self._lock)


def read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / CONFIG).read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path / CONFIG} is not valid JSON ({error}): it was edited or is no config of ours."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_json` wrote."""
    return json.loads(path.read_text())


def owned_folder(path: Path, identity: Mapping[str, Any]) -> Path:
    """A folder for results that only count for `identity`: kept if they do, emptied if they do not.

    Raises:
        UserError: it holds something that is not such results; nothing is deleted then.
    """
    config = json.loads(json.dumps(dict(identity)))
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / CONFIG).exists()):
            raise UserError(f"{path} exists and holds no {CONFIG} of ours. Choose another folder.")
        stored = read_config(path) if (path / CONFIG).exists() else {}
        if "run" in stored:
            raise UserError(f"{path} is the folder of a training run. Choose another one.")
        if stored != config:
            shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, config)
    return path


def _compare(path: Path, before: Any, now: Any) -> None:
    flat_before, flat_now = _flatten(before), _flatten(now)
    differing = [
        f"  {name}: {flat_before.get(name)!r} there, {flat_now.get(name)!r} now"
        for name in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(name) != flat_now.get(name)
    ]
    if differing:
        raise UserError(
            f"{path} holds another run; these settings differ:\n"
            + "\n".join(differing)
            + "\nRepeat the command that started it to resume, or choose another --run-dir, or delete that folder."
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for name, item in value.items() for k, v in _flatten(item, f"{prefix}.{name}".strip(".")).items()}


def _lock(path: Path) -> int:
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Released by the kernel however the process ends, so a killed run never stays locked.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"Another process is training in {path}. Wait for it or choose another --run-dir.") from None
    return descriptor


class Record:
    """The metrics and checkpoints of a run, taken up where its folder stands.

    Args:
        run: its folder.
        state: the one before the first step.
        console: told about evaluations and damaged checkpoints.
    """

    def __init__(self, run: RunFolder, state: TrainState, *, console: Console):
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
        self._metrics = MetricsFile(run / METRICS, position=position) if jax.process_index() == 0 else None

    def log(self, record: dict[str, Any]) -> None:
        """Appends to metrics.jsonl; shows an evaluation on the console."""
        self.epoch = record["epoch"]
        if self._metrics is not None:
            self._metrics.append(record)
        if record["split"] == "train":
            self.remark = f"loss {record['loss']:.4f}" if "loss" in record else ""
        else:
            figures = ", ".join(f"{name.replace('_', ' ')} {record[name]:.3f}" for name in SHOWN)
            self._console.say(f"epoch {self.epoch:g}, {record['split']}: {figures}")

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


def write_arrays(path: Path, **arrays: Any) -> None:
    """An .npz file that appears whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def summarize(run: RunFolder, head: Head, predictions: Predictions, progress: Progress, record: Record) -> None:
    """Writes the figures on the test split, and the arrays that later scripts work on."""
    figures = evaluate(predictions)
    record.log({"step": progress.step, "epoch": record.epoch, "split": "test", **figures})
    ratios = np.asarray(attackability(jax.device_get(head), jnp.asarray(predictions.attributes)), np.float64)
    figures |= {
        "attackability_mean": float(ratios.mean()),
        "attackability_median": float(np.median(ratios)),
        "relative_margin_mean": float(np.mean(1 / ratios)),
    }
    if jax.process_index() == 0:
        write_arrays(run / "test_attributes.npz", attributes=predictions.attributes, labels=predictions.labels)
        write_arrays(run / "head.npz", **{k: v for k, v in jax.device_get(head)._asdict().items() if v is not None})
        summary = {f"test/{name}": value for name, value in figures.items()}
        write_json(run / SUMMARY, summary | {"seconds": progress.seconds})


class Stop:
    """Whether the user asked to stop: Ctrl-C or SIGTERM sets `signal`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells expect."""
        return 128 + (self.signal or 0)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns Ctrl-C and SIGTERM into a polite request inside the `with` block."""
    stop = Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
