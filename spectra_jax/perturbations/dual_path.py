"""The exact nearest point under rivals and ranges, by following the dual path one event at a time, in float64.

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k for every rival k,   low <= delta <= high

For multipliers lambda of the rivals the best delta is clip(pull, low, high) with pull = sum_k lambda_k g_k: the ranges
need no multipliers of their own. Starting at lambda = 0, the most violated rival is taken as candidate and its
multiplier raised, while those of the active rivals follow so that they stay tight. On the way delta is optimal for the
rivals taken so far, and piecewise linear in the multiplier raised. A piece ends where

- the candidate is tight as well: it becomes active,
- the multiplier of an active rival reaches 0: that rival is dropped,
- an attribute reaches an end of its range and is held there, or its pull comes back into the range and it is free.

Each of these changes the inverse of the active rivals' Gram matrix (over the free attributes) by one rank. The length
of delta grows with every piece of some length, so no set of active rivals comes twice: this ends after finitely many
events, at the answer or at a candidate that no multiplier can make tight, whose direction then is a certificate that
there is none. A bound on the events guards against pieces of length 0 that repeat, which rounding makes all but
impossible. Without ranges it is the method of Goldfarb and Idnani (1983).

Constraint normals are differences between the weights themselves, scaled to length 1, so classes with nearly equal
weights do no harm. Exact ties between rivals are broken by lowering every offset by some 100 roundings, no two by the
same; the answer is polished on the true offsets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.answers import Answers, Evidence, Pattern
from spectra_jax.perturbations.dual_events import Lanes, Queue, change_of, empty_lanes, event, load, ranges_of
from spectra_jax.perturbations.geometry import HIGHEST
from spectra_jax.perturbations.lanes import (
    FULL,
    RUNNING,
    STUCK,
    pick,
    run_lanes,
    times,
    where_lane,
)
from spectra_jax.types import Status

_EPSILON = 2e-16
# The combined normals of a certificate may leave this part of their terms: rounding, and not a region that is far away.
_CANCELLED = 1e-12
# Numbers in the normals and inverses of all lanes, which on a CPU should fit into its caches, and lanes at most.
_LANE_MEMORY, _LANE_MEMORY_ON_CPU, _MOST_LANES = 100_000_000, 200_000, 1024
_EVENTS_AT_ONCE = 12  # between two looks at all rivals


def solve_exactly(
    queue: Queue,
    waiting: Bool[Array, " q"],
    *,
    num_attributes: int,
    rank: int,
    usual: int | None = None,
    num_slots: int | None = None,
    want_pattern: bool = True,
) -> Answers:
    """The nearest point of every problem that waits.

    Args:
        queue: all of them.
        waiting: (q,) which to solve; the answers of the others are UNRESOLVED.
        num_attributes: n.
        rank: min(n, c - 1), the most rivals that can be active.
        usual: as many active rivals are enough for most problems; those that need more queue again.
        num_slots: s, of the evidence, or None for none. The multipliers and the inverse of an answer with more active
            rivals are NaN.
        want_pattern: whether the evidence has its pattern, n + s^2 numbers per problem.

    Returns:
        Answers.
    """
    size = len(waiting)
    evidence = None
    if num_slots is not None:
        pattern = Pattern(
            delta=jnp.zeros((size, num_attributes), jnp.float64),
            place=jnp.zeros((size, num_attributes), jnp.int8),
            inverse=jnp.zeros((size, num_slots, num_slots), jnp.float64),
        )
        evidence = Evidence(
            slots=jnp.zeros((size, num_slots), jnp.int32),
            multipliers=jnp.zeros((size, num_slots), jnp.float64),
            pattern=pattern if want_pattern else None,
        )
    answers = Answers(
        status=jnp.where(waiting, FULL, Status.UNRESOLVED).astype(jnp.int32),
        norm=jnp.full(size, jnp.nan, jnp.float64),
        residual=jnp.full(size, jnp.nan, jnp.float64),
        num_active=jnp.zeros(size, jnp.int32),
        evidence=evidence,
    )
    max_steps = 200 + 20 * (rank + (0 if queue.ranges is None else num_attributes))

    def stage(capacity: int, answers: Answers) -> Answers:
        memory = _LANE_MEMORY_ON_CPU if jax.default_backend() == "cpu" else _LANE_MEMORY
        room = memory // (capacity * (capacity + num_attributes) + num_attributes)
        lanes = empty_lanes(max(1, min(size, room, _MOST_LANES)), capacity, num_attributes)

        def work(lanes):
            offsets = _offsets(queue, lanes)
            lanes = _follow(queue, lanes, offsets, complete=capacity == rank, max_steps=max_steps)
            return _look(queue, lanes, offsets, num_slots)

        def write(answers, where, lanes, figures):
            if not want_pattern and figures.evidence is not None:
                figures = figures._replace(evidence=figures.evidence._replace(pattern=None))
            return jax.tree.map(lambda old, new: old.at[where].set(new, mode="drop"), answers, figures)

        def start(lanes, chosen, index):
            return load(queue, lanes, chosen, index)

        return run_lanes(lanes, answers, answers.status == FULL, load=start, work=work, write=write)

    if size:
        for capacity in [usual, rank] if usual is not None and 2 * usual < rank else [rank]:
            answers = stage(capacity, answers)
    return answers._replace(status=jnp.where(answers.status == FULL, Status.UNRESOLVED, answers.status))


class _Offsets(NamedTuple):
    """All rivals of every lane.

    Attributes:
        lengths: (p, c) of the constraint normals.
        true: (p, c) what they must reach.
        lowered: (p, c) the same with exact ties broken.
        rounding: (p, c) of the true ones.
        scale: (p,) rounding of g_k . delta per length of delta.
        farthest: (p,) distance to the farthest single boundary, which no answer can be nearer than.
        apart: (p, c) rivals that ask for something and whose weights do not coincide with the target's.
    """

    lengths: Float[Array, "p c"]
    true: Float[Array, "p c"]
    lowered: Float[Array, "p c"]
    rounding: Float[Array, "p c"]
    scale: Float[Array, " p"]
    farthest: Float[Array, " p"]
    apart: Bool[Array, "p c"]


def _offsets(queue: Queue, lanes: Lanes) -> _Offsets:
    lengths = queue.lengths(lanes.which)
    true, rounding = queue.offsets(lanes.which)
    apart = (lengths > 0) & (true > -jnp.inf)
    farthest = jnp.max(jnp.where(apart, formulas.boundary_distance(true, lengths), 0), axis=-1)
    scale = _EPSILON * jnp.max(jnp.where(apart, lengths, 0), axis=-1)
    numbers = jnp.arange(1, true.shape[1] + 1, dtype=jnp.int32).astype(jnp.float64)
    uneven = 100 * (0.5 + 0.5 * jnp.mod(numbers * 0.6180339887498949, 1.0))[None, :]
    lowered = true - uneven * (rounding + (scale * jnp.maximum(farthest, 0))[:, None])
    return _Offsets(lengths, true, lowered, rounding, scale, jnp.maximum(farthest, 0), apart)


def _of(values: Float[Array, "p c"], rivals: Int[Array, "p m"]) -> Float[Array, "p m"]:
    return pick(values, jnp.arange(len(rivals), dtype=jnp.int32)[:, None], rivals)


def _of_candidate(values: Float[Array, "p c"], lanes: Lanes) -> Float[Array, " p"]:
    """Per length of the candidate's normal."""
    return _of(values, jnp.maximum(lanes.candidate, 0)[:, None])[:, 0] / jnp.where(lanes.length > 0, lanes.length, 1)


def _follow(queue: Queue, lanes: Lanes, offsets: _Offsets, *, complete: bool, max_steps: int) -> Lanes:
    """Events until every lane needs another candidate, or enough of them."""
    offset = _of_candidate(offsets.lowered, lanes)

    def busy(lanes):
        return (lanes.status == RUNNING) & (lanes.candidate >= 0)

    def turn(state):
        lanes, count = state
        return event(queue, lanes, offset, busy(lanes), complete, max_steps), count + 1

    def unfinished(state):
        lanes, count = state
        return jnp.any(busy(lanes)) & (count < _EVENTS_AT_ONCE)

    return jax.lax.while_loop(unfinished, turn, (lanes, jnp.int32(0)))[0]


def _look(queue: Queue, lanes: Lanes, offsets: _Offsets, num_slots: int | None) -> tuple[Lanes, Answers]:
    """Looks at all rivals, in lanes that have come to the end of something.

    Lanes without a candidate take the most violated rival; where nothing is violated, the answer is polished on the
    true offsets and looked at once more. Lanes that are STUCK have a certificate, or are UNRESOLVED.
    """
    index, num_classes = lanes.which, offsets.true.shape[1]
    low, high = ranges_of(queue, index)
    choosing = (lanes.status == RUNNING) & (lanes.candidate < 0)
    stuck = lanes.status == STUCK
    asked = jnp.where(lanes.polishing[:, None], offsets.true, offsets.lowered)
    lengths = jnp.where(lanes.used, lanes.lengths, 1)
    multipliers, pull, missing = _tightened(queue, lanes, _of(asked, lanes.slots) / lengths)
    lanes = lanes._replace(multipliers=jnp.where(choosing[:, None], multipliers, lanes.multipliers))
    lanes = lanes._replace(pull=jnp.where(choosing[:, None], pull, lanes.pull))
    change = change_of(queue, lanes)
    change = jnp.where(lanes.polishing[:, None], jnp.minimum(jnp.maximum(change, low), high), change)
    norm = jnp.sqrt(jnp.sum(jnp.square(change), axis=-1))
    rounding = offsets.rounding + (4 * offsets.scale * norm)[:, None]
    slack = queue.products(index, change) - asked

    # The most violated rival, in distance; those whose weights coincide with the target's stay ahead for ever.
    behind = (offsets.lengths == 0) & (offsets.true > 0)
    distances = jnp.where(offsets.apart, -slack / jnp.where(offsets.apart, offsets.lengths, 1), 0)
    violation = jnp.where(behind, jnp.inf, jnp.where(slack < -rounding, distances, 0))
    # An active rival is tight, but for rounding that no further step takes out.
    rows = jnp.arange(len(index), dtype=jnp.int32)[:, None]
    violation = violation.at[rows, jnp.where(lanes.used, lanes.slots, num_classes)].set(0, mode="drop")
    most = jnp.max(violation, axis=-1)
    numbers = jnp.arange(num_classes, dtype=jnp.int32)[None, :]
    candidate = jnp.min(jnp.where(violation >= most[:, None], numbers, num_classes), axis=-1)
    found = (most > 0) & ~lanes.polishing
    following = _loaded(queue, lanes, jnp.minimum(candidate, num_classes - 1))
    following = following._replace(
        candidate=jnp.where(found, candidate, -1).astype(jnp.int32),
        place=jnp.where(found[:, None], following.place, lanes.place),
        polishing=lanes.polishing | ~found,
    )

    clipping = jnp.max(jnp.abs(jnp.where(lanes.place == 0, lanes.pull - change, 0)), axis=-1)
    noise = jnp.max(
        jnp.where(offsets.apart & (distances > 0), rounding / jnp.where(offsets.apart, offsets.lengths, 1), 0), axis=-1
    )
    residual = jnp.maximum(jnp.max(distances, axis=-1), jnp.maximum(jnp.max(jnp.abs(missing), axis=-1), clipping))
    ended = choosing & lanes.polishing
    right = ended & (residual <= 1e-8 * norm + 1000 * noise)

    certificate = _certificate(queue, lanes, offsets, rounding)
    empty = stuck & certificate.valid
    status = jnp.where(ended | stuck, Status.UNRESOLVED, lanes.status)
    status = jnp.where(right, Status.SOLVED, jnp.where(empty, Status.INFEASIBLE, status)).astype(jnp.int32)
    weights = jnp.where(stuck[:, None], certificate.multipliers, lanes.multipliers)
    figures = Answers(
        status=status,
        norm=jnp.where(right, norm, jnp.where(empty, jnp.inf, jnp.nan)),
        residual=jnp.where(right, residual, jnp.where(empty, certificate.residual, jnp.nan)),
        num_active=jnp.sum(weights > 0, axis=-1, dtype=jnp.int32) + empty.astype(jnp.int32),
        evidence=None
        if num_slots is None
        else _evidence(lanes, jnp.where(right[:, None], change, 0), weights / lengths, empty, num_slots),
    )
    return where_lane(choosing, following, lanes)._replace(normals=lanes.normals, status=status), figures


def _tightened(queue: Queue, lanes: Lanes, offsets: Float[Array, "p m"]) -> tuple[Array, Array, Array]:
    """Multipliers at which the active rivals are tight at these offsets, their pull, and what the offsets still miss.

    Takes out the rounding of the events before.
    """

    def missing(pull):
        reached = jnp.einsum(
            "pmn,pn->pm", lanes.normals, change_of(queue, lanes._replace(pull=pull)), precision=HIGHEST
        )
        return jnp.where(lanes.used, offsets - reached, 0)

    def refine(state):
        multipliers, _, left, count = state
        multipliers = jnp.maximum(multipliers + times(lanes.inverse, left), 0)
        pull = jnp.einsum("pm,pmn->pn", multipliers, lanes.normals, precision=HIGHEST)
        return multipliers, pull, missing(pull), count + 1

    start = (lanes.multipliers, lanes.pull, missing(lanes.pull), jnp.int32(0))
    return jax.lax.while_loop(lambda state: state[3] < 3, refine, start)[:3]


def _loaded(queue: Queue, lanes: Lanes, candidate: Int[Array, " p"]) -> Lanes:
    """With this rival as the candidate."""
    normal = queue.normals(lanes.which, candidate)
    length = jnp.sqrt(jnp.sum(jnp.square(normal), axis=-1))
    normal = normal / jnp.where(length > 0, length, 1)[:, None]
    # Without active rivals every attribute follows the candidate alone, from 0: one at an end stays if pushed outwards.
    low, high = ranges_of(queue, lanes.which)
    at_end = jnp.where((normal < 0) & (low == 0), -1, jnp.where((normal > 0) & (high == 0), 1, 0)).astype(jnp.int8)
    inside = (low <= 0) & (high >= 0) & (low < high)
    alone = inside & ~jnp.any(lanes.used, axis=-1)[:, None]
    return lanes._replace(
        normal=normal,
        length=length,
        candidate_multiplier=jnp.zeros_like(lanes.candidate_multiplier),
        place=jnp.where(alone, at_end, lanes.place),
    )


class _Certificate(NamedTuple):
    """Of lanes that are STUCK: multipliers of the unit normals, that of the candidate being 1.

    Attributes:
        multipliers: (p, m).
        residual: (p,) length of the combined normals along attributes without an end, relative to the terms.
        valid: (p,) whether it proves that there is no answer.
    """

    multipliers: Float[Array, "p m"]
    residual: Float[Array, " p"]
    valid: Bool[Array, " p"]


def _certificate(queue: Queue, lanes: Lanes, offsets: _Offsets, rounding: Float[Array, "p c"]) -> _Certificate:
    """The candidate's direction: nothing blocks it and it moves nothing that is free.

    Every delta within the ranges has certificate . (G delta - h) <= bound - gain + ||open pull|| ||delta||, which is
    >= 0 where delta is an answer.
    """
    low, high = ranges_of(queue, lanes.which)
    lengths = jnp.where(lanes.used, lanes.lengths, 1)
    noise = 1e-14 * (1 + jnp.sum(jnp.abs(lanes.response), axis=-1, keepdims=True))
    multipliers = jnp.where(lanes.used & (lanes.response < -noise), -lanes.response, 0)
    combined = lanes.normal + jnp.einsum("pm,pmn->pn", multipliers, lanes.normals, precision=HIGHEST)
    ends = jnp.where(combined > 0, high, low)
    bounded = jnp.isfinite(ends)
    bound = jnp.where(bounded, combined * jnp.where(bounded, ends, 0), 0)
    gain = _of_candidate(offsets.true, lanes) - jnp.sum(bound, axis=-1)
    gain = gain + jnp.sum(jnp.where(lanes.used, multipliers * _of(offsets.true, lanes.slots), 0) / lengths, axis=-1)
    blur = _of_candidate(rounding, lanes) + 1e-15 * jnp.sum(jnp.abs(bound), axis=-1)
    blur = blur + jnp.sum(multipliers * _of(rounding, lanes.slots) / lengths, axis=-1)
    left = jnp.sqrt(jnp.sum(jnp.square(jnp.where(bounded, 0, combined)), axis=-1))
    # Weights that coincide with the target's say it alone, and exactly.
    clear = gain > jnp.where(lanes.length > 0, blur, 0)
    residual = left / (1 + jnp.sum(multipliers, axis=-1))
    return _Certificate(multipliers, residual, clear & (residual <= _CANCELLED))


def _evidence(lanes: Lanes, change: Array, multipliers: Array, empty: Array, num_slots: int) -> Evidence:
    capacity = lanes.slots.shape[1]
    slots, inverse = lanes.slots, lanes.inverse
    if capacity < num_slots:  # the certificate's candidate goes behind the active rivals
        room = [(0, 0), (0, num_slots - capacity)]
        slots, multipliers, inverse = (
            jnp.pad(slots, room),
            jnp.pad(multipliers, room),
            jnp.pad(inverse, [*room, room[1]]),
        )
        count, crowded = jnp.full(len(empty), capacity, jnp.int32), jnp.zeros(len(empty), bool)
    else:
        position = jnp.where(lanes.used, jnp.cumsum(lanes.used, axis=-1, dtype=jnp.int32) - 1, num_slots)
        rows = jnp.arange(len(empty), dtype=jnp.int32)[:, None]

        def compact(values):
            """Moves the used slots to the front and cuts to `num_slots`; what is in the others becomes 0."""
            target = jnp.zeros((len(empty), num_slots, *values.shape[2:]), values.dtype)
            return target.at[rows, position].set(values, mode="drop")

        slots, multipliers = compact(slots), compact(multipliers)
        inverse = compact(jnp.swapaxes(compact(inverse), 1, 2))
        count = jnp.sum(lanes.used, axis=-1, dtype=jnp.int32)
        crowded = count + empty.astype(jnp.int32) > num_slots
    behind = (jnp.arange(num_slots, dtype=jnp.int32)[None, :] == count[:, None]) & empty[:, None]
    own = 1 / jnp.where(lanes.length > 0, lanes.length, 1)
    return Evidence(
        slots=jnp.where(behind, lanes.candidate[:, None], slots),
        multipliers=jnp.where(crowded[:, None], jnp.nan, jnp.where(behind, own[:, None], multipliers)),
        pattern=Pattern(change, lanes.place, jnp.where(crowded[:, None, None], jnp.nan, inverse)),
    )
