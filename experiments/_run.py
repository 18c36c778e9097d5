"""What the scripts share: where things are cached, which data, which model, and reading a run again."""

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from data_prep.commands import ended
from experiments._folder import CHECKPOINTS, CONFIG, UserError
from experiments._stored import open_prepared, read_run_config, read_test_split
from spectra_jax.checkpoint import CheckpointError, Checkpoints
from spectra_jax.data import Dataset, DatasetInfo
from spectra_jax.logging import Console
from spectra_jax.models import Model, Params, build_model
from spectra_jax.sharding import initialize_distributed
from spectra_jax.training import PRESETS, TrainConfig

SMALL = 128  # longer side, in pixels; the synthetic birds' boxes have less


@dataclass(frozen=True)
class DataConfig:
    """Which data set.

    Attributes:
        data_dir: your own images: a folder with one table of classes and attributes (docs/own-data.md), or a folder or
            archive in CUB-200-2011's layout; drawn images if not given.
        attributes: "all" that the data have (312 means the same); 112 for those of the concept-bottleneck literature,
            in CUB's layout only.
        crop: "box" cuts every image to the box around its object where the data have boxes, "full" takes it whole.
    """

    data_dir: Path | None = None
    attributes: Literal["all", 312, 112] = "all"
    crop: Literal["box", "full"] = "box"

    @property
    def name(self) -> str:
        """A short name for folders."""
        if self.data_dir is None:
            return "synthetic"
        folder = self.data_dir.resolve()
        if folder.is_file() and folder.suffix.lower() in (".csv", ".parquet"):
            folder = folder.parent
        return folder.name.removesuffix(".tgz").removesuffix(".tar.gz").lower()


@dataclass(frozen=True)
class HostsConfig:
    """How several hosts find each other. SLURM and TPU pods are recognised without it.

    Attributes:
        coordinator_address: host:port of process 0.
        num_processes: how many processes there are.
        process_id: which of them this is.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def join_hosts(config: HostsConfig) -> None:
    """Joins the other processes of a multi-host run, if there are any; before anything touches a device."""
    try:
        initialize_distributed(**dataclasses.asdict(config))
    except ValueError as error:
        raise UserError(str(error)) from error


def cache_dir() -> Path:
    """Where prepared data, weights and features are kept: $SPECTRA_JAX_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SPECTRA_JAX_CACHE")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "spectra_jax")
    try:
        return Path(chosen).expanduser().absolute()  # a run remembers it, and may be read from elsewhere
    except RuntimeError as error:
        raise UserError(f"There is no home folder to cache in ({error}): set SPECTRA_JAX_CACHE to a folder.") from error


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs. A script's choice: the library itself never touches jax.config."""
    folder = cache_dir() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, a full disk: without it everything works, and jax would warn about each program
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def one_device_a_core() -> None:
    """Lets JAX see a CPU as one device a core; before anything touches a device.

    One program on one device spreads each of its small operations over all cores and gains little; programs that share
    nothing do better. A number of devices that the user chose stays, and other backends do not notice.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.values["jax_num_cpu_devices"] < 0:  # JAX_NUM_CPU_DEVICES sets it as well
        jax.config.update("jax_num_cpu_devices", num_cores())


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_data(config: DataConfig, *, console: Console) -> Dataset:
    """The data set `config` names, prepared on first use; the synthetic birds are drawn on first use.

    Raises:
        UserError: the source is missing or damaged, or has no images to train on or none to test with.
    """
    from data_prep.problems import DataError
    from data_prep.sources import prepare_source

    source = config.data_dir
    if source is not None and not source.exists():
        raise UserError(f"--data-dir {source}: there is no such folder or file. Leave it out for the synthetic birds.")
    try:
        if source is None:
            from data_prep.synthetic_birds import generate

            source = generate(cache_dir() / "synthetic_birds", overwrite=True, progress=not console.quiet)
        prepared = prepare_source(
            source,
            cache_dir() / "prepared",
            attributes=112 if config.attributes == 112 else 312,
            crop=config.crop,
            progress=not console.quiet,
        )
    except DataError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or cache_dir()} cannot be written ({error.strerror}): make room, or set "
            "SPECTRA_JAX_CACHE to a folder that can."
        ) from error
    dataset = open_prepared(prepared)
    for split, mark in (("train", 1), ("test", 0)):
        if not dataset.num_examples(split):
            raise UserError(
                f"--data-dir {source} has no images of the {split} split: train_test_split.txt says {mark} for none of "
                "those that are there. Mark some."
            )
    for note in dataset.info.notes:
        console.say(note)
    return dataset


def check_rhythm(log_every: int, evaluate_every: float, checkpoint_every: float) -> None:
    """Refuses intervals that no training loop can keep.

    Raises:
        UserError: one of them is negative or not finite, or log_every is 0.
    """
    if log_every < 1:
        raise UserError(f"--log-every {log_every}: expected a number of steps, 1 or more")
    for name, epochs in (("evaluate", evaluate_every), ("checkpoint", checkpoint_every)):
        if not 0 <= epochs < float("inf"):
            raise UserError(f"--{name}-every {epochs:g}: expected a number of epochs, or 0 for only at the end")


def every(epochs: float, steps_per_epoch: int) -> int:
    """Steps between two events that are `epochs` apart; 0, for only at the end, stays 0."""
    return max(1, round(epochs * steps_per_epoch)) if epochs else 0


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


def missing_library(name: str, extra: str) -> BaseException:
    """What to raise where an optional library is not installed; a script that is being run ends in one line."""
    message = f"{name} is not installed: {sys.executable} -m pip install -c constraints.txt -e '.[{extra}]'"
    is_script = getattr(sys.modules["__main__"].__spec__, "name", "").startswith("experiments.")
    return SystemExit(f"error: {message}") if is_script else ImportError(message)


def run_main(main: Callable[[], int]) -> None:
    """Runs a script's `main`, showing a UserError as a message and exit code 2, Ctrl-C as exit code 130."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about options that we set on purpose
    sys.unraisablehook = _show_unraisable
    sys.exit(ended(main, UserError))


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows what Python cannot raise, but for the reads that orbax had begun when it found a checkpoint damaged."""
    if str(unraisable.exc_value) != "Event loop is closed" and not inspect.iscoroutine(unraisable.object):
        sys.__unraisablehook__(unraisable)


def preset(arguments: Sequence[str]) -> TrainConfig:
    """The defaults of the model and data named on the command line."""
    name, data_dir = _named(arguments, "--model") or "cnn", _named(arguments, "--data-dir")
    if name not in PRESETS:
        raise UserError(f"--model {name!r}: choose one of {', '.join(PRESETS)}")
    return starting_config(name, Path(data_dir) if data_dir else None)


def _named(arguments: Sequence[str], option: str) -> str:
    """What the last `option` on a command line is set to; nothing where it is not there."""
    value = ""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, text = word.partition("=")
        if name.replace("_", "-") == option:
            value = text if equals else following
    return value


def starting_config(name: str, data_dir: Path | None) -> TrainConfig:
    """Where training of an architecture starts. The attributes of a table may tell left from right: no mirroring."""
    from data_prep.problems import DataError
    from data_prep.sources import find_table

    config = PRESETS[name]
    try:
        is_table = data_dir is not None and data_dir.exists() and find_table(data_dir) is not None
    except DataError as error:
        raise UserError(str(error)) from error
    return dataclasses.replace(config, flip=False) if is_table else config


def default_model(dataset: Dataset) -> str:
    """A network from scratch for small images, a pretrained one for photographs."""
    rows = np.unique(np.linspace(0, dataset.num_examples("train") - 1, 30).astype(int))
    sides = [max(dataset.example("train", int(row))["image"].shape) for row in rows]
    return "cnn" if np.median(sides) < SMALL else "efficientnet_lite0"


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
    stored = read_run_config(run_dir)
    if not stored.prepared.exists():
        raise UserError(f"The prepared data {stored.prepared} of {run_dir} are gone: repeat its training command once.")
    if stored.prepared.name != stored.data:
        raise UserError(f"{stored.prepared} is not the data set {stored.data} that {run_dir} was trained on.")
    dataset = open_prepared(stored.prepared)
    model = make_model(stored.train, dataset.info)
    if not (run_dir / CHECKPOINTS).is_dir():
        raise UserError(f"{run_dir / CHECKPOINTS} is gone: repeat the training command in another folder.")
    try:
        step, params = Checkpoints(run_dir / CHECKPOINTS, read_only=True).restore_params()
    except (FileNotFoundError, CheckpointError) as error:
        raise UserError(str(error)) from None
    _check_params(run_dir, model, params, stored.train.image_size)
    return LoadedRun(model, params, dataset.info, stored.train, dataset, step)


def _check_params(run_dir: Path, model: Model, params: Params, image_size: int) -> None:
    """Refuses parameters of another model than the one that config.json and the data ask for."""
    init = functools.partial(model.init, image_shape=(image_size, image_size, 3))
    wanted = jax.tree.map(np.shape, jax.eval_shape(init, jax.random.key(0)))
    found = jax.tree.map(np.shape, {part: params.get(part) for part in wanted})
    if wanted != found:
        raise UserError(
            f"The checkpoint of {run_dir} is not of the model that its {CONFIG} names, {model.name} for images of "
            f"{image_size} pixels: restore {CONFIG} or retrain it."
        )


def test_attributes(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Attributes (N, n) and labels (N,) of the test split, as the finished training left them.

    Raises:
        UserError: training has not finished, or the files are damaged or of other data.
    """
    attributes, labels, head = read_test_split(Path(run_dir))
    prepared = read_run_config(Path(run_dir)).prepared
    if prepared.is_dir():
        info = open_prepared(prepared).info
        found, wanted = (
            (len(labels), *head.weights.shape),
            (info.num_images["test"], info.num_classes, info.num_attributes),
        )
        if found != wanted:
            raise UserError(
                f"The arrays of {run_dir} are of {found[0]} images, {found[1]} classes and {found[2]} attributes, its "
                f"data of {wanted[0]}, {wanted[1]} and {wanted[2]}: delete test_attributes.npz and head.npz and repeat "
                "the training command."
            )
    return attributes, labels


def checksum(run: LoadedRun, *arrays: np.ndarray) -> str:
    """A name for this very model, its data and `arrays`: another training, or other data, gives another one."""
    digest = hashlib.sha256(json.dumps(describe(run.config, run.dataset), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((run.params, arrays)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def describe(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """What a resumed run must share with the run it resumes."""
    return {"train": dataclasses.asdict(config), "data": dataset.path.name}
