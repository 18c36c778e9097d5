"""The nearest class of a sample from its logits and a few of its rivals, without a distance to every class.

A boundary is no nearer than the gap of its logits over the sum of the two rows' lengths, by the triangle inequality.
Rivals are looked at in the order of that bound, each by its exact distance, until the bound of all that are left is no
less than the smallest distance found. With many classes that takes a few rivals of most samples; who needs more of
them than are looked at is named, for a second product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import HIGHEST, centred, safe_norm

# Rivals looked at: by then few samples are left that a few more would settle, and a second product is as cheap. It is
# given up earlier where the first ones settle less than a quarter of the samples.
_RIVALS, _FIRST = 64, 16
# Classes whose smallest bound is kept, so that the next rival is found among so many rather than among all.
_GROUP = 128


class Choice(NamedTuple):
    """Which class of each sample is the nearest; no derivatives go through it.

    Attributes:
        best: (m,) the largest logit.
        predicted: (m,) int32 its class.
        nearest: (m,) int32 the nearest other class.
        offset: (m,) how far the logits of the two are apart.
        least: (m,) distance to it, good enough to rank by; inf where no class can be reached.
        twins: (m,) whether a row looked at is nearly equal to that of the predicted class.
    """

    best: Float[Array, " m"]
    predicted: Int[Array, " m"]
    nearest: Int[Array, " m"]
    offset: Float[Array, " m"]
    least: Float[Array, " m"]
    twins: Bool[Array, " m"]


class Rivals(NamedTuple):
    """A head made ready: rows (c', n), biases (c',) and lengths (c',), classes that never win added to whole groups."""

    weights: Float[Array, "c n"]
    bias: Float[Array, " c"]
    lengths: Float[Array, " c"]


def make_rivals(weights: Float[Array, "c n"], bias: Float[Array, " c"] | None) -> Rivals:
    """The head in whole groups of classes; lengths are those of the rows less their mean, rounded up."""
    num_classes, width = weights.shape
    more = -num_classes % _GROUP
    epsilon = jnp.finfo(weights.dtype).eps
    # A sum of n squares is good to n roundings, a centred row to a few of the row itself.
    lengths = safe_norm(centred(weights)) * (1 + width * epsilon) + 4 * epsilon * safe_norm(weights)
    bias = jnp.zeros(num_classes, weights.dtype) if bias is None else bias
    return Rivals(
        jnp.pad(weights, ((0, more), (0, 0))),
        jnp.pad(bias, (0, more), constant_values=-jnp.inf),
        jnp.pad(lengths, (0, more)),
    )


def few_rivals(
    rivals: Rivals, samples: Float[Array, "m n"], *, twins: float
) -> tuple[Choice, Bool[Array, " m"], Float[Array, "m c"]]:
    """The nearest class of each sample among the rivals looked at.

    Args:
        rivals: of `make_rivals`.
        samples: (m, n).
        twins: rows whose squared distance is below this part of ||w_i||^2 + ||w_k||^2 are nearly equal.

    Returns:
        Choice; (m,) whether it is proven, False where more rivals would have to be looked at, or a number is NaN; and
        the logits (m, c'), -inf for the classes added.
    """
    weights, bias, lengths = rivals
    count, members = len(samples), jnp.arange(len(samples), dtype=jnp.int32)
    logits = jnp.matmul(samples, weights.T, precision=HIGHEST) + bias[None, :]
    by_group = logits.reshape(count, -1, _GROUP)
    best, predicted = _first(by_group, jnp.max(by_group, axis=2), jnp.argmax)
    classes = jnp.arange(len(weights), dtype=jnp.int32)[None, :]
    own_row, own_length, own_square = weights[predicted], lengths[predicted], _square(weights[predicted])

    # (m, c'), the largest there is beside the logits.
    bounds = formulas.boundary_distance(
        formulas.offset(best[:, None], logits, 0), own_length[:, None] + lengths[None, :]
    )
    bounds = jnp.where(classes == predicted[:, None], jnp.inf, bounds).reshape(count, -1, _GROUP)

    def left(state):
        turn, _, lowest, choice = state
        open_ = jnp.sum(jnp.min(lowest, axis=1) < choice.least)
        return (open_ > 0) & (turn < _RIVALS) & ((turn < _FIRST) | (4 * open_ < 3 * count))

    def look(state):
        turn, bounds, lowest, choice = state
        group = jnp.argmin(lowest, axis=1).astype(jnp.int32)
        inside = bounds[members, group]
        place = jnp.argmin(inside, axis=1).astype(jnp.int32)
        rival = group * _GROUP + place
        row, square = weights[rival], _square(own_row - weights[rival])
        offset = formulas.offset(best, logits[members, rival], 0)
        distance = formulas.boundary_distance(offset, jnp.sqrt(square))
        # The lowest class among equals, as where all are looked at; who is already settled stays so.
        open_ = jnp.min(lowest, axis=1) < jnp.inf
        nearer = open_ & ((distance < choice.least) | ((distance == choice.least) & (rival < choice.nearest)))
        twin = open_ & (square < twins * (own_square + _square(row)))
        choice = choice._replace(
            nearest=jnp.where(nearer, rival, choice.nearest),
            offset=jnp.where(nearer, offset, choice.offset),
            least=jnp.where(nearer, distance, choice.least),
            twins=choice.twins | twin,
        )
        inside = inside.at[members, place].set(jnp.inf)
        bounds = bounds.at[members, group].set(inside)
        return turn + 1, bounds, lowest.at[members, group].set(jnp.min(inside, axis=1)), choice

    infinite = jnp.full(count, jnp.inf, logits.dtype)
    none = Choice(best, predicted, jnp.zeros_like(predicted), infinite, infinite, jnp.zeros(count, bool))
    lowest = jnp.min(bounds, axis=2)
    _, _, lowest, choice = jax.lax.while_loop(left, look, (jnp.int32(0), bounds, lowest, none))
    return choice, jnp.min(lowest, axis=1) >= choice.least, logits


def _first(by_group, of_groups, argument):
    """Of (m, groups, classes) and the extreme number of each group: the extreme number of all and its first class."""
    members = jnp.arange(len(by_group), dtype=jnp.int32)
    group = argument(of_groups, axis=1).astype(jnp.int32)
    place = argument(by_group[members, group], axis=1).astype(jnp.int32)
    return of_groups[members, group], group * _GROUP + place


def _square(rows: Float[Array, "m n"]) -> Float[Array, " m"]:
    return jnp.sum(jnp.square(rows), axis=-1)
