"""The events of the dual path, for many problems side by side; see `dual_path`.

A problem occupies a lane: a few slots with its active rivals, their constraint normals, their multipliers and the
inverse of their Gram matrix over the attributes that are free to move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.geometry import HIGHEST
from spectra_jax.perturbations.lanes import FULL, IDLE, RUNNING, STUCK, times, where_lane
from spectra_jax.types import Status

# Directions shorter than this part of a unit normal are rounding; angles between facets below 3e-7 count as 0.
ROUNDING, DEPENDENCE = 1e-14, 1e-13


class Queue(NamedTuple):
    """What the search asks of the problems that wait, all in float64; `index` says which.

    Attributes:
        normals: (index (p,), rival (p,)) -> (p, n) w_target - w_rival, exactly 0 where the two rows coincide.
        products: (index (p,), delta (p, n)) -> (p, c) all g_k . delta.
        lengths: index (p,) -> (p, c) ||g_k||, roughly, 0 where two rows coincide.
        offsets: index (p,) -> (p, c) what each normal must reach, -inf where nothing is asked, and (p, c) the rounding
            error to expect in it.
        ranges: index (p,) -> (p, n) smallest and (p, n) largest change of each attribute; None for no ranges.
    """

    normals: Callable[[Array, Array], Array]
    products: Callable[[Array, Array], Array]
    lengths: Callable[[Array], Array]
    offsets: Callable[[Array], tuple[Array, Array]]
    ranges: Callable[[Array], tuple[Array, Array]] | None


class Lanes(NamedTuple):
    """Problems being solved, one in every lane.

    Attributes:
        which: (p,) problem of the queue.
        slots: (p, m) class index of the active rival in each slot.
        used: (p, m) which slots are occupied.
        normals: (p, m, n) constraint normals of the active rivals, of length 1.
        lengths: (p, m) theirs before.
        multipliers: (p, m) of the unit normals; 0 in slots that are not used.
        inverse: (p, m, m) of their Gram matrix over the free attributes; 0 in slots that are not used.
        pull: (p, n) sum of all unit normals, the candidate's among them, times their multipliers.
        place: (p, n) where that left each attribute, see `answers.Pattern`.
        candidate: (p,) rival being added, -1 where the next has to be chosen.
        normal: (p, n) the candidate's unit normal.
        length: (p,) its length before.
        candidate_multiplier: (p,) its multiplier so far.
        response: (p, m) how the multipliers fell as the candidate's rose, at the last event.
        polishing: (p,) whether nothing is violated any more.
        status: (p,) see `lanes`.
        steps: (p,) events so far.
    """

    which: Int[Array, " p"]
    slots: Int[Array, "p m"]
    used: Bool[Array, "p m"]
    normals: Float[Array, "p m n"]
    lengths: Float[Array, "p m"]
    multipliers: Float[Array, "p m"]
    inverse: Float[Array, "p m m"]
    pull: Float[Array, "p n"]
    place: Int[Array, "p n"]
    candidate: Int[Array, " p"]
    normal: Float[Array, "p n"]
    length: Float[Array, " p"]
    candidate_multiplier: Float[Array, " p"]
    response: Float[Array, "p m"]
    polishing: Bool[Array, " p"]
    status: Int[Array, " p"]
    steps: Int[Array, " p"]


def empty_lanes(num_lanes: int, capacity: int, num_attributes: int) -> Lanes:
    """Idle lanes with `capacity` slots each."""
    slots, attributes = (capacity,), (num_attributes,)
    shapes: dict[str, Any] = dict.fromkeys(("slots", "used", "lengths", "multipliers", "response"), slots)
    shapes |= dict.fromkeys(("pull", "place", "normal"), attributes)
    shapes |= dict(normals=slots + attributes, inverse=slots + slots)
    integers = ("which", "slots", "candidate", "status", "steps")
    types: dict[str, Any] = dict(used=bool, polishing=bool, place=jnp.int8) | dict.fromkeys(integers, jnp.int32)
    return Lanes(
        *(jnp.zeros((num_lanes, *shapes.get(name, ())), types.get(name, jnp.float64)) for name in Lanes._fields)
    )._replace(status=jnp.full(num_lanes, IDLE, jnp.int32))


def load(queue: Queue, lanes: Lanes, chosen: Bool[Array, " p"], index: Int[Array, " p"]) -> Lanes:
    """Starts new problems in the chosen lanes, at the change nearest to none that the ranges allow."""
    low, high = ranges_of(queue, index)
    fresh = jax.tree.map(jnp.zeros_like, lanes)._replace(
        normals=lanes.normals,
        which=index,
        place=jnp.broadcast_to(_outside(jnp.zeros_like(lanes.pull), low, high), lanes.place.shape),
        candidate=jnp.full_like(lanes.candidate, -1),
        status=jnp.full_like(lanes.status, RUNNING),
    )
    return where_lane(chosen, fresh, lanes)


def ranges_of(queue: Queue, index: Int[Array, " p"]) -> tuple[Array, Array]:
    if queue.ranges is None:
        return jnp.full((1, 1), -jnp.inf, jnp.float64), jnp.full((1, 1), jnp.inf, jnp.float64)
    return queue.ranges(index)


def _outside(pull: Array, low: Array, high: Array) -> Array:
    """-1 where the pull is below the range or a range has no inside, 1 where it is above, 0 within."""
    return jnp.where((pull < low) | (low >= high), -1, jnp.where(pull > high, 1, 0)).astype(jnp.int8)


def change_of(queue: Queue, lanes: Lanes) -> Float[Array, "p n"]:
    """delta of every lane."""
    low, high = ranges_of(queue, lanes.which)
    return jnp.where(lanes.place == 0, lanes.pull, jnp.where(lanes.place > 0, high, low))


class _Direction(NamedTuple):
    """Where everything goes as the candidate's multiplier rises: response of the others, pull, and its gain."""

    response: Float[Array, "p m"]
    pull: Float[Array, "p n"]
    gain: Float[Array, " p"]
    noise: Float[Array, " p"]


def _direction(lanes: Lanes) -> _Direction:
    free = lanes.place == 0
    cross = jnp.einsum("pmn,pn->pm", lanes.normals, jnp.where(free, lanes.normal, 0), precision=HIGHEST)
    response = times(lanes.inverse, cross)
    pull = lanes.normal - jnp.einsum("pm,pmn->pn", response, lanes.normals, precision=HIGHEST)
    # One refinement: the candidate's direction must not move the active rivals.
    left = jnp.einsum("pmn,pn->pm", lanes.normals, jnp.where(free, pull, 0), precision=HIGHEST)
    more = times(lanes.inverse, left)
    response, pull = response + more, pull - jnp.einsum("pm,pmn->pn", more, lanes.normals, precision=HIGHEST)
    gain = jnp.sum(jnp.square(jnp.where(free, pull, 0)), axis=-1)
    noise = ROUNDING * (1 + jnp.sum(jnp.abs(response), axis=-1))
    share = jnp.sum(jnp.square(jnp.where(free, lanes.normal, 0)), axis=-1)
    real = gain > jnp.maximum(DEPENDENCE * share, 1e4 * jnp.square(noise))
    return _Direction(response, pull, jnp.where(real, gain, 0), noise)


def event(
    queue: Queue, lanes: Lanes, offset: Float[Array, " p"], busy: Bool[Array, " p"], complete: bool, max_steps: int
) -> Lanes:
    """To the end of the current piece of the path in every busy lane.

    Args:
        queue: the problems that all lanes work on.
        lanes: in any state.
        offset: (p,) that the candidate's unit normal must reach.
        busy: (p,) lanes with a candidate.
        complete: whether there are as many slots as rivals that can be independent.
        max_steps: bound on the events of a problem.

    Returns:
        The lanes; those that are not busy have not changed.
    """
    capacity, num_attributes = lanes.normals.shape[1:]
    low, high = ranges_of(queue, lanes.which)
    way = _direction(lanes)
    response, turn, gain = way.response, way.pull, way.gain
    if complete:  # as many active rivals as can be independent: any other depends on them
        gain = jnp.where(jnp.all(lanes.used, axis=-1), 0, gain)

    missing = offset - jnp.sum(lanes.normal * change_of(queue, lanes), axis=-1)
    whole = jnp.where(gain > 0, jnp.maximum(missing, 0) / jnp.where(gain > 0, gain, 1), jnp.inf)
    falling = lanes.used & (response > way.noise[:, None])
    ratios = jnp.where(falling, lanes.multipliers / jnp.where(falling, response, 1), jnp.inf)
    # The end that each attribute moves towards: for one held at an end that end, if its pull comes back.
    moving = (jnp.abs(turn) > way.noise[:, None]) & (low < high)
    down = turn < 0
    end = jnp.where(lanes.place == 0, jnp.where(down, low, high), jnp.where(lanes.place > 0, high, low))
    moving = moving & jnp.isfinite(end) & jnp.where(lanes.place == 0, True, down == (lanes.place > 0))
    distances = jnp.where(moving, jnp.maximum((end - lanes.pull) / jnp.where(moving, turn, 1), 0), jnp.inf)

    # What comes first: the candidate is tight, a multiplier is 0, an attribute is at its end.
    ends = jnp.concatenate([whole[:, None], ratios, distances], axis=1)
    step = jnp.min(ends, axis=1)
    numbers = jnp.arange(ends.shape[1], dtype=jnp.int32)[None, :]
    first = jnp.min(jnp.where(ends <= step[:, None], numbers, ends.shape[1]), axis=1)
    add, drop = first == 0, (first > 0) & (first <= capacity)
    stuck = ~(step < jnp.inf)
    no_room = add & jnp.all(lanes.used, axis=-1) & ~stuck
    go = busy & ~stuck & ~no_room
    slot_numbers = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    unused = jnp.min(jnp.where(lanes.used, capacity, slot_numbers), axis=-1)
    slot = jnp.where(add, unused, first - 1)
    at_slot = slot_numbers == slot[:, None]
    at_end = jnp.arange(num_attributes, dtype=jnp.int32)[None, :] == (first - 1 - capacity)[:, None]

    # One update of rank one serves all: append a row, pivot one out, take an attribute out of the matrix, or add it.
    entering = jnp.sum(jnp.where(at_end, lanes.place != 0, False), axis=-1, dtype=jnp.int32) > 0
    column = jnp.sum(jnp.where(at_slot[:, None, :], lanes.inverse, 0), axis=-1)
    pivot = jnp.sum(jnp.where(at_slot, column, 0), axis=-1)
    loads = jnp.sum(jnp.where(at_end[:, None, :], lanes.normals, 0), axis=-1)
    spread = times(lanes.inverse, loads)
    leverage = jnp.sum(loads * spread, axis=-1)
    vector = jnp.where(add[:, None], jnp.where(at_slot, -1, response), jnp.where(drop[:, None], column, spread))
    divisor = jnp.where(
        add, gain, jnp.where(drop, -pivot, jnp.where(entering, -1 - leverage, jnp.maximum(1 - leverage, DEPENDENCE)))
    )
    factor = 1 / jnp.where(divisor == 0, 1, divisor)
    inverse = lanes.inverse + factor[:, None, None] * vector[:, :, None] * vector[:, None, :]
    keep = ~(drop[:, None] & at_slot)
    inverse = jnp.where(keep[:, :, None] & keep[:, None, :], inverse, 0)

    step = jnp.where(go, step, 0)
    candidate_multiplier = lanes.candidate_multiplier + step
    multipliers = jnp.where(lanes.used, jnp.maximum(lanes.multipliers - step[:, None] * response, 0), 0)
    arriving = at_slot & add[:, None]
    following = jnp.where(down, -1, 1)
    moved = lanes._replace(
        slots=jnp.where(arriving, lanes.candidate[:, None], lanes.slots),
        used=jnp.where(at_slot, add[:, None], lanes.used),
        lengths=jnp.where(at_slot, jnp.where(add, lanes.length, 0)[:, None], lanes.lengths),
        multipliers=jnp.where(at_slot, jnp.where(add, candidate_multiplier, 0)[:, None], multipliers),
        inverse=inverse,
        pull=jnp.where(at_end, end, lanes.pull + step[:, None] * turn),
        place=jnp.where(at_end, jnp.where(lanes.place == 0, following, 0), lanes.place).astype(jnp.int8),
        candidate=jnp.where(add, -1, lanes.candidate),
        candidate_multiplier=jnp.where(add, 0, candidate_multiplier),
    )
    rows = jnp.arange(len(go), dtype=jnp.int32)
    normals = lanes.normals.at[rows, jnp.where(go & add, slot, capacity)].set(lanes.normal, mode="drop")
    lanes = where_lane(go, moved, lanes)._replace(normals=normals)
    lanes = lanes._replace(response=jnp.where(busy[:, None], response, lanes.response))
    steps = lanes.steps + busy.astype(jnp.int32)
    status = jnp.where(
        stuck, STUCK, jnp.where(no_room, FULL, jnp.where(steps >= max_steps, Status.UNRESOLVED, RUNNING))
    )
    return lanes._replace(status=jnp.where(busy, status, lanes.status).astype(jnp.int32), steps=steps)
