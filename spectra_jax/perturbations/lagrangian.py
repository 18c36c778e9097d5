"""Lower bounds for problems that are convex but for a choice: which attributes may change, which value is on.

For multipliers lambda >= 0 of the rivals, no change delta of any pattern can be shorter than

    1/2 ||delta||^2 >= lambda . h + min_delta (1/2 ||delta||^2 - lambda^T G delta)

and the minimum over ALL patterns is a sum over single attributes or groups, so it is known exactly. Any lambda gives a
valid bound; the best one is searched by subgradient steps. Where the bound meets an answer, the answer is optimal.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectra_jax.perturbations.geometry import HIGHEST


def unit_normals(normals: Float[Array, "c n"], offsets: Float[Array, " c"]) -> tuple[Array, Array, Array]:
    """Normals of length 1, their offsets, and the lengths before; normals that need reach nothing become zero."""
    lengths = jnp.sqrt(jnp.sum(jnp.square(normals), axis=-1))
    asked = (lengths > 0) & (offsets != -jnp.inf)
    divisors = jnp.where(asked, lengths, 1)
    unit = jnp.where(asked[:, None], normals / divisors[:, None], 0)
    return unit, jnp.where(asked, offsets / divisors, 0), divisors


def raise_bound(
    normals: Float[Array, "c n"],
    offsets: Float[Array, " c"],
    least: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " c"],
    upper: Float[Array, ""],
    *,
    steps: int,
) -> tuple[Float[Array, ""], Float[Array, " c"]]:
    """Polyak's subgradient steps on the bound.

    Args:
        normals: (c, n) of length 1.
        offsets: (c,) what normals . delta must reach.
        least: from pull = lambda^T G to the delta, of any pattern, that minimises 1/2 ||delta||^2 - pull . delta.
        start: (c,) multipliers >= 0.
        upper: 1/2 ||delta||^2 of an answer in hand, inf if there is none.
        steps: how many.

    Returns:
        The largest 1/2 ||delta||^2 proven to be necessary, less its rounding, and its multipliers.
    """
    epsilon = float(jnp.finfo(offsets.dtype).eps)

    def look(multipliers):
        pull = jnp.matmul(multipliers, normals, precision=HIGHEST)
        delta = least(pull)
        terms = jnp.stack([jnp.sum(multipliers * offsets), jnp.sum(jnp.square(delta)) / 2, -jnp.sum(pull * delta)])
        size = jnp.sum(jnp.abs(multipliers * offsets)) + jnp.sum(jnp.square(delta)) / 2 + jnp.sum(jnp.abs(pull * delta))
        return (
            jnp.sum(terms),
            jnp.sum(terms) - 8 * epsilon * size,
            offsets - jnp.matmul(normals, delta, precision=HIGHEST),
        )

    def step(index, state):
        multipliers, best, best_multipliers = state
        value, bound, uphill = look(multipliers)
        better = bound > best
        best, best_multipliers = jnp.where(better, bound, best), jnp.where(better, multipliers, best_multipliers)
        # Coordinates at 0 that would go negative do not move: what is left is the direction that counts.
        uphill = jnp.where((multipliers > 0) | (uphill > 0), uphill, 0)
        square = jnp.sum(jnp.square(uphill))
        # Halfway to the answer at first, then ever shorter: the bound may never reach it.
        goal = jnp.where(upper < jnp.inf, upper, 2 * jnp.abs(best) + 1)
        length = (0.02 ** (index / steps)) * jnp.maximum(goal - value, 0) / jnp.where(square > 0, square, 1)
        return jnp.maximum(multipliers + length.astype(value.dtype) * uphill, 0), best, best_multipliers

    start = jnp.where(jnp.all(jnp.isfinite(start)), jnp.maximum(start, 0), 0)
    _, best, multipliers = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros((), offsets.dtype), start))
    return best, multipliers
