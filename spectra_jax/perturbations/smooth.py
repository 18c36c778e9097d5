"""From what a search found to an answer with derivatives.

Given which rivals are active and which attributes are held at an end of their range, the nearest point is a smooth
function of weights, offsets and ranges: the solution of the active rivals' equations. Values come from the search,
which may have worked in higher precision; derivatives of any order come from the equations (implicit-function theorem).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.geometry import HIGHEST, safe_norm


class Point(NamedTuple):
    """A nearest point, differentiable.

    Attributes:
        delta: (n,).
        multipliers: (s,) of the constraint normals of the slots.
        pull: (n,) the sum of the normals so weighted, which is delta on the free attributes.
    """

    delta: Float[Array, " n"]
    multipliers: Float[Array, " s"]
    pull: Float[Array, " n"]


def nearest_on(
    weights: Float[Array, "c n"],
    offsets: Float[Array, " c"],
    target: Int[Array, ""],
    ends: Float[Array, " n"],
    free: Bool[Array, " n"],
    slots: Int[Array, " s"],
    multipliers: Float[Array, " s"],
    inverse: Float[Array, "s s"],
    delta: Float[Array, " n"],
    known: Bool[Array, ""],
) -> Point:
    """The nearest point for a given set of active rivals and held attributes.

    Args:
        weights: (c, n), 0 in attributes that must not change.
        offsets: (c,) what the constraint normals w_target - w_k must reach.
        target: class index.
        ends: (n,) the change of each held attribute; any finite number for free ones.
        free: (n,) attributes that are not held.
        slots: (s,) the active rivals, in any order.
        multipliers: (s,) of their normals, 0 in slots that are not used; NaN where there are more than s of them. Then
            the point has its value, and no derivatives.
        inverse: (s, s) of the Gram matrix of their unit normals over the free attributes, 0 in slots that are not used.
        delta: (n,) the point itself, where it is known better than the multipliers give it.
        known: whether it is.

    Returns:
        Point.
    """
    crowded = stop_gradient(jnp.any(jnp.isnan(multipliers)))
    multipliers, inverse = jnp.where(crowded, 0, multipliers), jnp.where(crowded, 0, inverse)
    used = multipliers > 0
    normals = jnp.where(used[:, None], weights[target][None, :] - weights[slots], 0)
    lengths = stop_gradient(safe_norm(normals))
    lengths = jnp.where(lengths > 0, lengths, 1)
    normals = normals / lengths[:, None]
    ends = jnp.where(free, 0, ends)

    def combine(multipliers):
        return jnp.matmul(multipliers, normals, precision=HIGHEST)

    def reached(change):
        return jnp.matmul(normals, change, precision=HIGHEST)

    def product(multipliers):
        return jnp.where(used, reached(jnp.where(free, combine(multipliers), 0)), multipliers)

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

    found = stop_gradient(multipliers * lengths)
    right = jnp.where(used, offsets[slots] / lengths - reached(ends) - product(found), 0)
    correction = jax.lax.custom_linear_solve(product, right, solve, symmetric=True)
    unit_multipliers = found + _derivative(correction)
    pull = combine(unit_multipliers)
    change = jnp.where(free, pull, ends)
    change = stop_gradient(jnp.where(known, delta, change)) + _derivative(change)
    # All that the derivatives would be taken by.
    inputs = jnp.sum(weights[target]) + jnp.sum(jnp.where(jnp.isfinite(offsets), offsets, 0)) + jnp.sum(ends)
    return Point(_no_derivative(change, inputs, crowded), jnp.where(crowded, jnp.nan, unit_multipliers / lengths), pull)


def _derivative(expression: Array) -> Array:
    """Zero, with the derivatives of the expression."""
    return expression - stop_gradient(expression)


@jax.custom_jvp
def _no_derivative(value: Array, inputs: Array, where: Bool[Array, ""]) -> Array:
    """The value, with derivatives that are NaN where told, those by the inputs among them."""
    return value


@_no_derivative.defjvp
def _no_derivative_jvp(primals, tangents):
    (value, _, where), (tangent, by_inputs, _) = primals, tangents
    return value, tangent + by_inputs * jnp.where(where, jnp.nan, jnp.zeros_like(by_inputs))
