"""The folder of one training run: its owner, its metrics and checkpoints, and how the user stops it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.cli.command import UserError
from spectra_jax.logging import write_json
from spectra_jax.sharding import any_process
from spectra_jax.training import TrainConfig

CONFIG, METRICS, SUMMARY, CHECKPOINTS = "config.json", "metrics.jsonl", "summary.json", "checkpoints"
CHECKPOINT_MARK = "_CHECKPOINT_METADATA"  # orbax puts it into each
LOCK = ".lock"
IMAGES = "images"
RESULTS = (
    "answers.csv",
    "answers.npz",
    "images.npz",
    "counterfactuals.npz",
    METRICS,
    SUMMARY,
    "report.html",
    "inversion.json",
    "table.md",
    "table.csv",
)


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
        self._lock: int | None = None
        refusal: Exception | None = None
        if jax.process_index() == 0:  # one process decides: the others could see the folder half made
            try:
                self._lock = self._claim(json.loads(json.dumps(dict(identity))), dict(extra or {}))
            except (UserError, OSError) as error:  # kept until the others know, who would wait for ever
                refusal = error
        refused = any_process(refusal is not None)  # where there are several processes, they meet here
        if refused:
            raise refusal or UserError(f"Process 0 refuses --run-dir {path}; see its output for the reason.")

    def _claim(self, config: dict[str, Any], extra: dict[str, Any]) -> int:
        path, stored = self.path, self.path / CONFIG
        if path.exists() and not path.is_dir():
            raise UserError(f"--run-dir {path} is a file; name a folder.")
        if stored.exists():
            _compare(path, read_config(path)["run"], config)
        elif path.exists() and (others := [p.name for p in path.iterdir() if not p.name.startswith(".")]):
            raise UserError(
                f"--run-dir {path} is not empty ({', '.join(sorted(others)[:3])}) and holds no {CONFIG}: it is not a "
                "run folder. Choose another one."
            )
        _make_folder(path)
        lock = _lock(path, "Another process is training in {path}. Wait for it or choose another --run-dir.")
        if not stored.exists():
            write_json(stored, {"run": config, **extra})
        return lock

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock is not None:
            os.close(self._lock)


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run folder; settings of the training that are newer than the run have their defaults.

    Raises:
        UserError: it is not one that `RunFolder` wrote.
    """
    config = _read_config(path)
    if not isinstance(config.get("run"), dict):
        raise UserError(f"{path / CONFIG} was not written by a training run: {path} is not a run folder.")
    train = config["run"].get("train")
    if isinstance(train, dict):
        # A setting that did not exist when the run was trained: its default means "as before".
        for setting in dataclasses.fields(TrainConfig):
            train.setdefault(setting.name, setting.default)
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path / CONFIG)
    except (OSError, ValueError) as error:  # a folder, not JSON, not even text
        raise UserError(
            f"{path / CONFIG} is not valid JSON ({error}): it was edited or written by another program."
        ) from None
    return config if isinstance(config, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that `write_json` wrote.

    Raises:
        OSError, ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@contextlib.contextmanager
def owned_folder(path: Path, made_by: str, options: Mapping[str, Any], *, part: str | None = None) -> Iterator[Path]:
    """A folder for results that only count for `options`, held by one process while the `with` block lasts.

    Results of the same options are kept. Of other options they are deleted, but only files that the scripts write: what
    somebody else put there stays.

    Args:
        path: made if absent.
        made_by: the script, the mark by which it knows its own folders again.
        options: JSON-able facts on which the results depend.
        part: holds this part of the folder alone, while others may hold other parts; nothing is ever deleted then.

    Raises:
        UserError: the folder is not empty and not marked by this script, another process is writing it, or, with a
            part, it holds results of other options; nothing is deleted then.
    """
    config = {"made_by": made_by, "options": json.loads(json.dumps(dict(options)))}
    _check_owner(path, made_by)
    _make_folder(path)
    refusal = "Another process is writing {path}. Wait for it or choose another folder."
    with contextlib.ExitStack() as locks:
        locks.callback(os.close, _lock(path, refusal, shared=part is not None))
        if part is not None:
            refusal = f"Another process is writing {part} of {{path}}. Wait for it or take another part."
            locks.callback(os.close, _lock(path, refusal, name=f"{LOCK}-{part}"))
        if (before := _check_owner(path, made_by)) != config:
            if part is not None and before:
                raise UserError(f"{path} holds results of another input or other options. Choose another folder.")
            _delete_results(path)
            write_json(path / CONFIG, config)
        yield path


def _check_owner(path: Path, made_by: str) -> dict[str, Any]:
    """The config.json of a folder that `made_by` may use; {} if there is none yet."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder.")
    if not path.exists():
        return {}
    if (path / CONFIG).exists():
        config = _read_config(path)
        if "run" in config:
            raise UserError(f"{path} is the folder of a training run. Choose another one.")
        if config.get("made_by") != made_by:
            raise UserError(f"{path / CONFIG} was not written by {made_by}. Choose another folder.")
        return config
    # A process killed at once leaves these.
    others = [p.name for p in path.iterdir() if not p.name.startswith(LOCK) and not p.name.startswith(f".{CONFIG}.")]
    if others:
        raise UserError(
            f"{path} is not empty ({', '.join(sorted(others)[:3])}) and holds no {CONFIG} of {made_by}. "
            "Choose another folder."
        )
    return {}


def _delete_results(path: Path) -> None:
    """Deletes what the scripts write into a folder of theirs, and nothing else."""
    # config.json goes last and is replaced, not deleted: the folder stays marked if the process is killed here.
    for pattern in (f"{IMAGES}/sample-*.png", *RESULTS):
        for file in path.glob(pattern):
            if file.is_file():
                file.unlink()
    for step in (path / CHECKPOINTS).glob("*"):
        # What only looks like a checkpoint, or was given a name, is somebody else's; damaged ones stay set aside.
        if step.name.isdigit() and (step / CHECKPOINT_MARK).is_file():
            shutil.rmtree(step)
    for folder in (IMAGES, CHECKPOINTS):
        with contextlib.suppress(OSError):  # absent, or there is something else in it
            (path / folder).rmdir()


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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a broken symbolic link" if path.is_symlink() else error.strerror
        raise UserError(f"{path} cannot be made ({reason}). Choose another folder.") from error


def _lock(path: Path, refusal: str, *, name: str = LOCK, shared: bool = False) -> int:
    descriptor = os.open(path / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Released by the kernel however the process ends, so a killed run never stays locked.
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(refusal.format(path=path)) from None
    return descriptor
