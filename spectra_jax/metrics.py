"""Figures of merit: attack success, PSNR, perturbation noise ratio, and attribute/class quality."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import as_unit_scale, at_least_float32
from spectra_jax.extras import extra
from spectra_jax.switches import public


@public()
def attack_success_rate(success: Bool[Array, " b"], *, attempted: Bool[Array, " b"] | None = None) -> Float[Array, ""]:
    """Share of attempted samples whose attack succeeded (the paper's ASR, Section 4).

    Args:
        success: (b,) whether the classifier predicts the target on the final image.
        attempted: (b,) False only for padding rows. A failed or infeasible attempt is
            still an attempt: excluding it inflates the rate.

    Returns:
        Scalar in [0, 1]; NaN when nothing was attempted.
    """
    attempted = jnp.ones_like(success) if attempted is None else attempted
    return jnp.sum(success & attempted) / jnp.sum(attempted)


@public(rows="images")
def psnr(images: Float[Array, "b ..."], reference: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio 10 log10(1 / MSE) per image, in dB, for values in [0, 1].

    Identical images deliberately give +inf: average over the finite values and count the rest. NaN pixels give NaN.

    Args:
        images, reference: (b, ...) of the same shape.

    Returns:
        (b,) dB, in float32 for images of half precision.

    Raises:
        ValueError: shapes differ, images not on the scale of [0, 1].
    """
    if jnp.shape(images) != jnp.shape(reference):
        raise ValueError(f"images is {jnp.shape(images)} and reference {jnp.shape(reference)}; expected one shape")
    change = as_unit_scale("images", images) - as_unit_scale("reference", reference)
    mse = jnp.mean(jnp.square(change), axis=tuple(range(1, jnp.ndim(images))))
    identical = mse == 0
    return jnp.where(identical, jnp.inf, -10 * jnp.log10(jnp.where(identical, 1, mse)))


@public(rows="delta_input")
def perturbation_noise_ratio(
    delta_input: Float[Array, "b ..."], delta_latent: Float[Array, "b n"]
) -> Float[Array, " b"]:
    """Size of the image change over the size of the attribute change, ||delta_input|| / ||delta_latent|| (Section 4).

    Report it with the REALISED latent change phi(x') - phi(x) and, next to it, with the requested one.

    Args:
        delta_input: (b, ...) change of the image, in [0, 1] pixel units.
        delta_latent: (b, n) change of the unnormalised attributes.

    Returns:
        (b,); inf where only the image changed, NaN where neither did.
    """
    delta_input, delta_latent = at_least_float32((delta_input, delta_latent))
    pixels = jnp.sqrt(jnp.sum(jnp.square(delta_input), axis=tuple(range(1, jnp.ndim(delta_input)))))
    return pixels / jnp.sqrt(jnp.sum(jnp.square(delta_latent), axis=-1))


@public()
def class_accuracy(
    logits: Float[Array, "b c"], labels: Int[Array, " b"], *, valid: Bool[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Share of valid samples whose largest logit is the label."""
    valid = jnp.ones(labels.shape, bool) if valid is None else valid
    named = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # not in the labels' type, which may not hold every class
    return attack_success_rate(named == jnp.asarray(labels, jnp.int32), attempted=valid)


def attribute_metrics(
    attributes: Float[Array | np.ndarray, "N n"], labels: Float[Array | np.ndarray, "N n"]
) -> dict[str, float]:
    """Quality of attribute predictions, each averaged over the attributes for which it is defined.

    Plain accuracy is left out on purpose: always answering "absent" scores 92 % on CUB.

    Args:
        attributes: (N, n) unnormalised scores; above 0 means present.
        labels: (N, n) in {0, 1}.

    Returns:
        balanced_accuracy and map over attributes with both answers present, f1 over attributes present at
        least once (their undefined precision counts as 0), and num_attributes that have both answers.
    """
    with extra("experiments"):  # half a second that only this function needs
        from sklearn.metrics import average_precision_score, multilabel_confusion_matrix

    scores, truth = np.asarray(attributes, np.float64), np.asarray(labels) > 0.5
    if scores.shape != truth.shape or scores.ndim != 2:
        raise ValueError(
            f"attributes is {scores.shape} and labels {truth.shape}; expected one shape, (samples, attributes)"
        )
    if not np.isfinite(scores).all():
        raise ValueError("attributes contains NaN or infinite scores; check the model before evaluating it")
    columns = scores.shape[1]
    if columns == 1:  # scikit-learn reads one column as one binary problem, not as a one-label matrix
        scores, truth = np.repeat(scores, 2, axis=1), np.repeat(truth, 2, axis=1)
    (true_negative, false_positive), (false_negative, true_positive) = np.moveaxis(
        multilabel_confusion_matrix(truth, scores > 0), 0, -1
    ).astype(np.float64)
    positives, negatives = true_positive + false_negative, true_negative + false_positive
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        raise ValueError("no attribute is present in some samples and absent in others; nothing can be scored")
    balanced = (true_positive[both] / positives[both] + true_negative[both] / negatives[both]) / 2
    f1 = 2 * true_positive / np.maximum(2 * true_positive + false_positive + false_negative, 1)
    return {
        "balanced_accuracy": float(balanced.mean()),
        "f1": float(f1[positives > 0].mean()),
        "map": float(average_precision_score(truth[:, both], scores[:, both], average="macro")),
        "num_attributes": float(min(both.sum(), columns)),
    }
