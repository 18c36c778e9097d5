"""Which counterfactuals are asked for, and how their images are searched; light imports only."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from experiments.cli.command import UserError
from spectra_jax import InversionConfig
from spectra_jax.inversion.config import Method, check_not_negative, check_positive
from spectra_jax.logging import Console


@dataclass(frozen=True)
class InversionOptions(InversionConfig):
    """The same with the settings of the methods beside it, for command lines.

    Attributes:
        method: "gradient_descent" is the paper's loop. "adam" and "gauss_newton" want the same attributes, by better
            steps. "nearest" wants the class alone, by the smallest change of the image.
        step_size: learning rate of "gradient_descent" and "adam", in units of [0, 1].
        refine_steps: image updates "nearest" may spend on shortening the change once the target is reached.
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
    inversion: InversionOptions = InversionOptions(method="nearest", margin=0.2, shrink_steps=8, survive_steps=12)

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
