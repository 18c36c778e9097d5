"""How a decoder is trained; imports nothing heavy."""

from dataclasses import dataclass

from experiments.cli.command import UserError


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
