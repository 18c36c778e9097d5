"""From what a search found to an answer with derivatives.

Given which rivals are active and which attributes are held at an end of their range, the nearest point is a smooth
function of weights, gaps and ranges: the solution of the active rivals' equations. Values come from the search, which
may have worked in higher precision; derivatives of any order come from the equations (implicit-function theorem).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.geometry import HIGHEST, safe_norm


class Point(NamedTuple):
    """A nearest point, differentiable.

    Attributes:
        delta: (n,).
        multipliers: (s,) of the rows of the slots.
        pull: (n,) the sum of the rows so weighted, which is delta on the free attributes.
    """

    delta: Float[Array, "n"]
    multipliers: Float[Array, "s"]
    pull: Float[Array, "n"]


def nearest_on(
    weights: Float[Array, "c n"],
    gaps: Float[Array, "c"],
    target: Int[Array, ""],
    ends: Float[Array, "n"],
    free: Bool[Array, "n"],
    slots: Int[Array, "s"],
    multipliers: Float[Array, "s"],
    inverse: Float[Array, "s s"],
    delta: Float[Array, "n"],
    known: Bool[Array, ""],
) -> Point:
    """The nearest point for a given set of active rivals and held attributes.

    Args:
        weights: (c, n), 0 in attributes that must not change.
        gaps: (c,) what the row w_target - w_k must reach.
        target: class index.
        ends: (n,) the change of each held attribute; any finite number for free ones.
        free: (n,) attributes that are not held.
        slots: (s,) the active rivals, in any order.
        multipliers: (s,) of their rows, 0 in slots that are not used; NaN where there are more than s of them. Then the
            point has its value, and no derivatives.
        inverse: (s, s) of the Gram matrix of their unit rows over the free attributes, 0 in slots that are not used.
        delta: (n,) the point itself, where it is known better than the multipliers give it.
        known: whether it is.

    Returns:
        Point.
    """
    fixed = jax.lax.stop_gradient
    crowded = fixed(jnp.any(jnp.isnan(multipliers)))
    multipliers, inverse = jnp.where(crowded, 0, multipliers), jnp.where(crowded, 0, inverse)
    used = multipliers > 0
    rows = jnp.where(used[:, None], weights[target][None, :] - weights[slots], 0)
    sizes = fixed(safe_norm(rows))
    sizes = jnp.where(sizes > 0, sizes, 1)
    normals = rows / sizes[:, None]
    ends = jnp.where(free, 0, ends)

    def combine(held):
        return jnp.matmul(held, normals, precision=HIGHEST)

    def lead(change):
        return jnp.matmul(normals, change, precision=HIGHEST)

    def product(held):
        return jnp.where(used, lead(jnp.where(free, combine(held), 0)), held)

    def solve(product, right):
        def first(right):
            return jnp.where(used, jnp.matmul(inverse, right, precision=HIGHEST), right)

        answer = first(right)
        left = right - product(answer)
        for _ in range(2):
            # A pass squares away the rounding of the one before, unless the rivals are too nearly parallel for that.
            following = answer + first(left)
            after = right - product(following)
            better = jnp.sum(jnp.square(after)) < jnp.sum(jnp.square(left))
            answer, left = jnp.where(better, following, answer), jnp.where(better, after, left)
        return answer

    found = fixed(multipliers * sizes)
    heights = jnp.where(used, gaps[slots] / sizes, 0)
    right = jnp.where(used, heights - lead(ends) - product(found), 0)
    correction = jax.lax.custom_linear_solve(product, right, solve, symmetric=True)
    held = found + _derivative(correction)
    pull = combine(held)
    change = jnp.where(free, pull, ends)
    change = fixed(jnp.where(known, delta, change)) + _derivative(change)
    # All that the derivatives would be taken by.
    inputs = jnp.sum(weights[target]) + jnp.sum(jnp.where(jnp.isfinite(gaps), gaps, 0)) + jnp.sum(ends)
    return Point(_no_derivative(change, inputs, crowded), jnp.where(crowded, jnp.nan, held / sizes), pull)


def _derivative(expression: Array) -> Array:
    """Zero, with the derivatives of the expression."""
    return expression - jax.lax.stop_gradient(expression)


@jax.custom_jvp
def _no_derivative(value: Array, inputs: Array, where: Bool[Array, ""]) -> Array:
    """The value, with derivatives that are NaN where told, those by the inputs among them."""
    return value


@_no_derivative.defjvp
def _no_derivative_jvp(primals, tangents):
    (value, _, where), (tangent, by_inputs, _) = primals, tangents
    return value, tangent + by_inputs * jnp.where(where, jnp.nan, jnp.zeros_like(by_inputs))
