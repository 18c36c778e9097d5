"""The smallest change of at most k attributes that makes the target win."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_pair, check_mutable
from spectra_jax.perturbations.geometry import HIGHEST, logit_gaps, relative_logits
from spectra_jax.perturbations.lagrangian import raise_bound, unit_rows
from spectra_jax.perturbations.projection import projection_perturbation
from spectra_jax.perturbations.single_attribute import single_attribute_perturbations
from spectra_jax.types import Head

# Rounds of exchanging one attribute for another; each tries all k n exchanges and ends where none is better.
_MAX_ROUNDS = 30
_BOUND_STEPS = 400
# Starts with an attribute that is enough alone.
_SINGLE_STARTS = 4
# Supports solved side by side.
_SUPPORTS_AT_ONCE = 256


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
    if max_changes < 1:
        raise ValueError(f"max_changes is {max_changes}; expected at least 1")
    num_attributes = head.weights.shape[1]
    allowed = jnp.ones(num_attributes, bool) if mutable is None else mutable
    count = min(max_changes, num_attributes)
    logits = relative_logits(head, attributes[None])[0]
    fixed = jax.lax.stop_gradient
    whole = jax.tree.map(fixed, projection_perturbation(head, attributes, target, margin=margin, mutable=mutable))
    columns = jnp.where(allowed[None, :], head.weights, 0)
    still = (fixed(columns), fixed(logits), target, fixed(margin))
    single = single_attribute_perturbations(jax.tree.map(fixed, head), fixed(attributes), target, margin=fixed(margin))
    lengths = jnp.where(allowed, jnp.abs(single.delta), jnp.inf)
    nearest = jnp.argmin(lengths).astype(jnp.int32)
    if count == num_attributes:
        chosen = jnp.arange(num_attributes, dtype=jnp.int32)
    elif count == 1:
        chosen = nearest[None]
    else:
        pull = _lower_bound(*still, allowed, whole, whole, count)[1]
        shortest = jnp.where(jnp.isfinite(whole.delta), whole.delta, 0)
        chosen = _search(*still, allowed, jnp.stack([pull, shortest]), lengths, count)

    result = _on(columns[:, chosen], logits, target, margin)
    if count == num_attributes:
        bound = whole.norm
    elif count == 1:
        bound = lengths[nearest]
    else:
        bound = _lower_bound(*still, allowed, whole, jax.tree.map(fixed, result), count)[0]
    epsilon = float(jnp.finfo(logits.dtype).eps)
    none = ~result.feasible & (bound == jnp.inf)
    feasible = result.feasible
    norm = jnp.where(feasible, result.norm, jnp.where(none, jnp.inf, jnp.nan))
    delta = jnp.zeros(num_attributes, logits.dtype).at[chosen].set(jnp.where(feasible, result.delta, 0))
    bound = jnp.where(feasible, jnp.minimum(bound, fixed(norm)), bound)
    return SparseResult(
        delta=jnp.where(feasible, delta, norm),
        norm=norm,
        lower_bound=bound,
        proven=none | (feasible & (norm - bound <= 10 * epsilon ** (2 / 3) * norm)),
        support=jnp.zeros(num_attributes, bool).at[chosen].set(feasible) & allowed,
        multipliers=result.multipliers,
        feasible=feasible,
        kkt_residual=jnp.where(feasible, result.kkt_residual, jnp.nan),
    )


def _on(weights: Float[Array, "c k"], logits: Float[Array, "c"], target: Int[Array, ""], margin: Float[Array, ""]):
    """Projection with these columns of the weights alone: the other attributes only fix the logits to start from."""
    return projection_perturbation(
        Head(weights, logits), jnp.zeros(weights.shape[1], weights.dtype), target, margin=margin
    )


def _strongest(pull: Float[Array, "n"], allowed: Bool[Array, "n"], count: int) -> Int[Array, "k"]:
    """The k attributes that are pulled most, among those that may change."""
    return jax.lax.top_k(jnp.where(allowed, jnp.abs(pull), -1), count)[1].astype(jnp.int32)


def _search(columns, logits, target, margin, allowed, pull, singles, count: int) -> Int[Array, "k"]:
    """From several supports: exchanges one attribute at a time while that helps; the best of all ends.

    Args:
        columns, logits, target, margin, allowed: the problem; columns of immutable attributes are 0.
        pull: (starts, n) how strongly each attribute is wanted, per start.
        singles: (n,) |delta| of each attribute alone, inf where that is not enough.
        count: k.
    """
    num_attributes = columns.shape[1]
    places = jnp.repeat(jnp.arange(count, dtype=jnp.int32), num_attributes)
    newcomers = jnp.tile(jnp.arange(num_attributes, dtype=jnp.int32), count)

    def exchange(state):
        support, norm, _, rounds = state

        def with_newcomer(change):
            place, newcomer = change
            other = support.at[place].set(newcomer)
            result = _on(columns[:, other], logits, target, margin)
            twice = jnp.sum(other == newcomer) > 1
            return jnp.where(result.feasible & allowed[newcomer] & ~twice, result.norm, jnp.inf)

        found = jax.lax.map(with_newcomer, (places, newcomers), batch_size=_SUPPORTS_AT_ONCE)
        winner = jnp.argmin(found)
        better = found[winner] < norm * (1 - 4 * float(jnp.finfo(norm.dtype).eps))
        support = jnp.where(better, support.at[places[winner]].set(newcomers[winner]), support)
        return support, jnp.minimum(norm, found[winner]), better, rounds + 1

    def improve(start):
        state = (start, jnp.asarray(jnp.inf, logits.dtype), jnp.asarray(True), jnp.asarray(0, jnp.int32))
        return jax.lax.while_loop(lambda state: state[2] & (state[3] < _MAX_ROUNDS), exchange, state)[:2]

    # Beside the most wanted attributes, the most wanted together with one that is enough alone: that is feasible.
    alone = jax.lax.top_k(-singles, min(_SINGLE_STARTS, num_attributes))[1]
    forced = jax.vmap(lambda first: pull[0].at[first].set(jnp.inf))(alone)
    wanted = jnp.concatenate([pull, forced])
    starts = jax.vmap(lambda each: _strongest(each, allowed, count))(wanted)
    supports, norms = jax.lax.map(improve, starts)
    return supports[jnp.argmin(norms)]


def _lower_bound(columns, logits, target, margin, allowed, whole, result, count: int):
    """The norm that no k attributes can do with less than, and the pull of the multipliers that prove it.

    Searched from the multipliers of the projection, and from those of a support if there is one.
    """
    rows = columns[target][None, :] - columns
    normals, heights, lengths = unit_rows(rows, logit_gaps(logits, target, margin))

    def least(pull):
        chosen = _strongest(pull, allowed, count)
        return jnp.zeros_like(pull).at[chosen].set(pull[chosen])

    def raised(multipliers):
        start = jnp.where(jnp.isfinite(multipliers), multipliers, 0) * lengths
        return raise_bound(normals, heights, least, start, upper, steps=_BOUND_STEPS)

    upper = jnp.where(result.feasible, result.norm**2 / 2, jnp.inf)
    half_squares, proofs = jax.lax.map(raised, jnp.stack([whole.multipliers, result.multipliers]))
    best = jnp.argmax(half_squares)
    # Fewer attributes never need less than all of them; their norm itself carries the rounding of the projection.
    unrestricted = jnp.where(whole.feasible, whole.norm * (1 - 16 * float(jnp.finfo(logits.dtype).eps)), 0)
    bound = jnp.maximum(jnp.sqrt(2 * jnp.maximum(half_squares[best], 0)), unrestricted)
    bound = jnp.where(whole.norm == jnp.inf, jnp.inf, jnp.where(jnp.isnan(whole.norm), jnp.nan, bound))
    return bound, jnp.matmul(proofs[best], normals, precision=HIGHEST)
