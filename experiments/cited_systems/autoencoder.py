"""The auto-encoder that the cited systems share: trained once per data set, whichever model is explained."""

import dataclasses
import hashlib
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.cited_systems.options import AutoEncoderConfig
from experiments.cli.command import UserError
from experiments.cli.devices import cache_dir
from experiments.runs.folder import owned_folder
from experiments.runs.record import Record
from experiments.training import generator
from experiments.training.generator import in_chunks
from spectra_jax import psnr, ssim
from spectra_jax.data import Dataset, array_batches
from spectra_jax.logging import Console
from spectra_jax.models import AutoEncoder, Params, build_autoencoder
from spectra_jax.training import TrainState
from spectra_jax.types import AnyBatch

SSIM_WEIGHT = 0.1
EVERY = 100  # steps between two checkpoints


class Trained(NamedTuple):
    """An auto-encoder with its parameters.

    Attributes:
        model: the auto-encoder.
        params: trained, with latents of mean 0 and standard deviation 1 on the training split.
    """

    model: AutoEncoder
    params: Params

    def encode(self, images: Float[np.ndarray, "N h w 3"]) -> Float[np.ndarray, "N d"]:
        """Latents of any number of images."""
        return in_chunks(jax.jit(self.model.encode), self.params, images)

    def reconstruct(self, images: Float[np.ndarray, "N h w 3"]) -> Float[np.ndarray, "N h w 3"]:
        """D(E(x)) of any number of images."""
        return in_chunks(jax.jit(lambda p, x: self.model.decode(p, self.model.encode(p, x))), self.params, images)


def trained_autoencoder(
    dataset: Dataset, image_size: int, config: AutoEncoderConfig, *, seed: int, console: Console
) -> Trained:
    """The auto-encoder of a data set, trained now, resumed or read from the cache.

    Args:
        dataset: its training split is learnt.
        image_size: side of the images.
        config: how.
        seed: of initialisation and the order of the images.
        console: shows the progress.

    Raises:
        UserError: the images have no side that can be halved so often.
        KeyboardInterrupt: it was stopped; what is done so far is kept.
    """
    try:
        model = build_autoencoder(image_size=image_size, channels=config.channels)
    except ValueError as error:
        raise UserError(f"The run's images: {error}") from error
    about = {"data": dataset.path.name, "image_size": image_size, "seed": seed, **dataclasses.asdict(config)}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    images = dataset.arrays("train", image_size=image_size).inputs.astype(np.float32) / 255
    params = model.init(jax.random.key(seed))
    optimizer = generator.make_optimizer(config.learning_rate, config.steps)
    first = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(seed))
    nothing = np.zeros((len(images), 1), np.float32)
    batches = array_batches(
        images, nothing, np.zeros(len(images), np.int32), batch_size=min(config.batch_size, len(images)), seed=seed,
        shuffle=True, num_epochs=None, drop_remainder=True,
    )  # fmt: skip
    with owned_folder(cache_dir() / "autoencoders" / name, "experiments.cited_systems", about) as folder:
        record = Record(folder, first, console=console)
        step = generator.make_step(lambda p, fixed, batch: _loss(model, p, batch), {}, optimizer)
        state, code = generator.train(
            record, record.state, step, batches,
            title="training the auto-encoder", num_steps=config.steps, every=EVERY, console=console,
        )  # fmt: skip
    if code:
        raise KeyboardInterrupt
    trained = Trained(model, state.params)
    return Trained(model, model.with_statistics(state.params, trained.encode(images)))


def autoencoder_loss(images: Float[Array, "b h w 3"], reference: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    """Mean absolute error plus SSIM_WEIGHT times 1 - SSIM."""
    return jnp.mean(jnp.abs(images - reference)) + SSIM_WEIGHT * (1 - jnp.mean(ssim(images, reference)))


def _loss(model: AutoEncoder, params: Params, batch: AnyBatch) -> Float[Array, ""]:
    return autoencoder_loss(model.decode(params, model.encode(params, batch.inputs)), batch.inputs)


def reconstruction_figures(trained: Trained, images: Float[np.ndarray, "N h w 3"]) -> dict[str, np.ndarray]:
    """PSNR in dB and SSIM of the reconstruction of each image, (N,)."""
    said = jnp.asarray(trained.reconstruct(images))
    reference = jnp.asarray(images)
    return {"psnr": np.asarray(psnr(said, reference)), "ssim": np.asarray(ssim(said, reference))}
