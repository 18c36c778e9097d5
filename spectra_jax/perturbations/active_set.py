"""Dual active-set solver for one (sample, target) pair, written to be vmapped (Goldfarb and Idnani 1983).

The nearest point of a decision region solves

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k,   g_k = w_j - w_k,  h_k = l_k - l_j + margin.

delta = sum_k lambda_k g_k at the optimum, so everything the solver needs is the Gram matrix K = W W^T:
g_k . g_m = K_jj - K_jk - K_jm + K_km. The number of attributes drops out of the iteration.

It starts at delta = 0, adds the most violated rival, and drops rivals whose multiplier would turn
negative: every iterate is optimal for its own active set, so it ends after finitely many steps, either
at the answer or at a rival whose normal is a non-positive combination of the active ones. That
combination is the certificate that the region is empty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.geometry import HIGHEST, safe_sqrt

RUNNING, OPTIMAL, INFEASIBLE, FULL, UNRESOLVED = range(5)


class ActiveSet(NamedTuple):
    """State of the solver, and its answer once `status` is no longer RUNNING.

    Attributes:
        multipliers: (c,) lambda >= 0, one per rival; if INFEASIBLE, the certificate of that.
        slots: (m,) class index held by each slot of the working set.
        used: (m,) which slots are occupied.
        inverse: (m, m) inverse of the active rivals' Gram matrix, zero in unused rows and columns.
        candidate: rival being added, -1 between additions.
        status: OPTIMAL, INFEASIBLE (region empty, certified), FULL (needs more slots), UNRESOLVED (beyond this
            precision, or the step limit).
        settled: (c,) rivals not to be added: the active ones, and those found tight up to rounding.
        steps: number of steps taken.
    """

    multipliers: Float[Array, "c"]
    slots: Int[Array, "m"]
    used: Bool[Array, "m"]
    inverse: Float[Array, "m m"]
    settled: Bool[Array, "c"]
    candidate: Int[Array, ""]
    status: Int[Array, ""]
    steps: Int[Array, ""]


def difference_product(
    gram: Float[Array, "c c"], target: Int[Array, ""], multipliers: Float[Array, "c"]
) -> Float[Array, "c"]:
    """G G^T lambda with the rows g_k = w_target - w_k, from the Gram matrix alone."""
    rows = jnp.matmul(gram, multipliers, precision=HIGHEST)
    total = jnp.sum(multipliers)
    return total * (gram[target, target] - gram[target]) - rows[target] + rows


def solve_active_set(
    gram: Float[Array, "c c"],
    squares: Float[Array, "c"],
    gaps: Float[Array, "c"],
    rounding: Float[Array, "c"],
    target: Int[Array, ""],
    *,
    capacity: int,
    complete: bool,
    max_steps: int,
) -> ActiveSet:
    """Finds the active rivals and multipliers of the nearest point of the target's decision region.

    Args:
        gram: (c, c) inner products of the (centred) weight rows.
        squares: (c,) squared distances ||w_target - w_k||^2.
        gaps: (c,) l_k - l_target + margin; -inf at the target, and at classes that can never be predicted.
        rounding: (c,) rounding error of each gap.
        target: class index.
        capacity: slots m of the working set.
        complete: whether `capacity` reaches min(n, c - 1), so that a full working set spans everything and
            any further rival depends on it.
        max_steps: bound on additions plus removals.

    Returns:
        ActiveSet with a final status.
    """
    num_classes = gram.shape[0]
    dtype, index = gram.dtype, jnp.asarray(target).dtype
    epsilon = float(jnp.finfo(dtype).eps)
    classes = jnp.arange(num_classes, dtype=index)
    rivals = (classes != target) & (gaps != -jnp.inf)
    heights = jnp.where(rivals, gaps, 0)
    lengths = jnp.where(rivals, jnp.sqrt(squares), 0)
    # Rows closer than rounding can tell apart are one row.
    coincident = (squares <= (4 * epsilon) ** 2 * jnp.max(jnp.diagonal(gram))) | ~rivals
    # A rival depends on the active ones when next to nothing of g_p is left over. What is left comes from a
    # difference of numbers of size ||g_p||^2 through an inverse that may be ill-conditioned, hence far more
    # than one rounding error: rivals closer than 5e-3 (float32) or 6e-6 (float64) radians count as dependent.
    dependence = epsilon ** (2 / 3)

    def step(state: ActiveSet) -> ActiveSet:
        multipliers = state.multipliers
        product = difference_product(gram, target, multipliers)
        slack = jnp.where(rivals, product - heights, jnp.inf)
        noise = 8 * (rounding + epsilon * lengths * jnp.sum(multipliers * lengths))

        # A half-added rival stays the candidate until it is in; otherwise take the most violated one,
        # in distance. Rivals whose row coincides with the target's come first: they decide feasibility.
        shortfall = jnp.where(slack < -noise, -slack, 0)
        shortfall = jnp.where(state.settled, 0, shortfall)
        unreachable = jnp.where(shortfall > 0, jnp.inf, 0)
        distance = jnp.where(coincident, unreachable, shortfall / jnp.where(coincident, 1, lengths))
        fresh = state.candidate < 0
        candidate = jnp.where(fresh, jnp.argmax(distance).astype(index), state.candidate)
        done = fresh & ~(distance[candidate] > 0)

        # Direction: raise lambda_candidate by one and keep the active rivals tight.
        cross = (
            gram[target, target] - gram[target, candidate] - gram[target, state.slots] + gram[candidate, state.slots]
        )
        cross = jnp.where(state.used, cross, 0)
        response = jnp.matmul(state.inverse, cross, precision=HIGHEST)
        left = squares[candidate] - jnp.sum(cross * response)
        independent = ~coincident[candidate] & (left > dependence * squares[candidate])
        if complete:
            independent = independent & ~jnp.all(state.used)
        held = jnp.where(state.used, multipliers[state.slots], 0)
        # A response that is zero but for rounding must not block, or divide: hence the relative threshold.
        reaction = response * lengths[state.slots]
        largest = jnp.maximum(jnp.max(jnp.where(state.used, jnp.abs(reaction), 0)), lengths[candidate])
        falling = state.used & (reaction > dependence * largest)
        ratios = jnp.where(falling, held / jnp.where(falling, response, 1), jnp.inf)
        blocking = jnp.argmin(ratios).astype(index)
        full_step = jnp.where(independent, jnp.maximum(-slack[candidate], 0) / jnp.where(independent, left, 1), jnp.inf)
        length = jnp.minimum(ratios[blocking], full_step)
        stuck = ~jnp.isfinite(length)
        add = ~stuck & (full_step <= ratios[blocking])
        no_room = add & jnp.all(state.used)

        # One rank-one update serves both adding (append a row) and removing (pivot a row out).
        slot = jnp.where(add, jnp.argmin(state.used).astype(index), blocking)
        at_slot = jnp.arange(capacity, dtype=index) == slot
        vector = jnp.where(add, jnp.where(at_slot, -1, response), state.inverse[:, slot])
        pivot = state.inverse[slot, slot]
        factor = jnp.where(add, 1 / jnp.where(independent, left, 1), -1 / jnp.where(pivot > 0, pivot, 1))
        inverse = state.inverse + factor * vector[:, None] * vector[None, :]
        keep = add | ~at_slot
        inverse = jnp.where(keep[:, None] & keep[None, :], inverse, 0)

        finite = jnp.where(stuck, 0, length)
        held_after = jnp.where(state.used, jnp.maximum(held - finite * response, 0), 0)
        moved = multipliers.at[state.slots].add(jnp.where(state.used, held_after - held, 0)).at[candidate].add(finite)
        moved = moved.at[state.slots[slot]].multiply(jnp.where(add, 1, 0).astype(dtype))

        # Stuck means no multiplier blocks and nothing is left of g_p: the gaps cannot all be closed.
        # An excess that rounding explains is no evidence of that; such a rival is tight, not violated.
        excuse = jnp.sum(jnp.abs(response * jnp.where(state.used, slack[state.slots], 0)))
        evidence = -slack[candidate] > noise[candidate] + 4 * excuse
        empty = stuck & evidence & ~done
        go = ~done & ~stuck & ~no_room
        enters = (classes == candidate) & ((go & add) | (stuck & ~done))
        leaves = (classes == state.slots[slot]) & go & ~add
        settled = (state.settled & ~leaves) | enters
        # The certificate of an empty region: lambda >= 0 with G^T lambda = 0 and h . lambda > 0.
        certificate = (
            jnp.zeros_like(multipliers).at[state.slots].add(jnp.where(state.used, jnp.maximum(-response, 0), 0))
        )
        certificate = certificate.at[candidate].add(1)
        # Active rivals must be tight. Where the built-up inverse no longer makes them so, say it.
        size = safe_sqrt(jnp.maximum(jnp.sum(multipliers * heights), 0))
        looseness = jnp.max(jnp.where(state.used, jnp.abs(slack[state.slots]) / lengths[state.slots], 0))
        doubtful = done & (looseness > 1e-3 * size)
        status = jnp.select(
            [doubtful, done, empty, no_room & ~stuck, state.steps + 1 >= max_steps],
            [jnp.asarray(code, jnp.int32) for code in (UNRESOLVED, OPTIMAL, INFEASIBLE, FULL, UNRESOLVED)],
            jnp.asarray(RUNNING, jnp.int32),
        )
        return ActiveSet(
            multipliers=jnp.where(go, moved, jnp.where(empty, certificate, multipliers)),
            slots=jnp.where(go & add & at_slot, candidate, state.slots),
            used=jnp.where(go & at_slot, add, state.used),
            inverse=jnp.where(go, inverse, state.inverse),
            settled=settled,
            candidate=jnp.where(go & ~add, candidate, -1),
            status=status,
            steps=state.steps + 1,
        )

    start = ActiveSet(
        multipliers=jnp.zeros(num_classes, dtype),
        slots=jnp.zeros(capacity, index),
        used=jnp.zeros(capacity, bool),
        inverse=jnp.zeros((capacity, capacity), dtype),
        settled=jnp.zeros(num_classes, bool),
        candidate=jnp.asarray(-1, index),
        status=jnp.where(jnp.all(jnp.isfinite(heights)), RUNNING, UNRESOLVED).astype(jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
    )
    end = jax.lax.while_loop(lambda state: state.status == RUNNING, step, start)
    certified = _certifies(gram, heights, lengths, target, end.multipliers)
    return end._replace(status=jnp.where((end.status == INFEASIBLE) & ~certified, UNRESOLVED, end.status))


def _certifies(gram, heights, lengths, target, certificate) -> Bool[Array, ""]:
    """Whether the certificate proves the region empty, or at least out of reach.

    Any delta in the region satisfies ||delta|| >= h.lambda / ||G^T lambda||, infinite for an exact certificate.
    Rounding leaves a finite bound; it counts as proof when it exceeds the farthest single boundary by
    0.01 / sqrt(epsilon), 29 times in float32. Rivals that merely nearly depend on each other do not pass.
    """
    gain = jnp.sum(certificate * heights)
    square = jnp.maximum(jnp.sum(certificate * difference_product(gram, target, certificate)), 0)
    apart = (lengths > 0) & (heights > 0)
    farthest = jnp.max(jnp.where(apart, heights / jnp.where(apart, lengths, 1), 0))
    return (gain > 0) & (gain * float(jnp.finfo(gram.dtype).eps) ** 0.5 > 0.01 * farthest * jnp.sqrt(square))
