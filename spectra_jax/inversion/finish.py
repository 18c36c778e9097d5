"""From the images a search ends with to the answer: shortening, 8 bits, and every figure of the result."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spectra_jax.image_metrics import (
    AttributeSelectivity,
    ImageDistances,
    attribute_selectivity,
    image_distances,
)
from spectra_jax.inversion.encoder import lead_of, per_sample
from spectra_jax.inversion.types import InversionConfig
from spectra_jax.metrics import psnr
from spectra_jax.similarity import WINDOW, ssim
from spectra_jax.types import Head

LEVELS = 255
_STRONGER = 1.15
_HALVINGS = 16  # of the interval in which the rounding threshold is sought
_LEAST = 1e-4  # of a level; changes below this are rounding errors of float32


class Finished(NamedTuple):
    """The fields of `InversionResult` that come from the final image alone."""

    images: Array
    attributes: Array
    holds: Array
    loss: Array
    images_8bit: Array
    success_8bit: Array
    survives_rounding: Array
    distances: ImageDistances
    ssim: Array
    psnr: Array
    realised: Array
    selectivity: AttributeSelectivity
    forward_passes: Array


@functools.partial(jax.jit, static_argnames="config")
def finish(encode, head: Head, sample, before, requested, images, success, *, config: InversionConfig) -> Finished:
    """Completes a batch; `success` is what the search says, `holds` what a last evaluation says."""
    original, targets = sample.images, sample.targets

    def names_target(candidates) -> Bool[Array, "b"]:
        return lead_of(head, encode(candidates), targets).named

    if config.shrink_steps:
        images = _shorten(encode, head, original, targets, images, success, config)
    attributes = encode(images)
    holds = success & lead_of(head, attributes, targets).by(config.margin)
    plain = jnp.round(images * LEVELS) / LEVELS
    survives = holds & names_target(plain)
    png, success_8bit, passes = plain, survives, jnp.full(len(images), 2, jnp.int32)
    if config.shrink_steps:
        passes = passes + (config.shrink_steps + 1)
    if config.survive_steps:
        png, success_8bit, tries = _carry_over(
            names_target, images, original, plain, survives, holds, config.survive_steps
        )
        passes = passes + tries
    finite = jnp.where(jnp.isfinite(requested), requested, jnp.nan)
    realised = attributes - before
    size = min(images.shape[1:3])
    similarity = ssim(images, original) if size >= WINDOW else jnp.full(len(images), jnp.nan, images.dtype)
    loss = jnp.mean(jnp.square(realised - finite), axis=-1)
    if config.ssim_weight > 0 and size >= WINDOW:
        loss = loss + config.ssim_weight * (1 - similarity)
    return Finished(
        images=images,
        attributes=attributes,
        holds=holds,
        loss=loss,
        images_8bit=png,
        success_8bit=success_8bit,
        survives_rounding=survives,
        distances=image_distances(images, original),
        ssim=similarity,
        psnr=psnr(images, original),
        realised=realised,
        selectivity=attribute_selectivity(realised, finite),
        forward_passes=passes,
    )


def _rounded(
    images: Float[Array, "b h w k"], original: Float[Array, "b h w k"], threshold: Float[Array, "b"]
) -> Float[Array, "b h w k"]:
    """The images on 256 levels; a changed value takes the next level along its change once past the threshold.

    A threshold of half a level is rounding to the nearest.
    """
    levels, threshold = images * LEVELS, per_sample(threshold, images)
    change = images - original
    along = jnp.where(change > 0, jnp.floor(levels + 1 - threshold), jnp.ceil(levels - 1 + threshold))
    return jnp.clip(jnp.where(change == 0, jnp.round(levels), along), 0, LEVELS) / LEVELS


def _carry_over(names_target, images, original, plain, survives, holds, tries: int):
    """The image on 256 levels that keeps the target with the least change among `tries` rounding thresholds.

    Changes of less than half a level are lost in a file. A lower threshold turns the largest of them into whole levels
    instead. Each try scales the change a little further and takes the threshold at which the rounded change has the
    effect of the exact one, to first order, for an original on 256 levels and an effect of each value in proportion to
    its change. Also returns how many of the tries each image needed.
    """
    change = images - original
    levels = jnp.abs(change * LEVELS).reshape(len(images), -1)
    exact = jnp.sum(jnp.square(levels), axis=-1)

    def threshold_at(scale):
        """The largest threshold, in levels of the unscaled change, whose rounded change has the wanted effect."""

        def halve(_, interval):
            enough, lost = interval
            middle = (enough + lost) / 2
            kept = jnp.where(levels >= middle[:, None], jnp.maximum(jnp.round(scale * levels), 1) * levels, 0)
            holds = jnp.sum(kept, axis=-1) >= scale * exact
            return jnp.where(holds, middle, enough), jnp.where(holds, lost, middle)

        ends = (0 * exact, jnp.max(levels, axis=-1) * 1.001)
        return jax.lax.fori_loop(0, _HALVINGS, halve, ends)[0]

    def attempt(state):
        step, best, found, needed = state
        scale = _STRONGER ** step.astype(images.dtype)
        scaled = jnp.clip(original + scale * change, 0, 1)
        candidate = _rounded(scaled, original, jnp.clip(scale * threshold_at(scale), _LEAST, 0.5))
        held = names_target(candidate) & holds & ~found
        needed = needed + (holds & ~found).astype(jnp.int32)
        return step + 1, jnp.where(per_sample(held, best), candidate, best), found | held, needed

    def wanting(state):
        step, _, found, _ = state
        return (step < tries) & jnp.any(holds & ~found)

    start = (jnp.asarray(0, jnp.int32), plain, survives, 0 * survives.astype(jnp.int32))
    _, best, found, needed = jax.lax.while_loop(wanting, attempt, start)
    return best, found, needed


def _shorten(encode, head: Head, original, targets, images, success, config: InversionConfig):
    """The least share of the change, on the grid of 8 bits, that keeps the target's lead."""
    change = images - original

    def shortened(share):
        # On the grid of 8 bits, because a change shorter than that would be lost in any image file.
        nearer = jnp.round((original + per_sample(share, change) * change) * LEVELS) / LEVELS
        return jnp.where(change == 0, original, nearer)

    def halve(_, interval):
        lost, held = interval
        middle = (lost + held) / 2
        holds = lead_of(head, encode(shortened(middle)), targets).by(config.margin)
        return jnp.where(holds, lost, middle), jnp.where(holds, middle, held)

    none = 0 * change[:, 0, 0, 0]  # made from the data: under shard_map a loop must start as different as it ends
    ends = (none, none + 1)
    _, share = jax.lax.fori_loop(0, config.shrink_steps, halve, ends)
    shrunk = shortened(share)
    kept = success & lead_of(head, encode(shrunk), targets).by(config.margin)
    # else not even the full change survives rounding: leave it as it is
    return jnp.where(per_sample(kept, shrunk), shrunk, images)
