"""Pairs of samples and targets given to the exact search: constraint normals are differences of one head's weights."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.dual_events import Queue
from spectra_jax.perturbations.dual_path import Answers, solve_exactly
from spectra_jax.perturbations.float64 import in_float64
from spectra_jax.perturbations.geometry import HIGHEST, squared_distances
from spectra_jax.perturbations.lanes import pick
from spectra_jax.types import Head


def exact_pairs(
    head: Head,
    squares: Float[Array, "c c"],
    inputs: Float[Array, "b n"] | Float[Array, "b c"],
    margins: Float[Array, "b"],
    samples: Int[Array, "q"],
    targets: Int[Array, "q"],
    waiting: Bool[Array, "q"],
    ranges: tuple[Float[Array, "b n"], Float[Array, "b n"]] | None = None,
    *,
    from_logits: bool = False,
    mutable: Bool[Array, "n"] | None = None,
    usual: int | None = None,
    num_slots: int | None = None,
    want_pattern: bool = True,
) -> Answers:
    """The nearest point of each target's region, in float64 throughout; see `in_float64` for where it may stand.

    Args:
        head: weights (c, n), optional bias (c,).
        squares: (c, c) squared distances of the rows, good to a few digits and 0 exactly where two coincide.
        inputs: (b, n) attributes, or (b, c) logits.
        margins: (b,) required lead.
        samples: (q,) rows of the inputs.
        targets: (q,).
        waiting: (q,) which pairs to solve.
        ranges: (b, n) smallest and largest change of each attribute.
        from_logits: whether the inputs are logits, which then need not be the head's own.
        mutable: (n,) attributes that may change.
        usual, num_slots, want_pattern: see `solve_exactly`.

    Returns:
        Answers in the type of the weights.
    """
    num_classes, num_attributes = head.weights.shape
    equal = (squares if mutable is None else squared_distances(head.weights)) == 0

    def solve(head: Head, squares, inputs, margins, ranges) -> Answers:
        weights, bias = head
        logits = inputs if from_logits else head_logits64(head, inputs)
        if mutable is not None:
            weights = jnp.where(mutable[None, :], weights, 0)

        def products(index, delta):
            reached = jnp.matmul(delta, weights.T, precision=HIGHEST)
            return jnp.take_along_axis(reached, pick(targets, index)[:, None], axis=1) - reached

        def offsets(index):
            sample, target = pick(samples, index), pick(targets, index)
            same = None if from_logits else pick(equal, target)
            return offsets_and_rounding(pick(logits, sample), target, pick(margins, sample), same, bias)

        def limits(index):
            return pick(ranges[0], pick(samples, index)), pick(ranges[1], pick(samples, index))

        queue = Queue(
            normals=lambda index, rival: pick(weights, pick(targets, index)) - pick(weights, rival),
            products=products,
            lengths=lambda index: jnp.sqrt(pick(squares, pick(targets, index))),
            offsets=offsets,
            ranges=None if ranges is None else limits,
        )
        rank = min(num_attributes, num_classes - 1)
        return solve_exactly(
            *(queue, waiting),
            num_attributes=num_attributes,
            rank=rank,
            usual=usual,
            num_slots=num_slots,
            want_pattern=want_pattern,
        )

    return in_float64(solve)(head, squares, inputs, margins, ranges)


def exact_on_supports(
    head: Head,
    squares: Float[Array, "c c"],
    attributes: Float[Array, "b n"],
    margins: Float[Array, "b"],
    samples: Int[Array, "q"],
    targets: Int[Array, "q"],
    supports: Int[Array, "q k"],
    waiting: Bool[Array, "q"],
) -> Answers:
    """`exact_pairs` where only a few attributes may change, others for each problem.

    Args:
        head, squares, attributes, margins, samples, targets, waiting: see `exact_pairs`.
        supports: (q, k) the attributes that may change.

    Returns:
        Answers with evidence; delta is (q, k), on the support.
    """
    num_classes, count = len(head.weights), supports.shape[1]
    equal = squares == 0

    def solve(head: Head, attributes, margins) -> Answers:
        weights, bias = head
        logits = head_logits64(head, attributes)

        def all_normals(index):
            """(p, k, c) on the support, one column per rival."""
            columns = pick(weights.T, pick(supports, index))
            return jnp.take_along_axis(columns, pick(targets, index)[:, None, None], axis=2) - columns

        def offsets(index):
            sample, target = pick(samples, index), pick(targets, index)
            return offsets_and_rounding(pick(logits, sample), target, pick(margins, sample), pick(equal, target), bias)

        def normals(index, rival):
            support = pick(supports, index)
            return pick(weights, pick(targets, index)[:, None], support) - pick(weights, rival[:, None], support)

        queue = Queue(
            normals=normals,
            products=lambda index, delta: jnp.sum(all_normals(index) * delta[:, :, None], axis=1),
            lengths=lambda index: jnp.sqrt(jnp.sum(jnp.square(all_normals(index)), axis=1)),
            offsets=offsets,
            ranges=None,
        )
        rank = min(count, num_classes - 1)
        return solve_exactly(queue, waiting, num_attributes=count, rank=rank, num_slots=rank + 1)

    return in_float64(solve)(head, attributes, margins)


def head_logits64(head: Head, attributes: Float[Array, "b n"]) -> Float[Array, "b c"]:
    logits = jnp.matmul(attributes, head.weights.T, precision=HIGHEST)
    return logits if head.bias is None else logits + head.bias[None, :]


def offsets_and_rounding(
    logits: Float[Any, "p c"],
    targets: Int[Any, "p"],
    margins: Float[Any, "p"],
    same: Bool[Any, "p c"] | None,
    bias: Float[Any, "c"] | None,
) -> tuple[Float[Any, "p c"], Float[Any, "p c"]]:
    """The offsets of many pairs, and the rounding error to expect in them; of arrays of JAX or NumPy.

    Two sums of the same products need not round alike: classes of equal weights differ by their bias only.

    Args:
        logits: of each pair.
        targets: of each pair.
        margins: of each pair.
        same: classes of the target's own weights; None for logits that need not be the head's own.
        bias: of the head.

    Returns:
        The offsets, -inf for the target itself, and their rounding.
    """
    xp = logits.__array_namespace__()
    offsets = formulas.offsets(logits, targets, margins)
    if same is not None:
        of_bias = xp.zeros_like(logits) if bias is None else xp.broadcast_to(bias[None, :], logits.shape)
        by_bias = formulas.offsets(of_bias, targets, margins)
        offsets = xp.where(same, by_bias, offsets)
    own = xp.take_along_axis(logits, targets[:, None], axis=1)
    return offsets, formulas.offset_rounding(logits, own, margins[:, None])


def max_slots(head: Head) -> int:
    """Active rivals that an answer's evidence has room for.

    Heads of 100 to 200 classes have 2 to 17. An answer with more than these is as exact as any other, but its
    multipliers and derivatives are NaN.
    """
    return min(head.weights.shape[1], head.weights.shape[0] - 1, 64) + 1
