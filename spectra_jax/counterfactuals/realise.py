"""Images for answers."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax.inversion import InversionConfig, invert

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
    found = invert(
        encode_fn,
        explanation.head,
        jnp.asarray(images)[rows],
        jnp.asarray(wanted, explanation.head.weights.dtype),
        jnp.asarray(np.asarray(explanation.targets).reshape(-1), jnp.int32),
        config=config,
    )
    shaped = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(samples, places, *leaf.shape[1:]),
        Realisation(found.images, found.attributes, found.success, found.reason, found.distances.l2, found.psnr),
    )
    return dataclasses.replace(explanation, realised=shaped)
