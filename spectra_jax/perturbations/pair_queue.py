"""Solves a queue of (sample, target) pairs on a fixed number of lanes.

Pairs need between one and dozens of steps. Solved side by side in one batch, all of them wait for the slowest. Here a
lane whose pair is done takes the next pair from the queue, so the cost is that of the mean. Few pairs need many slots:
all are tried with a few, and those that run out queue again for lanes with more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectra_jax.perturbations.active_set import (
    FULL,
    IDLE,
    RUNNING,
    UNRESOLVED,
    Regions,
    advance,
    conclude,
    dense_multipliers,
    empty_lanes,
    load,
    pick,
)
from spectra_jax.perturbations.batching import varying_like

# Slots of a lane, stage by stage; the last stage has as many as a pair can ever use.
_CAPACITIES = (10, 24)
# Enough lanes to fill the machine: on CPUs all of their state should fit into the cache.
_LANES, _LANES_ON_CPU = 16_384, 256
# A lane's inverse and rows may fill this many numbers over all lanes.
_LANE_MEMORY = 16_000_000
_STEPS_BETWEEN_RELOADS = 4


class Solutions(NamedTuple):
    """The outcome of each pair of a queue.

    Attributes:
        status: (q,) OPTIMAL, INFEASIBLE or UNRESOLVED.
        norm: (q,) length of the change; inf where INFEASIBLE, NaN where UNRESOLVED.
        residual: (q,) see `Conclusions`, absolute.
        num_active: (q,) rivals with a positive multiplier.
        multipliers: (q, c), or None if not asked for.
    """

    status: Int[Array, "q"]
    norm: Float[Array, "q"]
    residual: Float[Array, "q"]
    num_active: Int[Array, "q"]
    multipliers: Float[Array, "q c"] | None


def solve_pairs(
    regions: Regions, samples: Int[Array, "q"], targets: Int[Array, "q"], *, rank: int, want_multipliers: bool
) -> Solutions:
    """Projects samples onto the regions of their targets.

    Args:
        regions: the problem.
        samples: (q,) rows of regions.logits.
        targets: (q,) classes.
        rank: min(n, c - 1), the most rivals that can be independent.
        want_multipliers: whether to return them, c numbers a pair.

    Returns:
        Solutions.
    """
    num_pairs, num_classes = len(samples), regions.gram.shape[0]
    dtype = regions.gram.dtype
    solutions = Solutions(
        status=jnp.where(pick(regions.answerable(), samples, targets), FULL, UNRESOLVED).astype(jnp.int32),
        norm=jnp.full(num_pairs, jnp.nan, dtype),
        residual=jnp.full(num_pairs, jnp.nan, dtype),
        num_active=jnp.zeros(num_pairs, jnp.int32),
        multipliers=jnp.zeros((num_pairs, num_classes), dtype) if want_multipliers else None,
    )
    if not num_pairs:
        return solutions
    for capacity in [*(size for size in _CAPACITIES if 2 * size < rank), rank]:
        waiting = solutions.status == FULL
        (queue,) = jnp.nonzero(waiting, size=num_pairs, fill_value=0)
        queue, count = queue.astype(jnp.int32), jnp.sum(waiting, dtype=jnp.int32)
        solutions = _run_queue(regions, samples, targets, queue, count, solutions, capacity=capacity, rank=rank)
    return solutions


def _run_queue(
    regions: Regions, samples: Array, targets: Array, queue: Array, count: Array, solutions: Solutions,
    *, capacity: int, rank: int,
) -> Solutions:  # fmt: skip
    num_classes = regions.gram.shape[0]
    most = _LANES_ON_CPU if jax.default_backend() == "cpu" else _LANES
    num_lanes = max(1, min(len(queue), most, _LANE_MEMORY // (capacity * capacity + num_classes)))

    def reload(state):
        lanes, pair, taken, solutions = state
        free = lanes.status != RUNNING  # `conclude` has left none SOLVED or STUCK
        position = taken + jnp.cumsum(free, dtype=jnp.int32) - 1
        chosen = free & (position < count)
        following = pick(queue, jnp.minimum(position, len(queue) - 1))
        pair = jnp.where(chosen, following, pair)
        lanes = lanes._replace(status=jnp.where(free, IDLE, lanes.status))
        lanes = load(lanes, chosen, pick(samples, pair), pick(targets, pair))
        return lanes, pair, taken + jnp.sum(chosen, dtype=jnp.int32), solutions

    def work(state):
        lanes, pair, taken, solutions = reload(state)
        lanes = jax.lax.fori_loop(
            0,
            _STEPS_BETWEEN_RELOADS,
            lambda _, lanes: advance(regions, lanes, complete=capacity == rank, max_steps=64 + 8 * rank),
            lanes,
        )
        lanes, figures = conclude(regions, lanes)
        ended = (lanes.status != IDLE) & (lanes.status != RUNNING)
        where = jnp.where(ended, pair, len(queue))  # out of bounds is dropped
        rows = Solutions(lanes.status, *figures, None)
        if solutions.multipliers is not None:
            rows = rows._replace(multipliers=dense_multipliers(lanes, num_classes))
        solutions = jax.tree.map(lambda old, new: old.at[where].set(new, mode="drop"), solutions, rows)
        return lanes, pair, taken, solutions

    def unfinished(state):
        lanes, _, taken, _ = state
        return (taken < count) | jnp.any(lanes.status == RUNNING)

    lanes = empty_lanes(regions, num_lanes, capacity)
    start = (lanes, jnp.zeros(num_lanes, jnp.int32), jnp.asarray(0, jnp.int32), solutions)
    return jax.lax.while_loop(unfinished, work, varying_like(regions, start))[3]
