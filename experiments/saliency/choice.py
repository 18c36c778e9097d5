"""Which images and attributes experiments.saliency draws."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.runs.loading import LoadedRun
from spectra_jax import head_logits


def choose(
    run: LoadedRun, attributes: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *,
    chosen_images: Sequence[int], chosen_attributes: Sequence[str], num_images: int, num_attributes: int,
) -> list[tuple[int, int, float]]:  # fmt: skip
    """(image, attribute, weight * value) of every map to draw.

    Args:
        run: the model.
        attributes, labels: of the test split.
        rng: draws the images.
        chosen_images: places in the test split; if empty, `num_images` that are classified correctly are drawn.
        chosen_attributes: by name; if empty, the `num_attributes` that speak most for the predicted class.
        num_images, num_attributes: how many are drawn.

    Raises:
        UserError: an image or attribute that is not there, or no image is classified correctly.
    """
    head = run.model.head(run.params)
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    try:
        named = [run.info.find_attribute(name) for name in chosen_attributes]
    except ValueError as error:
        raise UserError(f"--attribute: {error}") from error
    for index in chosen_images:
        if not 0 <= index < len(labels):
            raise UserError(f"--image {index}: the test split has the images 0 to {len(labels) - 1}")
    images = np.asarray(chosen_images, int)
    if not chosen_images:
        right = rng.permutation(np.flatnonzero(predicted == labels))
        if not len(right):
            raise UserError(f"{run.model.name} classifies no test image correctly: choose some by --image")
        turn = np.array([np.sum(labels[right[:k]] == labels[right[k]]) for k in range(len(right))])
        images = right[np.argsort(turn, kind="stable")][:num_images]
    maps = []
    for index in images:
        contribution = np.asarray(head.weights)[predicted[index]] * attributes[index]
        for f in named or np.argsort(-contribution)[:num_attributes]:
            maps.append((int(index), int(f), float(contribution[f])))
    return maps
