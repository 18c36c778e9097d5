"""An oracle in rational arithmetic: whether an answer is the nearest point, and whether a certificate is one.

Floating-point inputs are rational numbers. A set of active rivals and held attributes, whoever proposed it, determines
a point by linear equations; solved in fractions it either satisfies the optimality conditions of

    min ||delta||^2   s.t.   (w_j - w_k) . (e + delta) + b_j - b_k >= margin,   low <= delta <= high

exactly, and is then the answer, or it does not, and the conditions that fail then say how to continue.
"""

from fractions import Fraction
from typing import NamedTuple

import daqp
import numpy as np

_MOST_REPAIRS = 60


class Problem(NamedTuple):
    """One pair, in fractions: rows (r, n) of w_target - w_k and heights (r,) for the r rivals, and the ranges of delta.

    low and high are lists of fractions or None for no end.
    """

    rows: np.ndarray
    heights: np.ndarray
    low: list[Fraction | None]
    high: list[Fraction | None]


def fractions(values: np.ndarray) -> np.ndarray:
    """Floats as an array of fractions, exactly."""
    flat = [Fraction(float(value)) for value in np.ravel(values)]
    out = np.empty(len(flat), object)
    out[:] = flat
    return out.reshape(np.shape(values))


def problem(
    weights: np.ndarray,
    bias: np.ndarray | None,
    sample: np.ndarray,
    target: int,
    margin: float,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
) -> Problem:
    """The pair's problem; lower and upper are ranges of the attributes themselves."""
    exact, values = fractions(weights), fractions(sample)
    offsets = fractions(np.zeros(len(weights)) if bias is None else bias)
    rows = np.delete(exact[target][None, :] - exact, target, 0)
    lead = rows.dot(values) + np.delete(offsets[target] - offsets, target)
    ends = []
    for end in (lower, upper):
        given = [np.inf] * len(values) if end is None else end
        ends.append([Fraction(float(x)) - e if np.isfinite(x) else None for x, e in zip(given, values, strict=True)])
    return Problem(rows, Fraction(float(margin)) - lead, *ends)


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """The solution of a square system of fractions, None if it is singular."""
    size = len(right)
    work = np.concatenate([matrix, right[:, None]], axis=1)
    for column in range(size):
        pivot = next((row for row in range(column, size) if work[row, column] != 0), None)
        if pivot is None:
            return None
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = work[column] / work[column, column]
        for row in range(size):
            if row != column and work[row, column] != 0:
                work[row] = work[row] - work[row, column] * work[column]
    return work[:, -1]


def nearest(given: Problem) -> float | None:
    """||delta||, proven optimal in fractions; inf where DAQP finds no point; None if no proof was found.

    DAQP proposes, in float64; what its rounding got wrong is repaired one rival or attribute at a time.
    """
    if any(height > 0 and not row.any() for row, height in zip(given.rows, given.heights, strict=True)):
        return np.inf  # a row that coincides with the target's, below DAQP's tolerance maybe
    active, held = _propose(given)
    if active is None:
        return np.inf
    rows, heights, num_attributes = given.rows, given.heights, given.rows.shape[1]
    for repair in range(_MOST_REPAIRS):
        free = [f for f in range(num_attributes) if f not in held]
        fixed = np.array([held.get(f, Fraction(0)) for f in range(num_attributes)], object)
        members = rows[active]
        matrix = members[:, free].dot(members[:, free].T) if active and free else np.zeros((len(active),) * 2, object)
        multipliers = solve(matrix, heights[active] - members.dot(fixed)) if active else np.empty(0, object)
        if multipliers is None:  # rivals that depend on each other: one of them goes, and comes back if it is violated
            del active[repair % len(active)]
            continue
        pull = members.T.dot(multipliers) if active else np.array([Fraction(0)] * num_attributes, object)
        delta = np.array([held.get(f, pull[f]) for f in range(num_attributes)], object)
        negative = [(value, index) for index, value in enumerate(multipliers) if value < 0]
        if negative:
            del active[min(negative)[1]]
            continue
        wrong = _wrong_attribute(given, held, pull)
        if wrong is not None:
            attribute, end = wrong
            if end is None:
                del held[attribute]
            else:
                held[attribute] = end
            continue
        slack = rows.dot(delta) - heights
        behind = [(slack[k] / _size(rows[k]), k) for k in range(len(slack)) if slack[k] < 0 and k not in active]
        if not behind:
            return float(sum(value * value for value in delta)) ** 0.5
        active.append(min(behind)[1])
    return None


def _size(row: np.ndarray) -> Fraction:
    return max((abs(value) for value in row), default=Fraction(1)) or Fraction(1)


def _wrong_attribute(given: Problem, held: dict[int, Fraction], pull: np.ndarray):
    """An attribute that is free outside its range, or held although its pull is inside, and where it belongs."""
    for f, (low, high) in enumerate(zip(given.low, given.high, strict=True)):
        if f in held:
            inside = not (low is not None and pull[f] <= low) and not (high is not None and pull[f] >= high)
            if inside and low != high:
                return f, None
            end = low if low is not None and pull[f] <= low else high
            if low != high and held[f] != end:
                return f, end
        elif low is not None and pull[f] < low:
            return f, low
        elif high is not None and pull[f] > high:
            return f, high
    return None


def _propose(given: Problem) -> tuple[list[int] | None, dict[int, Fraction]]:
    """Active rivals and held attributes, with their ends, by DAQP; None where it finds the problem infeasible."""
    rows = np.array(given.rows, float)
    sizes = np.array([float(_size(row)) for row in given.rows])
    heights, big = np.array([float(h / _size(r)) for h, r in zip(given.heights, given.rows, strict=True)]), 1e30
    low = np.array([-big if end is None else float(end) for end in given.low])
    high = np.array([big if end is None else float(end) for end in given.high])
    width = rows.shape[1]
    upper, lower = np.concatenate([high, np.full(len(heights), big)]), np.concatenate([low, heights])
    sense = np.zeros(len(upper), np.int32)
    _, _, flag, info = daqp.solve(
        np.eye(width), np.zeros(width), np.ascontiguousarray(rows / sizes[:, None]), upper, lower, sense
    )
    if flag == -1:
        return None, {}
    multipliers = info["lam"]
    held: dict[int, Fraction] = {}
    for f, (low_end, high_end) in enumerate(zip(given.low, given.high, strict=True)):
        end = high_end if multipliers[f] > 0 else low_end
        if end is not None and (multipliers[f] != 0 or low_end == high_end):
            held[f] = end
    return [int(k) for k in np.flatnonzero(multipliers[width:])], held


def farthest(given: Problem) -> float:
    """Distance to the farthest boundary with a single rival."""
    lengths = [float(sum(value * value for value in row)) ** 0.5 for row in given.rows]
    return max((float(h) / x for h, x in zip(given.heights, lengths, strict=True) if x > 0), default=0.0)


def shortfall(given: Problem, delta: np.ndarray) -> float:
    """How far, at most, delta is from satisfying a rival or a range, as a distance."""
    change = fractions(delta)
    gaps = given.heights - given.rows.dot(change)
    lengths = [float(sum(value * value for value in row)) ** 0.5 for row in given.rows]
    rivals = [float(gap) / x if x else np.inf for gap, x in zip(gaps, lengths, strict=True) if gap > 0]
    below = [float(end - value) for value, end in zip(change, given.low, strict=True) if end is not None]
    above = [float(value - end) for value, end in zip(change, given.high, strict=True) if end is not None]
    return max([0.0, *rivals, *below, *above])


def least_norm_by_certificate(given: Problem, multipliers: np.ndarray) -> float:
    """No delta that satisfies the problem is shorter than this, by the multipliers (r,) alone; 0 if they say nothing.

    Any such delta has  lambda . h <= lambda^T G delta <= what the ranges allow + ||what has no end|| ||delta||.
    """
    weights = fractions(multipliers)
    pull = given.rows.T.dot(weights)
    gain = sum(w * h for w, h in zip(weights, given.heights, strict=True) if w != 0)
    open_square = Fraction(0)
    for value, low, high in zip(pull, given.low, given.high, strict=True):
        end = high if value > 0 else low
        if value != 0 and end is None:
            open_square += value * value
        elif value != 0:
            gain -= value * end
    if any(w < 0 for w in weights) or gain <= 0:
        return 0.0
    return np.inf if open_square == 0 else float(gain) / float(open_square) ** 0.5
