"""The shortest change over all choices: which attributes change, which value of each group is on.

A problem with every option open, the convex hull of the choices, says whether there is an answer at all and gives
multipliers. Those choose options; the exact nearest point within the chosen boxes is an answer, and exchanging options
while that helps makes it better. Then every choice that the lower bound does not exclude is solved: if there are not
too many of them, the answer is proven to be the shortest.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.constraints.lagrangian import raise_bound
from spectra_jax.constraints.nearest import Nearest, nearest_points
from spectra_jax.constraints.options import Options
from spectra_jax.constraints.programs import Programs
from spectra_jax.constraints.remaining import remaining_choices

_MAX_ROUNDS = 30
_TRIED = 48  # exchanges a round
_EPSILON = 2.0**-52


class Found(NamedTuple):
    """The shortest change found for each program.

    Attributes:
        point: the nearest point within the chosen boxes.
        chosen: (p, u) options.
        lower_bound: (p,) no choice is shorter; equal to the norm where that is proven, inf where there is no answer.
        proven: (p,) whether nothing is left open.
    """

    point: Nearest
    chosen: Int[np.ndarray, "p u"]
    lower_bound: Float[np.ndarray, " p"]
    proven: Bool[np.ndarray, " p"]


def shortest_choice(programs: Programs, options: Options, *, max_choices: int) -> Found:
    """Searches every problem; at most `max_choices` choices are solved to prove each answer, 0: no proof."""
    most_free, num_pairs = options.most_free(), len(programs.targets)
    possible = options.possible()
    low, high = options.hull()
    whole = nearest_points(programs, np.where(low <= high, low, 0), np.where(low <= high, high, 0))
    empty = ~possible | (whole.norm == np.inf)
    open_ = np.flatnonzero(~empty)
    best = Found(
        whole._replace(delta=np.full(low.shape, np.nan), norm=np.where(empty, np.inf, np.nan)),
        np.zeros((num_pairs, options.num_units), int),
        np.where(empty, np.inf, 0.0),
        empty,
    )
    if not open_.size:
        return best
    ours, choices, longest = programs.of(open_), options.of(open_), options.of(open_).longest()
    bound = raise_bound(ours, choices, whole.multipliers[open_], np.full(len(open_), np.inf))
    # What would have to be longer than any change within the ranges does not exist.
    excluded = bound.half_square > longest * (1 + 1e-9)
    for leaf, value in ((best.point.norm, np.inf), (best.lower_bound, np.inf), (best.proven, True)):
        leaf[open_[excluded]] = value
    left = np.flatnonzero(~excluded)
    open_, longest, ours, choices, bound = open_[left], longest[left], ours.of(left), choices.of(left), bound.of(left)
    if not open_.size:
        return best
    starts = [bound.chosen]
    for pull in (np.nan_to_num(whole.delta[open_]), ours.pull(whole.multipliers[open_])):
        starts.append(choices.choose(choices.values(pull)))
    point, chosen = _improve(ours, choices, starts, most_free)

    half_square, proven = bound.half_square, np.zeros(len(open_), bool)
    if max_choices:
        upper = np.square(np.where(np.isfinite(point.norm), point.norm, np.inf)) / 2
        again = raise_bound(ours, choices, bound.multipliers, upper)
        half_square = np.maximum(bound.half_square, again.half_square)
        multipliers = np.where((again.half_square > bound.half_square)[:, None], again.multipliers, bound.multipliers)
        proven = _try_remaining(ours, choices, point, chosen, multipliers, most_free, max_choices)

    lower = np.sqrt(2 * np.maximum(half_square, 0))
    lower = np.maximum(lower, np.nan_to_num(whole.norm[open_]) * (1 - 1e-12))
    proven |= (lower >= point.norm * (1 - 1e-9)) | (~np.isfinite(point.norm) & (half_square > longest * (1 + 1e-9)))
    best.point.delta[open_] = point.delta
    best.point.norm[open_] = np.where(np.isfinite(point.norm), point.norm, np.where(proven, np.inf, np.nan))
    best.point.multipliers[open_] = point.multipliers
    best.chosen[open_] = chosen
    best.lower_bound[open_] = np.where(proven, best.point.norm[open_], np.fmin(lower, point.norm))
    best.proven[open_] = proven
    return best


def _solve(programs: Programs, options: Options, rows, chosen, most_free) -> Nearest:
    low, high = options.of(rows).boxes(chosen)
    return nearest_points(programs.of(rows), low, high, most_free=most_free)


def _ranks(point: Nearest) -> Float[np.ndarray, " q"]:
    """What is better is smaller: answers by length, and then what misses least, behind all answers."""
    with np.errstate(invalid="ignore"):
        missing = 1e150 * (1 + point.shortfall)
    return np.where(np.isfinite(point.norm), point.norm, np.where(np.isnan(missing), np.inf, missing))


def _merge(point: Nearest, chosen, rows, new: Nearest, new_chosen) -> Bool[np.ndarray, " p"]:
    """Takes over what is better, in place; several new points may be about one programs. Returns where it helped."""
    improved = np.zeros(len(chosen), bool)
    ranks, new_ranks = _ranks(point), _ranks(new)
    for place in np.argsort(new_ranks, kind="stable"):
        row = rows[place]
        if not improved[row] and new_ranks[place] < ranks[row] * (1 - 16 * _EPSILON):
            for ours, theirs in zip(point, new, strict=True):
                ours[row] = theirs[place]
            chosen[row] = new_chosen[place]
            improved[row] = True
    return improved


def _improve(programs: Programs, options: Options, starts, most_free) -> tuple[Nearest, Int[np.ndarray, "p u"]]:
    """From the best start of each problem: exchanges options while that helps."""
    rows = np.tile(np.arange(len(programs.targets)), len(starts))
    tried = np.concatenate(starts)
    solved = _solve(programs, options, rows, tried, most_free)
    first = len(programs.targets)
    point, chosen = Nearest(*(leaf[:first].copy() for leaf in solved)), tried[:first].copy()
    _merge(point, chosen, rows, solved, tried)
    active = np.arange(first)
    for _ in range(_MAX_ROUNDS):
        if not active.size:
            break
        moves = [_exchanges(programs, options, point, chosen, pair) for pair in active.tolist()]
        rows = np.repeat(active, [len(each) for each in moves])
        if not rows.size:
            break
        tried = np.concatenate(moves)
        solved = _solve(programs, options, rows, tried, most_free)
        improved = _merge(point, chosen, rows, solved, tried)
        active = active[improved[active]]
    return point, chosen


def _exchanges(programs: Programs, options: Options, point: Nearest, chosen, pair: int) -> Int[np.ndarray, "t u"]:
    """The most promising choices that differ from the present one in one option, or that swap two units' places.

    By weak duality, with the present multipliers no choice is shorter than its value of the Lagrangian.
    """
    here = options.of(np.array([pair]))
    multipliers = point.multipliers[pair : pair + 1]
    pull = programs.of(np.array([pair])).pull(multipliers)
    known = np.isfinite(point.norm[pair])
    if not known:  # a certificate's direction counts alone: make the quadratic term negligible
        pull = pull * (1e6 / max(np.abs(pull).max(), 1e-300))
    values = here.values(pull)[0]
    current = chosen[pair]
    units = options.option_unit
    step = values - values[current][units]
    is_new = np.ones(len(values), bool)
    is_new[current] = False
    usable = is_new & np.isfinite(step)
    moves: list[tuple[float, tuple[int, ...]]] = []
    if options.max_changes is None:
        singles = np.flatnonzero(usable)
    else:
        changed = ~options.keeps[current]
        room = changed.sum() < options.max_changes
        singles = np.flatnonzero(usable & (changed[units] | room))
        if not room:
            back = np.flatnonzero(options.keeps & changed[units] & usable)
            forth = np.flatnonzero(~options.keeps & ~changed[units] & usable)
            forth = forth[np.argsort(step[forth])[:_TRIED]]
            moves += [(step[a] + step[b], (a, b)) for a in back.tolist() for b in forth.tolist()]
    moves += [(step[a], (a,)) for a in singles.tolist()]
    moves.sort()
    if known:
        moves = [move for move in moves if move[0] < 0]
    result = np.tile(current, (min(len(moves), _TRIED), 1))
    for row, (_, taken) in zip(result, moves, strict=False):
        for option in taken:
            row[units[option]] = option
    return result


def _try_remaining(
    programs: Programs, options: Options, point: Nearest, chosen, multipliers, most_free: int, max_choices: int
) -> Bool[np.ndarray, " p"]:
    """Solves what the bound does not exclude and takes over what is shorter; returns whether that was all."""
    values = options.values(programs.pull(multipliers))
    gained = (multipliers * programs.asked).sum(axis=1)
    complete, left = np.zeros(len(chosen), bool), []
    for pair in range(len(chosen)):
        upper = point.norm[pair] ** 2 / 2 if np.isfinite(point.norm[pair]) else np.inf
        allowance = upper * (1 - 1e-12) - gained[pair]
        here = options.of(np.array([pair]))
        found, complete[pair] = _below(here, values[pair], allowance, max_choices, gained[pair])
        left.append(found)
    rows, tried = np.repeat(np.arange(len(left)), [len(each) for each in left]), np.concatenate(left)
    if rows.size:
        solved = _solve(programs, options, rows, tried, most_free)
        _merge(point, chosen, rows, solved, tried)
        np.logical_and.at(complete, rows, ~np.isnan(solved.norm))
    return complete


def _below(options: Options, values, allowance: float, limit: int, gained: float) -> tuple[np.ndarray, bool]:
    """`remaining_choices`; without an answer in hand, those of least value."""
    if allowance < np.inf:
        return remaining_choices(options, values, allowance, limit)
    least = options.of_units(values[None], options.choose(values[None])).sum()
    slack = 0.02 * max(gained + least, 1e-3 * abs(gained), 1e-9)
    for _ in range(3):
        left, complete = remaining_choices(options, values, least + slack, limit)
        if not complete:
            return left, False
        slack *= 16
    return remaining_choices(options, values, np.inf, limit)
