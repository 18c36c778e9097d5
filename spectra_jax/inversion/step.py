"""The inputs and outputs of a search step; `spectra_jax.inversion.config.Method` takes the step."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, PyTree


class Sample(NamedTuple):
    """What is asked for, one row per sample.

    Attributes:
        images: (b, h, w, channels) where the search started.
        aims: (b, n) wanted attributes.
        targets: (b,) wanted classes; ~k, which is negative, for any class but k.
        budgets: (b,) most updates.
        region: (b, h, w, 1) 1 where pixels may change and 0 elsewhere, or None for everywhere.
    """

    images: Float[Array, "b h w k"]
    aims: Float[Array, "b n"]
    targets: Int[Array, " b"]
    budgets: Int[Array, " b"]
    region: Float[Array, "b h w 1"] | None

    def restrict(self, gradient: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        """The gradient, 0 at pixels that may not change."""
        return gradient if self.region is None else gradient * self.region


# From the attributes of the present images to the attributes wanted.
Aim = Callable[[Float[Array, "b n"]], Float[Array, "b n"]]


class Move(NamedTuple):
    """One evaluation of the encoder and what follows from it.

    Attributes:
        images: (b, h, w, channels) where to look next.
        state: what the method remembers.
        aims: (b, n) the attributes wanted from now on.
        finished: (b,) no further step is worth its cost.
        success: (b,) the classifier names the target for `answer`.
        answer: (b, h, w, channels) what to return if the search ends here.
        finite: (b,) whether the step can be taken at all.
    """

    images: Float[Array, "b h w k"]
    state: PyTree
    aims: Float[Array, "b n"]
    finished: Bool[Array, " b"]
    success: Bool[Array, " b"]
    answer: Float[Array, "b h w k"]
    finite: Bool[Array, " b"]
