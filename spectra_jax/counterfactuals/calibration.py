"""Attributes as probabilities, and the value of an attribute when it is on or off."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from spectra_jax.checks import check_array

_NEWTON_STEPS = 50
# Weight of the prior that keeps the scale finite where an attribute separates its labels.
_RIDGE = 1e-3


class Calibration(NamedTuple):
    """What turns attributes into probabilities: sigmoid(scale * e + offset).

    Attributes:
        scale: (n,) 1 for attributes that are logits already.
        offset: (n,).
    """

    scale: Float[np.ndarray, " n"]
    offset: Float[np.ndarray, " n"]

    def probability(self, attributes: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... n"]:
        """(..., n) in [0, 1]."""
        return 0.5 * (1 + np.tanh((self.scale * attributes + self.offset) / 2))


def fit_calibration(attributes: Float[Any, "N n"], present: Any) -> Calibration:
    """Platt scaling of every attribute: logistic regression of its label on its value (Platt 1999).

    Args:
        attributes: (N, n) values, of samples the encoder was not trained on where possible.
        present: (N, n) whether each sample has each attribute, or labels in [0, 1].

    Returns:
        Calibration. An attribute whose labels are all alike gets the scale 0.

    Raises:
        ValueError: shapes that differ, values that are not finite, labels outside [0, 1].
    """
    check_array("attributes", attributes)
    check_array("present", present)
    values, labels = np.asarray(attributes, float), np.asarray(present, float)
    if values.ndim != 2 or labels.shape != values.shape:
        raise ValueError(f"present has shape {labels.shape} beside attributes {values.shape}; expected (N, n) for both")
    if not np.isfinite(values).all() or not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError("attributes must be finite and present must lie in [0, 1]; remove the other samples")
    centre, spread = values.mean(axis=0), values.std(axis=0)
    units = (values - centre) / np.where(spread > 0, spread, 1)
    scale, offset = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for _ in range(_NEWTON_STEPS):
        probability = 0.5 * (1 + np.tanh((scale * units + offset) / 2))
        error = probability - labels
        weight = np.maximum(probability * (1 - probability), 1e-9)
        gradient = np.stack([(error * units).mean(axis=0) + _RIDGE * scale, error.mean(axis=0) + _RIDGE * offset])
        cross = (weight * units).mean(axis=0)
        first, last = (weight * units**2).mean(axis=0) + _RIDGE, weight.mean(axis=0) + _RIDGE
        determinant = first * last - cross**2
        step = np.stack([last * gradient[0] - cross * gradient[1], first * gradient[1] - cross * gradient[0]])
        step /= determinant
        step *= np.minimum(1, 2 / np.maximum(np.abs(step).max(axis=0), 1e-12))  # no step overshoots by far
        scale, offset = scale - step[0], offset - step[1]
    alike = labels.min(axis=0) == labels.max(axis=0)
    scale = np.where(alike | (spread == 0), 0, scale / np.where(spread > 0, spread, 1))
    return Calibration(scale, offset - scale * centre)


def on_and_off(
    reference: Float[np.ndarray, "N n"] | None, levels: tuple[float, float] | None, num_attributes: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """What each attribute reads when it is off and when it is on.

    Args:
        reference: (N, n) attributes of real samples: off is their 5th percentile and on their 95th, as in concept
            bottleneck models (Koh et al. 2020).
        levels: (off, on) for all attributes, in place of those.
        num_attributes: n.

    Raises:
        ValueError: neither was given.
    """
    if levels is not None:
        off, on = levels
        return np.full(num_attributes, float(off)), np.full(num_attributes, float(on))
    if reference is None:
        raise ValueError("True and False need values; give reference=attributes of real samples, or levels")
    off, on = np.percentile(np.asarray(reference, float), [5, 95], axis=0)
    return off, on


def present_mask(present: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "N n"]:
    """Labels of attributes as booleans.

    Raises:
        ValueError: another shape.
    """
    check_array("present", present)
    labels = np.asarray(present)
    if labels.shape != shape:
        raise ValueError(f"present has shape {labels.shape}; expected {shape}, to match attributes")
    return labels > 0.5
