"""CANARY's metrics of changed images (Sun et al., 2023), for summaries and reports."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax.canary import READINGS, Reading, average, deflection, disturbance
from spectra_jax.reporting import Column

VALID = "over the images classified correctly before"
EFFECT = (
    ("mr", Column("MR", "%", f"Misclassification ratio {VALID}.", 1)),
    ("aiac", Column("AIAC", "%", f"Increase in confidence in the class predicted after the attack, {VALID}.", 1)),
    ("artc", Column("ARTC", "%", f"Reduction in confidence in the true class, {VALID}.", 1)),
)
TARGETED = ("tas", Column("TAS", "%", f"Share classified as the target afterwards, {VALID}.", 1))
VISIBILITY = (
    ("amd", Column("AMD", "", "Mean of the largest change in any channel; channel values are in [0, 1].", 4)),
    ("aed", Column("AED", "", "Mean Euclidean length of the change over the root of the number of values.", 4)),
    ("aed_hf", Column("AED_HF", "", "AED of the frequencies above 5 cycles per image.", 4)),
    ("aed_lf", Column("AED_LF", "", "AED of the frequencies below 5 cycles per image.", 4)),
    ("apcr", Column("APCR", "%", "Mean share of pixels that changed after rounding to 8 bits.", 1)),
    ("alms", Column("ALMS", "", "Mean multi-scale gradient magnitude similarity deviation.", 4)),
)
NOTE = (
    "Averages are over the images classified correctly before, failures included, as the publication defines them. The "
    "second row follows the public code instead, which omits failures, swaps the two frequency bands, divides lengths "
    "by N / 2 and counts changed channels. DISTS (ADMS) is missing because it needs VGG weights that no installable "
    "package ships."
)
_ROWS_AT_ONCE = 32


def prefix(reading: Reading) -> str:
    """How the figures of a reading begin in summary.json."""
    return "canary/" if reading == "as defined" else "canary_as_coded/"


def effect_figures(
    before: jax.Array, after: jax.Array, labels: jax.Array, targets: jax.Array | None = None
) -> dict[str, float]:
    """The figures of EFFECT, and of TARGETED where there are targets; both readings agree on them.

    Args:
        before, after: (b, c) logits.
        labels: (b,) true classes.
        targets: (b,) classes aimed at.
    """
    found = {name: float(value) for name, value in deflection(before, after, labels, targets=targets)._asdict().items()}
    return {name: value for name, value in found.items() if name != "tas" or targets is not None}


def visibility_figures(
    images: np.ndarray, reference: np.ndarray, valid: jax.Array, success: jax.Array, *, reading: Reading
) -> dict[str, float]:
    """The figures of VISIBILITY.

    Args:
        images, reference: (b, h, w, 3) in [0, 1], changed and original.
        valid, success: (b,) named correctly before, and wrongly afterwards.
        reading: see `spectra_jax.canary`.
    """

    def parts() -> Iterator[dict[str, jax.Array]]:
        for start in range(0, len(images), _ROWS_AT_ONCE):  # a Fourier transform of all would take gigabytes
            pair = (jnp.asarray(each[start : start + _ROWS_AT_ONCE], jnp.float32) for each in (images, reference))
            yield disturbance(*pair, reading=reading)._asdict()

    each = list(parts())
    whole = {name: jnp.concatenate([part[name] for part in each]) for name in each[0]}
    return {f"a{name}": float(average(values, valid, success, reading=reading)) for name, values in whole.items()}


def change_figures(
    before: jax.Array,
    after: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    images: np.ndarray,
    reference: np.ndarray,
) -> dict[str, float]:
    """What CANARY says of images that were to become the targets: both readings, by their `prefix`.

    Args:
        before, after: (b, c) logits.
        labels, targets: (b,) true classes and those aimed at.
        images, reference: (b, h, w, 3) in [0, 1], changed and original.
    """
    valid, turned = jnp.argmax(before, axis=-1) == labels, jnp.argmax(after, axis=-1) != labels
    effect, found = effect_figures(before, after, labels, targets), dict[str, float]()
    for reading in READINGS:
        seen = visibility_figures(images, reference, valid, valid & turned, reading=reading)
        found |= {prefix(reading) + name: value for name, value in (effect | seen).items()}
    return found


def readings(figures: Mapping[str, Any]) -> dict[Reading, dict[str, Any]]:
    """The figures of each reading without their `prefix`; a reading without figures is left out."""
    found = {}
    for reading in READINGS:
        start = prefix(reading)
        found[reading] = {name.removeprefix(start): value for name, value in figures.items() if name.startswith(start)}
    return {reading: values for reading, values in found.items() if values}
