"""Counterfactuals of concepts alone: CF-CBM compared with our answers for the same bottleneck and targets.

The bottleneck is CF-CBM's own, so that all systems start from the same concepts and are judged by the same linear task
predictor: the comparison is of how the change is found, not of two classifiers.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.cited_systems import cf_cbm
from experiments.reporting.intervals import median_interval, rate
from spectra_jax import Head, box_perturbation, head_logits, projection_perturbation, sparse_perturbation

FEW = 5  # attributes that the sparse answer may change
SEEN = 0.05  # a smaller change of a probability is not counted as a change
TITLES = {
    "cf_cbm": "CF-CBM, most probable counterfactual",
    "projection": "SPECTRA, shortest change",
    "box": "SPECTRA, within 0 and 1",
    "few": f"SPECTRA, at most {FEW} attributes",
    "single": "SPECTRA, one attribute",
    "real_concepts": "A real example of the target",
}
MEDIANS = ("length", "changed", "flipped", "off_manifold")


class Concepts(NamedTuple):
    """The questions, in the space of concepts.

    Attributes:
        head: CF-CBM's task predictor.
        before: (p, n) probabilities of the concepts.
        targets: (p,) classes asked for.
        asked: (p,) whether the predictor names another class than the target before.
    """

    head: Head
    before: Float[np.ndarray, "p n"]
    targets: Int[np.ndarray, " p"]
    asked: Bool[np.ndarray, " p"]


def ask(
    params: cf_cbm.Params, features: Float[np.ndarray, "p f"], targets: Int[np.ndarray, " p"],
    training: cf_cbm.Split, *, margin: float,
) -> tuple[Concepts, dict[str, Float[np.ndarray, "p n"]]]:  # fmt: skip
    """The questions, and the concepts that each system of TITLES answers with; not finite where it has no answer.

    Args:
        params: of CF-CBM.
        features: standardised, of the images.
        targets: classes asked for.
        training: where a real example of the target is taken from, the control.
        margin: lead of the target, in logits, that our answers keep.
    """
    head = cf_cbm.task_head(params)
    before, drawn = jax.jit(cf_cbm.counterfactual)(params, jnp.asarray(features), jnp.asarray(targets, jnp.int32))
    named = np.argmax(np.asarray(head_logits(head, before)), axis=-1)
    lead = jnp.float32(margin)

    def solved(change):
        return np.asarray(before + jax.jit(jax.vmap(change))(before, jnp.asarray(targets, jnp.int32)))

    ends = {"lower": jnp.zeros(before.shape[1]), "upper": jnp.ones(before.shape[1])}
    answers = {
        "cf_cbm": np.asarray(drawn),
        "projection": solved(lambda e, j: projection_perturbation(head, e, j, margin=lead).delta),
        "box": solved(lambda e, j: box_perturbation(head, e, j, margin=lead, **ends).delta),
        "few": solved(lambda e, j: sparse_perturbation(head, e, j, max_changes=FEW, margin=lead).delta),
        "single": solved(lambda e, j: sparse_perturbation(head, e, j, max_changes=1, margin=lead).delta),
        "real_concepts": real_examples(np.asarray(before), targets, training),
    }
    return Concepts(head, np.asarray(before), np.asarray(targets), named != np.asarray(targets)), answers


def real_examples(
    before: Float[np.ndarray, "p n"], targets: Int[np.ndarray, " p"], training: cf_cbm.Split
) -> Float[np.ndarray, "p n"]:
    """For each question the labels of the training example of the target that differs in the fewest concepts."""
    answers = np.empty_like(before)
    for row, (concepts, target) in enumerate(zip(np.round(before), targets, strict=True)):
        own = training.concepts[training.labels == target]
        answers[row] = own[np.argmin(np.sum(own != concepts, axis=1))]
    return answers


def figures(questions: Concepts, after: Float[np.ndarray, "p n"], training: cf_cbm.Split) -> dict[str, float]:
    """Shares of the pairs that were asked with Wilson intervals, medians over the valid answers by bootstrap.

    Args:
        questions: from `ask`.
        after: the concepts a system answers with.
        training: whose examples of the target say how far an answer is from real ones.

    Returns:
        valid: the predictor names the target. inside: no concept leaves 0 to 1. length: L2 of the change. changed:
        concepts moved by more than SEEN. flipped: concepts that cross one half. off_manifold: concepts in which the
        answer, rounded, differs from the nearest training example of the target. Each with _low and _high.
    """
    before, after = questions.before[questions.asked], after[questions.asked]
    targets = questions.targets[questions.asked]
    answered = np.isfinite(after).all(axis=1)
    kept = np.where(answered[:, None], after, before)
    named = np.argmax(np.asarray(head_logits(questions.head, jnp.asarray(kept))), axis=-1)
    valid = answered & (named == targets)
    inside = answered & ((kept >= -1e-6) & (kept <= 1 + 1e-6)).all(axis=1)
    measured = {
        "length": np.linalg.norm(kept - before, axis=1),
        "changed": np.sum(np.abs(kept - before) > SEEN, axis=1),
        "flipped": np.sum((kept > 0.5) != (before > 0.5), axis=1),
        "off_manifold": np.sum((kept > 0.5) != (real_examples(kept.clip(0, 1), targets, training) > 0.5), axis=1),
    }
    found: dict[str, float] = {"pairs": len(targets)}
    found |= rate("valid", int(valid.sum()), len(valid)) | rate("inside", int(inside.sum()), len(inside))
    if valid.any():
        for name in MEDIANS:
            found |= median_interval(name, measured[name][valid].astype(float))
    return found


def compare(
    questions: Concepts, answers: Mapping[str, np.ndarray], training: cf_cbm.Split
) -> dict[str, dict[str, float]]:
    """`figures` of every system."""
    return {name: figures(questions, after, training) for name, after in answers.items()}
