"""How an inversion searches: only settings, which a command line reads before anything heavy is imported."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

_CLASSES = {"adam": "Adam", "gradient_descent": "GradientDescent", "gauss_newton": "GaussNewton", "nearest": "Nearest"}
_NOT_NEGATIVE = ("ssim_weight", "margin", "reaim_every", "reaim_margin", "shrink_steps", "survive_steps")


class Method(abc.ABC):
    """A way of searching: a frozen dataclass of its own settings.

    It is a pytree: registered by jax.tree_util.register_static or, where it holds arrays, register_dataclass.

    Attributes:
        name: what `InversionConfig.method` calls it.
        passes: forward and backward passes of the encoder in one step.
    """

    name: ClassVar[str]
    passes: ClassVar[tuple[int, int]] = (1, 1)

    @abc.abstractmethod
    def init(self, images: Any) -> Any:
        """What it remembers before its first step of images (b, h, w, channels): a pytree with a row per image."""

    @abc.abstractmethod
    def step(
        self, encode: Any, head: Any, sample: Any, aim: Any, images: Any, state: Any, *, config: "InversionConfig"
    ) -> Any:
        """Evaluates images and moves them.

        Args:
            encode: images -> attributes (b, n).
            head: classifier on the attributes.
            sample: `spectra_jax.inversion.step.Sample`, what is asked for.
            aim: attributes (b, n) -> the attributes wanted (b, n).
            images: (b, h, w, channels) where the search is.
            state: what it remembers.
            config: the settings that all methods share.

        Returns:
            A `spectra_jax.inversion.step.Move`.
        """


@dataclass(frozen=True)
class InversionConfig:
    """How to search for the image.

    Attributes:
        method: an object with its own settings, or its name for the default ones. `GradientDescent`,
            "gradient_descent", is the paper's loop. `Adam`, "adam", and `GaussNewton`, "gauss_newton", aim at the same
            attributes e + delta with better steps. `Nearest`, "nearest", aims at the class alone, by the smallest
            change of the image: it only checks that e + delta is finite, needs the fewest encoder passes and disturbs
            the image least. `Manifold`, which has no name because it needs a generator, aims at e + delta among the
            images that the generator can draw.
        ssim_weight: lambda in MSE + lambda (1 - SSIM), which gradient descent and Adam lower and all methods report.
        max_steps: image updates before giving up.
        margin: lead of the target over every other class, in logits, at which a sample stops. 0 is the paper's
            rule; a small margin lets the flip survive rounding to 8 bits.
        reaim_every: every so many steps, the wanted attributes are replaced by the point of the target's region nearest
            to the image's current attributes; 0, the paper's rule, never does. Not for "nearest", which aims anew at
            every step.
        reaim_margin: lead of the target, in logits, at the attributes aimed at anew.
        shrink_steps: halvings that finally shorten the change x' - x of a success as long as the target, with the image
            rounded to 8 bits per channel, still leads by the margin; 0, the paper's rule, keeps the image found.
        survive_steps: images on 256 levels to try for a success that plain rounding to 8 bits would lose, see
            `InversionResult.images_8bit`. 0: plain rounding.
        batch_size: samples searched together; a finished one makes room for the next. None: 16 on CPUs and 256
            otherwise.
        encoder_dtype: "bfloat16" runs the encoder in it during the search, for hardware on which that is faster. The
            verdict is in full precision, and samples that it does not confirm are searched again in full precision;
            num_steps is then that of the second search. It reaches arrays bound by functools.partial, not those in a
            closure.
    """

    method: str | Method = "adam"
    ssim_weight: float = 0.1
    max_steps: int = 200
    margin: float = 0.0
    reaim_every: int = 0
    reaim_margin: float = 1.0
    shrink_steps: int = 0
    survive_steps: int = 0
    batch_size: int | None = None
    encoder_dtype: Literal["same", "bfloat16"] = "same"

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            check_choice("method", self.method, tuple(_CLASSES))
        check_choice("encoder_dtype", self.encoder_dtype, ("same", "bfloat16"))
        for name in ("max_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name in _NOT_NEGATIVE:
            check_not_negative(name, getattr(self, name))
        if self.reaim_every and self.method_name == "nearest":
            raise ValueError(
                f'reaim_every is {self.reaim_every}; expected 0 for the method "nearest", which aims anew at every step'
            )
        if self.shrink_steps and self.method_name == "manifold":
            raise ValueError(
                f'shrink_steps is {self.shrink_steps}; expected 0 for the method "manifold": the generator cannot draw '
                "a shortened change"
            )

    @property
    def method_name(self) -> str:
        """The name of the method, however it was given."""
        return self.method if isinstance(self.method, str) else self.method.name

    def build_method(self) -> Method:
        """The method as an object."""
        from spectra_jax import inversion

        return getattr(inversion, _CLASSES[self.method])() if isinstance(self.method, str) else self.method


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a ValueError where the value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_not_negative(name: str, value: int | float) -> None:
    """Raises a ValueError where the value is negative or NaN."""
    if not value >= 0:
        raise ValueError(f"{name} is {value}; expected a number >= 0")


def check_positive(name: str, value: int | float) -> None:
    """Raises a ValueError where the value is zero, negative or NaN."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a positive number")
