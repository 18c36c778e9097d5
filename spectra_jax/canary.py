"""CANARY's metrics of an attack and of the model it attacks (Sun et al., Electronics 12(17):3665, 2023).

The publication defines means over the attacked samples, which are those that the model classified correctly before. Its
public code differs; reading="as coded" gives what the code computes:

- distances, similarity and cost are averaged over only the successful attacks; "as defined" keeps the failures;
- the Euclidean distance is divided by N / 2, from `N ** 1/2`, instead of sqrt(N), where N is the number of values;
- the high- and low-frequency distances are swapped, and both use grey images and the modulus of each part;
- changed pixels are counted channel by channel, with values truncated to 8 bits; "as defined" counts rounded pixels;
- the score clips the attention on the true class by the threshold on that of the adversarial class.

Where the code takes the mean of an empty set, the result here is NaN.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_unit_scale, at_least_float32
from spectra_jax.inversion.config import check_choice

Reading = Literal["as defined", "as coded"]
READINGS: tuple[Reading, ...] = ("as defined", "as coded")
CUTOFF = 5.0  # D of the Gaussian filter, in cycles per image
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as OpenCV's
_PREWITT = np.array([[1, 0, -1]] * 3) / 3
_SCALES = (0.096, 0.596, 0.289, 0.019)  # Zhang, Sun and Shang 2017
_SMALLEST = 2 ** len(_SCALES) + 1
_STABILITY, _MASKING = 170.0, 0.5


class Deflection(NamedTuple):
    """How far an attack turned a classifier; scalars.

    Attributes:
        mr: misclassification ratio.
        tas: targeted attack success, NaN without targets.
        aiac: average increase in confidence in the class predicted after the attack.
        artc: average reduction in confidence in the true class.
    """

    mr: Float[Array, ""]
    tas: Float[Array, ""]
    aiac: Float[Array, ""]
    artc: Float[Array, ""]


class Disturbance(NamedTuple):
    """How visible the change of each image is; each (b,), in units of the range from black to white.

    Attributes:
        md: largest absolute change.
        ed: Euclidean length, scaled.
        ed_hf, ed_lf: the same for its high and its low frequencies.
        pcr: share of pixels that changed after rounding to 8 bits.
        lms: multi-scale gradient magnitude similarity deviation, NaN for images too small for its four scales.
    """

    md: Float[Array, " b"]
    ed: Float[Array, " b"]
    ed_hf: Float[Array, " b"]
    ed_lf: Float[Array, " b"]
    pcr: Float[Array, " b"]
    lms: Float[Array, " b"]


def deflection(
    before: Float[Array, "b c"],
    after: Float[Array, "b c"],
    labels: Int[Array, " b"],
    *,
    targets: Int[Array, " b"] | None = None,
) -> Deflection:
    """MR, TAS, AIAC and ARTC over the samples classified correctly before; both readings agree on these.

    Args:
        before, after: (b, c) logits of the original and of the attacked images.
        labels: (b,) true classes.
        targets: (b,) classes aimed at, if any.

    Returns:
        Deflection; NaN where no sample was classified correctly.

    Raises:
        ValueError: shapes do not match.
    """
    if jnp.shape(before) != jnp.shape(after) or jnp.shape(labels) != jnp.shape(before)[:1]:
        raise ValueError(
            f"before is {jnp.shape(before)}, after {jnp.shape(after)} and labels {jnp.shape(labels)}; expected (b, c) "
            "twice and (b,)"
        )
    valid, named = jnp.argmax(before, axis=-1) == labels, jnp.argmax(after, axis=-1)
    old, new = (jax.nn.softmax(at_least_float32(logits), axis=-1) for logits in (before, after))
    hit = jnp.full(len(labels), jnp.nan) if targets is None else named == targets
    return Deflection(
        _mean(named != labels, valid),
        _mean(hit, valid),
        _mean(_pick(new, named) - _pick(old, named), valid),
        _mean(_pick(old, labels) - _pick(new, labels), valid),
    )


def attention_change(before: Float[Array, "b h w"], after: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Cosine of two Grad-CAM maps per image: CAMC_A for the class predicted after the attack, CAMC_T for the true one.

    The code averages the cosine over the images for which both maps of both classes are not blank, see `average`.

    Args:
        before, after: (b, h, w) maps of the original and of the attacked images, see `grad_cam`.

    Returns:
        (b,) in [0, 1]; NaN where a map is blank.
    """
    lengths = jnp.linalg.norm(before, axis=(1, 2)) * jnp.linalg.norm(after, axis=(1, 2))
    return jnp.where(lengths > 0, jnp.sum(before * after, axis=(1, 2)) / jnp.where(lengths > 0, lengths, 1), jnp.nan)


def average_attention_change(
    adversarial: Float[Array, " b"],
    true: Float[Array, " b"],
    valid: Bool[Array, " b"],
    *,
    reading: Reading = "as defined",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """ACAMC_A and ACAMC_T: means of `attention_change` over the valid samples.

    Args:
        adversarial, true: (b,) cosines; NaN where a map is blank.
        valid: (b,) the samples classified correctly before.
        reading: "as defined" takes each mean over the samples whose own cosine exists; "as coded" drops a sample from
            both where either is missing.

    Returns:
        Two scalars; NaN for no sample.
    """
    check_choice("reading", reading, READINGS)
    there = [valid & ~jnp.isnan(cosine) for cosine in (adversarial, true)]
    if reading == "as coded":
        there = [there[0] & there[1]] * 2
    return _mean(adversarial, there[0]), _mean(true, there[1])


def transfer_rate(
    before: Float[Array, "m b c"], after: Float[Array, "m b c"], labels: Int[Array, " b"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """OTR: the misclassification ratio on other models, averaged over the models; both readings agree.

    Args:
        before, after: (m, b, c) logits that each of m other models gives the original and the attacked images.
        labels: (b,) true classes.
        valid: (b,) classified correctly by the attacked model; for each other model, only those that it classified
            correctly too are counted.

    Returns:
        Scalar; a model that classified no valid sample correctly is ignored.
    """
    known = valid[None, :] & (jnp.argmax(before, axis=-1) == labels[None, :])
    rates = jax.vmap(_mean)(jnp.argmax(after, axis=-1) != labels[None, :], known)
    return _mean(rates, ~jnp.isnan(rates))


def average(
    values: Float[Array, " b"], valid: Bool[Array, " b"], success: Bool[Array, " b"], *, reading: Reading = "as defined"
) -> Float[Array, ""]:
    """The mean that turns MD into AMD, ED into AED, seconds into ACT, forward and backward passes into AQN_F and AQN_B.

    Args:
        values: (b,) one of `disturbance`, or a cost.
        valid: (b,) classified correctly before.
        success: (b,) misclassified afterwards.
        reading: "as defined" averages over the valid samples, "as coded" over the successful ones of them.

    Returns:
        Scalar; NaN for no sample.
    """
    check_choice("reading", reading, READINGS)
    return _mean(values, valid & success if reading == "as coded" else valid)


def disturbance(
    images: Float[Array, "b h w 3"], reference: Float[Array, "b h w 3"], *, reading: Reading = "as defined"
) -> Disturbance:
    """MD, ED, its two frequency bands, PCR and LMS of each image.

    The bands are split in the Fourier domain by the Gaussian exp(-r^2 / (2 D^2)), D = 5 cycles per image. ADMS, the
    mean of DISTS, is missing because it needs VGG weights that no installable package ships. The code also stretches
    each band to the range of 8 bits, in a helper that we could not inspect; "as coded" does not.

    Args:
        images, reference: (b, h, w, 3) in [0, 1], changed and original.
        reading: see the module's docstring.

    Returns:
        Disturbance, in float32 for images of half precision.

    Raises:
        ValueError: shapes differ or are not (b, h, w, 3), images not on the scale of [0, 1].
    """
    check_choice("reading", reading, READINGS)
    shape = jnp.shape(images)
    if shape != jnp.shape(reference) or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"images is {shape} and reference {jnp.shape(reference)}; expected one shape, (b, h, w, 3)")
    images, reference = as_unit_scale("images", images), as_unit_scale("reference", reference)
    coded = reading == "as coded"

    def length(change: Array) -> Array:
        size = change[0].size
        return _norm(change) / (size / 2 if coded else size**0.5)

    def band(picture: Array, *, high: bool) -> Array:
        if not coded:
            return _filtered(picture, high=high)
        grey = jnp.tensordot(picture, jnp.asarray(_GREY, picture.dtype), 1)[..., None]
        return jnp.abs(_filtered(grey, high=high))

    coarse, fine = (length(band(images, high=high) - band(reference, high=high)) for high in (False, True))
    levels = [(jnp.floor if coded else jnp.round)(255 * picture) for picture in (images, reference)]
    changed = levels[0] != levels[1]
    counted = changed if coded else jnp.any(changed, axis=-1)
    similar = jnp.full(shape[0], jnp.nan, images.dtype)
    if min(shape[1:3]) >= _SMALLEST:
        similar = multi_scale_gmsd(images, reference)
    return Disturbance(
        md=jnp.max(jnp.abs(images - reference), axis=(1, 2, 3)),
        ed=length(images - reference),
        ed_hf=coarse if coded else fine,
        ed_lf=fine if coded else coarse,
        pcr=jnp.mean(counted.reshape(shape[0], -1), axis=-1, dtype=images.dtype),
        lms=similar,
    )


def multi_scale_gmsd(images: Float[Array, "b h w 3"], reference: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Chromatic multi-scale gradient magnitude similarity deviation (Zhang, Sun and Shang 2017); 0 for equal images.

    On values up to 255 in YIQ: v = sqrt(sum of w_s var_s), var_s the variance over the pixels of the similarity of
    the luma's Prewitt gradients at scale s, scales halving by 2 x 2 means; then g v + (1 - g) .01 RMSE of the chroma
    with g = 2 / (1 + .32 exp(-15 v)) - 1. Constants and borders are those of piq, which CANARY calls.

    Args:
        images, reference: (b, h, w, 3) in [0, 1], at least 17 pixels per side.

    Returns:
        (b,) at least 0.
    """
    to_yiq = jnp.asarray([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], images.dtype)
    one, other = (
        jnp.einsum("bhwk,ck->bhwc", 255 * picture, to_yiq, precision="highest") for picture in (images, reference)
    )
    luma, squares = (one[..., 0], other[..., 0]), jnp.zeros(len(images), images.dtype)
    for scale, weight in enumerate(_SCALES):
        if scale:
            luma = (_halved(luma[0]), _halved(luma[1]))
        squares += weight * jnp.var(_similarity(_gradient(luma[0]), _gradient(luma[1])), axis=(1, 2))
    deviation = jnp.sqrt(squares)
    chroma = jnp.sqrt(jnp.sum(jnp.mean(jnp.square(one[..., 1:] - other[..., 1:]), axis=(1, 2)), axis=-1))
    share = 2 / (1 + 0.32 * jnp.exp(-15 * deviation)) - 1
    return share * deviation + (1 - share) * 0.01 * chroma


def grad_cam(
    feature_fn: Callable[[Float[Array, "b h w k"]], Float[Array, "b i j d"]],
    logits_fn: Callable[[Float[Array, "b i j d"]], Float[Array, "b c"]],
    images: Float[Array, "b h w k"],
    classes: Int[Array, " b"],
) -> Float[Array, "b i j"]:
    """Grad-CAM (Selvaraju et al. 2017): the channels of a feature map, weighted by the mean gradient of a class.

    Args:
        feature_fn: images -> the feature map of the chosen layer; the identity takes the pixels as the map.
        logits_fn: the rest of the classifier, from that map to logits.
        images: (b, h, w, channels) in [0, 1].
        classes: (b,) class explained.

    Returns:
        (b, i, j) at least 0, at the resolution of the map.
    """
    maps = feature_fn(images)
    gradient = jax.grad(lambda values: jnp.sum(_pick(logits_fn(values), classes)))(maps)
    weights = jnp.mean(gradient, axis=(1, 2), keepdims=True)
    return jax.nn.relu(jnp.sum(weights * maps, axis=-1))


def _mean(values: Array, rows: Array) -> Array:
    """Over the marked rows; NaN for none."""
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    wide = at_least_float32(values) if floating else jnp.asarray(values, jnp.float32)
    return jnp.sum(jnp.where(rows, wide, 0)) / jnp.sum(rows).astype(wide.dtype)


def _pick(values: Array, classes: Array) -> Array:
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


def _norm(change: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(change), axis=(1, 2, 3)))


def _filtered(images: Array, *, high: bool) -> Array:
    """The part of images below or above the Gaussian cut-off."""
    height, width = images.shape[1:3]
    squares = np.square(np.fft.fftfreq(height, 1 / height))[:, None] + np.square(np.fft.fftfreq(width, 1 / width))
    keep = np.exp(-squares / (2 * CUTOFF**2))
    mask = jnp.asarray(1 - keep if high else keep, images.dtype)[None, :, :, None]
    spectrum = jnp.fft.fft2(images, axes=(1, 2))
    return jnp.real(jnp.fft.ifft2(spectrum * mask.astype(spectrum.dtype), axes=(1, 2))).astype(images.dtype)


def _gradient(luma: Array) -> Array:
    """Magnitude of the Prewitt gradient; black lies beyond the border."""
    kernels = jnp.asarray(np.stack([_PREWITT, _PREWITT.T])[:, None], luma.dtype)
    parts = jax.lax.conv_general_dilated(luma[:, None], kernels, (1, 1), "SAME", precision="highest")
    return jnp.sqrt(jnp.sum(jnp.square(parts), axis=1))


def _halved(luma: Array) -> Array:
    """Means of 2 x 2 pixels, after a last row and column of black where a side is odd."""
    count, height, width = luma.shape
    odd = max(height % 2, width % 2)
    height, width = (side + odd for side in (height, width))
    luma = jnp.pad(luma, ((0, 0), (0, odd), (0, odd)))[:, : height // 2 * 2, : width // 2 * 2]
    return luma.reshape(count, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def _similarity(one: Array, other: Array) -> Array:
    both = _MASKING * one * other
    return (2 * one * other - both + _STABILITY) / (jnp.square(one) + jnp.square(other) - both + _STABILITY)
