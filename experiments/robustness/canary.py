"""CANARY's metrics of the images that DDN made of each run, and of the run itself (Sun et al., 2023)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score

from experiments.attacks.foolbox import foolbox_model
from experiments.attacks.options import AttackConfig
from experiments.robustness.measure import Attacked, over_batches
from experiments.runs.loading import LoadedRun
from spectra_jax import head_logits
from spectra_jax.canary import (
    Reading,
    attention_change,
    average,
    average_attention_change,
    deflection,
    disturbance,
    grad_cam,
    transfer_rate,
)
from spectra_jax.reporting import Column

MODEL = (
    ("accuracy", Column("Accuracy", "%", "Of the chosen images, before any attack.", 1)),
    ("macro_f1", Column("Macro-F1", "%", "F1 of each class among the chosen images, averaged over the classes.", 1)),
    ("confidence", Column("True-class confidence", "%", "Mean softmax probability of the true class.", 1)),
)
VALID = "over the images named correctly before"
ATTACK = (
    ("mr", Column("MR", "%", f"Misclassification ratio {VALID}.", 1)),
    ("aiac", Column("AIAC", "%", f"Increase of the confidence in the class named after the attack, {VALID}.", 1)),
    ("artc", Column("ARTC", "%", f"Reduction of the confidence in the true class, {VALID}.", 1)),
    (
        "acamc_a",
        Column(
            "ACAMC_A",
            "",
            "Cosine of the Grad-CAM maps before and after, for the class named after the "
            "attack, averaged; of the pixels, as not every model has a convolutional map.",
            2,
        ),
    ),
    ("acamc_t", Column("ACAMC_T", "", "The same for the true class.", 2)),
    ("otr", Column("OTR", "%", "Misclassification ratio on the other runs of this comparison, averaged.", 1)),
    ("aqn", Column("AQN", "", "Forward passes for each image, and as many backward.", 0)),
    ("amd", Column("AMD", "", "Largest change of a channel, values from 0 to 1, averaged.", 4)),
    ("aed", Column("AED", "", "Euclidean length over the root of the number of values, averaged.", 4)),
    ("aed_hf", Column("AED_HF", "", "The same of frequencies above 5 cycles per image.", 4)),
    ("aed_lf", Column("AED_LF", "", "The same of those below.", 4)),
    ("apcr", Column("APCR", "%", "Share of pixels that changed in 8 bits, averaged.", 1)),
    ("alms", Column("ALMS", "", "Multi-scale gradient magnitude similarity deviation, averaged.", 4)),
    ("adms", Column("ADMS", "", "DISTS, averaged: it needs weights of VGG that no installable package ships.", 4)),
)
COLUMNS = (*MODEL, *ATTACK)
# A reading, how its figures begin in summary.json, and what the name of its row ends with.
PREFIXES: tuple[tuple[Reading, str, str], ...] = (
    ("as defined", "canary/", ""),
    ("as coded", "canary_as_coded/", ", as coded"),
)
NOTE = (
    "The attack is Foolbox's DDN. Averages are over the images named correctly before, failures included, as the "
    "publication defines them; its public code leaves failures out, exchanges the two frequency bands, divides lengths "
    "by N / 2, counts changed channels and leaves an image out of both ACAMC where one of its maps is blank: second "
    "row of each run. ADMS is not here: it needs VGG weights that no installable package ships."
)


def canary_figures(
    name: str, attacked: Attacked, runs: Mapping[str, LoadedRun], config: AttackConfig
) -> dict[str, float]:
    """CANARY's metrics of one run and of DDN's images of it.

    Args:
        name: of the run.
        attacked: what the attacks did to it.
        runs: all runs by name; the others are asked whether the images mislead them too.
        config: of the attacks.

    Returns:
        "canary/NAME" as defined, and "canary_as_coded/NAME"; NaN where there is nothing to average.
    """
    labels, valid = jnp.asarray(attacked.labels), jnp.asarray(attacked.correct)

    def logits(run: LoadedRun) -> tuple[np.ndarray, np.ndarray]:
        model = foolbox_model(run)
        before, after = (
            over_batches(model, images, config.batch_size) for images in (attacked.originals, attacked.pictures)
        )
        return before, after

    before, after = (jnp.asarray(part) for part in logits(runs[name]))
    turned = deflection(before, after, labels)
    others = [logits(run) for other, run in runs.items() if other != name]
    transferred = float("nan")
    if others:
        theirs, misled = (jnp.asarray(np.stack(part)) for part in zip(*others, strict=True))
        transferred = float(transfer_rate(theirs, misled, labels, valid))
    common: dict[str, Any] = {"mr": turned.mr, "aiac": turned.aiac, "artc": turned.artc, "otr": transferred,
                              "aqn": config.ddn_steps, "adms": np.nan}  # fmt: skip
    common |= model_figures(before, labels)
    named = np.asarray(jnp.argmax(after, axis=-1))
    to_named, to_true = (_attention(runs[name], attacked, classes, config) for classes in (named, attacked.labels))
    success = valid & (jnp.argmax(after, axis=-1) != labels)
    values: dict[str, float] = {}
    for reading, prefix, _ in PREFIXES:
        images, reference = jnp.asarray(attacked.pictures), jnp.asarray(attacked.originals)
        found = disturbance(images, reference, reading=reading)._asdict()
        means = {f"a{key}": average(each, valid, success, reading=reading) for key, each in found.items()}
        both = average_attention_change(to_named, to_true, valid, reading=reading)
        means |= dict(zip(("acamc_a", "acamc_t"), both, strict=True))
        values |= {f"{prefix}{key}": float(value) for key, value in (common | means).items()}
    return values


def _attention(run: LoadedRun, attacked: Attacked, classes: np.ndarray, config: AttackConfig) -> jax.Array:
    """(N,) cosines of what the run looks at for these classes, before and after the attack."""
    model = foolbox_model(run)

    @jax.jit
    def maps(images: jax.Array, classes: jax.Array) -> jax.Array:
        return grad_cam(lambda pixels: pixels, lambda pixels: head_logits(model.head, model.encode_fn(pixels)), images,
                        classes)  # fmt: skip

    def of(images: np.ndarray) -> jax.Array:
        def batch(rows: jax.Array) -> jax.Array:
            return maps(jnp.asarray(images)[rows], jnp.asarray(classes, jnp.int32)[rows])

        return jnp.asarray(over_batches(batch, np.arange(len(classes)), config.batch_size))

    return attention_change(of(attacked.originals), of(attacked.pictures))


def model_figures(logits: jax.Array, labels: jax.Array) -> dict[str, float]:
    """Accuracy, macro-F1 over the classes that occur, and mean confidence in the true class."""
    named = np.asarray(jnp.argmax(logits, axis=-1))
    confidence = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), labels[:, None], axis=-1)
    return {
        "accuracy": float(np.mean(named == np.asarray(labels))),
        "macro_f1": float(f1_score(np.asarray(labels), named, average="macro", zero_division=0)),
        "confidence": float(jnp.mean(confidence)),
    }
