"""How far an image, its class and its attributes moved: the metrics of the counterfactual literature (Section 4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_unit_scale, at_least_float32, is_concrete
from spectra_jax.switches import public

ONE_LEVEL = 1 / 255
_ROUNDING = 1e-4  # a difference of two 8-bit values, computed in float32, misses a whole level by a smaller share


class ImageDistances(NamedTuple):
    """Size of the change of each image, with values in [0, 1].

    Attributes:
        l0: (b,) number of changed pixels, out of h * w; a pixel counts if any of its channels changed.
        l1: (b,) sum of absolute changes over pixels and channels.
        l2: (b,) Euclidean length of the change.
        linf: (b,) largest change of a channel.
    """

    l0: Int[Array, " b"]
    l1: Float[Array, " b"]
    l2: Float[Array, " b"]
    linf: Float[Array, " b"]


class FrequencySplit(NamedTuple):
    """Length of the part of each image's change below and above a spatial frequency; low^2 + high^2 = L2^2.

    Attributes:
        low: (b,) L2 norm of the coarse part: brightness, colour and shape of large regions.
        high: (b,) L2 norm of the fine part: texture, edges and pixel noise.
    """

    low: Float[Array, " b"]
    high: Float[Array, " b"]


class ClassChange(NamedTuple):
    """What the classifier predicts before and after.

    Attributes:
        before, after: (b,) int32 class with the largest logit.
        changed: (b,) whether they differ.
        source_before, source_after: (b,) softmax probability of the class predicted before.
        target_before, target_after: (b,) softmax probability of the target.
    """

    before: Int[Array, " b"]
    after: Int[Array, " b"]
    changed: Bool[Array, " b"]
    source_before: Float[Array, " b"]
    source_after: Float[Array, " b"]
    target_before: Float[Array, " b"]
    target_after: Float[Array, " b"]


class AttributeSelectivity(NamedTuple):
    """How well the realised attribute change matches the requested one.

    Attributes:
        share: (b,) sum of |realised_f| over the chosen attributes, divided by the sum over all; 1 if nothing else
            moved.
        cosine: (b,) cosine of realised and requested change; 1 if the direction is exactly as requested.
    """

    share: Float[Array, " b"]
    cosine: Float[Array, " b"]


@public(rows="images")
def image_distances(
    images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"], *, threshold: float = ONE_LEVEL
) -> ImageDistances:
    """L0, L1, L2 and Linf norm of the change of each image.

    L0 depends on when a pixel counts as changed: here from `threshold` on, one 8-bit level by default, because smaller
    changes may not survive in an image file. Values that are not finite count as changed; the other norms are then not
    finite.

    Args:
        images, reference: (b, h, w, channels) in [0, 1].
        threshold: smallest change of a channel that counts for l0, in (0, 1].

    Returns:
        ImageDistances: l0 in pixels, the others in units of the range from black to white, in float32 for images of
        half precision.

    Raises:
        ValueError: shapes differ or are not (b, h, w, channels), images not on the scale of [0, 1], threshold not in
            (0, 1].
    """
    change = _change(images, reference)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a number in (0, 1], such as 1 / 255 for one 8-bit level")
    size = jnp.abs(change)
    axes = (1, 2, 3)
    # Half precision does not hold a level exactly: two values next to 1 are each off by a quarter of its epsilon.
    epsilon = max(float(jnp.finfo(jnp.asarray(array).dtype).eps) for array in (images, reference))
    slack = min(max(threshold * _ROUNDING, epsilon / 2), threshold / 2)
    changed = jnp.any(~(size < threshold - slack), axis=-1)
    return ImageDistances(
        l0=jnp.sum(changed, axis=(1, 2), dtype=jnp.int32),
        l1=jnp.sum(size, axis=axes),
        l2=jnp.sqrt(jnp.sum(jnp.square(change), axis=axes)),
        linf=jnp.max(size, axis=axes),
    )


@public(rows="images")
def frequency_split(
    images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"], *, cutoff: float = 0.125
) -> FrequencySplit:
    """L2 norm of the change of each image below and above a spatial frequency, by the Fourier transform.

    The frequency of a Fourier coefficient is the length of its wave vector in cycles per pixel: 0.5 means alternating
    black and white along an axis, the default 0.125 a period of 8 pixels. White noise has 1 - pi cutoff^2, 95 % by
    default, of its energy (the squared norm) above the cut-off; compare high^2 / (low^2 + high^2) with that.

    Args:
        images, reference: (b, h, w, channels) in [0, 1].
        cutoff: cycles per pixel, in (0, 0.5]; coefficients up to it are low.

    Returns:
        FrequencySplit, in units of the range from black to white.

    Raises:
        ValueError: shapes differ or are not (b, h, w, channels), images not on the scale of [0, 1], cutoff not in
            (0, 0.5].
    """
    change = _change(images, reference)
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff is {cutoff}; expected cycles per pixel, above 0 and at most 0.5")
    energy = jnp.sum(jnp.square(jnp.abs(jnp.fft.fft2(change, axes=(1, 2), norm="ortho"))), axis=-1)
    height, width = change.shape[1:3]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    coarse = jnp.asarray(radius <= cutoff)[None]
    low, high = (jnp.sum(jnp.where(part, energy, 0), axis=(1, 2)) for part in (coarse, ~coarse))
    return FrequencySplit(jnp.sqrt(low), jnp.sqrt(high))


@public(rows="logits_before")
def class_change(
    logits_before: Float[Array, "b c"], logits_after: Float[Array, "b c"], targets: Int[Array, " b"]
) -> ClassChange:
    """Change of the predicted class, and of the confidence in the old class and in the target.

    Args:
        logits_before, logits_after: (b, c) of the original images and of the changed ones.
        targets: (b,) requested class. Where it is the class predicted before, source and target are the same.

    Returns:
        ClassChange; probabilities in [0, 1], NaN for logits that are NaN.

    Raises:
        ValueError: shapes do not match, a target out of range.
    """
    shape = jnp.shape(logits_before)
    if len(shape) != 2 or jnp.shape(logits_after) != shape or jnp.shape(targets) != shape[:1]:
        raise ValueError(
            f"logits_before is {shape}, logits_after {jnp.shape(logits_after)} and targets {jnp.shape(targets)}; "
            "expected (b, c) twice and (b,)"
        )
    if is_concrete(targets) and np.size(targets):
        low, high = int(np.min(targets)), int(np.max(targets))
        if low < 0 or high >= shape[1]:
            raise ValueError(f"targets spans {low} to {high}; expected class indices from 0 to {shape[1] - 1}")
    logits_before, logits_after = at_least_float32((logits_before, logits_after))
    before, after = (jnp.argmax(logits, axis=-1).astype(jnp.int32) for logits in (logits_before, logits_after))

    def confidence(logits: Float[Array, "b c"], classes: Int[Array, " b"]) -> Float[Array, " b"]:
        return jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), classes[:, None], axis=-1)[:, 0]

    targets = jnp.asarray(targets, jnp.int32)
    return ClassChange(
        before,
        after,
        before != after,
        confidence(logits_before, before),
        confidence(logits_after, before),
        confidence(logits_before, targets),
        confidence(logits_after, targets),
    )


@public(rows="realised")
def attribute_selectivity(
    realised: Float[Array, "b n"],
    requested: Float[Array, "b n"],
    *,
    scale: Float[Array, " n"] | None = None,
    chosen: Bool[Array, "b n"] | None = None,
) -> AttributeSelectivity:
    """Whether the attributes that were meant to change are the ones that did.

    Args:
        realised: (b, n) phi(x') - phi(x).
        requested: (b, n) the requested delta.
        scale: (n,) standard deviation of each attribute over a data set; both changes are divided by it, so that
            attributes of large spread do not dominate. An attribute that never varies (scale 0) is ignored. None
            takes the changes as they are.
        chosen: (b, n) the attributes that count as requested; by default those where `requested` is not 0. Give it for
            a dense request, whose share would always be 1.

    Returns:
        AttributeSelectivity; NaN where nothing changed, or, for the cosine, nothing finite was requested.

    Raises:
        ValueError: shapes do not match.
    """
    shape = jnp.shape(realised)
    shapes = [jnp.shape(array) for array in (requested, chosen) if array is not None]
    if len(shape) != 2 or any(other != shape for other in shapes):
        raise ValueError(f"realised is {shape} and requested, chosen {shapes}; expected (b, n) each")
    if scale is not None and jnp.shape(scale) != shape[1:]:
        raise ValueError(f"scale has shape {jnp.shape(scale)}; expected {shape[1:]}, one number per attribute")
    realised, requested, scale = at_least_float32((realised, requested, scale))
    chosen = requested != 0 if chosen is None else chosen
    if scale is not None:
        factor = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)[None, :]
        realised, requested = realised * factor, requested * factor
    size = jnp.abs(realised)
    share = jnp.sum(jnp.where(chosen, size, 0), axis=-1) / jnp.sum(size, axis=-1)
    lengths = jnp.linalg.norm(realised, axis=-1) * jnp.linalg.norm(requested, axis=-1)
    return AttributeSelectivity(share, jnp.sum(realised * requested, axis=-1) / lengths)


def _change(images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    if jnp.shape(images) != jnp.shape(reference) or jnp.ndim(images) != 4:
        raise ValueError(
            f"images is {jnp.shape(images)} and reference {jnp.shape(reference)}; expected one shape, (batch, height, "
            "width, channels)"
        )
    return as_unit_scale("images", images) - as_unit_scale("reference", reference)
