"""Which images and attributes experiments.saliency draws."""

import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.runs.loading import LoadedRun
from experiments.saliency.__main__ import Args
from spectra_jax import head_logits


def choose(
    args: Args, run: LoadedRun, attributes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int, float]]:
    """(image, attribute, weight * value) of every map to draw.

    Raises:
        UserError: an image or attribute that is not there, or no image is classified correctly.
    """
    head = run.model.head(run.params)
    predicted = np.asarray(head_logits(head, jnp.asarray(attributes))).argmax(axis=-1)
    try:
        named = [run.info.find_attribute(name) for name in args.attribute]
    except ValueError as error:
        raise UserError(f"--attribute: {error}") from error
    for index in args.image:
        if not 0 <= index < len(labels):
            raise UserError(f"--image {index}: the test split has the images 0 to {len(labels) - 1}")
    images = np.asarray(args.image, int)
    if not args.image:
        right = rng.permutation(np.flatnonzero(predicted == labels))
        if not len(right):
            raise UserError(f"{run.model.name} classifies no test image correctly: choose some by --image")
        turn = np.array([np.sum(labels[right[:k]] == labels[right[k]]) for k in range(len(right))])
        images = right[np.argsort(turn, kind="stable")][: args.num_images]
    maps = []
    for index in images:
        contribution = np.asarray(head.weights)[predicted[index]] * attributes[index]
        for f in named or np.argsort(-contribution)[: args.num_attributes]:
            maps.append((int(index), int(f), float(contribution[f])))
    return maps
