"""Projections onto the regions of targets: a fast search for most pairs, more careful ones for the rest.

Ordinary pairs are done by the Gram matrix in the precision of the inputs. Those that it cannot settle, or that need
more slots, are tried by the Gram matrix in float64: classes with weights as close as 1e-5, relative. What is left,
empty regions among it, is for the exact search.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations.active_set import (
    Lanes,
    Regions,
    advance,
    conclude,
    empty_lanes,
    load,
    make_regions,
    unit_inverse,
)
from spectra_jax.perturbations.answers import Evidence, Pattern
from spectra_jax.perturbations.exact import exact_pairs, head_logits64
from spectra_jax.perturbations.float64 import in_float64
from spectra_jax.perturbations.geometry import gram_matrix, squared_distances
from spectra_jax.perturbations.lanes import pick, run_lanes, where_lane
from spectra_jax.types import Head, Status

# Slots of a lane of the two fast searches; the second is not worth its compilation for heads up to a small rank.
_FEW_SLOTS, _MORE_SLOTS, _SMALL_RANK = 12, 32, 16
# Enough lanes to fill the machine: on CPUs all of their state should fit into the cache.
_LANES, _LANES_ON_CPU = 16_384, 256
# A lane's inverse and slack may fill this many numbers over all lanes.
_LANE_MEMORY = 16_000_000
_STEPS_BETWEEN_RELOADS = 5
# Relative error that rounding may cause in a norm, in float32 and in float64.
_TOLERANCE, _TOLERANCE64 = 1e-5, 1e-10


class Shared(NamedTuple):
    """A head and what all pairs share.

    Attributes:
        head: weights (c, n), optional bias (c,).
        gram: (c, c) inner products of the centred weight rows over the attributes that may change.
        squares: (c, c) squared distances of the rows likewise.
        mutable: (n,) attributes that may change, or None for all.
    """

    head: Head
    gram: Float[Array, "c c"]
    squares: Float[Array, "c c"]
    mutable: Bool[Array, " n"] | None


class Solutions(NamedTuple):
    """The outcome of each pair.

    Attributes:
        status: (q,) a `Status`: SOLVED, INFEASIBLE or UNRESOLVED.
        norm: (q,) length of the change; inf where INFEASIBLE, NaN where UNRESOLVED.
        residual: (q,) largest violation of the optimality conditions, as a distance, or see `answers.Answers`.
        num_active: (q,) rivals with a positive multiplier.
        evidence: the active rivals, or None if not asked for; the change itself only where `exactly`.
        exactly: (q,) whether the exact search found it.
    """

    status: Int[Array, " q"]
    norm: Float[Array, " q"]
    residual: Float[Array, " q"]
    num_active: Int[Array, " q"]
    evidence: Evidence | None
    exactly: Bool[Array, " q"]

    @property
    def proof(self) -> Evidence:
        """The evidence, where it was asked for."""
        assert self.evidence is not None
        return self.evidence


def shared_by_pairs(head: Head, mutable: Bool[Array, " n"] | None) -> Shared:
    """What the searches of one head have in common."""
    gram, squares = gram_matrix(head.weights, mutable), squared_distances(head.weights, mutable)
    return Shared(head, gram, squares, mutable)


def search_pairs(
    shared: Shared,
    logits: Float[Array, "b c"],
    attributes: Float[Array, "b n"] | None,
    margins: Float[Array, " b"],
    samples: Int[Array, " q"],
    targets: Int[Array, " q"],
    *,
    num_slots: int | None = None,
    want_pattern: bool = True,
) -> Solutions:
    """The shortest change of each pair, whatever the precision: not differentiable, and not to be vmapped.

    Args:
        shared: the head and what belongs to it.
        logits: (b, c), up to a number common to each sample.
        attributes: (b, n) that they were computed from; None where the logits are what is given.
        margins: (b,) required lead.
        samples: (q,) rows of the logits.
        targets: (q,).
        num_slots, want_pattern: what evidence to return, see `dual_path.solve_exactly`.

    Returns:
        Solutions.
    """
    head, gram, squares, mutable = shared
    whole = jnp.all(logits < jnp.inf, axis=-1) & (margins < jnp.inf)
    # No finite change lifts a class masked by a logit of -inf.
    masked = pick(logits, samples, targets) == -jnp.inf
    told, masked = pick(whole, samples) & ~masked, pick(whole, samples) & masked
    rank = min(head.weights.shape[1], head.weights.shape[0] - 1)
    tolerance = _TOLERANCE64 if gram.dtype == jnp.float64 else _TOLERANCE
    # In float64 the logits' differences are exact to the last digit as they are.
    inputs = logits if attributes is None or logits.dtype == jnp.float64 else attributes
    from_logits = inputs is logits

    def by_gram(gram, squares, logits, margins, waiting, slots):
        regions = make_regions(gram, squares, logits, margins)
        blank = _no_evidence(len(samples), head.weights.shape[1], num_slots, want_pattern, gram.dtype)
        return _by_gram(regions, samples, targets, waiting, min(slots, rank), rank, blank, tolerance)

    def by_gram64(weights, bias, squares, inputs, margins, waiting):
        logits = inputs if from_logits else head_logits64(Head(weights, bias), inputs)
        return by_gram(gram_matrix(weights, mutable), squares, logits, margins, waiting, _MORE_SLOTS)

    found = by_gram(gram, squares, logits, margins, told, _FEW_SLOTS)
    if rank > _SMALL_RANK:
        unsettled = told & (found.status != Status.SOLVED)
        careful = in_float64(by_gram64)(head.weights, head.bias, squares, inputs, margins, unsettled)
        found = where_lane(found.status == Status.SOLVED, found, careful)
    exact = exact_pairs(
        *(head, squares, inputs, margins, samples, targets, told & (found.status != Status.SOLVED)),
        from_logits=from_logits,
        mutable=mutable,
        num_slots=num_slots,
        want_pattern=want_pattern,
    )
    found = where_lane(found.status == Status.SOLVED, found, Solutions(*exact, jnp.ones(len(samples), bool)))
    return found._replace(
        status=jnp.where(masked, Status.INFEASIBLE, found.status),
        norm=jnp.where(masked, jnp.inf, found.norm),
        residual=jnp.where(masked, 0, found.residual),
    )


def _no_evidence(
    size: int, num_attributes: int, num_slots: int | None, want_pattern: bool, dtype: jnp.dtype
) -> Evidence | None:
    """Room for it."""
    if num_slots is None:
        return None
    pattern = Pattern(
        jnp.zeros((size, num_attributes), dtype),
        jnp.zeros((size, num_attributes), jnp.int8),
        jnp.zeros((size, num_slots, num_slots), dtype),
    )
    slots, multipliers = jnp.zeros((size, num_slots), jnp.int32), jnp.zeros((size, num_slots), dtype)
    return Evidence(slots, multipliers, pattern if want_pattern else None)


def _by_gram(
    regions: Regions,
    samples: Int[Array, " q"],
    targets: Int[Array, " q"],
    waiting: Bool[Array, " q"],
    capacity: int,
    rank: int,
    evidence: Evidence | None,
    tolerance: float,
) -> Solutions:
    """By `active_set`, on lanes with this many slots; what it cannot settle is not SOLVED."""
    size, dtype = len(samples), regions.gram.dtype
    unknown = jnp.full(size, jnp.nan, dtype)
    status = jnp.full(size, Status.UNRESOLVED, jnp.int32)
    solutions = Solutions(status, unknown, unknown, jnp.zeros(size, jnp.int32), evidence, jnp.zeros(size, bool))
    if not size:
        return solutions
    most = _LANES_ON_CPU if jax.default_backend() == "cpu" else _LANES
    num_lanes = max(1, min(size, most, _LANE_MEMORY // (capacity * capacity + len(regions.gram))))

    def start(lanes, chosen, pair):
        return load(lanes, chosen, pick(samples, pair), pick(targets, pair))

    def work(lanes):
        def step(state):
            lanes, count = state
            return advance(regions, lanes, complete=capacity == rank, max_steps=64 + 8 * rank), count + 1

        # Not a fori_loop: see `in_float64`.
        lanes, _ = jax.lax.while_loop(lambda state: state[1] < _STEPS_BETWEEN_RELOADS, step, (lanes, jnp.int32(0)))
        return conclude(regions, lanes, tolerance)

    def write(solutions, where, lanes: Lanes, figures):
        def put(old, new):
            return old.at[where].set(new, mode="drop")

        evidence = solutions.evidence
        if evidence is not None:
            room = [(0, 0), (0, evidence.slots.shape[1] - capacity)]
            pattern = evidence.pattern
            if pattern is not None:
                inverse = jnp.pad(unit_inverse(regions, lanes), [*room, room[1]])
                pattern = pattern._replace(inverse=put(pattern.inverse, inverse))
            evidence = Evidence(
                slots=put(evidence.slots, jnp.pad(lanes.slots, room)),
                multipliers=put(evidence.multipliers, jnp.pad(jnp.where(lanes.used, lanes.multipliers, 0), room)),
                pattern=pattern,
            )
        return Solutions(
            status=put(solutions.status, lanes.status),
            norm=put(solutions.norm, figures.norm),
            residual=put(solutions.residual, figures.residual),
            num_active=put(solutions.num_active, figures.num_active),
            evidence=evidence,
            exactly=solutions.exactly,
        )

    lanes = empty_lanes(regions, num_lanes, capacity)
    return run_lanes(lanes, solutions, waiting, load=start, work=work, write=write)
