"""Groups of options that commands share; light imports only, since arguments are read before anything else is."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from experiments._command import UserError, check_file, check_run_folder
from spectra_jax import InversionConfig
from spectra_jax.logging import Console
from spectra_jax.training import MAX_SEED, PRESETS, TrainConfig


def _seed(words: list[str]) -> int:
    value = int(words[0])
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{value} is no seed; expected a number from 0 to {MAX_SEED}")
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

    def check(self) -> None:
        """Raises UserError where the data set is not there."""
        if self.data_dir is not None and not self.data_dir.exists():
            raise UserError(
                f"--data-dir {self.data_dir}: there is no such folder or file. Leave it out for the synthetic birds."
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
    """How several hosts find each other. SLURM and TPU pods are recognised without it.

    Attributes:
        coordinator_address: host:port of process 0.
        num_processes: how many processes there are.
        process_id: which of them this is.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def several(self) -> bool:
        """Whether other processes wait for this one."""
        return self.coordinator_address is not None or os.environ.get("SLURM_NTASKS", "1") != "1"


@dataclass(frozen=True)
class PairConfig:
    """Which counterfactuals to look for.

    Attributes:
        num_pairs: how many (image, target) pairs.
        targets: "nearest" asks for the class closest in attribute space, "random" for any other class, "mixed" for
            both in turn, anything else for the class of that name or 0-based id.
        source: only images of this class (name or 0-based id); images of all classes in turn if not given.
        request: whose change of the attributes the images shall realise.
        margin: lead of the target that is asked for, in logits.
        batch_size: images inverted together.
        inversion: how to search for the images; "nearest", the smallest change that reaches the class, if not given.
    """

    num_pairs: int = 24
    targets: str = "mixed"
    source: str | None = None
    request: Literal["projection", "boundary", "pinv", "single"] = "projection"
    margin: float = 1.0
    batch_size: int = 8
    inversion: InversionConfig = field(
        default_factory=lambda: InversionConfig(method="nearest", step_size=0.005, margin=0.2, shrink_steps=8)
    )

    def __post_init__(self) -> None:
        for name in ("num_pairs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not 0 <= self.margin < float("inf"):
            raise UserError(f"--margin {self.margin:g}: expected a number of logits, 0 or more")
        if self.inversion.method == "nearest" and self.request != "projection":
            raise UserError(
                f"--request {self.request}: --inversion.method nearest, the default, looks at the class alone; "
                "add --inversion.method gauss_newton or adam"
            )

    def fitting(self, image_size: int, *, console: Console) -> "PairConfig":
        """The same for images of this size: without SSIM where its window does not fit into them."""
        from spectra_jax.similarity import WINDOW

        if image_size >= WINDOW or self.inversion.ssim_weight == 0:
            return self
        console.say(f"Images of {image_size} pixels are smaller than the window of SSIM, {WINDOW}: it is left out.")
        return dataclasses.replace(self, inversion=dataclasses.replace(self.inversion, ssim_weight=0.0))


@dataclass(frozen=True)
class ClaimConfig:
    """What the claims are measured on.

    Attributes:
        num_pairs: class flips (test image, target), half towards the nearest class and half towards a random one.
        images_per_attribute: test images for every attribute; each is asked to raise and to lower it.
        groups: only ask attributes of these groups to move, for example has_nape_color; all if not given.
        step: by how many standard deviations an attribute is asked to move.
        few_pixel_pairs: flips of which pixels are left out; as many as there are at most.
        random_weights: also make the requests to a network with random weights, a control of 5.2.2.
        margin: lead of the target that a flip's request has, in logits.
        batch_size: flips searched together.
        inversion: how to search for the pictures of flips.
        single: how to search for the pictures in which one attribute moves.
    """

    num_pairs: int = 500
    images_per_attribute: int = 2
    groups: tuple[str, ...] = ()
    step: float = 1.0
    few_pixel_pairs: int = 500
    random_weights: bool = True
    margin: float = 1.0
    batch_size: int = 64
    inversion: InversionConfig = field(
        default_factory=lambda: InversionConfig(method="gauss_newton", margin=0.2, max_steps=60, shrink_steps=8)
    )
    single: InversionConfig = field(
        default_factory=lambda: InversionConfig(method="nearest", max_steps=60, refine_steps=4)
    )

    def __post_init__(self) -> None:
        for name in ("num_pairs", "images_per_attribute", "few_pixel_pairs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not 0 < self.step < float("inf"):
            raise UserError(f"--step {self.step:g}: expected a positive number of standard deviations")
        if not 0 <= self.margin < float("inf"):
            raise UserError(f"--margin {self.margin:g}: expected a number of logits, 0 or more")


@dataclass(frozen=True)
class AttackConfig:
    """What is attacked, and how hard.

    Attributes:
        num_images: test images, the same for all runs; those named wrongly count as lost and are not attacked.
        l2_radii: for L2 projected gradient descent, Euclidean over all pixels and channels in [0, 1].
        linf_levels: for L-infinity projected gradient descent, in grey levels of 255.
        pgd_steps: of both.
        ddn_steps: of DDN (Rony et al., 2019), which looks for the smallest L2 change.
        carlini_steps: in each of 5 searches of Carlini and Wagner's L2 attack; 0 leaves it out.
        batch_size: images attacked together.
        image_seed: of the choice of images.
    """

    num_images: int = 128
    l2_radii: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    linf_levels: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pgd_steps: int = 40
    ddn_steps: int = 100
    carlini_steps: int = 100
    batch_size: int = 32
    image_seed: Seed = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "pgd_steps", "ddn_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if self.carlini_steps < 0:
            raise UserError(f"--carlini-steps {self.carlini_steps}: expected 0 or more")
        for name in ("l2_radii", "linf_levels"):
            radii = getattr(self, name)
            if not radii or min(radii) <= 0 or list(radii) != sorted(set(radii)):
                raise UserError(f"--{name.replace('_', '-')} {radii}: expected positive numbers in rising order")


@dataclass(frozen=True)
class DecoderConfig:
    """How a decoder is trained on the attributes of a finished run.

    Attributes:
        image_size: side of the decoded images in pixels; a decoder that was trained with its run keeps its own.
        steps: of training.
        batch_size: examples in one step.
        learning_rate: the peak, reached after a twentieth of the steps and followed by a cosine to 0.
    """

    image_size: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} must be positive and finite, got {getattr(self, name)}")


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
        encoder: package.module:function, which maps images (b, h, w, 3) in [0, 1] to attributes (b, n); looked for in
            the current folder too.
        head: the linear layer from attributes to classes: .npz or .safetensors with weights (c, n) and a bias, also as
            torch.nn.Linear or a Hugging Face classifier saves them.
        images: .npz with `images` (N, h, w, 3), 8-bit or floats in [0, 1], and if known `labels` (N,).
        attribute_names: text file, one name a line; `group::value` makes groups.
        class_names: text file, one name a line.
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
        raise UserError(f"Give either {option}, or your own model by --encoder, --head and --images.")
    if run_dir is not None:
        check_run_folder(run_dir)
    elif own.head is None or own.encoder is None or own.images is None:
        raise UserError("Your own model needs all of --encoder, --head and --images.")
