"""Images for answers."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax.image_metrics import image_distances
from spectra_jax.inversion import InversionConfig, invert
from spectra_jax.metrics import psnr

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.explanation import Explanation


def realise(explanation: "Explanation", encode_fn, images, config: InversionConfig | None) -> "Explanation":
    """See `Explanation.realise`."""
    from spectra_jax.counterfactuals.explanation import Realisation

    config = InversionConfig(method="nearest") if config is None else config
    if len(images) != len(explanation):
        raise ValueError(f"images has {len(images)} rows; expected {len(explanation)}, the images of the samples")
    samples, places = explanation.targets.shape
    delta = np.asarray(explanation.delta[:, :, 0])
    wanted = (np.asarray(explanation.attributes)[:, None] + delta).reshape(samples * places, -1)
    rows = np.repeat(np.arange(samples), places)
    originals = jnp.asarray(images)[rows]
    found = invert(
        encode_fn,
        explanation.head,
        originals,
        jnp.asarray(wanted, explanation.head.weights.dtype),
        jnp.asarray(np.asarray(explanation.targets).reshape(-1), jnp.int32),
        config=config,
    )
    l2 = image_distances(found.images, originals).l2
    shaped = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(samples, places, *leaf.shape[1:]),
        Realisation(found.images, found.attributes, found.success, found.reason, l2, psnr(found.images, originals)),
    )
    return dataclasses.replace(explanation, realised=shaped)
