"""Certificates for any encoder, by vote under Gaussian noise: randomised smoothing.

An encoder whose Lipschitz constant is unknown, for instance a pretrained one, is evaluated on noisy copies of an image,
and the majority gives the answer. If p is the probability of an answer under noise of deviation sigma, Phi^-1(p)
changes by at most d / sigma when the image moves by d (Cohen, Rosenfeld and Kolter 2019; Salman et al. 2019): whatever
the encoder, the majority stays within sigma Phi^-1(p). The probability is bounded from a count, so the certificate
holds only with a certain confidence; it is about the vote, not about the encoder's answer to the image without noise.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy import special

from spectra_jax.certificates import Certificate, thresholds
from spectra_jax.checks import (
    as_target_columns,
    at_least_float32,
    check_between,
    check_count,
    check_finite_head,
    check_head,
    check_images,
    check_key,
    is_concrete,
)
from spectra_jax.inversion.encoder import EncodeFn, as_partial, in_types
from spectra_jax.perturbations.geometry import head_logits
from spectra_jax.switches import public
from spectra_jax.types import Head

# Noisy copies by which an image's class is chosen; they are not counted again, as the bound is on a class named before.
_CHOOSING = 100


@public(on_host=True)
def smoothed_certificate(
    encode_fn: EncodeFn,
    head: Head,
    images: Float[Array | np.ndarray, "b h w k"],
    *,
    key: PRNGKeyArray,
    sigma: float,
    num_samples: int = 1000,
    confidence: float = 0.999,
    targets: Int[Array | np.ndarray, "b ..."] | None = None,
    batch_size: int = 128,
) -> Certificate:
    """The image change below which the most frequent class under noise stays, or a target class is not reached.

    100 noisy copies choose the class A; num_samples others bound its share p_A from below (Clopper and Pearson 1934).
    No other class is the most frequent within sigma Phi^-1(p_A). A target j, whose share is bounded from above, is not
    within sigma / 2 (Phi^-1(p_A) - Phi^-1(p_j)). No radius exceeds sigma Phi^-1((1 - confidence)^(1 / num_samples)).

    Args:
        encode_fn: as in `invert`: images -> attributes (b, n), where each row depends only on its own image and not on
            chance. It gets the noisy images as they are, with pixels below 0 and above 1, and may clip them.
        head: classifier on the attributes.
        images: (b, h, w, channels) in [0, 1]. Noise is added in float32 at least, and the encoder gets their own type.
        key: random key. Sample s of image i has the same noise whatever num_samples and batch_size are.
        sigma: standard deviation of the noise, in units of [0, 1]. A larger one gives larger radii while the vote stays
            clear.
        num_samples: noisy copies of each image that are counted.
        confidence: the probability, for each image separately, that all of its radii hold. Among many images, a share
            of 1 - confidence may be wrong.
        targets: (b,) or (b, t) classes that are not to be reached, chosen without looking at this key's noise; None for
            "any but the most frequent one".
        batch_size: noisy copies in memory at a time.

    Returns:
        Certificate: radius (b,) or of the shape of `targets`. The answer is -1 where no class is proven to get more
        than half of the votes; without targets the radius is then 0, while a radius to a target still holds. Noise
        under which attributes are not finite votes for no class.

    Raises:
        ValueError: shapes do not match (the encoder's included), images not in [0, 1], a setting out of range, or a
            value is being traced by jit.
    """
    check_head(head)
    check_finite_head(head)
    poll = _opened(encode_fn, images, key, sigma, num_samples, confidence, batch_size, also=(head, targets))
    if poll.num_attributes != head.weights.shape[1]:
        raise ValueError(
            f"encode_fn returns {poll.num_attributes} attributes; expected {head.weights.shape[1]}, to match "
            f"head.weights {head.weights.shape}"
        )
    columns = as_target_columns(head, np.zeros((len(images), 0), int) if targets is None else targets, len(images))
    vote = jax.tree_util.Partial(_named, poll.encode, jax.tree.map(jnp.asarray, head))
    chosen = np.argmax(poll.count(vote, range(_CHOOSING)), axis=1)[:, None]
    counts = poll.count(vote, range(_CHOOSING, _CHOOSING + num_samples))

    bounds = 1 + columns.shape[1]  # of p_A, and of every p_j
    first = poll.quantile(np.take_along_axis(counts, chosen, axis=1), bounds)
    answer = np.where(first > 0, chosen, -1)[:, 0].astype(np.int32)
    if targets is None:
        return poll.certificate(first[:, 0], answer)
    # An upper bound of p_j is a lower bound of 1 - p_j.
    others = poll.quantile(num_samples - np.take_along_axis(counts, columns, axis=1), bounds)
    middle = np.where(columns == chosen, 0, (first + others) / 2)
    return poll.certificate(middle.reshape(np.shape(targets)), answer)


@public(on_host=True)
def smoothed_attribute_certificate(
    encode_fn: EncodeFn,
    images: Float[Array | np.ndarray, "b h w k"],
    *,
    key: PRNGKeyArray,
    sigma: float,
    num_samples: int = 1000,
    confidence: float = 0.999,
    scale: Float[Array | np.ndarray, " n"] | None = None,
    offset: Float[Array | np.ndarray, " n"] | None = None,
    batch_size: int = 128,
) -> Certificate:
    """The image change below which the majority under noise keeps an attribute present, or keeps it absent.

    An attribute is present where scale_f e_f + offset_f > 0. Each is a vote between two answers, bounded from both
    sides: it stays within sigma Phi^-1 of the majority's share. The mean of sigmoid(scale_f e_f + offset_f) would prove
    less, because a sigmoid is the share of a vote under additional logistic noise.

    Args:
        encode_fn: as in `smoothed_certificate`.
        images: (b, h, w, channels) in [0, 1].
        key: random key.
        sigma: standard deviation of the noise, in units of [0, 1].
        num_samples: noisy copies of each image.
        confidence: the probability, for each image separately, that the radii of all its n attributes hold together.
        scale: (n,) positive; 1 by default.
        offset: (n,); 0 by default.
        batch_size: noisy copies in memory at a time.

    Returns:
        Certificate: radius (b, n) and whether each attribute is present (b, n) in most noisy copies; the answer is
        proven where the radius is not 0. NaN counts as neither present nor absent.

    Raises:
        ValueError: as `smoothed_certificate`; scale or offset does not match the attributes.
    """
    poll = _opened(encode_fn, images, key, sigma, num_samples, confidence, batch_size, also=(scale, offset))
    threshold = jnp.asarray(thresholds(poll.num_attributes, scale, offset), poll.images.dtype)
    counts = poll.count(jax.tree_util.Partial(_present, poll.encode, threshold), range(num_samples))
    absent, present = counts[..., 0], counts[..., 1]
    return poll.certificate(poll.quantile(np.maximum(absent, present), 2 * poll.num_attributes), present > absent)


@dataclass(frozen=True)
class _Poll:
    """Images, what is asked about their noisy copies, and how sure the outcome is to be."""

    encode: jax.tree_util.Partial
    num_attributes: int
    images: Float[Array, "b h w k"]
    key: PRNGKeyArray
    sigma: float
    num_samples: int
    confidence: float
    batch_size: int

    def count(self, vote: jax.tree_util.Partial, samples: range) -> Int[np.ndarray, "b ..."]:
        """How often each answer is given to each image, by `vote`: noisy copies -> (m, ...) booleans."""
        counts = jnp.zeros(jax.eval_shape(vote, self.images).shape, jnp.int32)
        for start in range(0, len(self.images) * len(samples), self.batch_size):
            # The last batch goes on to images that are not there, whose votes are dropped.
            image, sample = np.divmod(np.arange(start, start + self.batch_size), len(samples))
            rows = image.astype(np.int32), (sample + samples.start).astype(np.int32)
            counts = _add_votes(counts, vote, self.images, self.key, self.sigma, *rows)
        return np.asarray(counts)

    def quantile(self, counts: Int[np.ndarray, "b ..."], bounds: int) -> Float[np.ndarray, "b ..."]:
        """Phi^-1 of the share that is at least behind a count; all `bounds` of an image hold with the confidence."""
        lower = clopper_pearson(counts, self.num_samples, (1 - self.confidence) / bounds)
        return special.ndtri(lower)

    def certificate(self, quantile: Float[np.ndarray, "b ..."], answer: Any) -> Certificate:
        """Of the distance at which a share has come down to a half."""
        how = f"majority of {self.num_samples} noisy copies of deviation {self.sigma:.7g}, Clopper-Pearson bounds"
        return Certificate(self.sigma * np.maximum(quantile, 0), answer, self.confidence, how)


def clopper_pearson(counts: Int[np.ndarray, "..."], total: int, error: float) -> Float[np.ndarray, "..."]:
    """The lower end of the exact one-sided interval of a share, of which `counts` in `total` were seen.

    Args:
        counts: how often.
        total: of how many independent trials.
        error: the probability with which the share may lie below.

    Returns:
        The bounds, of the counts' shape.
    """
    lower = special.betaincinv(np.maximum(counts, 1), total - counts + 1, error)
    return np.where(counts > 0, lower, 0.0)


@jax.jit
def _add_votes(
    counts: Int[Array, "b ..."],
    vote: jax.tree_util.Partial,
    images: Float[Array, "b h w k"],
    key: PRNGKeyArray,
    sigma: Float[Array, ""],
    image: Int[Array, " m"],
    sample: Int[Array, " m"],
) -> Int[Array, "b ..."]:
    def noise(image, sample):
        own = jax.random.fold_in(jax.random.fold_in(key, image), sample)
        return jax.random.normal(own, images.shape[1:], images.dtype)

    noisy = images.at[image].get(mode="clip") + sigma * jax.vmap(noise)(image, sample)
    return counts.at[image].add(vote(noisy).astype(counts.dtype), mode="drop")


def _named(encode: jax.tree_util.Partial, head: Head, images: Float[Array, "m h w k"]) -> Bool[Array, "m c"]:
    attributes = encode(images)
    named = jnp.argmax(head_logits(jax.tree.map(lambda leaf: leaf.astype(attributes.dtype), head), attributes), axis=-1)
    finite = jnp.all(jnp.isfinite(attributes), axis=-1, keepdims=True)
    return jax.nn.one_hot(named, head.weights.shape[0], dtype=jnp.bool_) & finite


def _present(
    encode: jax.tree_util.Partial, threshold: Float[Array, " n"], images: Float[Array, "m h w k"]
) -> Bool[Array, "m n 2"]:
    value = encode(images) + threshold[None]
    return jnp.stack([value <= 0, value > 0], axis=-1)


def _opened(
    encode_fn: EncodeFn,
    images: Any,
    key: Any,
    sigma: Any,
    num_samples: Any,
    confidence: Any,
    batch_size: Any,
    also: Any,
) -> _Poll:
    check_images(images)
    check_key(key)
    check_count("num_samples", num_samples)
    check_between("confidence", confidence, 0.0, 1.0)
    check_between("sigma", sigma, 0.0, np.inf)
    bare = as_partial(encode_fn)
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((bare, images, key, also))):
        raise ValueError(
            "images or another argument is traced; expected numbers, on which votes are counted: call it outside jit, "
            "vmap and grad"
        )
    if len(images) == 0:
        raise ValueError("images is empty; expected at least one image")
    pixels = at_least_float32(jnp.asarray(images))
    encode = in_types(bare, images.dtype, pixels.dtype)
    shape = jax.eval_shape(encode, pixels).shape
    if len(shape) != 2 or shape[0] != len(pixels) or shape[1] < 1:
        raise ValueError(f"encode_fn returns shape {shape}; expected ({len(pixels)}, n), a row for each image")
    size = check_count("batch_size", batch_size)
    return _Poll(encode, shape[1], pixels, key, float(sigma), num_samples, float(confidence), size)
