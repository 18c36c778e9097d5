"""How an inversion is to search: settings alone, which a command line reads before anything heavy is imported."""

from dataclasses import dataclass
from typing import Literal

METHODS = ("adam", "gradient_descent", "gauss_newton", "nearest")
ENCODER_DTYPES = ("same", "bfloat16")


@dataclass(frozen=True)
class InversionConfig:
    """How to search for the image.

    "gradient_descent" is the paper's loop. "adam" and "gauss_newton" want the same attributes e + delta, by better
    steps. "nearest" wants the class alone, by the smallest change of the image: it looks at e + delta only for being
    finite, needs the fewest encoder passes and disturbs the image least.

    Attributes:
        method: "gradient_descent" is plain descent on MSE + lambda (1 - SSIM); "adam" adapts each pixel's step;
            "gauss_newton" takes the shortest change of the image that realises the wanted attributes to first order;
            "nearest" the shortest change of the image that reaches the class, see `spectra_jax.inversion.nearest`.
        step_size: learning rate eta of "gradient_descent" and "adam", in pixel units for the latter.
        ssim_weight: lambda in MSE + lambda (1 - SSIM), which "gradient_descent" and "adam" descend and all report.
        max_steps: image updates before giving up.
        margin: lead of the target over every other class, in logits, at which a sample stops. 0 is the paper's
            rule; a small margin lets the flip survive rounding to 8 bits.
        reaim_every: after so many steps the wanted attributes become those of the target's region that are nearest to
            what the image has by then; 0, the paper's rule, never. Not for "nearest", which aims anew at every step.
        reaim_margin: lead of the target, in logits, at the attributes aimed at anew.
        refine_steps: image updates "nearest" may spend on shortening the change once the target is reached.
        shrink_steps: halvings that then shorten the change x' - x of a success as far as the image, rounded to 8
            bits a channel, still has the target lead by the margin; 0, the paper's rule, keeps the image found.
        survive_steps: images on 256 levels to try for a success that plain rounding to 8 bits would lose, see
            `InversionResult.images_8bit`. 0: plain rounding.
        batch_size: samples searched together; one that is done makes room for the next. None: 16 on CPUs and 256
            otherwise.
        encoder_dtype: "bfloat16" runs the encoder in it during the search, for hardware that is faster so. The verdict
            is in full precision, and samples it does not confirm are searched again so; num_steps is then that of the
            second search. Reaches arrays bound by functools.partial, not those in a closure.
    """

    method: Literal["adam", "gradient_descent", "gauss_newton", "nearest"] = "adam"
    step_size: float = 0.005
    ssim_weight: float = 0.1
    max_steps: int = 200
    margin: float = 0.0
    reaim_every: int = 0
    reaim_margin: float = 1.0
    refine_steps: int = 8
    shrink_steps: int = 0
    survive_steps: int = 0
    batch_size: int | None = None
    encoder_dtype: Literal["same", "bfloat16"] = "same"

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("encoder_dtype", ENCODER_DTYPES)):
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; expected a positive number")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1, or None")
        for name in (
            "ssim_weight", "margin", "reaim_every", "reaim_margin", "refine_steps", "shrink_steps", "survive_steps",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number >= 0")
        if self.reaim_every and self.method == "nearest":
            raise ValueError('reaim_every does not apply to method="nearest", which aims anew at every step')
