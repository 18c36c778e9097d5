"""Training losses: attribute BCE, class CE, and their weighted sum (the paper's Section 2.3)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def masked_mean(values: Float[Array, "b"], valid: Bool[Array, "b"] | None = None) -> Float[Array, ""]:
    """Mean of per-sample values over the valid rows; 0 when none is valid."""
    if valid is None:
        return jnp.mean(values)
    weight = valid.astype(values.dtype)
    # where, not a product: a padded row may hold NaN and must not leak it.
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(weight), 1)


def attribute_loss(
    attributes: Float[Array, "b n"],
    labels: Float[Array, "b n"],
    *,
    positive_weight: Float[Array, "n"] | None = None,
    valid: Bool[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy on the attributes, averaged over attributes and valid samples.

    Args:
        attributes: (b, n) unnormalised attribute values (logits).
        labels: (b, n) in [0, 1].
        positive_weight: (n,) factor on the term of present attributes, to counter rare attributes.
        valid: (b,) rows to count.

    Returns:
        Scalar loss in nats.
    """
    present = optax.sigmoid_binary_cross_entropy(attributes, jnp.ones_like(attributes)) * labels
    absent = optax.sigmoid_binary_cross_entropy(attributes, jnp.zeros_like(attributes)) * (1 - labels)
    if positive_weight is not None:
        present = present * jnp.broadcast_to(positive_weight, present.shape)
    return masked_mean(jnp.mean(present + absent, axis=-1), valid)


def classification_loss(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    label_smoothing: float = 0.0,
    valid: Bool[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy with optional label smoothing, averaged over valid samples.

    Args:
        logits: (b, c).
        labels: (b,) class indices.
        label_smoothing: share of the target mass spread evenly over all classes.
        valid: (b,) rows to count.

    Returns:
        Scalar loss in nats.
    """
    one_hot = labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
    targets = optax.smooth_labels(one_hot.astype(logits.dtype), label_smoothing)
    return masked_mean(optax.softmax_cross_entropy(logits, targets), valid)
