"""Groups of options that commands share; imports nothing heavy, because arguments are read before anything else."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from experiments.cli.command import UserError, check_file, check_run_folder
from spectra_jax.training import MAX_SEED, PRESETS, TrainConfig


def _seed(words: list[str]) -> int:
    value = int(words[0])
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{value} is not a seed; expected a number from 0 to {MAX_SEED}")
    return value


# A random seed. Larger numbers would be cut to 32 bits by JAX and so mean the same as smaller ones.
Seed = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=_seed,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True)
class DataConfig:
    """The data set.

    Attributes:
        data_dir: your own images: a folder with one table of classes and attributes (docs/own-data.md), or a folder or
            archive in CUB-200-2011's layout; drawn images if not given.
        attributes: "all" for every attribute of the data (312 means the same); 112 for those of the concept-bottleneck
            literature, in CUB's layout only.
        crop: "box" crops every image to the box around its object if the data have boxes, "full" takes it whole.
    """

    data_dir: Path | None = None
    attributes: Literal["all", 312, 112] = "all"
    crop: Literal["box", "full"] = "box"

    def check(self) -> None:
        """Raises UserError where the data set is not there."""
        if self.data_dir is not None and not self.data_dir.exists():
            raise UserError(
                f"--data-dir {self.data_dir}: there is no such folder or file. Omit it to use the synthetic birds."
            )

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
    """How several hosts find each other. SLURM and TPU pods are recognised without these options.

    Attributes:
        coordinator_address: host:port of process 0.
        num_processes: the number of processes.
        process_id: the number of this process, counted from 0.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def several(self) -> bool:
        """Whether other processes wait for this one."""
        return self.coordinator_address is not None or os.environ.get("SLURM_NTASKS", "1") != "1"


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
    config = PRESETS[name]
    if data_dir is None or not data_dir.exists():
        return config
    from data_prep.problems import DataError
    from data_prep.sources import find_table

    try:
        is_table = find_table(data_dir) is not None
    except DataError as error:
        raise UserError(str(error)) from error
    return dataclasses.replace(config, flip=False) if is_table else config


@dataclass(frozen=True)
class OwnModel:
    """Your own model and images, in place of a run.

    Attributes:
        encoder: package.module:function, which maps images (b, h, w, 3) in [0, 1] to attributes (b, n); the current
            folder is searched too.
        head: the linear layer from attributes to classes: .npz or .safetensors with weights (c, n) and a bias, also as
            saved by torch.nn.Linear or a Hugging Face classifier.
        images: .npz with `images` (N, h, w, 3), 8-bit or floats in [0, 1], and if known `labels` (N,).
        attribute_names: text file, one name per line; `group::value` makes groups.
        class_names: text file, one name per line.
    """

    encoder: str | None = None
    head: Path | None = None
    images: Path | None = None
    attribute_names: Path | None = None
    class_names: Path | None = None

    @property
    def given(self) -> bool:
        """Whether there is any of it."""
        return any(value is not None for value in dataclasses.astuple(self))

    def check(self) -> None:
        """Raises UserError where a file is not there or something needed is left out."""
        for name in ("head", "images", "attribute_names", "class_names"):
            check_file(name.replace("_", "-"), getattr(self, name))
        if self.encoder is not None and not all(self.encoder.partition(":")):
            raise UserError(f"--encoder {self.encoder}: expected package.module:function")


def check_subject(run_dir: Path | None, own: OwnModel, *, option: str = "--run-dir") -> None:
    """Raises UserError unless there is either a run or an own model, and all of it."""
    if (run_dir is None) != own.given:
        raise UserError(f"Give either {option}, or your own model with --encoder, --head and --images.")
    if run_dir is not None:
        check_run_folder(run_dir)
    elif own.head is None or own.encoder is None or own.images is None:
        raise UserError("Your own model needs all of --encoder, --head and --images.")
