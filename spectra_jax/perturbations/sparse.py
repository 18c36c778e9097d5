"""The smallest change of at most k attributes that makes the target win."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import check_count
from spectra_jax.perturbations.answers import Answers
from spectra_jax.perturbations.batching import over_members
from spectra_jax.perturbations.exact import exact_pairs
from spectra_jax.perturbations.geometry import HIGHEST, safe_norm, squared_distances
from spectra_jax.perturbations.lagrangian import raise_bound, unit_normals
from spectra_jax.perturbations.lanes import scatter_slots
from spectra_jax.perturbations.problem import Problem, absent, make_problem
from spectra_jax.perturbations.projection import ProjectionResult, project
from spectra_jax.perturbations.result import RestrictedResult
from spectra_jax.perturbations.single_attribute import feasible_intervals
from spectra_jax.perturbations.smooth import nearest_on
from spectra_jax.switches import public
from spectra_jax.types import Head, Status

# Rounds of exchanging one attribute for another; each tries all k n exchanges and ends where none is better.
_MAX_ROUNDS = 30
_BOUND_STEPS = 400
# Starts with an attribute that is enough alone.
_SINGLE_STARTS = 4


@public()
def sparse_perturbation(
    head: Head,
    attributes: Float[Array, " n"],
    target: Int[Array, ""] | int,
    *,
    max_changes: int,
    margin: float | Float[Array, ""] = 0.0,
    mutable: Bool[Array, " n"] | None = None,
) -> RestrictedResult:
    """Small change (Euclidean) of at most `max_changes` attributes after which `target` wins by `margin`.

    With one attribute the answer is exact, from the intervals of `single_attribute_perturbations`; with all of them it
    is `projection_perturbation`. Between the two, the problem is combinatorial. The search exchanges one attribute for
    another until no exchange is better, with the exact projection on each set that it tries. The result states how far
    it can be from the optimum: lower_bound is a proof, from Lagrange multipliers, that nothing shorter exists.

    Derivatives with respect to weights, bias, attributes and margin are those of the projection on the chosen set.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index.
        max_changes: how many attributes may change; part of the compiled shape. Meant for small numbers: the time grows
            with its third power.
        margin: required lead over every other class, in logits.
        mutable: (n,) attributes that may change; all of them by default.

    Returns:
        RestrictedResult; `chosen` are the attributes that were allowed to change, at most k. BUDGET if none of the
        sets tried has an answer, though another one may.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative, max_changes below 1.
    """
    problem = make_problem(head, attributes, target, margin=margin, mutable=mutable)
    max_changes = check_count("max_changes", max_changes)
    return _solve(problem, count=min(max_changes, head.weights.shape[1]))


# Op by op it would be hundreds of programs, compiled at every call.
@functools.partial(jax.jit, static_argnames="count")
def _solve(problem: Problem, *, count: int) -> RestrictedResult:
    (num_classes, num_attributes), dtype = problem.head.weights.shape, problem.attributes.dtype
    allowed = jnp.ones(num_attributes, bool) if problem.mutable is None else problem.mutable
    whole = project(problem)
    if count == num_attributes:
        return RestrictedResult(
            delta=whole.delta,
            norm=whole.norm,
            lower_bound=stop_gradient(whole.norm),
            status=whole.status,
            multipliers=whole.multipliers,
            bound_multipliers=jnp.zeros(num_attributes, dtype),
            chosen=allowed & whole.feasible,
            kkt_residual=jnp.where(whole.feasible, whole.kkt_residual, jnp.nan),
        )

    still, whole = stop_gradient((problem, whole))
    singles = jnp.where(allowed, jnp.abs(feasible_intervals(still).delta), jnp.inf)
    nearest = jnp.argmin(singles).astype(jnp.int32)
    # Of the projection, in the units of the problem.
    multipliers = whole.multipliers / problem.factor
    if count == 1:
        starts = nearest[None, None]
    else:
        pull = _lower_bound(still, allowed, whole, multipliers[None], jnp.asarray(jnp.inf, dtype), count)[1]
        starts = _starts(pull, jnp.where(jnp.isfinite(whole.delta), whole.delta, 0), singles, allowed, count)
    support, found = _search(still, allowed, starts)

    feasible, rivals = found.status == Status.SOLVED, found.proof
    point = nearest_on(
        problem.weights[:, support],
        problem.offsets,
        problem.target,
        ends=jnp.zeros(count, dtype),
        free=jnp.ones(count, bool),
        slots=rivals.slots,
        multipliers=jnp.where(feasible, rivals.multipliers, 0),
        inverse=rivals.whole.inverse,
        delta=rivals.whole.delta,
        known=jnp.asarray(True),
    )
    of_slots = jnp.where(feasible, point.multipliers, 0)
    of_support = scatter_slots(rivals.slots[None], of_slots[None], num_classes)[0]
    length = safe_norm(point.delta)
    if count == 1:
        # In one dimension the search is complete, and its verdict is that of the intervals.
        bound = jnp.where(feasible, length, jnp.where(singles[nearest] == jnp.inf, jnp.inf, jnp.nan))
    else:
        starts = jnp.stack([multipliers, stop_gradient(of_support)])
        upper = stop_gradient(jnp.where(feasible, length, jnp.inf))
        bound = _lower_bound(still, allowed, whole, starts, upper, count)[0]
    bound = stop_gradient(bound)
    unknown = jnp.where(jnp.isnan(bound), Status.UNRESOLVED, Status.BUDGET)
    none = problem.status(jnp.where(bound == jnp.inf, Status.INFEASIBLE, unknown))
    status = jnp.where(feasible, Status.SOLVED, none).astype(jnp.int32)
    chosen = jnp.zeros(num_attributes, bool).at[support].set(feasible) & allowed
    pull = jnp.matmul(of_slots, problem.normals(rivals.slots), precision=HIGHEST)
    return RestrictedResult(
        delta=jnp.where(feasible, jnp.zeros(num_attributes, dtype).at[support].set(point.delta), absent(status)),
        norm=jnp.where(feasible, length, absent(status)),
        lower_bound=jnp.where(feasible, jnp.minimum(bound, stop_gradient(length)), bound),
        status=status,
        multipliers=problem.factor * of_support,
        bound_multipliers=jnp.where(chosen, 0, -pull),
        chosen=chosen,
        kkt_residual=jnp.where(feasible, problem.residual(found.residual, length), jnp.nan),
    )


def _strongest(pull: Float[Array, " n"], allowed: Bool[Array, " n"], count: int) -> Int[Array, " k"]:
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
    improving: Bool[Array, " s"]
    number: Int[Array, ""]


def _search(
    problem: Problem, allowed: Bool[Array, " n"], starts: Int[Array, "s k"]
) -> tuple[Int[Array, " k"], Answers]:
    """From several supports: exchanges one attribute for another while that helps; the best of all ends.

    With the pull of the support's own answer, the sum of its normals times their multipliers, no support S' can have a
    shorter change than norm^2 / ||pull on S'||, by weak duality. So only newcomers that are pulled more than the
    attribute they replace are tried.
    """
    num_attributes, (num_starts, count) = len(allowed), starts.shape
    eps = float(jnp.finfo(problem.attributes.dtype).eps)
    places = jnp.repeat(jnp.arange(count, dtype=jnp.int32), num_attributes)
    newcomers = jnp.tile(jnp.arange(num_attributes, dtype=jnp.int32), count)
    tries = jnp.arange(len(places), dtype=jnp.int32)
    solve = _on_supports(problem)

    def lengths(answers):
        return jnp.where(answers.status == Status.SOLVED, answers.norm, jnp.inf)

    def propose(support, answer, improving, number):
        """(t, k) supports to try from one, and (t,) which of them are worth it."""
        rivals = answer.proof
        known = answer.status == Status.SOLVED
        multipliers = jnp.where(known, rivals.multipliers, 0)
        pull = jnp.abs(jnp.matmul(multipliers, problem.normals(rivals.slots), precision=HIGHEST))
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
    nothing = nothing._replace(status=jnp.full(num_starts, Status.UNRESOLVED, jnp.int32))
    start = _Round(starts, nothing, jnp.ones(num_starts, bool), jnp.asarray(0, jnp.int32))
    rounds = 1 if count == 1 else _MAX_ROUNDS
    last = jax.lax.while_loop(lambda state: jnp.any(state.improving) & (state.number < rounds), step, start)
    best = jnp.argmin(lengths(last.answers))
    return last.supports[best], jax.tree.map(lambda leaf: leaf[best], last.answers)


def _on_supports(problem: Problem):
    """(supports (t, k), waiting (t,)) -> Answers with leading axis t; all vmapped ones are searched together."""

    def search(shared, members):
        attributes, targets, margins, supports, waiting = members
        num_samples, num_tries, count = supports.shape
        samples = jnp.repeat(jnp.arange(num_samples, dtype=jnp.int32), num_tries)
        supports, waiting = supports.reshape(-1, count), waiting.reshape(-1)
        head, squares = shared
        found = exact_pairs(
            *(head, squares, attributes, margins, samples, targets[samples], waiting),
            supports=supports,
            num_slots=min(count, len(head.weights) - 1) + 1,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(num_samples, num_tries, *leaf.shape[1:]), found)

    shared = (problem.head, squared_distances(problem.head.weights))

    def solve(supports, waiting):
        members = (problem.attributes, problem.target, problem.margin, supports, waiting & problem.is_open)
        return over_members(search)(shared, members)

    return solve


def _lower_bound(
    problem: Problem,
    allowed: Bool[Array, " n"],
    whole: ProjectionResult,
    starts: Float[Array, "s c"],
    upper: Float[Array, ""],
    count: int,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """The norm that no k attributes can do with less than, and the pull of the multipliers that prove it.

    Args:
        problem: the pair.
        allowed: attributes that may change.
        whole: the projection, all of them changing.
        starts: multipliers to start from.
        upper: norm of an answer in hand, inf if there is none.
        count: k.
    """
    weights = problem.weights
    normals, offsets, lengths = unit_normals(weights[problem.target][None, :] - weights, problem.offsets)

    def least(pull):
        chosen = _strongest(pull, allowed, count)
        return jnp.zeros_like(pull).at[chosen].set(pull[chosen])

    def raised(multipliers):
        start = jnp.where(jnp.isfinite(multipliers), multipliers, 0) * lengths
        return raise_bound(normals, offsets, least, start, upper**2 / 2, steps=_BOUND_STEPS)

    half_squares, proofs = jax.lax.map(raised, starts)
    best = jnp.argmax(half_squares)
    # Fewer attributes never need less than all of them; their norm itself carries the rounding of the projection.
    epsilon = float(jnp.finfo(whole.norm.dtype).eps)
    unrestricted = jnp.where(whole.feasible, whole.norm * (1 - 16 * epsilon), 0)
    bound = jnp.maximum(jnp.sqrt(2 * jnp.maximum(half_squares[best], 0)), unrestricted)
    bound = jnp.where(whole.feasible, bound, absent(whole.status))
    return bound, jnp.matmul(proofs[best], normals, precision=HIGHEST)
