"""What the scripts share: the cache, the data, the model, and reading a run again."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.cli.command import UserError
from experiments.cli.devices import cache_dir
from experiments.cli.options import DataConfig
from experiments.runs.folder import CHECKPOINTS, CONFIG
from experiments.runs.part_names import regions_of
from experiments.runs.stored import TestSplit, open_prepared, read_run_config, read_test_split
from spectra_jax.checkpoint import CheckpointError, Checkpoints
from spectra_jax.data import Dataset, DatasetInfo
from spectra_jax.logging import Console
from spectra_jax.models import Model, Params, build_model
from spectra_jax.training import TrainConfig

SMALL = 128  # longer side, in pixels; the synthetic birds' boxes have less


def prepare_data(config: DataConfig, *, console: Console) -> Dataset:
    """The data set `config` names, prepared on first use; the synthetic birds are drawn on first use.

    Raises:
        UserError: the source is missing or damaged, or has no images to train on or none to test with.
    """
    from data_prep.problems import DataError
    from data_prep.sources import prepare_source

    source = config.data_dir
    config.check()
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
            f"{error.filename or cache_dir()} cannot be written ({error.strerror}): free some space, or set "
            "SPECTRA_JAX_CACHE to a writable folder."
        ) from error
    dataset = open_prepared(prepared)
    for split, mark in (("train", 1), ("test", 0)):
        if not dataset.num_examples(split):
            raise UserError(
                f"--data-dir {source} has no images in the {split} split: train_test_split.txt says {mark} for none of "
                "the existing images. Mark some."
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
    options = parse_options(config.model_options)
    try:
        if config.model == "part_cnn":
            options = regions_of(info) | options
        return build_model(config.model, num_attributes=info.num_attributes, num_classes=info.num_classes, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


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

    @property
    def has_proof(self) -> bool:
        """Whether a Lipschitz constant is proven of the encoder."""
        return hasattr(self.model, "lipschitz_bound")


def load_run(run_dir: Path) -> LoadedRun:
    """Reads what `experiments.train` left in `run_dir`; the folder is not changed.

    Raises:
        UserError: it is not a run folder, has no checkpoint yet, or its prepared data are gone.
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
    return LoadedRun(model, model.fold(params), dataset.info, stored.train, dataset, step)


def _check_params(run_dir: Path, model: Model, params: Params, image_size: int) -> None:
    """Refuses parameters of another model than the one that config.json and the data ask for."""
    init = functools.partial(model.init, image_shape=(image_size, image_size, 3))
    wanted = jax.tree.map(np.shape, jax.eval_shape(init, jax.random.key(0)))
    found = jax.tree.map(np.shape, {part: params.get(part) for part in wanted})
    if wanted != found:
        raise UserError(
            f"The checkpoint of {run_dir} does not fit the model that its {CONFIG} names, {model.name} for images of "
            f"{image_size} pixels: restore {CONFIG} or train again."
        )


def load_test_split(run_dir: Path) -> TestSplit:
    """What the finished training in `run_dir` left of the test split, checked against the data it names.

    Raises:
        UserError: training has not finished, or the files are damaged or of other data.
    """
    split = read_test_split(Path(run_dir))
    prepared = read_run_config(Path(run_dir)).prepared
    if prepared.is_dir():
        info = open_prepared(prepared).info
        found, wanted = (
            (len(split.labels), *split.head.weights.shape),
            (info.num_images["test"], info.num_classes, info.num_attributes),
        )
        if found != wanted:
            raise UserError(
                f"The arrays of {run_dir} have {found[0]} images, {found[1]} classes and {found[2]} attributes; "
                f"expected {wanted[0]}, {wanted[1]} and {wanted[2]}, as in its data. Delete test_attributes.npz and "
                "head.npz and repeat the training command."
            )
    return split


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
