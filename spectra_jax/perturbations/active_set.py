"""One step of the dual active-set method (Goldfarb and Idnani 1983) for many (sample, target) pairs side by side.

The nearest point of a decision region solves

    min 1/2 ||delta||^2   s.t.   g_k . delta >= h_k,   g_k = w_j - w_k,  h_k = l_k - l_j + margin.

delta = sum_k lambda_k g_k at the optimum, so everything the solver needs is the Gram matrix K = W W^T:
g_k . g_m = K_jj - K_jk - K_jm + K_km. The number of attributes drops out of the iteration.

It starts at delta = 0, adds the most violated rival, and drops rivals whose multiplier would turn
negative: every iterate is optimal for its own active set, so it ends after finitely many steps.

A pair occupies a lane: a few slots with its active rivals, their multipliers and the inverse of their Gram matrix.
Only the search for the most violated rival looks at all classes, and all it does is add up a few rows of K.

This is the fast path for ordinary pairs. Classes with nearly equal weights, whose differences cancel in K, rivals that
depend on each other and empty regions are recognised and left to `dual_path`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import HIGHEST, safe_sqrt
from spectra_jax.perturbations.lanes import (
    CONVERGED,
    FULL,
    IDLE,
    RUNNING,
    STUCK,
    pick,
    scatter_slots,
    times,
    where_lane,
)
from spectra_jax.types import Status

# Up to here the active rows of K are added up one by one; beyond, one matrix product is cheaper.
_FEW_SLOTS = 16


class Regions(NamedTuple):
    """What all pairs share.

    Attributes:
        gram: (c, c) their inner products.
        lengths: (c, c) distances ||w_j - w_k||.
        inverse_lengths: (c, c) their reciprocals; 0 for rows closer than rounding can tell apart, which count as one.
        logits: (b, c) of the samples; -inf for a class that can never be predicted.
        margins: (b,) required lead, in logits.
    """

    gram: Float[Array, "c c"]
    lengths: Float[Array, "c c"]
    inverse_lengths: Float[Array, "c c"]
    logits: Float[Array, "b c"]
    margins: Float[Array, " b"]


def make_regions(
    gram: Float[Array, "c c"],
    squares: Float[Array, "c c"],
    logits: Float[Array, "b c"],
    margins: Float[Array, " b"],
) -> Regions:
    """What all pairs share, from the Gram matrix of the centred weight rows and their squared distances."""
    lengths = jnp.sqrt(squares)
    same = lengths <= 4 * float(jnp.finfo(gram.dtype).eps) * jnp.sqrt(jnp.max(jnp.diagonal(gram)))
    return Regions(gram, lengths, jnp.where(same, 0, 1 / jnp.where(same, 1, lengths)), logits, margins)


class Lanes(NamedTuple):
    """Pairs being solved, one in every lane.

    Attributes:
        sample: (p,) which pair, with `target`.
        target: (p,).
        slots: (p, m) class index of the active rival in each slot.
        used: (p, m) which slots are occupied.
        multipliers: (p, m) lambda >= 0, 0 in free slots.
        inverse: (p, m, m) inverse of the active rivals' Gram matrix, 0 in free rows and columns.
        candidate: (p,) rival being added, -1 between additions.
        candidate_multiplier: (p,) that of the candidate, so far.
        settled: (p, c) rivals not to be added: the target and the active ones.
        status: (p,) see `lanes`.
        steps: (p,) steps taken.
    """

    sample: Int[Array, " p"]
    target: Int[Array, " p"]
    slots: Int[Array, "p m"]
    used: Bool[Array, "p m"]
    multipliers: Float[Array, "p m"]
    inverse: Float[Array, "p m m"]
    candidate: Int[Array, " p"]
    candidate_multiplier: Float[Array, " p"]
    settled: Bool[Array, "p c"]
    status: Int[Array, " p"]
    steps: Int[Array, " p"]


class Conclusions(NamedTuple):
    """What `conclude` says of each lane; only meaningful for lanes that ended.

    Attributes:
        norm: (p,) length of delta, from the dual objective, whose error is the square of the multipliers'.
        residual: (p,) largest violation of the optimality conditions, as a distance in attribute space.
        num_active: (p,) rivals with a positive multiplier.
    """

    norm: Float[Array, " p"]
    residual: Float[Array, " p"]
    num_active: Int[Array, " p"]


def empty_lanes(regions: Regions, num_lanes: int, capacity: int) -> Lanes:
    """Idle lanes with `capacity` slots each."""
    num_classes, dtype = regions.gram.shape[0], regions.gram.dtype
    return Lanes(
        sample=jnp.zeros(num_lanes, jnp.int32),
        target=jnp.zeros(num_lanes, jnp.int32),
        slots=jnp.zeros((num_lanes, capacity), jnp.int32),
        used=jnp.zeros((num_lanes, capacity), bool),
        multipliers=jnp.zeros((num_lanes, capacity), dtype),
        inverse=jnp.zeros((num_lanes, capacity, capacity), dtype),
        candidate=jnp.full(num_lanes, -1, jnp.int32),
        candidate_multiplier=jnp.zeros(num_lanes, dtype),
        settled=jnp.zeros((num_lanes, num_classes), bool),
        status=jnp.full(num_lanes, IDLE, jnp.int32),
        steps=jnp.zeros(num_lanes, jnp.int32),
    )


def load(lanes: Lanes, chosen: Bool[Array, " p"], sample: Int[Array, " p"], target: Int[Array, " p"]) -> Lanes:
    """Starts new pairs in the chosen lanes."""
    classes = jnp.arange(lanes.settled.shape[1], dtype=jnp.int32)
    fresh = jax.tree.map(jnp.zeros_like, lanes)._replace(
        sample=sample,
        target=target,
        candidate=jnp.full_like(lanes.candidate, -1),
        settled=classes[None, :] == target[:, None],
        status=jnp.full_like(lanes.status, RUNNING),
    )
    return where_lane(chosen, fresh, lanes)


def advance(regions: Regions, lanes: Lanes, *, complete: bool, max_steps: int) -> Lanes:
    """One step of every running lane: add the candidate, or drop the rival that blocks it.

    Args:
        regions: shared by all lanes.
        lanes: in any state; those not RUNNING do not change.
        complete: whether the slots reach min(n, c - 1), so that a full working set spans everything and any further
            rival depends on it.
        max_steps: bound on additions plus removals of a pair.

    Returns:
        The lanes after the step.
    """
    _, dependence = _precision(regions)
    gram, target, slots, used, multipliers = regions.gram, lanes.target, lanes.slots, lanes.used, lanes.multipliers
    capacity = slots.shape[1]
    violated, found = _most_violated(regions, lanes)
    fresh = lanes.candidate < 0
    candidate = jnp.where(fresh, violated, lanes.candidate)
    solved = fresh & ~found

    # Direction: raise lambda_candidate by one and keep the active rivals tight.
    cross, response = _response(regions, lanes, candidate)
    length = pick(regions.lengths, target, candidate)
    square = jnp.square(length)
    left = square - jnp.sum(cross * response, axis=-1)
    independent = (pick(regions.inverse_lengths, target, candidate) > 0) & (left > dependence * square)
    if complete:
        independent = independent & ~jnp.all(used, axis=-1)
    reached = jnp.sum(multipliers * cross, axis=-1) + lanes.candidate_multiplier * square
    slack = reached - _offset(regions, lanes.sample, target, candidate)
    # A response that is zero but for rounding must not block, or divide: hence the relative threshold.
    reaction = response * pick(regions.lengths, target[:, None], slots)
    largest = jnp.maximum(jnp.max(jnp.abs(jnp.where(used, reaction, 0)), axis=-1), length)
    falling = used & (reaction > dependence * largest[:, None])
    ratios = jnp.where(falling, multipliers / jnp.where(falling, response, 1), jnp.inf)
    shortest = jnp.min(ratios, axis=-1)
    full_step = jnp.where(independent, jnp.maximum(-slack, 0) / jnp.where(independent, left, 1), jnp.inf)
    step = jnp.minimum(shortest, full_step)
    stuck = ~jnp.isfinite(step) & ~solved
    add = full_step <= shortest
    no_room = add & jnp.all(used, axis=-1) & ~stuck & ~solved
    go = (lanes.status == RUNNING) & ~solved & ~stuck & ~no_room

    # One rank-one update serves both adding (append a row) and removing (pivot a row out).
    numbers = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    eligible = jnp.where(add[:, None], ~used, ratios <= shortest[:, None])
    slot = jnp.min(jnp.where(eligible, numbers, capacity), axis=-1)
    at_slot = numbers == slot[:, None]
    column = jnp.sum(jnp.where(at_slot[:, None, :], lanes.inverse, 0), axis=-1)
    pivot = jnp.sum(jnp.where(at_slot, column, 0), axis=-1)
    vector = jnp.where(add[:, None], jnp.where(at_slot, -1, response), column)
    factor = jnp.where(add, 1 / jnp.where(independent, left, 1), -1 / jnp.where(pivot > 0, pivot, 1))
    keep = add[:, None] | ~at_slot
    inverse = lanes.inverse + factor[:, None, None] * vector[:, :, None] * vector[:, None, :]
    inverse = jnp.where(keep[:, :, None] & keep[:, None, :], inverse, 0)

    step = jnp.where(go, step, 0)
    candidate_multiplier = lanes.candidate_multiplier + step
    after = jnp.where(used, jnp.maximum(multipliers - step[:, None] * response, 0), 0)
    after = jnp.where(at_slot, jnp.where(add, candidate_multiplier, 0)[:, None], after)
    changing = jnp.where(go, jnp.where(add, candidate, jnp.max(jnp.where(at_slot, slots, -1), axis=-1)), -1)
    classes = jnp.arange(gram.shape[0], dtype=jnp.int32)
    settled = jnp.where(classes[None, :] == changing[:, None], add[:, None], lanes.settled)
    steps = lanes.steps + 1
    status = jnp.where(no_room, FULL, jnp.where(steps >= max_steps, Status.UNRESOLVED, RUNNING))
    status = jnp.where(solved, CONVERGED, jnp.where(stuck, STUCK, status)).astype(jnp.int32)
    moved = lanes._replace(
        slots=jnp.where(at_slot & add[:, None], candidate[:, None], slots),
        used=jnp.where(at_slot, add[:, None], used),
        multipliers=after,
        inverse=inverse,
        candidate_multiplier=jnp.where(add, 0, candidate_multiplier),
        settled=settled,
    )
    lanes_after = where_lane(go, moved, lanes)
    running = lanes.status == RUNNING
    return lanes_after._replace(
        candidate=jnp.where(go & add, -1, jnp.where(running & ~solved, candidate, lanes.candidate)),
        status=jnp.where(running, status, lanes.status),
        steps=jnp.where(running, steps, lanes.steps),
    )


def conclude(regions: Regions, lanes: Lanes, tolerance: float) -> tuple[Lanes, Conclusions]:
    """Polishes and checks lanes that have CONVERGED.

    What rounding can have spoilt by more than the tolerance, relative to the norm, is UNRESOLVED: a norm that nearly
    cancels, rivals whose slack is not known well enough to say that they are behind, weights close to the target's. So
    is every STUCK lane, whose candidate depends on the active rivals: this precision cannot tell whether its region is
    empty.
    """
    solved = lanes.status == CONVERGED
    polished = _polish(regions, lanes, solved)
    trusted, residual = _judge(regions, polished, tolerance)
    ended_otherwise = solved | (lanes.status == STUCK)
    status = jnp.where(ended_otherwise, Status.UNRESOLVED, lanes.status)
    status = jnp.where(solved & trusted, Status.SOLVED, status).astype(jnp.int32)
    optimal = status == Status.SOLVED
    return polished.lanes._replace(status=status), Conclusions(
        norm=jnp.where(optimal, safe_sqrt(polished.square), jnp.nan),
        residual=jnp.where(optimal, residual, jnp.nan),
        num_active=jnp.sum(polished.lanes.multipliers > 0, axis=-1, dtype=jnp.int32),
    )


class _Polished(NamedTuple):
    """Lanes whose multipliers solve the system of their active rivals.

    Attributes:
        lanes: with these multipliers.
        square: (p,) ||delta||^2.
        apart: (p,) the largest distance between the point and the facet of an active rival.
    """

    lanes: Lanes
    square: Float[Array, " p"]
    apart: Float[Array, " p"]


def _polish(regions: Regions, lanes: Lanes, solved: Bool[Array, " p"]) -> _Polished:
    """One Newton step against the true Gram matrix: the inverse was built up step by step, and so was its rounding."""
    target, slots, used = lanes.target, lanes.slots, lanes.used
    own = pick(regions.gram, target, target)[:, None]
    to_target = pick(regions.gram, target[:, None], slots)
    between = pick(regions.gram, slots[:, :, None], slots[:, None, :])
    between = own[:, :, None] - to_target[:, :, None] - to_target[:, None, :] + between
    between = jnp.where(used[:, :, None] & used[:, None, :], between, 0)
    offsets = jnp.where(used, _offset(regions, lanes.sample[:, None], target[:, None], slots), 0)
    correction = times(lanes.inverse, offsets - times(between, lanes.multipliers))
    multipliers = jnp.where(used & solved[:, None], jnp.maximum(lanes.multipliers + correction, 0), lanes.multipliers)
    product = times(between, multipliers)
    square = jnp.maximum(jnp.sum(multipliers * (2 * offsets - product), axis=-1), 0)
    lengths = pick(regions.lengths, target[:, None], slots)
    apart = jnp.max(jnp.where(used, jnp.abs(product - offsets) / jnp.where(used, lengths, 1), 0), axis=-1)
    return _Polished(lanes._replace(multipliers=multipliers), square, apart)


def _judge(regions: Regions, polished: _Polished, tolerance: float) -> tuple[Bool[Array, " p"], Float[Array, " p"]]:
    """Whether rounding can have spoilt no more than the tolerance, and the largest violation of a constraint."""
    epsilon, _ = _precision(regions)
    lanes, square = polished.lanes, polished.square
    target, slots, multipliers = lanes.target, lanes.slots, lanes.multipliers
    slack, rounding, _ = _slack(regions, lanes)
    inverse_lengths = pick(regions.inverse_lengths, target)
    # K cancels in the normals: the rounding of a slack is that of the products of whole weight rows.
    sizes = jnp.sqrt(jnp.diagonal(regions.gram))
    terms = jnp.sum(multipliers * (pick(sizes, slots) + pick(sizes, target)[:, None]), axis=-1)
    noise = rounding + 4 * epsilon * (sizes[None, :] + pick(sizes, target)[:, None]) * terms[:, None]
    rival = jnp.arange(len(sizes), dtype=jnp.int32)[None, :] != target[:, None]
    violation = jnp.max(jnp.maximum(-slack, 0) * inverse_lengths, axis=-1)
    # An active rival may be off by its noise. Another one that may be violated may depend on the active ones, and then
    # no bound says how far away the point is that satisfies both.
    active = lanes.settled & rival
    bounded = jnp.where(active & (inverse_lengths > 0), noise * inverse_lengths, jnp.inf)
    unclear = jnp.where(rival & (slack <= noise), bounded, 0)
    residual = jnp.maximum(violation, polished.apart)
    rows = jnp.arange(len(target), dtype=jnp.int32)[:, None]
    blurred = jnp.sum(multipliers * pick(rounding, rows, slots), axis=-1)
    trusted = (
        (jnp.maximum(residual, jnp.max(unclear, axis=-1)) <= tolerance * safe_sqrt(square))
        & (blurred <= tolerance * square)
        & (2 * epsilon * jnp.square(terms) <= 10 * tolerance * square)
    )
    # A target that wins already, by more than rounding, needs no change.
    nothing = ~jnp.any(lanes.used, axis=-1) & jnp.all(~rival | (slack > noise), axis=-1)
    return trusted | nothing, residual


def unit_inverse(regions: Regions, lanes: Lanes) -> Float[Array, "p m m"]:
    """The inverse for normals of length 1."""
    lengths = pick(regions.lengths, lanes.target[:, None], lanes.slots)
    return lanes.inverse * lengths[:, :, None] * lengths[:, None, :]


def _precision(regions: Regions) -> tuple[float, float]:
    """Machine epsilon, and the relative size below which a rival depends on the active ones.

    Next to nothing of g_p is left over then. What is left comes from a difference of numbers of size ||g_p||^2 through
    an inverse that may be ill-conditioned, hence far more than one rounding error: rivals closer than 5e-3 (float32)
    or 6e-6 (float64) radians count as dependent.
    """
    epsilon = float(jnp.finfo(regions.gram.dtype).eps)
    return epsilon, epsilon ** (2 / 3)


def _offset(regions: Regions, sample: Array, target: Array, rival: Array) -> Array:
    logits, own = pick(regions.logits, sample, rival), pick(regions.logits, sample, target)
    return formulas.offset(logits, own, pick(regions.margins, sample))


def _response(regions: Regions, lanes: Lanes, rival: Int[Array, " p"]) -> tuple[Array, Array]:
    """g_s . g_rival of the active rivals s, and how their multipliers fall as that of `rival` rises."""
    gram, target = regions.gram, lanes.target
    cross = pick(gram, target, target) - pick(gram, target, rival)
    cross = cross[:, None] - pick(gram, target[:, None], lanes.slots) + pick(gram, rival[:, None], lanes.slots)
    cross = jnp.where(lanes.used, cross, 0)
    return cross, times(lanes.inverse, cross)


def _slack(regions: Regions, lanes: Lanes) -> tuple[Float[Array, "p c"], Float[Array, "p c"], Float[Array, "p c"]]:
    """g_k . delta - h_k of every rival, the rounding to expect in h_k, and in all of it."""
    gram, target = regions.gram, lanes.target
    epsilon, _ = _precision(regions)
    # v = lambda - sum(lambda) at the target turns G G^T lambda into differences of K v.
    candidate, total = jnp.maximum(lanes.candidate, 0), jnp.sum(lanes.multipliers, axis=-1) + lanes.candidate_multiplier
    if lanes.slots.shape[1] <= _FEW_SLOTS:
        of_slots = zip(lanes.multipliers.T, lanes.slots.T, strict=True)
        rows = sum(multiplier[:, None] * pick(gram, slot) for multiplier, slot in of_slots)
        rows = rows + lanes.candidate_multiplier[:, None] * pick(gram, candidate)
    else:
        multipliers = scatter_slots(lanes.slots, jnp.where(lanes.used, lanes.multipliers, 0), gram.shape[0])
        rows = jnp.matmul(multipliers, gram, precision=HIGHEST)
        rows = rows + lanes.candidate_multiplier[:, None] * pick(gram, candidate)
    rows = rows - total[:, None] * pick(gram, target)
    at_target = jnp.sum(lanes.multipliers * pick(gram, target[:, None], lanes.slots), axis=-1)
    at_target = at_target + lanes.candidate_multiplier * pick(gram, candidate, target)
    at_target = at_target - total * pick(gram, target, target)
    spread = jnp.sum(lanes.multipliers * pick(regions.lengths, target[:, None], lanes.slots), axis=-1)
    spread = spread + lanes.candidate_multiplier * pick(regions.lengths, target, candidate)
    logits, own = pick(regions.logits, lanes.sample), pick(regions.logits, lanes.sample, target)[:, None]
    margins = pick(regions.margins, lanes.sample)[:, None]
    rounding = formulas.offset_rounding(logits, own, margins)
    slack = (rows - at_target[:, None]) - formulas.offset(logits, own, margins)
    return slack, rounding, 8 * (rounding + epsilon * pick(regions.lengths, target) * spread[:, None])


def _most_violated(regions: Regions, lanes: Lanes) -> tuple[Int[Array, " p"], Bool[Array, " p"]]:
    """The rival violated most, in distance, and whether there is one."""
    slack, _, noise = _slack(regions, lanes)
    inverse_lengths = pick(regions.inverse_lengths, lanes.target)
    violated = ~lanes.settled & (slack < -noise)
    # Rivals with the target's own weights come first: they decide feasibility.
    distance = jnp.where(inverse_lengths > 0, -slack * inverse_lengths, float(jnp.finfo(slack.dtype).max))
    distance = jnp.where(violated, distance, 0)
    num_classes = distance.shape[1]
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    if distance.dtype == jnp.float64:
        most = jnp.max(distance, axis=-1)
        first = jnp.min(jnp.where(violated & (distance >= most[:, None]), classes[None, :], num_classes), axis=-1)
        return jnp.minimum(first, num_classes - 1), first < num_classes
    # The bits of a positive float order like an integer. With the index in its lowest bits one maximum finds both; an
    # argmax is several times slower. Distances that agree in their leading bits are as good as each other.
    mask = (1 << (num_classes - 1).bit_length()) - 1
    keys = (jax.lax.bitcast_convert_type(distance, jnp.int32) & ~mask) | (mask - classes)[None, :]
    best = jnp.max(jnp.where(violated, keys, -1), axis=-1)
    return (mask - (best & mask)) % num_classes, best >= 0
