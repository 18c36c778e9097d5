"""Lower bounds on the length of a change, whatever options are chosen.

For multipliers lambda >= 0 of the constraint normals, every change of every choice has

    1/2 ||delta||^2 >= lambda . offsets + min (1/2 ||delta||^2 - pull . delta),   pull = sum of the normals so weighted

and the minimum over ALL choices is a sum over units (`Options.values`). Subgradient steps (Polyak 1969) search for the
multipliers with the largest bound.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from spectra_jax.constraints.options import Options
from spectra_jax.constraints.programs import Programs

_STEPS = 120
_EPSILON = 2.0**-52


class Bound(NamedTuple):
    """What is proven of each program.

    Attributes:
        half_square: (p,) no choice has a smaller 1/2 ||delta||^2; rounding is taken off.
        multipliers: (p, m) that prove it.
        chosen: (p, u) the options of the Lagrangian's minimum.
    """

    half_square: Float[np.ndarray, " p"]
    multipliers: Float[np.ndarray, "p m"]
    chosen: Int[np.ndarray, "p u"]

    def of(self, rows: Int[np.ndarray, " q"]) -> "Bound":
        """The bounds of these problems."""
        return Bound(*(leaf[rows] for leaf in self))


def raise_bound(
    programs: Programs, options: Options, start: Float[np.ndarray, "p m"], upper: Float[np.ndarray, " p"]
) -> Bound:
    """Searches from `start`; `upper` bounds 1/2 ||delta||^2 of the answer, inf if nothing is known of it."""
    lengths = programs.lengths()
    asked, offsets = programs.offsets > -np.inf, programs.asked
    multipliers = np.where(asked & np.isfinite(start), np.maximum(start, 0), 0)
    best = Bound(np.zeros(len(start)), multipliers, options.choose(options.values(programs.pull(multipliers))))
    for step in range(_STEPS):
        pull = programs.pull(multipliers)
        values = options.values(pull)
        chosen = options.choose(values)
        terms = options.of_units(values, chosen)
        low, high = options.boxes(chosen)
        delta = np.clip(pull, low, high)
        value = (multipliers * offsets).sum(axis=1) + terms.sum(axis=1)
        size = (multipliers * np.abs(offsets)).sum(axis=1) + np.abs(terms).sum(axis=1)
        proven = value - 8 * _EPSILON * size
        better = proven > best.half_square
        best = Bound(
            np.where(better, proven, best.half_square),
            np.where(better[:, None], multipliers, best.multipliers),
            np.where(better[:, None], chosen, best.chosen),
        )
        uphill = np.where(asked, offsets - programs.products(delta), 0) / lengths
        # Multipliers at 0 that would go negative do not move: what is left is the direction that counts.
        uphill = np.where((multipliers > 0) | (uphill > 0), uphill, 0)
        square = np.square(uphill).sum(axis=1)
        # Halfway to the answer at first, then ever shorter: the bound may never reach it.
        goal = np.where(upper < np.inf, upper, 2 * np.abs(best.half_square) + 1)
        stride = 0.02 ** (step / _STEPS) * np.maximum(goal - value, 0) / np.where(square > 0, square, 1)
        multipliers = np.maximum(multipliers + stride[:, None] * uphill / lengths, 0)
    return best
