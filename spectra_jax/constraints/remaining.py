"""The choices that a lower bound does not exclude."""

import numpy as np
from jaxtyping import Float, Int

from spectra_jax.constraints.options import Options


def remaining_choices(
    options: Options, values: Float[np.ndarray, " o"], allowance: float, limit: int
) -> tuple[Int[np.ndarray, "t u"], bool]:
    """All choices whose total value is below the allowance, of one sample.

    Args:
        options: of one sample.
        values: (o,) of its options.
        allowance: what the total must stay below; inf for every choice that is allowed.
        limit: how many to return at most.

    Returns:
        (t, u) choices, and whether these are all.
    """
    num_units, budget = options.num_units, options.max_changes
    prices = np.zeros(len(values), int) if budget is None else (~options.keeps).astype(int)
    columns = 1 if budget is None else min(budget, num_units) + 1
    before, after = (_best_sums(options, values, prices, columns, backwards) for backwards in (False, True))

    # What the best choice that contains each option comes to; most options are excluded here.
    least = np.full(len(values), np.inf)
    for option, unit in enumerate(options.option_unit):
        for spent in range(columns - prices[option]):
            left = columns - 1 - spent - prices[option]
            least[option] = min(least[option], before[unit, spent] + values[option] + after[unit + 1, left])
    kept: list[list[int]] = []
    for unit in range(num_units):
        (left,) = np.nonzero((options.option_unit == unit) & (least < allowance))
        kept.append(left[np.argsort(values[left])].tolist())
    if not all(kept):
        return np.zeros((0, num_units), int), True
    found: list[tuple[int, ...]] = []
    complete = True
    # Depth first, the best options first: unit, total so far, changes left, options so far.
    waiting: list[tuple[int, float, int, tuple[int, ...]]] = [(0, 0.0, columns - 1, ())]
    while waiting:
        unit, total, left_over, chosen = waiting.pop()
        if unit == num_units:
            if len(found) == limit:
                complete = False
                break
            found.append(chosen)
            continue
        for option in reversed(kept[unit]):
            rest, sum_ = left_over - prices[option], total + values[option]
            if rest >= 0 and sum_ + after[unit + 1, rest] < allowance:
                waiting.append((unit + 1, sum_, rest, (*chosen, option)))
    return np.array(found, int).reshape(len(found), num_units), complete


def _best_sums(options: Options, values, prices, columns: int, backwards: bool) -> Float[np.ndarray, "u+1 k"]:
    """Least totals of the first (or the last) units; [u, r]: of units before (from) u with at most r changes."""
    num_units = options.num_units
    sums = np.zeros((num_units + 1, columns))
    order = range(num_units)
    for unit in reversed(order) if backwards else order:
        source, result = (unit + 1, unit) if backwards else (unit, unit + 1)
        best = np.full(columns, np.inf)
        for option in np.flatnonzero(options.option_unit == unit):
            shifted = np.full(columns, np.inf)
            shifted[prices[option] :] = sums[source, : columns - prices[option]]
            best = np.minimum(best, shifted + values[option])
        sums[result] = best
    return sums
