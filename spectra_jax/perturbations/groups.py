"""The smallest change after which the target wins and every group of exclusive values has exactly one of them on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_groups, check_mutable
from spectra_jax.perturbations.box import BoxResult, project_into_box
from spectra_jax.perturbations.geometry import gap_rounding, logit_gaps, relative_logits, safe_norm
from spectra_jax.perturbations.lagrangian import raise_bound, unit_rows
from spectra_jax.types import Head

# Steps on the lower bound, patterns read off its multipliers, and rounds of turning on another value of one group, of
# which the most promising are tried.
_BOUND_STEPS, _PATTERNS, _MAX_ROUNDS, _TRIED = 400, 8, 20, 32


class OneHotResult(NamedTuple):
    """A change that keeps one value on in every group, and how far from the best one it can be.

    Attributes:
        delta: (n,) the change; inf where none exists, NaN where none was found although one may exist.
        norm: its Euclidean length; inf or NaN likewise.
        lower_bound: no change to any choice of values is shorter than this.
        proven: whether the answer is proven: norm equals lower_bound up to rounding, or there is no answer.
        active: (n,) the value that is on in each group.
        multipliers: (c,) of the rivals; positive only for those that bind.
        bound_multipliers: (n,) positive for a value held on, negative for one held off, 0 where the group does not
            bind; see `BoxResult`.
        feasible: whether delta makes the target win by the margin, with one value on in every group.
        kkt_residual: of the projection with this choice of values, see `BoxResult`; NaN where not feasible.
    """

    delta: Float[Array, "n"]
    norm: Float[Array, ""]
    lower_bound: Float[Array, ""]
    proven: Bool[Array, ""]
    active: Bool[Array, "n"]
    multipliers: Float[Array, "c"]
    bound_multipliers: Float[Array, "n"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]


class _Ranges(NamedTuple):
    """Changes allowed to each attribute when its value is on, and when it is off."""

    on_low: Float[Array, "n"]
    on_high: Float[Array, "n"]
    off_low: Float[Array, "n"]
    off_high: Float[Array, "n"]
    can_on: Bool[Array, "n"]
    can_off: Bool[Array, "n"]


def one_hot_perturbation(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""] | int,
    *,
    groups: Int[Array, "n"],
    threshold: float | Float[Array, ""] = 0.0,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> OneHotResult:
    """Small change (Euclidean) after which `target` wins and exactly one value of every group is on.

    A value is on where e + delta >= threshold and off where e + delta <= -threshold: at threshold 0, sigmoid above or
    below one half, with the boundary itself allowed to both as margin 0 allows ties. Turning one value on therefore
    turns its rivals off, for example has_nape_color::grey and all other nape colours of CUB-200-2011. It holds for
    EVERY group named, so a sample with none or several values on in some group is put in order as well: leave such
    attributes ungrouped (-1) to let them be.

    With the values chosen, the problem is a projection with ranges (`box_perturbation`), solved exactly. The choice is
    combinatorial: it is read off Lagrange multipliers, then improved by turning on another value of one group until
    that does not help, and the result says by how much it can miss the optimum: lower_bound is a proof that nothing
    shorter exists.

    Derivatives with respect to weights, bias, attributes, threshold and margin are those of the chosen values.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        groups: (n,) which group each attribute is a value of, 0 to n - 1, or -1 for none.
        threshold: how clearly a value must be on or off, in attribute units, >= 0.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        OneHotResult.

    Raises:
        ValueError: shapes do not match, target out of range, margin or threshold negative.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    groups = check_groups(head, groups, threshold)
    num_attributes = head.weights.shape[1]
    allowed = jnp.ones(num_attributes, bool) if mutable is None else mutable
    grouped = groups >= 0
    threshold = jnp.asarray(threshold, attributes.dtype)
    fixed = jax.lax.stop_gradient

    def ranges(low, high, applies):
        """What may be done to each attribute so that it ends in [low, high]; an immutable one is there or is not."""
        inside = (attributes >= low) & (attributes <= high)
        low = jnp.where(allowed, jnp.where(applies, low - attributes, -jnp.inf), 0)
        high = jnp.where(allowed, jnp.where(applies, high - attributes, jnp.inf), 0)
        return low, high, allowed | inside | ~applies

    on_low, on_high, can_on = ranges(threshold, jnp.inf, grouped)
    off_low, off_high, can_off = ranges(-jnp.inf, -threshold, grouped)
    change = _Ranges(on_low, on_high, off_low, off_high, can_on, can_off)
    rows = head.weights[target][None, :] - head.weights
    logits = relative_logits(head, attributes[None])[0]
    gaps, rounding = logit_gaps(logits, target, margin), fixed(gap_rounding(logits, target, margin))
    size = safe_norm(attributes)

    def solve(rows, gaps, change, size, active) -> BoxResult:
        broken = jnp.where(active, ~change.can_on, ~change.can_off)
        low = jnp.where(active, change.on_low, change.off_low)
        high = jnp.where(active, change.on_high, change.off_high)
        outside = jnp.where(broken, jnp.where(active, 1, -1), 0).astype(rows.dtype)
        return project_into_box(rows, gaps, rounding, low, high, size, outside)

    still = _Ranges(*map(fixed, change))
    active, bound, impossible = _search(fixed(rows), fixed(gaps), rounding, still, fixed(size), groups, solve)
    result = solve(rows, gaps, change, size, active)
    feasible = result.feasible
    norm = jnp.where(feasible, result.norm, jnp.where(impossible, jnp.inf, jnp.nan))
    bound = jnp.where(impossible, jnp.inf, jnp.where(feasible, jnp.minimum(bound, fixed(norm)), bound))
    tolerance = 10 * float(jnp.finfo(attributes.dtype).eps) ** (2 / 3)
    return OneHotResult(
        delta=jnp.where(feasible, result.delta, norm),
        norm=norm,
        lower_bound=bound,
        proven=impossible | (feasible & (norm - bound <= tolerance * norm)),
        active=active & feasible,
        multipliers=result.multipliers,
        bound_multipliers=result.bound_multipliers,
        feasible=feasible,
        kkt_residual=jnp.where(feasible, result.kkt_residual, jnp.nan),
    )


def _search(rows, gaps, rounding, change: _Ranges, size, groups, solve) -> tuple[Array, Array, Array]:
    """The value to turn on in each group, a lower bound of the norm over all choices, and whether none can exist."""
    num_attributes = rows.shape[1]
    grouped = groups >= 0
    names = jnp.where(grouped, groups, num_attributes)
    numbers = jnp.arange(num_attributes, dtype=jnp.int32)
    normals, heights, lengths = unit_rows(rows, gaps)

    def extra(pull):
        """What turning a value on costs more than leaving it off, in 1/2 delta^2 - pull delta."""

        def cost(low, high, possible):
            delta = jnp.minimum(jnp.maximum(pull, low), high)
            return jnp.where(possible, delta * (delta / 2 - pull), jnp.inf)

        off = cost(change.off_low, change.off_high, change.can_off)
        on = cost(change.on_low, change.on_high, change.can_on)
        return jnp.where(
            change.can_off, jnp.where(change.can_on, on - jnp.where(change.can_off, off, 0), jnp.inf), -jnp.inf
        )

    def cheapest(pull):
        """The choice of values with the least cost."""
        cost = extra(pull)
        least = jax.ops.segment_min(cost, names, num_attributes + 1)
        first = jax.ops.segment_min(jnp.where(cost <= least[names], numbers, num_attributes), names, num_attributes + 1)
        return grouped & (first[names] == numbers)

    def least(pull):
        active = cheapest(pull)
        low = jnp.where(active, change.on_low, change.off_low)
        high = jnp.where(active, change.on_high, change.off_high)
        return jnp.minimum(jnp.maximum(pull, low), high)

    def tried(active):
        result = solve(rows, gaps, change, size, active)
        return jnp.where(result.feasible, result.norm, jnp.inf), jnp.where(
            jnp.isfinite(result.multipliers), result.multipliers, 0
        )

    def follow(_, state):
        pattern, best, norm, multipliers = state
        found, pulls = tried(pattern)
        better = found < norm
        state = jnp.where(better, pattern, best), jnp.minimum(found, norm), jnp.where(better, pulls, multipliers)
        return cheapest(jnp.matmul(pulls, rows, precision="highest")), *state

    nearest = cheapest(jnp.zeros(num_attributes, rows.dtype))
    start = (nearest, nearest, jnp.asarray(jnp.inf, rows.dtype), jnp.zeros_like(gaps))
    _, active, norm, multipliers = jax.lax.fori_loop(0, _PATTERNS, follow, start)
    raised = raise_bound(normals, heights, least, multipliers * lengths, norm**2 / 2, steps=_BOUND_STEPS)
    pull = jnp.matmul(raised[1], normals, precision="highest")
    from_bound = cheapest(pull)
    other = tried(from_bound)[0]
    active = jnp.where(other < norm, from_bound, active)
    norm = jnp.minimum(norm, other)
    few = min(_TRIED, num_attributes)

    def exchange(state):
        active, norm, _, rounds = state
        cost = extra(pull)
        now = jax.ops.segment_sum(jnp.where(active & jnp.isfinite(cost), cost, 0), names, num_attributes + 1)[names]
        promise = jnp.where(grouped & ~active & change.can_on, now - cost, -jnp.inf)
        newcomers = jax.lax.top_k(promise, few)[1]

        def turned_on(newcomer):
            group = groups == groups[newcomer]
            pattern = jnp.where(group, numbers == newcomer, active)
            return jnp.where(promise[newcomer] > -jnp.inf, tried(pattern)[0], jnp.inf)

        found = jax.lax.map(turned_on, newcomers, batch_size=few)
        winner = jnp.argmin(found)
        better = found[winner] < norm * (1 - 4 * float(jnp.finfo(norm.dtype).eps))
        group = groups == groups[newcomers[winner]]
        active = jnp.where(better & group, numbers == newcomers[winner], active)
        return active, jnp.minimum(norm, found[winner]), better, rounds + 1

    active, _, _, _ = jax.lax.while_loop(
        lambda state: state[2] & (state[3] < _MAX_ROUNDS),
        exchange,
        (active, norm, jnp.asarray(True), jnp.asarray(0, jnp.int32)),
    )
    # No choice can do it if some group has no value that may be on, several that must be, or no delta at all exists.
    must = jax.ops.segment_sum((grouped & ~change.can_off).astype(jnp.int32), names, num_attributes + 1)
    may = jax.ops.segment_sum((grouped & change.can_on).astype(jnp.int32), names, num_attributes + 1)
    size_of = jax.ops.segment_sum(grouped.astype(jnp.int32), names, num_attributes + 1)
    neither = jnp.any(grouped & ~change.can_on & ~change.can_off)
    stuck = (
        neither
        | jnp.any(must[:num_attributes] > 1)
        | jnp.any((size_of > 0)[:num_attributes] & (may == 0)[:num_attributes])
    )
    low, high = jnp.minimum(change.on_low, change.off_low), jnp.maximum(change.on_high, change.off_high)
    outside = jnp.full(num_attributes, stuck, rows.dtype)
    relaxed = project_into_box(rows, gaps, rounding, low, high, size, outside)
    bound = jnp.sqrt(2 * jnp.maximum(raised[0], 0))
    return active, bound, ~relaxed.feasible & (relaxed.norm == jnp.inf)
