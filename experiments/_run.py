"""What the scripts share: where things are cached, which data, the run folder, stopping, and reading a run again."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from spectra_jax.checkpoint import Checkpoints
from spectra_jax.data import Dataset, DatasetInfo, open_dataset
from spectra_jax.logging import Console, MetricsFile, write_json
from spectra_jax.models import Model, Params, build_model
from spectra_jax.training import Progress, TrainConfig, TrainState

CONFIG, METRICS, SUMMARY, CHECKPOINTS = "config.json", "metrics.jsonl", "summary.json", "checkpoints"
# Shown on the console. Plain attribute accuracy is not among them: on CUB "absent" is right 92 % of the time.
SHOWN = ("class_accuracy", "attribute_balanced_accuracy", "attribute_f1", "attribute_map")


class UserError(Exception):
    """A mistake in what was asked for; shown as one message, without a traceback."""


@dataclass(frozen=True)
class DataConfig:
    """Which data set.

    Attributes:
        data_dir: a folder in CUB-200-2011's layout, its parent, or the official archive; the synthetic birds if not
            given.
        attributes: 312 for all, 112 for those of the concept-bottleneck literature.
        crop: "box" cuts every photograph to the bird's bounding box, "full" takes it whole.
    """

    data_dir: Path | None = None
    attributes: Literal[312, 112] = 312
    crop: Literal["box", "full"] = "box"

    @property
    def name(self) -> str:
        """A short name for folders."""
        if self.data_dir is None:
            return "synthetic"
        return self.data_dir.resolve().name.removesuffix(".tgz").removesuffix(".tar.gz").lower()


def cache_dir() -> Path:
    """Where prepared data, weights and features are kept: $SPECTRA_JAX_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SPECTRA_JAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "spectra_jax"


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs. A script's choice: the library itself never touches jax.config."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def clear_cache() -> None:
    """Deletes everything below `cache_dir`; the next run prepares and compiles again."""
    shutil.rmtree(cache_dir(), ignore_errors=True)


def prepare_data(config: DataConfig, *, console: Console) -> Dataset:
    """The data set `config` names, prepared on first use; the synthetic birds are drawn on first use.

    Raises:
        UserError: the source is missing or damaged.
    """
    from data_prep.cub200 import CubError, prepare
    from data_prep.synthetic_birds import generate

    source = config.data_dir
    if source is None:
        source = generate(cache_dir() / "synthetic_birds", overwrite=True, progress=not console.quiet)
    elif not source.exists():
        raise UserError(f"--data-dir {source}: there is no such folder or file. Leave it out for the synthetic birds.")
    try:
        prepared = prepare(
            source,
            cache_dir() / "prepared",
            attributes=config.attributes,
            crop=config.crop,
            progress=not console.quiet,
        )
    except CubError as error:
        raise UserError(str(error)) from error
    return open_dataset(prepared)


def parse_options(options: tuple[str, ...]) -> dict[str, Any]:
    """("depth=34", "norm=group") -> {"depth": 34, "norm": "group"}."""
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"--model-options {option!r}: expected name=value, for example depth=34")
        try:
            parsed[name] = json.loads({"True": "true", "False": "false"}.get(text, text))
        except json.JSONDecodeError:
            parsed[name] = text
        if isinstance(parsed[name], list):
            parsed[name] = tuple(parsed[name])
    return parsed


def make_model(config: TrainConfig, info: DatasetInfo) -> Model:
    """The model of `config` for the classes and attributes of `info`."""
    try:
        return build_model(
            config.model,
            num_attributes=info.num_attributes,
            num_classes=info.num_classes,
            **parse_options(config.model_options),
        )
    except ValueError as error:
        raise UserError(str(error)) from error


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
            _compare(path, _read_config(path)["run"], config)
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / CONFIG).read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path / CONFIG} is not valid JSON ({error}): it was edited or is no config of ours."
        ) from None


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


def run_main(main: Any) -> None:
    """Runs a script's `main`, showing a UserError as a message and exit code 2, Ctrl-C as exit code 130."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class LoadedRun(NamedTuple):
    """A trained run, ready for use.

    Attributes:
        model: the architecture.
        params: those of its newest checkpoint.
        info: of the data it was trained on.
        config: how it was trained.
        dataset: the prepared data itself.
        step: of the checkpoint.
    """

    model: Model
    params: Params
    info: DatasetInfo
    config: TrainConfig
    dataset: Dataset
    step: int


def load_run(run_dir: Path) -> LoadedRun:
    """Reads what `experiments.train` left in `run_dir`; the folder is not changed.

    Raises:
        UserError: it is not the folder of a run, has no checkpoint yet, or its prepared data are gone.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG).exists():
        raise UserError(f"{run_dir} is not the folder of a run: there is no {CONFIG}. Train one: experiments.train.")
    stored = _read_config(run_dir)
    fields = stored["run"]["train"]
    config = TrainConfig(**{**fields, "model_options": tuple(fields["model_options"])})
    prepared = Path(stored["prepared"])
    if not prepared.exists():
        raise UserError(f"The prepared data {prepared} of {run_dir} are gone: repeat its training command once.")
    dataset = open_dataset(prepared)
    model = make_model(config, dataset.info)
    try:
        step, params = Checkpoints(run_dir / CHECKPOINTS, read_only=True).restore_params()
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    return LoadedRun(model, params, dataset.info, config, dataset, step)


def describe(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What a resumed run must share with the run it resumes."""
    return {"train": dataclasses.asdict(config), "data": dataset.path.name}
