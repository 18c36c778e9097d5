"""Measures the answers of every system to the same questions by the same rules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from experiments.cited_systems.subject import Pairs, Subject, features_of
from experiments.counterfactuals import find
from experiments.counterfactuals.parts import part_discs
from experiments.reporting.intervals import median_interval, rate
from experiments.reporting.pages import median
from experiments.runs.loading import LoadedRun
from spectra_jax import energy_lift, head_logits, ssim
from spectra_jax.names import readable_attribute

SHARES = ("valid", "witness_agrees")
MEDIANS = ("realised", "cosine", "selectivity", "l2", "ssim", "on_manifold", "lift")


class Places(NamedTuple):
    """Where the change that is asked for should be, a row per pair.

    Attributes:
        attribute: name of the attribute that is to change most, in standard deviations, of those whose part is visible.
        inside: (p, h, w) whether a pixel lies on its part; nowhere where no part is visible.
    """

    attribute: tuple[str, ...]
    inside: np.ndarray


class Witness(NamedTuple):
    """Another network, trained on the same data, and what it makes of the real images of each class.

    Attributes:
        run: the network.
        features: (N, f) of the training images.
        labels: (N,) their classes.
    """

    run: LoadedRun
    features: np.ndarray
    labels: np.ndarray


def named_places(subject: Subject, pairs: Pairs, spread: np.ndarray) -> Places:
    """The part of the attribute that each request is about."""
    run, size = subject.run, subject.run.config.image_size
    names, inside = [], np.zeros((len(pairs.rows), size, size), bool)
    asked = np.abs(pairs.requested) / np.where(spread > 0, spread, np.inf)
    for row, index in enumerate(pairs.rows):
        example = run.dataset.example("test", int(index))
        names.append("")
        for column in np.argsort(-asked[row])[: find.SELECTED]:
            attribute = run.info.attribute_names[column]
            discs = part_discs(run.info, example, attribute, size)
            if discs is not None:
                names[-1], inside[row] = readable_attribute(attribute), discs.inside
                break
    return Places(tuple(names), inside)


def make_witness(run: LoadedRun, size: int) -> Witness:
    """The witness with the features of its training images, which it sees at the size of the compared images."""
    split = run.dataset.arrays("train", image_size=size)
    return Witness(run, features_of(run, split.inputs), split.labels)


def real_images(subject: Subject, pairs: Pairs, labels: np.ndarray, *, seed: int) -> np.ndarray:
    """A test image of each pair's target class, drawn at random: what a counterfactual can hope to look like."""
    rng, size = np.random.default_rng([seed, 41]), subject.run.config.image_size
    chosen = [
        int(rng.choice(np.flatnonzero(labels == target))) if np.any(labels == target) else int(index)
        for target, index in zip(pairs.target, pairs.rows, strict=True)
    ]
    return subject.run.dataset.images("test", np.asarray(chosen), image_size=size)


def measures(
    subject: Subject, pairs: Pairs, places: Places, witness: Witness | None, spread: np.ndarray, answers: np.ndarray,
    seconds: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What is to be said of each answer.

    Args:
        subject: the classifier.
        pairs: the questions.
        places: of the attributes that should change.
        witness: the other network; NaN in its columns without one.
        spread: (n,) standard deviation of each attribute over the test split.
        answers: (p, h, w, 3) 8-bit images.
        seconds: (p,) that each took.

    Returns:
        name -> (p,): valid, the classifier names the target; realised, length of the realised change of the attributes
        over that of the requested one; cosine of the two, and selectivity, the share of what moved that was among the
        attributes asked for most; l2 and ssim against the original; on_manifold, distance to the nearest training image
        of the target class between features of the witness; witness_agrees, it names the target; lift, energy of the
        change on the part of the attribute asked for most, over the part's share of the area; seconds.
    """
    before, after = (jnp.asarray(pixels, jnp.float32) / 255 for pixels in (pairs.images, answers))
    encode = jax.jit(subject.run.model.encode)
    attributes = [np.asarray(encode(subject.run.params, images)) for images in (before, after)]
    targets, unit = jnp.asarray(pairs.target), jnp.asarray(spread, jnp.float32)
    found = find.measure(subject.head, before, after, *attributes, pairs.requested, targets, unit)
    length, asked = (np.linalg.norm(change, axis=1) for change in (attributes[1] - attributes[0], pairs.requested))
    missing = np.full(len(answers), np.nan)
    result = {
        "valid": np.asarray(found["class_after"]) == pairs.target,
        "realised": length / asked,
        "cosine": found["attribute_cosine"],
        "selectivity": found["attribute_share"],
        "l2": found["l2"],
        "ssim": ssim(after, before),
        "on_manifold": missing,
        "witness_agrees": missing,
        "lift": energy_lift(after, before, jnp.asarray(places.inside)).lift,
        "seconds": seconds,
    }
    if witness is not None:
        features = features_of(witness.run, answers)
        result["on_manifold"] = nearest_real(witness, features, pairs.target)
        result["witness_agrees"] = _named(witness.run, features) == pairs.target
    return {name: np.asarray(values) for name, values in result.items()}


def nearest_real(witness: Witness, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(p,) Euclidean distance to the nearest training image of the target class; NaN for a class without images."""
    found = np.full(len(features), np.nan)
    for target in np.unique(targets):
        rows, real = np.flatnonzero(targets == target), witness.features[witness.labels == target]
        if len(real):
            found[rows] = cdist(features[rows], real).min(axis=1)
    return found


def _named(run: LoadedRun, features: np.ndarray) -> np.ndarray:
    attributes = run.model.bottleneck(run.params, jnp.asarray(features))
    return np.asarray(jnp.argmax(head_logits(run.model.head(run.params), attributes), axis=-1))


def figures(measured: Mapping[str, np.ndarray], *, is_control: bool = False) -> dict[str, float]:
    """Shares of all pairs with Wilson intervals; medians over the answers that have the target, by bootstrap.

    Args:
        measured: from `measures`.
        is_control: the images are no answers, and the medians are over all of them.

    Returns:
        name -> value, with name_low and name_high; the median time alone has no interval, it is that of a few batches.
    """
    valid = np.asarray(measured["valid"], bool) | is_control
    values: dict[str, Any] = {"pairs": len(valid)}
    if np.isfinite(measured["seconds"]).all():
        values["seconds"] = median(measured["seconds"])
    for name in SHARES:
        flags = measured[name]
        if not np.isnan(np.asarray(flags, float)).any():
            values |= rate(name, int(np.sum(flags)), len(flags))
    for name in MEDIANS:
        kept = np.asarray(measured[name], float)[valid]
        kept = kept[np.isfinite(kept)]
        if len(kept):
            values |= median_interval(name, kept)
    return values
