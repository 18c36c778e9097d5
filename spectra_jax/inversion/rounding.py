"""From the image found to one on the 256 levels of a file that still reaches the target.

Changes of less than half a level are lost in a file, and a minimal change is mostly made of those. The first image to
try turns the largest of them into whole levels instead, as many as make up for the rest. Where the target is lost
nevertheless, the pixels with the steepest gradients move by one more level, as many as the missing lead asks for.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.inversion.encoder import classes_of, lead_of, per_sample
from spectra_jax.inversion.step import Sample
from spectra_jax.perturbations.batching import varying_like
from spectra_jax.perturbations.geometry import head_logits
from spectra_jax.types import Head

LEVELS = 255
_HALVINGS = 16  # of the interval in which a threshold is sought
_LEAST = 1e-4  # of a level; changes below this are rounding errors of float32


class Written(NamedTuple):
    """Images on 256 levels.

    Attributes:
        images: (b, h, w, channels).
        success: (b,) whether a try gave the target.
        tries: (b,) forward and backward passes it took.
    """

    images: Float[Array, "b h w k"]
    success: Bool[Array, " b"]
    tries: Int[Array, " b"]


def write_stepwise(
    encode: jax.tree_util.Partial, head: Head, sample: Sample, images: Float[Array, "b h w k"],
    plain: Float[Array, "b h w k"], missed: Bool[Array, " b"], *, tries: int, num_lanes: int,
) -> Written:  # fmt: skip
    """Finds images on 256 levels for the rows that plain rounding takes the target from, one compiled try at a time.

    Only rows that still need one take part in a try. Not possible under a transformation.

    Args:
        encode: images -> attributes.
        head: classifier.
        sample: what was asked for.
        images: before rounding.
        plain: each value rounded to the nearest level: the answer for all other rows and where all tries fail.
        missed: which rows.
        tries: images to evaluate, for each sample.
        num_lanes: rows evaluated at a time.

    Returns:
        Written; `success` of the rows that were missed.
    """
    found, remaining = np.array(plain), np.array(missed)
    candidates, count = found.copy(), np.zeros(len(found), np.int32)
    for attempt in range(tries):
        rows = np.flatnonzero(remaining)
        for start in range(0, len(rows), num_lanes):
            some = rows[start : start + num_lanes]
            lanes = np.resize(some, num_lanes)  # filled up by repeating: another size would have to be compiled
            asked = jax.tree.map(lambda column, lanes=lanes: column[lanes], sample)
            candidate = first_rounding(images[lanes], asked.images) if attempt == 0 else jnp.asarray(candidates[lanes])
            named, following = _try(encode, head, asked, candidate, jnp.asarray(attempt, jnp.int32))
            won = np.asarray(named)[: len(some)]
            found[some[won]] = np.asarray(candidate)[: len(some)][won]
            candidates[some] = np.asarray(following)[: len(some)]
            count[some] += 1
            remaining[some[won]] = False
    return Written(jnp.asarray(found), jnp.asarray(missed & ~remaining), jnp.asarray(count))


@functools.partial(jax.jit, static_argnames="tries")
def write_on_device(
    encode: jax.tree_util.Partial, head: Head, sample: Sample, images: Float[Array, "b h w k"],
    plain: Float[Array, "b h w k"], missed: Bool[Array, " b"], *, tries: int,
) -> Written:  # fmt: skip
    """The same in one lax.while_loop, all rows together until the last has its image."""

    def attempt(state):
        step, written, candidates, remaining = state
        named, following = _try(encode, head, sample, candidates, step)
        won = named & remaining
        written = Written(
            images=jnp.where(per_sample(won, candidates), candidates, written.images),
            success=written.success | won,
            tries=written.tries + remaining.astype(jnp.int32),
        )
        return step + 1, written, following, remaining & ~won

    def wanting(state):
        step, _, _, remaining = state
        return (step < tries) & jnp.any(remaining)

    none = Written(plain, jnp.zeros(len(plain), bool), jnp.zeros(len(plain), jnp.int32))
    start = (jnp.asarray(0, jnp.int32), none, first_rounding(images, sample.images), missed)
    head, start = varying_like(sample, (head, start))
    return jax.lax.while_loop(wanting, attempt, start)[1]


@jax.jit
def first_rounding(images: Float[Array, "b h w k"], original: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Rounded by the threshold at which the rounded change has the effect of the exact one, to first order.

    A changed value moves by whole levels along its change, by at least one, once the change reaches the threshold. Its
    effect is taken to be in proportion to its change, and the original to be on 256 levels.
    """
    change = images - original
    levels = jnp.abs(change * LEVELS).reshape(len(images), -1)
    steps = jnp.maximum(jnp.round(levels), 1)
    threshold = jnp.clip(_threshold(levels, steps * levels, jnp.sum(jnp.square(levels), axis=-1)), _LEAST, 0.5)
    moved = jnp.where(levels >= threshold[:, None], steps, 0).reshape(images.shape)
    value = jnp.round(original * LEVELS) + jnp.sign(change) * moved
    return jnp.clip(jnp.where(change == 0, jnp.round(images * LEVELS), value), 0, LEVELS) / LEVELS


@jax.jit
def _try(
    encode, head: Head, sample: Sample, candidates: Float[Array, "b h w k"], attempt: Int[Array, ""]
) -> tuple[Bool[Array, " b"], Float[Array, "b h w k"]]:
    """Whether the candidates have the target, and what to try where they have not.

    Whole levels give less than the gradient promises: twice the missing lead is asked for, and more at each attempt.
    """

    def objective(candidates):
        attributes = encode(candidates)
        logits = head_logits(head, attributes)
        lead = lead_of(head, attributes, sample.targets)
        classes, leave = classes_of(sample.targets)
        chosen = jax.nn.one_hot(classes, logits.shape[1], dtype=logits.dtype)
        # All rivals close by count, for moves against the best alone would help the next one. What is close is said
        # by the lead that is missing, so that the scale of the head decides nothing.
        limits = jnp.finfo(logits.dtype)
        least = limits.eps * jnp.max(jnp.abs(logits), axis=1) + limits.tiny  # for ties
        unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(lead.lead), least))[:, None]
        rivals = unit[:, 0] * jax.nn.logsumexp(jnp.where(chosen > 0, -jnp.inf, logits) / unit, axis=1)
        ahead = jnp.sum(chosen * logits, axis=1) - rivals
        return jnp.sum(jnp.where(leave, -ahead, ahead)), lead

    (_, lead), gradient = jax.value_and_grad(objective, has_aux=True)(candidates)
    possible = jnp.where(gradient > 0, candidates < 1, (gradient < 0) & (candidates > 0))  # a NaN moves nothing
    if sample.region is not None:
        possible = possible & (sample.region > 0)
    gains = jnp.where(possible, jnp.abs(gradient), 0).reshape(len(candidates), -1) / LEVELS
    missing = (attempt + 2).astype(gains.dtype) * jnp.maximum(-lead.lead, 0)
    threshold = per_sample(_threshold(gains, gains, missing), candidates)
    moves = possible & (gains.reshape(candidates.shape) >= threshold)
    following = jnp.round(candidates * LEVELS) + jnp.where(moves, jnp.sign(gradient), 0)
    return lead.named, following / LEVELS


def _threshold(
    values: Float[Array, "b p"], effects: Float[Array, "b p"], wanted: Float[Array, " b"]
) -> Float[Array, " b"]:
    """The largest threshold at which the effects of the values that reach it sum to what is wanted; 0 if none does."""

    def halve(_, interval):
        enough, lost = interval
        middle = (enough + lost) / 2
        suffices = jnp.sum(jnp.where(values >= middle[:, None], effects, 0), axis=-1) >= wanted
        return jnp.where(suffices, middle, enough), jnp.where(suffices, lost, middle)

    largest = jnp.max(values, axis=-1)
    return jax.lax.fori_loop(0, _HALVINGS, halve, (0 * largest, largest))[0]
