"""CANARY's metrics of the images that DDN made of each run, and of the run itself (Sun et al., 2023)."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import f1_score

from experiments.attacks.foolbox import foolbox_model
from experiments.attacks.options import AttackConfig
from experiments.reporting.canary import EFFECT, VISIBILITY, effect_figures, prefix, visibility_figures
from experiments.robustness.measure import Attacked, over_batches
from experiments.runs.loading import LoadedRun
from spectra_jax import head_logits
from spectra_jax.canary import (
    READINGS,
    Reading,
    attention_change,
    average,
    average_attention_change,
    grad_cam,
    transfer_rate,
)
from spectra_jax.canary_score import LIMITS, canary_score
from spectra_jax.reporting import Column

MODEL = (
    ("accuracy", Column("Accuracy", "%", "Accuracy on the chosen images before any attack.", 1)),
    ("macro_f1", Column("Macro-F1", "%", "F1 of each class among the chosen images, averaged over the classes.", 1)),
    ("confidence", Column("True-class confidence", "%", "Mean softmax probability of the true class.", 1)),
)
ATTENTION = (
    (
        "acamc_a",
        Column(
            "ACAMC_A",
            "",
            "Mean cosine between the Grad-CAM maps before and after the attack, for the class predicted after it. "
            "The maps are computed on the pixels, because not every model has a convolutional map.",
            2,
        ),
    ),
    ("acamc_t", Column("ACAMC_T", "", "The same for the true class.", 2)),
)
OTHERS = ("otr", Column("OTR", "%", "Mean misclassification ratio on the other runs of this comparison.", 1))
COST = (
    ("act", Column("ACT", "s", "Seconds per image; the first batch includes compiling the attack.", 3)),
    ("aqn", Column("AQN", "", "Forward passes per image; there are as many backward passes.", 0)),
)
ADMS = ("adms", Column("ADMS", "", "Mean DISTS; it needs VGG weights that no installable package ships.", 4))
SCORE = (
    "score",
    Column("Score", "", "CANARY's score of the attack on this run, relative to these runs: 1 where it did best, on the "
           "least robust of them, and 0 where it did worst, however little they differ.", 2),
)  # fmt: skip
COLUMNS = (*MODEL, *EFFECT, *ATTENTION, OTHERS, *COST, *VISIBILITY, ADMS, SCORE)
SUFFIXES: dict[Reading, str] = {"as defined": "", "as coded": ", as coded"}  # of the name of a row
NOTE = (
    "The attack is Foolbox's DDN. Averages are over the images classified correctly before the attack, failures "
    "included, as the publication defines them. The second row of each run follows the public code instead, which "
    "omits failures, swaps the two frequency bands, divides lengths by N / 2, counts changed channels and omits an "
    "image from both ACAMC if one of its maps is blank. ADMS is missing because it needs VGG weights that no "
    "installable package ships. The score combines effect and visibility by item response theory. It ignores the cost, "
    "for which CANARY has no limits in seconds, and needs two runs and the extra 'canary'."
)


def canary_figures(
    name: str, attacked: Attacked, runs: Mapping[str, LoadedRun], config: AttackConfig
) -> dict[str, float]:
    """CANARY's metrics of one run and of DDN's images of it.

    Args:
        name: name of the run.
        attacked: results of the attacks on it.
        runs: all runs by name; the images are also tried on the others.
        config: configuration of the attacks.

    Returns:
        Every one of COLUMNS except the score, in both readings; NaN where there is nothing to average.
    """
    labels, valid = jnp.asarray(attacked.labels), jnp.asarray(attacked.correct)

    def logits(run: LoadedRun) -> tuple[np.ndarray, np.ndarray]:
        model = foolbox_model(run)
        before, after = (
            over_batches(model, images, config.batch_size) for images in (attacked.originals, attacked.pictures)
        )
        return before, after

    before, after = (jnp.asarray(part) for part in logits(runs[name]))
    others = [logits(run) for other, run in runs.items() if other != name]
    transferred = float("nan")
    if others:
        theirs, misled = (jnp.asarray(np.stack(part)) for part in zip(*others, strict=True))
        transferred = float(transfer_rate(theirs, misled, labels, valid))
    common: dict[str, Any] = {"otr": transferred, "aqn": config.ddn_steps, "adms": np.nan}
    common |= effect_figures(before, after, labels) | model_figures(before, labels)
    named = np.asarray(jnp.argmax(after, axis=-1))
    to_named, to_true = (_attention(runs[name], attacked, classes, config) for classes in (named, attacked.labels))
    success = valid & (jnp.argmax(after, axis=-1) != labels)
    values: dict[str, float] = {}
    for reading in READINGS:
        means: dict[str, Any] = visibility_figures(
            attacked.pictures, attacked.originals, valid, success, reading=reading
        )
        both = average_attention_change(to_named, to_true, valid, reading=reading)
        means |= dict(zip(("acamc_a", "acamc_t"), both, strict=True))
        means["act"] = average(jnp.asarray(attacked.seconds), valid, success, reading=reading)
        values |= {prefix(reading) + key: float(value) for key, value in (common | means).items()}
    return values


def add_scores(found: Mapping[str, dict[str, float]], *, seed: int = 0) -> None:
    """Adds the score of every run by both readings; NaN for a single run or without NumPyro.

    Args:
        found: the figures of every run, `canary_figures` among them.
        seed: of the samplers.
    """
    for reading in READINGS:
        start, scores = prefix(reading), dict.fromkeys(found, float("nan"))
        if len(found) > 1 and importlib.util.find_spec("numpyro"):
            groups = [_usable(found, start, [*EFFECT, *ATTENTION, OTHERS]), _usable(found, start, VISIBILITY)]
            groups = [group for group in groups if group]
            metrics = {
                name: {key: values[start + key.lower()] for group in groups for key in group}
                for name, values in found.items()
            }
            if groups:
                scores = canary_score(metrics, groups, seed=seed, reading=reading)
        for name, score in scores.items():
            found[name][f"{start}score"] = score


def _usable(found: Mapping[str, Mapping[str, float]], start: str, columns: Sequence[tuple[str, Column]]) -> list[str]:
    """The metrics of a group that every run has, by the names that the score knows."""
    names = [key for key, _ in columns if not any(np.isnan(values[start + key]) for values in found.values())]
    return [name for name in map(str.upper, names) if name in LIMITS]


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
