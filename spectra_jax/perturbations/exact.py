"""Pairs of samples and targets given to the exact search: constraint normals are differences of one head's weights."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.answers import Answers
from spectra_jax.perturbations.dual_events import Queue
from spectra_jax.perturbations.dual_path import solve_exactly
from spectra_jax.perturbations.float64 import in_float64
from spectra_jax.perturbations.geometry import HIGHEST, squared_distances
from spectra_jax.perturbations.lanes import pick
from spectra_jax.types import Head


def exact_pairs(
    head: Head,
    squares: Float[Array, "c c"],
    inputs: Float[Array, "b n"] | Float[Array, "b c"],
    margins: Float[Array, " b"],
    samples: Int[Array, " q"],
    targets: Int[Array, " q"],
    waiting: Bool[Array, " q"],
    *,
    ranges: tuple[Float[Array, "b n"], Float[Array, "b n"]] | None = None,
    supports: Int[Array, "q k"] | None = None,
    mutable: Bool[Array, " n"] | None = None,
    from_logits: bool = False,
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
        supports: (q, k) the only attributes that may change, others for each pair; delta is then (q, k).
        mutable: (n,) attributes that may change.
        from_logits: whether the inputs are logits, which then need not be the head's own.
        usual, num_slots, want_pattern: see `solve_exactly`.

    Returns:
        Answers in the type of the weights.
    """
    same = (squares if mutable is None else squared_distances(head.weights)) == 0

    def solve(head: Head, squares, inputs, margins, ranges) -> Answers:
        weights, bias = head
        logits = inputs if from_logits else head_logits64(head, inputs)
        if mutable is not None:
            weights = jnp.where(mutable[None, :], weights, 0)

        def offsets(index):
            sample, target = pick(samples, index), pick(targets, index)
            own = None if from_logits else pick(same, target)
            return offsets_and_rounding(pick(logits, sample), target, pick(margins, sample), own, bias)

        def limits(index):
            return pick(ranges[0], pick(samples, index)), pick(ranges[1], pick(samples, index))

        queue = make_queue(
            weights,
            targets,
            lengths=None if supports is not None else lambda index: jnp.sqrt(pick(squares, pick(targets, index))),
            offsets=offsets,
            ranges=None if ranges is None else limits,
            supports=supports,
        )
        num_attributes = weights.shape[1] if supports is None else supports.shape[1]
        return solve_exactly(
            *(queue, waiting),
            num_attributes=num_attributes,
            rank=min(num_attributes, len(weights) - 1),
            usual=usual,
            num_slots=num_slots,
            want_pattern=want_pattern,
        )

    return in_float64(solve)(head, squares, inputs, margins, ranges)


def make_queue(
    weights: Float[Array, "c n"],
    targets: Int[Array, " q"],
    *,
    lengths: Callable[[Array], Array] | None,
    offsets: Callable[[Array], tuple[Array, Array]],
    ranges: Callable[[Array], tuple[Array, Array]] | None = None,
    supports: Int[Array, "q k"] | None = None,
    relations: Float[Array, "r n"] | None = None,
) -> Queue:
    """Problems whose constraint normals are the target's weights less those of its rivals.

    Args:
        weights: (c, n).
        targets: (q,) of each problem.
        lengths, offsets, ranges: see `Queue`; without lengths they are taken from the normals, on the supports.
        supports: (q, k) the only attributes that may change, others for each problem; delta is then (q, k).
        relations: (r, n) further constraint normals, which follow those of the rivals.

    Returns:
        Queue.
    """
    num_classes = len(weights)
    rows = weights if relations is None else jnp.concatenate([weights, relations])
    of_rival = jnp.arange(len(rows), dtype=jnp.int32) < num_classes

    def less_rivals(own, others, of_rival):
        """The constraint normals, from the target's weights and the rows of the others."""
        return own - others if relations is None else jnp.where(of_rival, own - others, others)

    def normals(index, row):
        target, own = pick(targets, index), (row < num_classes)[:, None]
        if supports is None:
            return less_rivals(pick(weights, target), pick(rows, row), own)
        support = pick(supports, index)
        return less_rivals(pick(weights, target[:, None], support), pick(rows, row[:, None], support), own)

    def on_supports(index):
        """(p, k, c + r) all normals."""
        assert supports is not None
        columns = pick(rows.T, pick(supports, index))
        own = jnp.take_along_axis(columns, pick(targets, index)[:, None, None], axis=2)
        return less_rivals(own, columns, of_rival[None, None, :])

    def products(index, delta):
        if supports is not None:
            return jnp.sum(on_supports(index) * delta[:, :, None], axis=1)
        reached = jnp.matmul(delta, rows.T, precision=HIGHEST)
        own = jnp.take_along_axis(reached, pick(targets, index)[:, None], axis=1)
        return less_rivals(own, reached, of_rival[None, :])

    def lengths_on_supports(index):
        return jnp.sqrt(jnp.sum(jnp.square(on_supports(index)), axis=1))

    return Queue(normals, products, lengths or lengths_on_supports, offsets, ranges)


def head_logits64(head: Head, attributes: Float[Array, "b n"]) -> Float[Array, "b c"]:
    logits = jnp.matmul(attributes, head.weights.T, precision=HIGHEST)
    return logits if head.bias is None else logits + head.bias[None, :]


def offsets_and_rounding(
    logits: Float[Any, "p c"],
    targets: Int[Any, " p"],
    margins: Float[Any, " p"],
    same: Bool[Any, "p c"] | None,
    bias: Float[Any, " c"] | None,
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
