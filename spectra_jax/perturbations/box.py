"""The exact minimal change that makes the target win while every attribute stays in its range.

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k for every rival k,   low <= delta <= high

For multipliers lambda >= 0 of the rivals alone the best delta is clip(G^T lambda, low, high): the ranges cost nothing.
What is left is a convex, piecewise quadratic function of c multipliers. Newton steps on it, each a small quadratic
problem over non-negative multipliers and the best of several lengths, settle after some ten steps on which rivals
bind and which attributes are held at an end of their range; solving the linear system of that pattern then gives the
answer, and its derivatives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_mutable, check_ranges
from spectra_jax.perturbations.geometry import HIGHEST, gap_rounding, logit_gaps, relative_logits, safe_norm
from spectra_jax.types import Head

_RUNNING, _SOLVED, _EMPTY, _UNRESOLVED = range(4)
_MAX_STEPS, _MAX_PIVOTS = 100, 100


class BoxResult(NamedTuple):
    """The nearest point of a decision region within given ranges, with its evidence.

    Attributes:
        delta: (n,) smallest change; inf where there is none.
        norm: its Euclidean length; inf where there is none, NaN where this precision cannot tell.
        multipliers: (c,) of the rivals; positive only for those that bind.
        bound_multipliers: (n,) positive for an attribute held up by its lower end, negative for one held down by its
            upper end, 0 for a free one: delta = sum_k multipliers_k (w_target - w_k) + bound_multipliers on the
            attributes that may change. Where there is no such point, the two are the certificate of that instead: on
            the attributes that may change the sum is 0, and the constraints, so weighted, contradict each other. An
            immutable attribute outside its range is a certificate of its own: 1 where it is too low, -1 where it is too
            high, and 0 everywhere else.
        feasible: whether the target can win by the margin within the ranges.
        kkt_residual: largest violation of the optimality conditions, relative to ||attributes|| + ||delta||; see
            `ProjectionResult`. Without an answer: the length of the certificate's sum, which should be 0, relative to
            its terms; NaN where nothing is told.
    """

    delta: Float[Array, "n"]
    norm: Float[Array, ""]
    multipliers: Float[Array, "c"]
    bound_multipliers: Float[Array, "n"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]


def box_perturbation(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""] | int,
    *,
    lower: Float[Array, "n"] | None = None,
    upper: Float[Array, "n"] | None = None,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> BoxResult:
    """Smallest change (Euclidean) after which `target` wins by `margin` and lower <= attributes + delta <= upper.

    The answer is exact up to rounding and comes with its evidence, as that of `projection_perturbation`, to which it
    is equal where no range binds; an answer that cannot be verified in this precision is NaN. Derivatives with
    respect to weights, bias, attributes, margin and ranges are those of the constraints that bind.

    A sample that lies outside its ranges is moved into them, also if it is the target class already.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        lower: (n,) smallest value of each attribute after the change; -inf or None for no end.
        upper: (n,) largest value; inf or None for no end.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default. One that may not and lies outside its range
            leaves no answer.

    Returns:
        BoxResult.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, lower above upper or NaN.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    lower, upper = check_ranges(head, lower, upper)
    # Exact differences: the gap to a class of equal weights is 0 and not one rounding error.
    logits = relative_logits(head, attributes[None])[0]
    gaps, rounding = logit_gaps(logits, target, margin), gap_rounding(logits, target, margin)
    low, high = lower - attributes, upper - attributes
    outside = jnp.zeros_like(low)
    if mutable is not None:
        # Held where they are: their own range can then only be met or not.
        outside = jnp.where(mutable, 0, (low > 0).astype(low.dtype) - (high < 0).astype(low.dtype))
        low, high = jnp.where(mutable, low, 0), jnp.where(mutable, high, 0)
    rows = head.weights[target][None, :] - head.weights
    return project_into_box(rows, gaps, rounding, low, high, safe_norm(attributes), outside)


@jax.jit  # op by op its loops would be compiled anew at every call
def project_into_box(
    rows: Float[Array, "c n"],
    gaps: Float[Array, "c"],
    rounding: Float[Array, "c"],
    low: Float[Array, "n"],
    high: Float[Array, "n"],
    size: Float[Array, ""],
    outside: Float[Array, "n"],
) -> BoxResult:
    """The shortest delta in [low, high] with rows . delta >= gaps.

    Args:
        rows: (c, n) w_target - w_k.
        gaps: (c,) what each row must reach; -inf where nothing is asked.
        rounding: (c,) rounding error to expect in each of them.
        low: (n,) smallest change of each attribute, at most high.
        high: (n,) largest change.
        size: length against which residuals are measured, beside that of delta.
        outside: (n,) not 0 for attributes that are held where their range forbids it, which leaves no answer: 1 where
            they are too low, -1 where too high.

    Returns:
        BoxResult.
    """
    dtype, fixed = rows.dtype, jax.lax.stop_gradient
    epsilon = float(jnp.finfo(dtype).eps)
    lengths = safe_norm(rows)
    apart = (lengths > 8 * epsilon * jnp.max(lengths)) & (gaps != -jnp.inf)
    divisors = jnp.where(apart, lengths, 1)
    normals = jnp.where(apart[:, None], rows / divisors[:, None], 0)
    heights = jnp.where(apart, gaps / divisors, 0)
    # A row that coincides with the target's keeps its gap for ever.
    behind = (gaps > 0) & ~apart
    told = ~(jnp.any(jnp.isnan(gaps)) | jnp.any(jnp.isnan(low)) | jnp.any(jnp.isnan(high)))
    held_out = fixed(jnp.any(outside != 0) & told)
    hopeless = held_out | fixed(jnp.any(behind) & told)

    found = _search(*map(fixed, (normals, heights, apart, low, high)))
    solved = (found.status == _SOLVED) & ~hopeless & told
    active = (found.multipliers > 0) & solved
    pull = jnp.matmul(found.multipliers, fixed(normals), precision=HIGHEST)
    free = (pull > fixed(low)) & (pull < fixed(high))
    at_end = jnp.where(free, 0, jnp.where(pull >= fixed(high), high, low))
    at_end = jnp.where(solved, at_end, 0)

    def lead(change):
        return jnp.matmul(normals, change, precision=HIGHEST)

    def product(multipliers):
        combined = jnp.matmul(jnp.where(active, multipliers, 0), normals, precision=HIGHEST)
        return jnp.where(active, lead(jnp.where(free, combined, 0)), multipliers)

    def solve(product, right):
        members = jnp.where(active[:, None], fixed(normals), 0)
        system = jnp.matmul(jnp.where(free[None, :], members, 0), members.T, precision=HIGHEST)
        tiny = 16 * epsilon * jnp.maximum(jnp.max(jnp.diagonal(system)), epsilon)
        factor = jnp.linalg.cholesky(system + jnp.diag(jnp.where(active, tiny, 1)))
        answer = jnp.zeros_like(right)
        for _ in range(4):  # what was added to the diagonal is refined away again
            answer = answer + jax.scipy.linalg.cho_solve((factor, True), right - product(answer))
        return answer

    # Only the correction is solved for: where the active rivals depend on each other, the multipliers found stay.
    near = jnp.where(active, found.multipliers, 0)
    right = jnp.where(active, heights - lead(at_end), 0) - product(near)
    multipliers = near + jax.lax.custom_linear_solve(product, right, solve, symmetric=True)
    combined = jnp.matmul(multipliers, normals, precision=HIGHEST)
    delta = jnp.where(free, jnp.minimum(jnp.maximum(combined, low), high), at_end)
    norm = safe_norm(jnp.where(solved, delta, 0))

    # min(slack, multiplier) = 0 says that no rival is ahead, no multiplier negative and one of the two is 0; that
    # delta is the clipped combination says the same of the ranges.
    slack = jnp.where(apart, lead(delta) - heights, 0)
    clipped = jnp.minimum(jnp.maximum(combined, low), high)
    violations, clipping = jnp.abs(jnp.minimum(slack, multipliers)), jnp.max(jnp.abs(clipped - delta))
    scale = size + norm
    residual = fixed(jnp.maximum(jnp.max(violations), clipping) / jnp.where(scale > 0, scale, 1))
    # "Never a wrong number": what is left must be small beside the change itself, however large the sample is. What the
    # rounding of the gaps explains does not count.
    excess = jnp.maximum(jnp.max(violations - 64 * rounding / divisors), clipping)
    feasible = solved & fixed(excess <= 1e-3 * norm)

    empty = hopeless | ((found.status == _EMPTY) & told)
    nothing = jnp.where(empty, jnp.inf, jnp.nan)
    # Evidence of an empty problem: an attribute held outside its range, the one row that can never be closed, or the
    # search's own multipliers, with whatever ends of the ranges they lean on.
    proof = jnp.where(jnp.any(behind), behind.astype(dtype), found.multipliers)
    proof = fixed(jnp.where(held_out, 0, proof))
    weighted = proof / divisors
    sum_of_rows = jnp.matmul(weighted, fixed(rows), precision=HIGHEST)
    leant_on = jnp.isfinite(jnp.where(sum_of_rows > 0, high, low))
    ends = jnp.where(held_out, fixed(outside), jnp.where(leant_on, -sum_of_rows, 0))
    terms = jnp.sum(weighted * jnp.where(apart, lengths, jnp.max(lengths)))
    left_over = safe_norm(jnp.where(held_out | leant_on, 0, sum_of_rows)) / jnp.where(terms > 0, terms, 1)
    held = jnp.where(free, 0, delta - combined)
    return BoxResult(
        delta=jnp.where(feasible, delta, nothing),
        norm=jnp.where(feasible, norm, nothing),
        multipliers=jnp.where(empty, weighted, multipliers / divisors),
        bound_multipliers=jnp.where(empty, ends, held),
        feasible=feasible,
        kkt_residual=jnp.where(feasible, residual, jnp.where(empty, fixed(left_over), jnp.nan)),
    )


class _Search(NamedTuple):
    multipliers: Float[Array, "c"]
    residual: Float[Array, ""]
    status: Int[Array, ""]
    stalled: Int[Array, ""]
    steps: Int[Array, ""]


def _search(normals, heights, rivals, low, high) -> _Search:
    """Newton steps on the multipliers of the unit rows, kept non-negative."""
    dtype = normals.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    lengths = jnp.asarray([0.5**power for power in range(-20, 12)], dtype)
    farthest = jnp.max(jnp.maximum(heights, 0)) + jnp.max(jnp.maximum(jnp.maximum(low, -high), 0))

    def pulls(multipliers):
        return jnp.matmul(multipliers, normals, precision=HIGHEST)

    def clip(pull):
        return jnp.clip(pull, jnp.broadcast_to(low, pull.shape), jnp.broadcast_to(high, pull.shape))

    def values(multipliers):
        """The convex function to minimise, of several sets of multipliers."""
        pull = pulls(multipliers)
        change = clip(pull)
        return jnp.sum(change * (pull - change / 2), axis=-1) - jnp.matmul(multipliers, heights, precision=HIGHEST)

    def proves_empty(multipliers):
        """Farkas: h . lambda exceeds all that lambda^T G delta can be in the ranges, or for any delta near by."""
        pull = pulls(multipliers)
        end = jnp.where(pull > 0, high, low)
        bounded = jnp.isfinite(end) | (pull == 0)
        reach = jnp.where(bounded, pull * jnp.where(bounded & jnp.isfinite(end), end, 0), 0)
        gain = jnp.sum(multipliers * heights) - jnp.sum(reach)
        noise = 8 * epsilon * (jnp.sum(jnp.abs(multipliers * heights)) + jnp.sum(jnp.abs(reach)))
        open_pull = safe_norm(jnp.where(bounded, 0, pull))
        return (gain > noise) & ((gain - noise) * epsilon**0.5 > 0.01 * farthest * open_pull)

    def step(state: _Search) -> _Search:
        multipliers = state.multipliers
        pull = pulls(multipliers)
        change = clip(pull)
        slack = jnp.where(rivals, jnp.matmul(normals, change, precision=HIGHEST) - heights, 1)
        slack = jnp.where(rivals, slack, jnp.inf)
        scale = farthest + safe_norm(change)
        residual = jnp.max(jnp.abs(jnp.minimum(slack, multipliers))) / jnp.where(scale > 0, scale, 1)

        free = (pull > low) & (pull < high)
        members = jnp.where(free[None, :], normals, 0)
        curvature = jnp.matmul(members, members.T, precision=HIGHEST)
        # Ever weaker damping: where there is no answer the steps must grow without end to show it.
        caution = jnp.minimum(1e-3 * residual, 1e-3) * 0.5 ** state.steps.astype(dtype)
        damping = jnp.maximum(32 * epsilon * jnp.trace(curvature), caution) + epsilon
        model = curvature + damping * jnp.eye(len(heights), dtype=dtype)
        pushed = jnp.where(rivals, jnp.matmul(model, multipliers, precision=HIGHEST) - slack, 0)
        newton = _nonnegative_minimum(model, pushed, rivals, rivals & ((multipliers > 0) | (slack < 0)))
        newton = jnp.where(
            jnp.all(jnp.isfinite(newton)), newton, jnp.maximum(multipliers - jnp.where(rivals, slack, 0), 0)
        )
        trials = jnp.maximum(multipliers[None, :] + lengths[:, None] * (newton - multipliers)[None, :], 0)
        heights_of = values(trials)
        best = jnp.argmin(jnp.where(jnp.isnan(heights_of), jnp.inf, heights_of))
        here = values(multipliers)
        gain = here - heights_of[best]
        # Below the rounding of its terms the function says nothing any more; then a full step is a refinement.
        visible = gain > 4 * epsilon * (jnp.abs(here) + jnp.sum(jnp.abs(multipliers * heights)))
        following = jnp.where(visible, trials[best], trials[20])
        stalled = jnp.where(visible, 0, state.stalled + 1)
        precise = residual <= 4 * epsilon
        # Where there is no answer the multipliers grow without end; where they are heading is the proof.
        heading = jnp.maximum(newton - multipliers, 0)
        by_heading = proves_empty(heading)
        empty = by_heading | proves_empty(multipliers)
        done = precise | (stalled > 3)
        status = jnp.select(
            [empty, done, state.steps + 1 >= _MAX_STEPS, ~jnp.isfinite(residual)],
            [jnp.asarray(code, jnp.int32) for code in (_EMPTY, _SOLVED, _UNRESOLVED, _UNRESOLVED)],
            jnp.asarray(_RUNNING, jnp.int32),
        )
        following = jnp.where(status == _RUNNING, following, jnp.where(by_heading & empty, heading, multipliers))
        return _Search(following, residual, status, stalled, state.steps + 1)

    start = _Search(
        multipliers=jnp.zeros_like(heights),
        residual=jnp.asarray(jnp.inf, dtype),
        status=jnp.asarray(_RUNNING, jnp.int32),
        stalled=jnp.asarray(0, jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
    )
    return jax.lax.while_loop(lambda state: state.status == _RUNNING, step, start)


def _nonnegative_minimum(matrix, pushed, members, start):
    """argmin over x >= 0 of 1/2 x^T M x - pushed . x by block principal pivoting (Kim and Park 2011).

    Args:
        matrix: (c, c) positive definite.
        pushed: (c,) linear term.
        members: (c,) entries that may be positive.
        start: (c,) first guess of those that are.
    """
    count = len(pushed)
    numbers = jnp.arange(count, dtype=jnp.int32)
    noise = 8 * float(jnp.finfo(pushed.dtype).eps) * jnp.max(jnp.abs(pushed))

    def solve(positive):
        both = positive[:, None] & positive[None, :]
        factor = jnp.linalg.cholesky(jnp.where(both, matrix, jnp.eye(count, dtype=matrix.dtype)))
        point = jax.scipy.linalg.cho_solve((factor, True), jnp.where(positive, pushed, 0))
        slope = jnp.matmul(matrix, point, precision=HIGHEST) - pushed
        return point, (positive & (point < 0)) | (members & ~positive & (slope < -noise))

    def exchange(state):
        positive, _, wrong, fewest, patience, steps = state
        number = jnp.sum(wrong)
        fewer = number < fewest
        patience = jnp.where(fewer, 3, patience - 1)
        # All at once while that makes progress; one at a time, the last, cannot cycle.
        last = numbers == jnp.max(jnp.where(wrong, numbers, -1))
        positive = positive ^ jnp.where(fewer | (patience >= 0), wrong, last)
        return positive, *solve(positive), jnp.minimum(fewest, number), patience, steps + 1

    first = (start, *solve(start), jnp.asarray(count + 1), jnp.asarray(3), jnp.asarray(0))
    state = jax.lax.while_loop(lambda state: jnp.any(state[2]) & (state[5] < _MAX_PIVOTS), exchange, first)
    return jnp.maximum(state[1], 0)
