"""The smallest change of at most k attributes that makes the target win."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_count, check_mutable
from spectra_jax.perturbations.batching import over_members
from spectra_jax.perturbations.dual_path import Answers
from spectra_jax.perturbations.exact import exact_on_supports
from spectra_jax.perturbations.geometry import (
    HIGHEST,
    has_answer,
    logit_gaps,
    of_unit_size,
    relative_logits,
    safe_norm,
    squared_distances,
)
from spectra_jax.perturbations.lagrangian import raise_bound, unit_rows
from spectra_jax.perturbations.lanes import OPTIMAL, scatter_slots
from spectra_jax.perturbations.projection import projection_perturbation
from spectra_jax.perturbations.single_attribute import single_attribute_perturbations
from spectra_jax.perturbations.smooth import nearest_on
from spectra_jax.switches import public
from spectra_jax.types import Head

# Rounds of exchanging one attribute for another; each tries all k n exchanges and ends where none is better.
_MAX_ROUNDS = 30
_BOUND_STEPS = 400
# Starts with an attribute that is enough alone.
_SINGLE_STARTS = 4


class SparseResult(NamedTuple):
    """A change of few attributes, and how far from the best one it can be.

    Attributes:
        delta: (n,) the change; inf where none exists, NaN where none was found although one may exist.
        norm: its Euclidean length; inf or NaN likewise.
        lower_bound: no change of at most k attributes is shorter than this.
        proven: whether the answer is proven: norm equals lower_bound up to rounding, or there is no answer.
        support: (n,) the attributes that were allowed to change, at most k.
        multipliers: (c,) of the rivals; positive only for those that bind. delta = sum_k multipliers_k
            (w_target - w_k) on the support.
        feasible: whether delta makes the target win by the margin.
        kkt_residual: of the projection on the support, see `ProjectionResult`; NaN where not feasible.
    """

    delta: Float[Array, "n"]
    norm: Float[Array, ""]
    lower_bound: Float[Array, ""]
    proven: Bool[Array, ""]
    support: Bool[Array, "n"]
    multipliers: Float[Array, "c"]
    feasible: Bool[Array, ""]
    kkt_residual: Float[Array, ""]


@public()
def sparse_perturbation(
    head: Head,
    attributes: Float[Array, "n"],
    target: Int[Array, ""] | int,
    *,
    max_changes: int,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, "n"] | None = None,
) -> SparseResult:
    """Small change (Euclidean) of at most `max_changes` attributes after which `target` wins by `margin`.

    With one attribute the answer is exact, from the intervals of `single_attribute_perturbations`; with all of them it
    is `projection_perturbation`. Between the two the problem is combinatorial. A set of attributes is searched by
    exchanging one for another until no exchange is better, with the exact projection on each set tried, and the
    result says by how much it can miss the optimum: lower_bound is a proof, from Lagrange multipliers, that nothing
    shorter exists.

    Derivatives with respect to weights, bias, attributes and margin are those of the projection on the chosen set.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        max_changes: how many attributes may change; part of the compiled shape. Meant for few: the time grows with its
            third power.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        SparseResult.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, max_changes below 1.
    """
    head, attributes, target, margin = as_pair(head, attributes, target, margin)
    check_mutable(head, mutable)
    max_changes = check_count("max_changes", max_changes)
    return _solve(head, attributes, target, margin, mutable, count=min(max_changes, head.weights.shape[1]))


@functools.partial(
    jax.jit, static_argnames="count"
)  # op by op it would be hundreds of programs, compiled at every call
def _solve(head, attributes, target, margin, mutable, *, count: int) -> SparseResult:
    fixed = jax.lax.stop_gradient
    head, margin, scale = of_unit_size(head, margin)
    num_attributes, dtype = head.weights.shape[1], attributes.dtype
    allowed = jnp.ones(num_attributes, bool) if mutable is None else mutable
    whole = projection_perturbation(head, attributes, target, margin=margin, mutable=mutable)
    if count == num_attributes:
        return SparseResult(
            delta=whole.delta,
            norm=whole.norm,
            lower_bound=fixed(whole.norm),
            proven=~jnp.isnan(whole.norm),
            support=allowed & whole.feasible,
            multipliers=scale * whole.multipliers,
            feasible=whole.feasible,
            kkt_residual=jnp.where(whole.feasible, whole.kkt_residual, jnp.nan),
        )

    whole = jax.tree.map(fixed, whole)
    columns, gaps = jnp.where(allowed[None, :], head.weights, 0), _gaps(head, attributes, target, margin)
    still = (fixed(columns), fixed(gaps), target, allowed)
    single = single_attribute_perturbations(jax.tree.map(fixed, head), fixed(attributes), target, margin=fixed(margin))
    lengths = jnp.where(allowed, jnp.abs(single.delta), jnp.inf)
    nearest = jnp.argmin(lengths).astype(jnp.int32)
    if count == 1:
        starts = nearest[None, None]
    else:
        pull = _lower_bound(*still, whole, whole.multipliers, jnp.asarray(jnp.inf, dtype), count)[1]
        starts = _starts(pull, jnp.where(jnp.isfinite(whole.delta), whole.delta, 0), lengths, allowed, count)
    support, found = _search(fixed(head), fixed(attributes), target, fixed(margin), allowed, starts)

    feasible, rivals = found.status == OPTIMAL, found.proof
    point = nearest_on(
        columns[:, support],
        gaps,
        target,
        ends=jnp.zeros(count, dtype),
        free=jnp.ones(count, bool),
        slots=rivals.slots,
        multipliers=jnp.where(feasible, rivals.multipliers, 0),
        inverse=rivals.whole.inverse,
        delta=rivals.whole.delta,
        known=jnp.asarray(True),
    )
    multipliers = scatter_slots(rivals.slots[None], jnp.where(feasible, point.multipliers, 0)[None], len(gaps))[0]
    norm = safe_norm(point.delta)
    if count == 1:
        # In one dimension the search is complete, and its verdict is that of the intervals.
        bound = jnp.where(feasible, norm, jnp.where(lengths[nearest] == jnp.inf, jnp.inf, jnp.nan))
    else:
        bound = _lower_bound(*still, whole, fixed(multipliers), fixed(jnp.where(feasible, norm, jnp.inf)), count)[0]
    bound = fixed(bound)
    none = ~feasible & (bound == jnp.inf)
    nothing = jnp.where(none, jnp.inf, jnp.nan)
    size = safe_norm(attributes) + norm
    return SparseResult(
        delta=jnp.where(feasible, jnp.zeros(num_attributes, dtype).at[support].set(point.delta), nothing),
        norm=jnp.where(feasible, norm, nothing),
        lower_bound=jnp.where(feasible, jnp.minimum(bound, fixed(norm)), bound),
        proven=none | (feasible & (norm - bound <= 10 * float(jnp.finfo(dtype).eps) ** (2 / 3) * norm)),
        support=jnp.zeros(num_attributes, bool).at[support].set(feasible) & allowed,
        multipliers=scale * multipliers,
        feasible=feasible,
        kkt_residual=fixed(jnp.where(feasible, found.residual / jnp.where(size > 0, size, 1), jnp.nan)),
    )


def _gaps(head: Head, attributes: Float[Array, "n"], target: Int[Array, ""], margin: Float[Array, ""]):
    return logit_gaps(relative_logits(head, attributes[None])[0], target, margin)


def _strongest(pull: Float[Array, "n"], allowed: Bool[Array, "n"], count: int) -> Int[Array, "k"]:
    """The k attributes that are pulled most, among those that may change."""
    return jax.lax.top_k(jnp.where(allowed, jnp.abs(pull), -1), count)[1].astype(jnp.int32)


def _starts(pull, shortest, singles, allowed, count: int) -> Int[Array, "s k"]:
    """Supports to start from.

    The attributes that are pulled most, by the multipliers of the lower bound and by the projection, and the former
    together with one attribute that is enough alone, which is feasible.
    """
    alone = jax.lax.top_k(-singles, min(_SINGLE_STARTS, len(singles)))[1]
    forced = jax.vmap(lambda first: pull.at[first].set(jnp.inf))(alone)
    wanted = jnp.concatenate([jnp.stack([pull, shortest]), forced])
    return jax.vmap(lambda each: _strongest(each, allowed, count))(wanted)


class _Round(NamedTuple):
    """Supports being improved side by side.

    Attributes:
        supports: (s, k).
        answers: (s,) of the exact search on each.
        improving: (s,) whether the last round made it better.
        number: of the round; 0 solves the supports themselves.
    """

    supports: Int[Array, "s k"]
    answers: Answers
    improving: Bool[Array, "s"]
    number: Int[Array, ""]


def _search(head: Head, attributes, target, margin, allowed, starts) -> tuple[Int[Array, "k"], Answers]:
    """From several supports: exchanges one attribute for another while that helps; the best of all ends.

    With pull = lambda^T G of the support's own answer, no support S' can have a shorter change than norm^2 / ||pull on
    S'||, by weak duality. So only newcomers that are pulled more than the attribute they replace are tried.
    """
    num_attributes, (num_starts, count) = len(attributes), starts.shape
    squares, eps = squared_distances(head.weights), float(jnp.finfo(attributes.dtype).eps)
    places = jnp.repeat(jnp.arange(count, dtype=jnp.int32), num_attributes)
    newcomers = jnp.tile(jnp.arange(num_attributes, dtype=jnp.int32), count)
    tries = jnp.arange(len(places), dtype=jnp.int32)
    solve = _on_supports(head, squares, attributes, target, margin)

    def lengths(answers):
        return jnp.where(answers.status == OPTIMAL, answers.norm, jnp.inf)

    def propose(support, answer, improving, number):
        """(t, k) supports to try from one, and (t,) which of them are worth it."""
        rivals = answer.proof
        known = answer.status == OPTIMAL
        rows = head.weights[target][None, :] - head.weights[rivals.slots]
        pull = jnp.abs(jnp.matmul(jnp.where(known, rivals.multipliers, 0), rows, precision=HIGHEST))
        promising = ~known | (pull[newcomers] > pull[support[places]] * (1 - 16 * eps))
        twice = jnp.any(newcomers[:, None] == support[None, :], axis=-1)
        exchanged = jax.vmap(lambda place, newcomer: support.at[place].set(newcomer))(places, newcomers)
        first = number == 0
        worth = jnp.where(first, tries == 0, allowed[newcomers] & ~twice & promising)
        return jnp.where(first, support[None, :], exchanged), worth & improving

    def step(state: _Round) -> _Round:
        tried, worth = jax.vmap(propose, (0, 0, 0, None))(*state)
        # Vmapped along with others that still search, a problem that is done must cost nothing.
        worth = worth & (state.number < _MAX_ROUNDS)
        found = jax.tree.map(
            lambda leaf: leaf.reshape(num_starts, len(tries), *leaf.shape[1:]),
            solve(tried.reshape(-1, count), worth.reshape(-1)),
        )
        norms = jnp.where(worth, lengths(found), jnp.inf)
        winner = jnp.argmin(norms, axis=1)
        least = jnp.take_along_axis(norms, winner[:, None], axis=1)[:, 0]
        better = least < lengths(state.answers) * (1 - 4 * eps)
        rows = jnp.arange(num_starts, dtype=jnp.int32)

        def chosen(new, old):
            return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new[rows, winner], old)

        answers = jax.tree.map(chosen, found, state.answers)
        # A start that is not feasible itself goes on with its exchanges.
        improving = better | (state.number == 0)
        return _Round(chosen(tried, state.supports), answers, improving, state.number + 1)

    shape = jax.eval_shape(solve, starts, jnp.zeros(num_starts, bool))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    start = _Round(starts, nothing, jnp.ones(num_starts, bool), jnp.asarray(0, jnp.int32))
    rounds = 1 if count == 1 else _MAX_ROUNDS
    last = jax.lax.while_loop(lambda state: jnp.any(state.improving) & (state.number < rounds), step, start)
    best = jnp.argmin(lengths(last.answers))
    return last.supports[best], jax.tree.map(lambda leaf: leaf[best], last.answers)


def _on_supports(head, squares, attributes, target, margin):
    """(supports (t, k), waiting (t,)) -> Answers with leading axis t; all vmapped ones are searched together."""

    def search(shared, members):
        attributes, targets, margins, supports, waiting = members
        num_samples, num_tries, count = supports.shape
        samples = jnp.repeat(jnp.arange(num_samples, dtype=jnp.int32), num_tries)
        supports, waiting = supports.reshape(-1, count), waiting.reshape(-1)
        head, squares = shared
        found = exact_on_supports(head, squares, attributes, margins, samples, targets[samples], supports, waiting)
        return jax.tree.map(lambda leaf: leaf.reshape(num_samples, num_tries, *leaf.shape[1:]), found)

    def solve(supports, waiting):
        told = has_answer(head, attributes, target, margin)
        return over_members(search)((head, squares), (attributes, target, margin, supports, waiting & told))

    return solve


def _lower_bound(columns, gaps, target, allowed, whole, multipliers, upper, count: int):
    """The norm that no k attributes can do with less than, and the pull of the multipliers that prove it.

    Searched from the multipliers of the projection, and from others at hand.
    """
    normals, heights, lengths = unit_rows(columns[target][None, :] - columns, gaps)

    def least(pull):
        chosen = _strongest(pull, allowed, count)
        return jnp.zeros_like(pull).at[chosen].set(pull[chosen])

    def raised(multipliers):
        start = jnp.where(jnp.isfinite(multipliers), multipliers, 0) * lengths
        return raise_bound(normals, heights, least, start, upper**2 / 2, steps=_BOUND_STEPS)

    half_squares, proofs = jax.lax.map(raised, jnp.stack([whole.multipliers, multipliers]))
    best = jnp.argmax(half_squares)
    # Fewer attributes never need less than all of them; their norm itself carries the rounding of the projection.
    unrestricted = jnp.where(whole.feasible, whole.norm * (1 - 16 * float(jnp.finfo(gaps.dtype).eps)), 0)
    bound = jnp.maximum(jnp.sqrt(2 * jnp.maximum(half_squares[best], 0)), unrestricted)
    bound = jnp.where(whole.norm == jnp.inf, jnp.inf, jnp.where(jnp.isnan(whole.norm), jnp.nan, bound))
    return bound, jnp.matmul(proofs[best], normals, precision=HIGHEST)
