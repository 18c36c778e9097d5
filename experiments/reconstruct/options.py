"""How a decoder is trained; imports nothing heavy."""

from dataclasses import dataclass

from experiments.cli.command import UserError


@dataclass(frozen=True)
class DecoderConfig:
    """How a decoder is trained on the attributes of a finished run.

    Attributes:
        image_size: side of the decoded images in pixels; a decoder that was trained with its run keeps its own size.
        steps: training steps.
        batch_size: examples per step.
        learning_rate: the peak, reached after a twentieth of the steps and followed by a cosine decay to 0.
    """

    image_size: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {getattr(self, name)}: expected a positive finite number")
