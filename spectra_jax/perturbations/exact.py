"""Pairs of samples and targets given to the exact search: rows are differences of one matrix of weights."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.dual_events import Problem
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

        def lead(problem, delta):
            reached = jnp.matmul(delta, weights.T, precision=HIGHEST)
            return jnp.take_along_axis(reached, pick(targets, problem)[:, None], axis=1) - reached

        def heights(problem):
            sample, target = pick(samples, problem), pick(targets, problem)
            offsets = None if from_logits else (equal, bias)
            return _gaps(pick(logits, sample), target, pick(margins, sample), offsets)

        def limits(problem):
            return pick(ranges[0], pick(samples, problem)), pick(ranges[1], pick(samples, problem))

        problem = Problem(
            difference=lambda problem, rival: pick(weights, pick(targets, problem)) - pick(weights, rival),
            lead=lead,
            lengths=lambda problem: jnp.sqrt(pick(squares, pick(targets, problem))),
            heights=heights,
            ranges=None if ranges is None else limits,
        )
        rank = min(num_attributes, num_classes - 1)
        return solve_exactly(
            *(problem, waiting),
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

        def rows(problem):
            """(p, k, c) columns of w_target - w_k."""
            columns = pick(weights.T, pick(supports, problem))
            return jnp.take_along_axis(columns, pick(targets, problem)[:, None, None], axis=2) - columns

        def heights(problem):
            sample = pick(samples, problem)
            return _gaps(pick(logits, sample), pick(targets, problem), pick(margins, sample), (equal, bias))

        def difference(problem, rival):
            support = pick(supports, problem)
            return pick(weights, pick(targets, problem)[:, None], support) - pick(weights, rival[:, None], support)

        problem = Problem(
            difference=difference,
            lead=lambda problem, delta: jnp.sum(rows(problem) * delta[:, :, None], axis=1),
            lengths=lambda problem: jnp.sqrt(jnp.sum(jnp.square(rows(problem)), axis=1)),
            heights=heights,
            ranges=None,
        )
        rank = min(count, num_classes - 1)
        return solve_exactly(problem, waiting, num_attributes=count, rank=rank, num_slots=rank + 1)

    return in_float64(solve)(head, attributes, margins)


def head_logits64(head: Head, attributes: Float[Array, "b n"]) -> Float[Array, "b c"]:
    logits = jnp.matmul(attributes, head.weights.T, precision=HIGHEST)
    return logits if head.bias is None else logits + head.bias[None, :]


def _gaps(logits: Float[Array, "p c"], targets: Int[Array, "p"], margins: Float[Array, "p"], offsets):
    """l_k - l_target + margin, -inf for the target itself, and the rounding error to expect in it.

    Two sums of the same products need not round alike: classes of equal rows differ by their bias only. `offsets` says
    which rows are equal, (c, c), and the bias; None for logits that need not be the head's own.
    """
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)
    gaps = logits - own
    if offsets is not None:
        equal, bias = offsets
        apart = 0 if bias is None else bias[None, :] - pick(bias, targets)[:, None]
        gaps = jnp.where(pick(equal, targets), apart, gaps)
    margins = margins[:, None]
    sizes = jnp.abs(logits) + jnp.abs(own) + margins
    rounding = jnp.where(jnp.isfinite(sizes), 2e-16 * sizes, 0)
    classes = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(classes == targets[:, None], -jnp.inf, gaps + margins), rounding


def max_slots(head: Head) -> int:
    """Active rivals that an answer's evidence has room for.

    Heads of 100 to 200 classes have 2 to 17. An answer with more than these is as exact as any other, but its
    multipliers and derivatives are NaN.
    """
    return min(head.weights.shape[1], head.weights.shape[0] - 1, 64) + 1
