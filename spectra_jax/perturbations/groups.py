"""The smallest change after which the target wins and every group of exclusive values has exactly one of them on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import check_groups
from spectra_jax.perturbations.answers import Answers
from spectra_jax.perturbations.box import from_evidence, search_ranges
from spectra_jax.perturbations.geometry import HIGHEST, squared_distances
from spectra_jax.perturbations.lagrangian import raise_bound, unit_normals
from spectra_jax.perturbations.lanes import scatter_slots
from spectra_jax.perturbations.problem import Problem, Ranges, absent, make_problem, make_ranges
from spectra_jax.perturbations.result import RestrictedResult
from spectra_jax.switches import public
from spectra_jax.types import Head, Status

# Steps on the lower bound, patterns read off its multipliers, and rounds of turning on another value of one group, of
# which the most promising are tried.
_BOUND_STEPS, _PATTERNS, _MAX_ROUNDS, _TRIED = 400, 8, 20, 32


class _Changes(NamedTuple):
    """What may be done to each attribute so that its value ends on, and so that it ends off.

    Attributes:
        on, off: (n,) ranges; `outside` is 1 or -1 where an immutable attribute is not on, or not off, already.
    """

    on: Ranges
    off: Ranges

    def to(self, pattern: Bool[Array, "... n"]) -> Ranges:
        """The ranges that put these values on and all others off."""
        return jax.tree.map(lambda on, off: jnp.where(pattern, on, off), self.on, self.off)

    @property
    def can_on(self) -> Bool[Array, " n"]:
        return self.on.outside == 0

    @property
    def can_off(self) -> Bool[Array, " n"]:
        return self.off.outside == 0


@public()
def one_hot_perturbation(
    head: Head,
    attributes: Float[Array, " n"],
    target: Int[Array, ""] | int,
    *,
    groups: Int[Array, " n"],
    threshold: float | Float[Array, ""] = 0.0,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
) -> RestrictedResult:
    """Small change (Euclidean) after which `target` wins and exactly one value of every group is on.

    A value is on where e + delta >= threshold and off where e + delta <= -threshold: at threshold 0, sigmoid above or
    below one half, where the boundary itself counts as both, just as margin 0 allows ties. Turning one value on
    therefore turns its rivals off, for example has_nape_color::grey and all other nape colours of CUB-200-2011. The
    rule holds for EVERY group, so a sample with no value or several values on in some group is corrected as well; set
    such attributes to no group (-1) to leave them alone.

    Once the values are chosen, the problem is a projection with ranges (`box_perturbation`), solved exactly. The choice
    is combinatorial: it is read off Lagrange multipliers, then improved by turning on another value of one group until
    that no longer helps. The result states how far it can be from the optimum: lower_bound is a proof that nothing
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
        RestrictedResult; `chosen` are the values that are on, one in each group. BUDGET if none of the choices tried
        has an answer, though another one may.

    Raises:
        ValueError: shapes do not match, target out of range, margin or threshold negative.
    """
    problem = make_problem(head, attributes, target, margin=margin, mutable=mutable)
    groups = check_groups(head, groups, threshold)
    return _solve(problem, jnp.asarray(threshold, problem.attributes.dtype), groups)


@jax.jit  # op by op it would be hundreds of programs, and its loop compiled anew at every call
def _solve(problem: Problem, threshold: Array, groups: Array) -> RestrictedResult:
    changes = _changes(problem, threshold, groups >= 0)
    problem = problem._replace(is_finite=problem.is_finite & stop_gradient(threshold < jnp.inf))
    found = _search(stop_gradient(problem), stop_gradient(changes), groups)
    # A class that is masked by its bias has no answer whatever the choice.
    result = from_evidence(problem._replace(ranges=changes.to(found.active)), found.answer)
    none = problem.status(jnp.where(found.impossible, Status.INFEASIBLE, Status.BUDGET))
    status = jnp.where(result.feasible, Status.SOLVED, none).astype(jnp.int32)
    norm = jnp.where(result.feasible, result.norm, absent(status))
    bound = jnp.where(result.feasible, jnp.minimum(found.bound, stop_gradient(norm)), found.bound)
    return RestrictedResult(
        delta=jnp.where(result.feasible, result.delta, absent(status)),
        norm=norm,
        lower_bound=jnp.where(status == Status.INFEASIBLE, jnp.inf, bound),
        status=status,
        multipliers=result.multipliers,
        bound_multipliers=result.bound_multipliers,
        chosen=found.active & result.feasible,
        kkt_residual=jnp.where(result.feasible, result.kkt_residual, jnp.nan),
    )


def _changes(problem: Problem, threshold: Float[Array, ""], grouped: Bool[Array, " n"]) -> _Changes:
    """What turning each value on or off means; ungrouped attributes may do as they like."""
    endless = jnp.full_like(problem.attributes, jnp.inf)

    def between(lower, upper) -> Ranges:
        return make_ranges(problem.attributes, problem.mutable, lower, upper)

    return _Changes(
        on=between(jnp.where(grouped, threshold, -endless), endless),
        off=between(-endless, jnp.where(grouped, -threshold, endless)),
    )


class _Found(NamedTuple):
    """The best choice of values.

    Attributes:
        active: (n,) the value that is on in each group.
        answer: of the exact search with these values.
        bound: lower bound of the norm over all choices.
        impossible: whether no choice can do it.
    """

    active: Bool[Array, " n"]
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
        pull: (n,) sum of the normals times the multipliers that prove the bound.
        impossible: whether no choice can do it.
        number: of the round.
        done: whether nothing is left to try.
    """

    patterns: Bool[Array, "t n"]
    worth: Bool[Array, " t"]
    active: Bool[Array, " n"]
    answer: Answers
    bound: Float[Array, ""]
    pull: Float[Array, " n"]
    impossible: Bool[Array, ""]
    number: Int[Array, ""]
    done: Bool[Array, ""]


def _search(problem: Problem, changes: _Changes, groups: Int[Array, " n"]) -> _Found:
    """The value to turn on in each group.

    Round 0 also solves the problem in which every value may be on or off, without which there is no answer at all.
    Rounds 1 to _PATTERNS follow the multipliers; then come the pattern of the best lower bound and exchanges.
    """
    weights = problem.head.weights
    num_classes, num_attributes, dtype = *weights.shape, weights.dtype
    grouped = groups >= 0
    names = jnp.where(grouped, groups, num_attributes)
    numbers = jnp.arange(num_attributes, dtype=jnp.int32)
    normals = problem.normals(jnp.arange(num_classes, dtype=jnp.int32))
    unit, offsets, lengths = unit_normals(normals, problem.offsets)
    few = min(_TRIED, num_attributes)
    squares = squared_distances(weights)

    def search(ranges: Ranges, worth: Bool[Array, ""]) -> Answers:
        return search_ranges(problem._replace(ranges=ranges), squares, worth)

    def over_groups(function, values):
        return function(values, names, num_attributes + 1)

    def extra(pull):
        """What turning a value on costs more than leaving it off, in 1/2 delta^2 - pull delta."""

        def cost(ranges: Ranges):
            delta = jnp.minimum(jnp.maximum(pull, ranges.low), ranges.high)
            return jnp.where(ranges.outside == 0, delta * (delta / 2 - pull), jnp.inf)

        on, off = cost(changes.on), cost(changes.off)
        more = jnp.where(changes.can_on, on - jnp.where(changes.can_off, off, 0), jnp.inf)
        return jnp.where(changes.can_off, more, -jnp.inf)

    def cheapest(pull):
        """The choice of values with the least cost."""
        cost = extra(pull)
        first = over_groups(
            jax.ops.segment_min,
            jnp.where(cost <= over_groups(jax.ops.segment_min, cost)[names], numbers, num_attributes),
        )
        return grouped & (first[names] == numbers)

    def least(pull):
        ranges = changes.to(cheapest(pull))
        return jnp.minimum(jnp.maximum(pull, ranges.low), ranges.high)

    def pull_of(answer: Answers):
        rivals = answer.proof
        multipliers = jnp.where(answer.status == Status.SOLVED, rivals.multipliers, 0)
        return jnp.matmul(multipliers, normals[rivals.slots], precision=HIGHEST)

    def try_all(round: _Round) -> tuple[_Round, Array]:
        """The round's patterns solved, and whether one of them is better."""
        patterns = round.patterns
        tried = changes.to(patterns)
        broken = jnp.any(tried.outside != 0, axis=-1)
        first = round.number == 0  # its last pattern is the one with all values open
        low, high = jnp.minimum(changes.on.low, changes.off.low), jnp.maximum(changes.on.high, changes.off.high)
        tried = tried._replace(
            low=tried.low.at[-1].set(jnp.where(first, low, tried.low[-1])),
            high=tried.high.at[-1].set(jnp.where(first, high, tried.high[-1])),
        )
        worth = (round.worth & ~broken).at[-1].set(jnp.where(first, True, round.worth[-1] & ~broken[-1]))
        worth = worth & ~(round.done | round.impossible)  # one vmapped along with others that still search

        found = jax.vmap(search)(tried, worth)
        impossible = round.impossible | (first & (found.status[-1] == Status.INFEASIBLE))
        norms = jnp.where((found.status == Status.SOLVED) & round.worth, found.norm, jnp.inf)
        winner = jnp.argmin(norms)
        best = jnp.where(round.answer.status == Status.SOLVED, round.answer.norm, jnp.inf)
        better = norms[winner] < best * (1 - 4 * float(jnp.finfo(dtype).eps))
        answer = jax.tree.map(lambda new, old: jnp.where(better, new[winner], old), found, round.answer)
        active = jnp.where(better, patterns[winner], round.active)
        return round._replace(active=active, answer=answer, impossible=impossible), better

    def only(pattern):
        return jnp.broadcast_to(pattern, (few + 1, num_attributes)), jnp.arange(few + 1, dtype=jnp.int32) == 0

    def raised(round: _Round) -> _Round:
        rivals = round.answer.proof
        multipliers = jnp.where(round.answer.status == Status.SOLVED, rivals.multipliers, 0)
        start = scatter_slots(rivals.slots[None], multipliers[None], num_classes)[0] * lengths
        upper = jnp.where(round.answer.status == Status.SOLVED, round.answer.norm**2 / 2, jnp.inf)
        bound, proof = raise_bound(unit, offsets, least, start, upper, steps=_BOUND_STEPS)
        return round._replace(bound=bound, pull=jnp.matmul(proof, unit, precision=HIGHEST))

    def exchanges(round: _Round):
        """The most promising sets in which one group has another value on."""
        cost, active = extra(round.pull), round.active
        now = over_groups(jax.ops.segment_sum, jnp.where(active & jnp.isfinite(cost), cost, 0))[names]
        promise = jnp.where(grouped & ~active & changes.can_on, now - cost, -jnp.inf)
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
        jax.eval_shape(search, changes.on, grouped[0]),
    )
    start = _Round(
        patterns=patterns,
        worth=worth,
        active=nearest,
        answer=nothing._replace(status=jnp.asarray(Status.UNRESOLVED, jnp.int32)),
        bound=jnp.zeros((), dtype),
        pull=jnp.zeros(num_attributes, dtype),
        impossible=_contradictory(changes, grouped, names),
        number=jnp.asarray(0, jnp.int32),
        done=jnp.asarray(False),
    )
    last = jax.lax.while_loop(lambda round: ~(round.done | round.impossible), step, start)
    return _Found(last.active, last.answer, jnp.sqrt(2 * jnp.maximum(last.bound, 0)), last.impossible)


def _contradictory(changes: _Changes, grouped: Bool[Array, " n"], names: Int[Array, " n"]) -> Bool[Array, ""]:
    """Whether some group has no value that may be on, or several that must be."""

    def count(mask):
        return jax.ops.segment_sum((grouped & mask).astype(jnp.int32), names, len(names) + 1)[: len(names)]

    neither = jnp.any(grouped & ~changes.can_on & ~changes.can_off)
    nothing_on = jnp.any((count(grouped) > 0) & (count(changes.can_on) == 0))
    return neither | jnp.any(count(~changes.can_off) > 1) | nothing_on
