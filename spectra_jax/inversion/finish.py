"""From the images a search ends with to the answer: shortening, and a last evaluation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.inversion import loss
from spectra_jax.inversion.encoder import lead_of, per_sample
from spectra_jax.inversion.rounding import LEVELS
from spectra_jax.inversion.step import Sample
from spectra_jax.types import Head


class Finished(NamedTuple):
    """The fields of `InversionResult` that come from the final image alone.

    Attributes:
        success: (b,) whether the target is named once more.
        rounded: (b, h, w, channels) each value rounded to the nearest of 256 levels.
    """

    images: Float[Array, "b h w k"]
    attributes: Float[Array, "b n"]
    success: Bool[Array, " b"]
    loss: Float[Array, " b"]
    rounded: Float[Array, "b h w k"]
    survives_rounding: Bool[Array, " b"]
    realised: Float[Array, "b n"]
    forward_passes: Int[Array, " b"]


@functools.partial(jax.jit, static_argnames=("margin", "ssim_weight", "shrink_steps"))
def finish(
    encode, head: Head, sample: Sample, before, requested, images, found,
    *, margin: float, ssim_weight: float, shrink_steps: int,
) -> Finished:  # fmt: skip
    """Completes a batch; `found` is the verdict of the search, `success` that of a last evaluation."""
    original, targets = sample.images, sample.targets
    if shrink_steps:
        images = _shorten(encode, head, original, targets, images, found, margin, shrink_steps)
    attributes = encode(images)
    success = found & lead_of(head, attributes, targets).by(margin)
    plain = jnp.round(images * LEVELS) / LEVELS
    realised = attributes - before
    return Finished(
        images=images,
        attributes=attributes,
        success=success,
        loss=loss.inversion_loss(realised, requested, images, original, ssim_weight=ssim_weight),
        rounded=plain,
        survives_rounding=success & lead_of(head, encode(plain), targets).named,
        realised=realised,
        forward_passes=jnp.full(len(images), 2 + (shrink_steps + 1 if shrink_steps else 0), jnp.int32),
    )


def _shorten(encode, head: Head, original, targets, images, success, margin: float, steps: int):
    """The smallest share of the change, on the grid of 8 bits, that keeps the target's lead."""
    change = images - original

    def shortened(share):
        # On the grid of 8 bits, because a change shorter than that would be lost in any image file.
        nearer = jnp.round((original + per_sample(share, change) * change) * LEVELS) / LEVELS
        return jnp.where(change == 0, original, nearer)

    def halve(_, interval):
        short, enough = interval
        middle = (short + enough) / 2
        leads = lead_of(head, encode(shortened(middle)), targets).by(margin)
        return jnp.where(leads, short, middle), jnp.where(leads, middle, enough)

    none = 0 * change[:, 0, 0, 0]  # made from the data: under shard_map a loop must start as different as it ends
    ends = (none, none + 1)
    _, share = jax.lax.fori_loop(0, steps, halve, ends)
    shrunk = shortened(share)
    axes = tuple(range(1, images.ndim))
    shorter = jnp.sum(jnp.square(shrunk - original), axis=axes) <= jnp.sum(jnp.square(change), axis=axes)
    kept = success & shorter & lead_of(head, encode(shrunk), targets).by(margin)
    # else not even the full change survives rounding, or the grid makes it longer: leave it as it is
    return jnp.where(per_sample(kept, shrunk), shrunk, images)
