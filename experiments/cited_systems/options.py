"""The options of the comparison of the cited systems; imports nothing heavy."""

from dataclasses import dataclass, field

from experiments.cli.command import UserError


@dataclass(frozen=True)
class AutoEncoderConfig:
    """How the auto-encoder that the systems share is trained.

    Attributes:
        channels: latents at each position of a grid with an eighth of the image's side.
        steps: training steps.
        batch_size: images per step.
        learning_rate: the peak, reached after a twentieth of the steps and followed by a cosine decay to 0.
    """

    channels: int = 8
    steps: int = 1200
    batch_size: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("channels", "steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                option = f"--autoencoder.{name.replace('_', '-')}"
                raise UserError(f"{option} {getattr(self, name)}: expected a positive finite number")


@dataclass(frozen=True)
class ComparisonConfig:
    """The counterfactuals that every system is asked for.

    Attributes:
        num_pairs: number of (image, target) pairs, the same for all systems.
        targets: "nearest" requests the class closest in attribute space, "random" any other class, "mixed" both in
            turn.
        margin: lead of the target, in logits, at which a search may stop, so that rounding to 8 bits does not undo the
            flip.
        requested_margin: lead of the target at the attributes that SPECTRA's loops aim at.
        max_steps: updates before a search gives up.
        batch_size: number of images searched together.
        autoencoder: the generator that the systems share.
    """

    num_pairs: int = 64
    targets: str = "nearest"
    margin: float = 0.2
    requested_margin: float = 1.0
    max_steps: int = 200
    batch_size: int = 16
    autoencoder: AutoEncoderConfig = field(default_factory=AutoEncoderConfig)

    def __post_init__(self) -> None:
        for name in ("num_pairs", "max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if self.targets not in ("nearest", "random", "mixed"):
            raise UserError(f"--targets {self.targets}: expected nearest, random or mixed")
        for name in ("margin", "requested_margin"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name):g}: expected a number >= 0")
