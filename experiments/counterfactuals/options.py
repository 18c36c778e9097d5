"""Which counterfactuals are requested, and how their images are searched; imports nothing heavy."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from experiments.cli.command import UserError
from spectra_jax import InversionConfig
from spectra_jax.inversion.config import Method, check_not_negative, check_positive
from spectra_jax.logging import Console


@dataclass(frozen=True)
class InversionOptions(InversionConfig):
    """`InversionConfig` with the settings of the methods beside it, for command lines.

    Attributes:
        method: "gradient_descent" is the paper's loop. "adam" and "gauss_newton" aim at the same attributes with better
            steps. "nearest" aims at the class alone, by the smallest change of the image.
        step_size: learning rate of "gradient_descent" and "adam", in units of [0, 1].
        refine_steps: image updates that "nearest" may spend on shortening the change once the target is reached.
    """

    method: Literal["adam", "gradient_descent", "gauss_newton", "nearest"] = "adam"
    step_size: float = 0.005
    refine_steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("step_size", self.step_size)
        check_not_negative("refine_steps", self.refine_steps)

    def build_method(self) -> Method:
        """The method with its settings."""
        from spectra_jax import Adam, GaussNewton, GradientDescent, Nearest

        if self.method == "nearest":
            return Nearest(refine_steps=self.refine_steps)
        if self.method == "gauss_newton":
            return GaussNewton()
        return (Adam if self.method == "adam" else GradientDescent)(step_size=self.step_size)


@dataclass(frozen=True)
class PairConfig:
    """Which counterfactuals to look for.

    Attributes:
        num_pairs: number of (image, target) pairs.
        targets: "nearest" requests the class closest in attribute space, "random" any other class, "mixed" both in
            turn, anything else the class of that name or 0-based id.
        source: only use images of this class (name or 0-based id); images of all classes in turn if not given.
        request: the method whose attribute change the images should realise.
        margin: requested lead of the target, in logits.
        batch_size: number of images inverted together.
        inversion: how to search for the images; by default "nearest", the smallest change that reaches the class.
    """

    num_pairs: int = 24
    targets: str = "mixed"
    source: str | None = None
    request: Literal["projection", "boundary", "pinv", "single"] = "projection"
    margin: float = 1.0
    batch_size: int = 8
    inversion: InversionOptions = InversionOptions(method="nearest", margin=0.2, shrink_steps=8, survive_steps=12)

    def __post_init__(self) -> None:
        for name in ("num_pairs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not 0 <= self.margin < float("inf"):
            raise UserError(f"--margin {self.margin:g}: expected a number of logits, 0 or more")
        if self.inversion.method == "nearest" and self.request != "projection":
            raise UserError(
                f"--request {self.request}: --inversion.method nearest, the default, only considers the class; "
                "add --inversion.method gauss_newton or adam"
            )

    def fitting(self, image_size: int, *, console: Console) -> "PairConfig":
        """The same for images of this size: without SSIM where its window does not fit into them."""
        from spectra_jax.similarity import WINDOW

        if image_size >= WINDOW or self.inversion.ssim_weight == 0:
            return self
        console.say(f"Images of {image_size} pixels are smaller than SSIM's window of {WINDOW}; SSIM is not used.")
        return dataclasses.replace(self, inversion=dataclasses.replace(self.inversion, ssim_weight=0.0))
