"""Descent on MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)): the paper's loop, and Adam on the same loss."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from spectra_jax.inversion.config import InversionConfig
from spectra_jax.inversion.encoder import lead_of, per_sample
from spectra_jax.inversion.step import Aim, Move, Sample
from spectra_jax.similarity import ssim
from spectra_jax.types import Head

PASSES = (1, 1)


def _optimizer(config: InversionConfig) -> optax.GradientTransformation:
    return (optax.sgd if config.method == "gradient_descent" else optax.adam)(config.step_size)


def start(images: Float[Array, "b h w k"], config: InversionConfig) -> PyTree:
    """The optimiser's state, one a sample: samples start at different times."""
    return jax.vmap(_optimizer(config).init)(images)


def move(encode, head: Head, sample: Sample, aim: Aim, images: Float[Array, "b h w k"], state: PyTree, config) -> Move:
    """One step of the optimiser (Section 2.6)."""

    def objective(candidates):
        attributes = encode(candidates)
        aims = aim(jax.lax.stop_gradient(attributes))
        loss = jnp.mean(jnp.square(attributes - aims), axis=-1)
        if config.ssim_weight > 0:
            loss = loss + config.ssim_weight * (1 - ssim(candidates, sample.images))
        # Samples do not interact, so the gradient of the sum is each sample's own.
        return jnp.sum(loss), (loss, attributes, aims)

    (_, (loss, attributes, aims)), gradient = jax.value_and_grad(objective, has_aux=True)(images)
    finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, images.ndim)))
    if sample.region is not None:
        gradient = gradient * sample.region
    # optax mixes its integer step count with floats, an error under strict promotion that is not of our making.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = jax.vmap(_optimizer(config).update)(gradient, state, images)
    won = lead_of(head, attributes, sample.targets).by(config.margin)
    moved = jnp.clip(images + jnp.where(per_sample(finite, updates), updates, 0), 0, 1)
    return Move(images=moved, state=state, aims=aims, finished=won, holds=won, answer=images, finite=finite)
