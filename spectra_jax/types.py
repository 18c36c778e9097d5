"""Types shared by every module, and the letters used for array dimensions.

Dimension letters in annotations and docstrings: b batch, c classes, n attributes, f features, h w pixels.
"""

import enum
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Head(NamedTuple):
    """The linear classifier on top of the attribute layer: logits = weights @ attributes + bias.

    Attributes:
        weights: (c, n); row k holds the weight of each attribute for class k.
        bias: (c,), or None for the paper's bias-free head.
    """

    weights: Float[Array, "c n"]
    bias: Float[Array, " c"] | None = None


class Batch(NamedTuple):
    """One padded batch of supervised examples.

    Attributes:
        inputs: images (b, h, w, 3) in [0, 1], or features (b, f) of a frozen backbone.
        attributes: (b, n) in {0, 1}.
        labels: (b,) class indices.
        valid: (b,) False for the rows that only pad the last batch to full size.
    """

    inputs: Float[Array, "b ..."]
    attributes: Float[Array, "b n"]
    labels: Int[Array, " b"]
    valid: Bool[Array, " b"]


class PartBatch(NamedTuple):
    """A `Batch` that knows where the parts are.

    Attributes:
        inputs, attributes, labels, valid: as of a `Batch`.
        parts: (b, p, 3) x and y of each part point, from 0 to 1 of the image's width and height, and 1 where it is
            visible.
    """

    inputs: Float[Array, "b ..."]
    attributes: Float[Array, "b n"]
    labels: Int[Array, " b"]
    valid: Bool[Array, " b"]
    parts: Float[Array, "b p 3"]


AnyBatch = Batch | PartBatch


class Status(enum.IntEnum):
    """How the search for one answer ended; solvers return it as int32."""

    SOLVED = 0
    INFEASIBLE = 1
    UNRESOLVED = 2
    BUDGET = 3
    NOT_FINITE = 4
    STALLED = 5

    @property
    def description(self) -> str:
        """In words, for a table or a page."""
        return {
            Status.SOLVED: "there is an answer",
            Status.INFEASIBLE: "no change within the rules reaches the target",
            Status.UNRESOLVED: "rounding errors hide whether there is an answer",
            Status.BUDGET: "the budget ran out before an answer was found, though one may exist",
            Status.NOT_FINITE: "an input, or a number computed from it, is NaN or infinite",
            Status.STALLED: "the search stalled before it found an answer, though one may exist",
        }[self]
