"""The smallest change after which the target wins and every group of exclusive values has exactly one of them on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_groups, check_mutable
from spectra_jax.perturbations.box import from_evidence, search_ranges
from spectra_jax.perturbations.dual_path import Answers
from spectra_jax.perturbations.geometry import HIGHEST, logit_gaps, of_unit_size, relative_logits, squared_distances
from spectra_jax.perturbations.lagrangian import raise_bound, unit_rows
from spectra_jax.perturbations.lanes import INFEASIBLE, OPTIMAL, UNRESOLVED, scatter_slots
from spectra_jax.switches import public
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


@public()
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
    return _solve(head, attributes, target, margin, jnp.asarray(threshold, attributes.dtype), mutable, groups)


@jax.jit  # op by op it would be hundreds of programs, and its loop compiled anew at every call
def _solve(head, attributes, target, margin, threshold, mutable, groups) -> OneHotResult:
    num_attributes = head.weights.shape[1]
    allowed = jnp.ones(num_attributes, bool) if mutable is None else mutable
    grouped = groups >= 0
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
    head, margin, scale = of_unit_size(head, margin)
    still = jax.tree.map(fixed, change)
    found = _search(fixed(head), fixed(attributes), target, fixed(margin), still, groups)
    # No finite change lifts a class masked by a bias of -inf.
    logits = fixed(relative_logits(head, attributes[None])[0])
    impossible = found.impossible | ((logits[target] == -jnp.inf) & jnp.all(logits < jnp.inf))
    active, bound = found.active, found.bound
    broken = jnp.where(active, ~change.can_on, ~change.can_off)
    result = from_evidence(
        head,
        attributes,
        target,
        margin,
        low=jnp.where(active, change.on_low, change.off_low),
        high=jnp.where(active, change.on_high, change.off_high),
        outside=jnp.where(broken, jnp.where(active, 1, -1), 0).astype(attributes.dtype),
        found=found.answer,
    )
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
        multipliers=scale * result.multipliers,
        bound_multipliers=result.bound_multipliers,
        feasible=feasible,
        kkt_residual=jnp.where(feasible, result.kkt_residual, jnp.nan),
    )


class _Found(NamedTuple):
    """The best choice of values.

    Attributes:
        active: (n,) the value that is on in each group.
        answer: of the exact search with these values.
        bound: lower bound of the norm over all choices.
        impossible: whether no choice can do it.
    """

    active: Bool[Array, "n"]
    answer: Answers
    bound: Float[Array, ""]
    impossible: Bool[Array, ""]


class _Round(NamedTuple):
    """One round of the search: sets of values to try next, and the best so far.

    Attributes:
        patterns: (t, n) the value that is on in each group.
        worth: (t,) which of them to try.
        active: (n,) the best so far.
        answer: of the best so far.
        bound: half the square of the lower bound, found after the first rounds.
        pull: (n,) lambda^T G of the multipliers that prove the bound.
        impossible: whether no choice can do it.
        number: of the round.
        done: whether nothing is left to try.
    """

    patterns: Bool[Array, "t n"]
    worth: Bool[Array, "t"]
    active: Bool[Array, "n"]
    answer: Answers
    bound: Float[Array, ""]
    pull: Float[Array, "n"]
    impossible: Bool[Array, ""]
    number: Int[Array, ""]
    done: Bool[Array, ""]


def _search(head: Head, attributes, target, margin, change: _Ranges, groups) -> _Found:
    """The value to turn on in each group.

    Round 0 also solves the problem in which every value may be on or off, without which there is no answer at all.
    Rounds 1 to _PATTERNS follow the multipliers; then come the pattern of the best lower bound and exchanges.
    """
    num_attributes, dtype = head.weights.shape[1], head.weights.dtype
    grouped = groups >= 0
    names = jnp.where(grouped, groups, num_attributes)
    numbers = jnp.arange(num_attributes, dtype=jnp.int32)
    rows = head.weights[target][None, :] - head.weights
    normals, heights, lengths = unit_rows(rows, logit_gaps(relative_logits(head, attributes[None])[0], target, margin))
    few = min(_TRIED, num_attributes)
    squares = squared_distances(head.weights)

    def over_groups(function, values):
        return function(values, names, num_attributes + 1)

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
        first = over_groups(
            jax.ops.segment_min,
            jnp.where(cost <= over_groups(jax.ops.segment_min, cost)[names], numbers, num_attributes),
        )
        return grouped & (first[names] == numbers)

    def least(pull):
        active = cheapest(pull)
        low = jnp.where(active, change.on_low, change.off_low)
        high = jnp.where(active, change.on_high, change.off_high)
        return jnp.minimum(jnp.maximum(pull, low), high)

    def pull_of(answer: Answers):
        rivals = answer.proof
        weights = jnp.where(answer.status == OPTIMAL, rivals.multipliers, 0)
        return jnp.matmul(weights, rows[rivals.slots], precision=HIGHEST)

    def try_all(round: _Round) -> tuple[_Round, Array]:
        """The round's patterns solved, and whether one of them is better."""
        patterns = round.patterns
        broken = jnp.any(jnp.where(patterns, ~change.can_on, ~change.can_off), axis=-1)
        low = jnp.where(patterns, change.on_low, change.off_low)
        high = jnp.where(patterns, change.on_high, change.off_high)
        first = round.number == 0  # its last pattern is the one with all values open
        widest = jnp.minimum(change.on_low, change.off_low), jnp.maximum(change.on_high, change.off_high)
        low, high = (
            ends.at[-1].set(jnp.where(first, wide, ends[-1])) for ends, wide in zip((low, high), widest, strict=True)
        )
        worth = (round.worth & ~broken).at[-1].set(jnp.where(first, True, round.worth[-1] & ~broken[-1]))
        worth = worth & ~(round.done | round.impossible)  # one vmapped along with others that still search

        def solve(low, high, worth):
            return search_ranges(head, squares, attributes, target, margin, low, high, worth)

        found = jax.vmap(solve)(low, high, worth)
        impossible = round.impossible | (first & (found.status[-1] == INFEASIBLE))
        norms = jnp.where((found.status == OPTIMAL) & round.worth, found.norm, jnp.inf)
        winner = jnp.argmin(norms)
        best = jnp.where(round.answer.status == OPTIMAL, round.answer.norm, jnp.inf)
        better = norms[winner] < best * (1 - 4 * float(jnp.finfo(dtype).eps))
        answer = jax.tree.map(lambda new, old: jnp.where(better, new[winner], old), found, round.answer)
        active = jnp.where(better, patterns[winner], round.active)
        return round._replace(active=active, answer=answer, impossible=impossible), better

    def only(pattern):
        return jnp.broadcast_to(pattern, (few + 1, num_attributes)), jnp.arange(few + 1, dtype=jnp.int32) == 0

    def raised(round: _Round) -> _Round:
        rivals = round.answer.proof
        multipliers = jnp.where(round.answer.status == OPTIMAL, rivals.multipliers, 0)
        start = scatter_slots(rivals.slots[None], multipliers[None], len(heights))[0] * lengths
        upper = jnp.where(round.answer.status == OPTIMAL, round.answer.norm**2 / 2, jnp.inf)
        bound, proof = raise_bound(normals, heights, least, start, upper, steps=_BOUND_STEPS)
        return round._replace(bound=bound, pull=jnp.matmul(proof, normals, precision=HIGHEST))

    def exchanges(round: _Round):
        """The most promising sets in which one group has another value on."""
        cost, active = extra(round.pull), round.active
        now = over_groups(jax.ops.segment_sum, jnp.where(active & jnp.isfinite(cost), cost, 0))[names]
        promise = jnp.where(grouped & ~active & change.can_on, now - cost, -jnp.inf)
        newcomers = jax.lax.top_k(promise, few)[1]
        patterns = jnp.where(
            groups[None, :] == groups[newcomers][:, None], numbers[None, :] == newcomers[:, None], active
        )
        worth = promise[newcomers] > -jnp.inf
        return jnp.concatenate([patterns, patterns[:1]]), jnp.append(worth, False)

    def step(round: _Round) -> _Round:
        round, better = try_all(round)
        round = jax.lax.cond(round.number == _PATTERNS, raised, lambda round: round, round)
        following, from_bound, exchanged = (
            only(cheapest(pull_of(round.answer))),
            only(cheapest(round.pull)),
            exchanges(round),
        )
        early, turn = round.number < _PATTERNS, round.number == _PATTERNS
        patterns, worth = (
            jnp.where(early, a, jnp.where(turn, b, c)) for a, b, c in zip(following, from_bound, exchanged, strict=True)
        )
        done = ((round.number > _PATTERNS + 1) & ~better) | (round.number >= _PATTERNS + _MAX_ROUNDS)
        return round._replace(patterns=patterns, worth=worth, number=round.number + 1, done=done)

    nearest = cheapest(jnp.zeros(num_attributes, dtype))
    patterns, worth = only(nearest)
    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(search_ranges, head, squares, attributes, target, margin, attributes, attributes, grouped[0]),
    )
    start = _Round(
        patterns=patterns,
        worth=worth,
        active=nearest,
        answer=nothing._replace(status=jnp.asarray(UNRESOLVED, jnp.int32)),
        bound=jnp.zeros((), dtype),
        pull=jnp.zeros(num_attributes, dtype),
        impossible=_contradictory(change, grouped, names),
        number=jnp.asarray(0, jnp.int32),
        done=jnp.asarray(False),
    )
    last = jax.lax.while_loop(lambda round: ~(round.done | round.impossible), step, start)
    return _Found(last.active, last.answer, jnp.sqrt(2 * jnp.maximum(last.bound, 0)), last.impossible)


def _contradictory(change: _Ranges, grouped: Bool[Array, "n"], names: Int[Array, "n"]) -> Bool[Array, ""]:
    """Whether some group has no value that may be on, or several that must be."""

    def count(mask):
        return jax.ops.segment_sum((grouped & mask).astype(jnp.int32), names, len(names) + 1)[: len(names)]

    neither = jnp.any(grouped & ~change.can_on & ~change.can_off)
    nothing_on = jnp.any((count(grouped) > 0) & (count(change.can_on) == 0))
    return neither | jnp.any(count(~change.can_off) > 1) | nothing_on
