"""A queue of problems solved on a fixed number of lanes.

Problems need between one and dozens of steps. Solved side by side in one batch, all of them wait for the slowest. Here
a lane whose problem is done takes the next one from the queue, so the cost is that of the mean.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.batching import varying_like

# What a lane is doing. CONVERGED (nothing is violated any more) and STUCK (the candidate depends on the active rivals)
# are for the solver to turn into a `Status`, none of which is negative; FULL asks for more slots.
IDLE, RUNNING, CONVERGED, STUCK, FULL = range(-5, 0)


def run_lanes(
    lanes: Any,
    results: Any,
    waiting: Bool[Array, " q"],
    *,
    load: Callable[[Any, Array, Array], Any],
    work: Callable[[Any], tuple[Any, Any]],
    write: Callable[[Any, Array, Any, Any], Any],
) -> Any:
    """Works through the problems that wait.

    Args:
        lanes: a NamedTuple of arrays (p, ...) with a field `status`, all IDLE.
        results: arrays (q, ...) to write into.
        waiting: (q,) which problems to solve.
        load: (lanes, chosen (p,), problem (p,)) -> lanes, with a new problem in the chosen ones.
        work: lanes -> (lanes, figures): some steps, after which a lane is RUNNING or has ended.
        write: (results, where (p,), lanes, figures) -> results; `where` is the lane's problem, or q, to be dropped,
            for lanes that have not just ended.

    Returns:
        The results.
    """
    num_lanes, size = len(lanes.status), len(waiting)
    numbers = jnp.arange(size, dtype=jnp.int32)
    position = jnp.cumsum(waiting, dtype=jnp.int32) - 1
    queue = jnp.zeros(size, jnp.int32).at[jnp.where(waiting, position, size)].set(numbers, mode="drop")
    count = jnp.sum(waiting, dtype=jnp.int32)

    def turn(state):
        lanes, problem, taken, results = state
        free = lanes.status != RUNNING
        chosen, position, taken = refill(free, taken, count)
        problem = jnp.where(chosen, pick(queue, jnp.minimum(position, size - 1)), problem)
        lanes = lanes._replace(status=jnp.where(free, IDLE, lanes.status))
        lanes, figures = work(load(lanes, chosen, problem))
        ended = (lanes.status != IDLE) & (lanes.status != RUNNING)
        results = write(results, jnp.where(ended, problem, size), lanes, figures)
        return lanes, problem, taken, results

    def unfinished(state):
        lanes, _, taken, _ = state
        return (taken < count) | jnp.any(lanes.status == RUNNING)

    start = (lanes, jnp.zeros(num_lanes, jnp.int32), jnp.int32(0), results)
    return jax.lax.while_loop(unfinished, turn, varying_like(waiting, start))[3]


def refill(
    free: Bool[Array, " p"], taken: Int[Array, ""], total: Int[Array, ""]
) -> tuple[Bool[Array, " p"], Int[Array, " p"], Int[Array, ""]]:
    """Hands the next places of a queue to the free lanes, in order.

    Args:
        free: (p,) lanes that have nothing to do.
        taken: how many places have been handed out.
        total: how many there are.

    Returns:
        (p,) the lanes that get a place, (p,) their places, and how many have been handed out by then.
    """
    place = taken + jnp.cumsum(free, dtype=jnp.int32) - 1
    chosen = free & (place < total)
    return chosen, place, taken + jnp.sum(chosen, dtype=jnp.int32)


def pick(matrix: Array, *index: Array) -> Array:
    """matrix[index] without the guard against indices out of bounds, which is what makes gathers slow."""
    return matrix.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def where_lane(chosen: Bool[Array, " p"], ours: Any, theirs: Any) -> Any:
    """Lane by lane, one tree or the other."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), ours, theirs)


def times(matrices: Float[Array, "p m m"], vectors: Float[Array, "p m"]) -> Float[Array, "p m"]:
    """A small product in every lane."""
    return jnp.einsum("pst,pt->ps", matrices, vectors, precision=jax.lax.Precision.HIGHEST)


def scatter_slots(slots: Int[Array, "p m"], values: Float[Array, "p m"], num_classes: int) -> Float[Array, "p c"]:
    """The values of the slots, added up where their classes are."""
    lanes = jnp.arange(len(slots), dtype=jnp.int32)
    return jnp.zeros((len(slots), num_classes), values.dtype).at[lanes[:, None], slots].add(values)
