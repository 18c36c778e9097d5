"""The auto-encoder that the cited systems share: trained once for a data set, whichever model is explained."""

import contextlib
import dataclasses
import hashlib
import json
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.cited_systems.options import AutoEncoderConfig
from experiments.cli.command import UserError
from experiments.cli.devices import cache_dir
from experiments.runs.folder import owned_folder
from experiments.runs.record import Record
from experiments.runs.signals import stop_on_signals
from spectra_jax import psnr, ssim
from spectra_jax.data import Dataset, array_batches
from spectra_jax.logging import Console
from spectra_jax.models import AutoEncoder, Params, build_autoencoder
from spectra_jax.training import TrainState, fit

SSIM_WEIGHT = 0.1
CHUNK = 32  # images that pass it at once
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
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 20, max(config.steps, config.steps // 20 + 1)
    )
    optimizer = optax.adam(schedule)
    first = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(seed))
    nothing = np.zeros((len(images), 1), np.float32)
    batches = array_batches(
        images, nothing, np.zeros(len(images), np.int32), batch_size=min(config.batch_size, len(images)), seed=seed,
        shuffle=True, num_epochs=None, drop_remainder=True,
    )  # fmt: skip
    with owned_folder(cache_dir() / "autoencoders" / name, "experiments.cited_systems", about) as folder:
        record = Record(folder, first, console=console)
        with (
            contextlib.closing(batches),
            contextlib.closing(record),
            stop_on_signals() as stop,
            console.progress("training the auto-encoder", config.steps, start=record.progress.step) as task,
        ):
            state, progress = fit(
                record.state,
                _make_step(model, optimizer),
                batches,
                num_steps=config.steps,
                steps_per_epoch=batches.batches_per_epoch,
                progress=record.progress,
                log=record.log,
                save=record.save,
                save_every=EVERY,
                should_stop=stop,
                on_step=lambda step: task.update(step, record.remark),
            )
    if progress.step < config.steps:
        raise KeyboardInterrupt
    trained = Trained(model, state.params)
    return Trained(model, model.with_statistics(state.params, trained.encode(images)))


def autoencoder_loss(images: Float[Array, "b h w 3"], reference: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    """Mean absolute error plus SSIM_WEIGHT times 1 - SSIM."""
    return jnp.mean(jnp.abs(images - reference)) + SSIM_WEIGHT * (1 - jnp.mean(ssim(images, reference)))


def _make_step(model: AutoEncoder, optimizer: optax.GradientTransformation) -> Any:
    def loss_fn(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, ""]:
        return autoencoder_loss(model.decode(params, model.encode(params, images)), images)

    def step(state: TrainState, images: Float[Array, "b h w 3"]) -> tuple[TrainState, dict[str, Array]]:
        loss, gradient = jax.value_and_grad(loss_fn)(state.params, images)
        norm = optax.tree.norm(gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": norm, "finite": jnp.isfinite(loss) & jnp.isfinite(norm)}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    jitted = jax.jit(step, donate_argnums=0)
    return lambda state, batch: jitted(state, batch.inputs)


def reconstruction_figures(trained: Trained, images: Float[np.ndarray, "N h w 3"]) -> dict[str, np.ndarray]:
    """PSNR in dB and SSIM of the reconstruction of each image, (N,)."""
    said = jnp.asarray(trained.reconstruct(images))
    reference = jnp.asarray(images)
    return {"psnr": np.asarray(psnr(said, reference)), "ssim": np.asarray(ssim(said, reference))}


def in_chunks(apply: Any, params: Params, rows: np.ndarray) -> np.ndarray:
    """apply(params, rows) in wrapped chunks of one size, so that it is compiled once."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        wrapped = np.resize(np.arange(len(part)), CHUNK)
        parts.append(np.asarray(apply(params, jnp.asarray(part[wrapped])))[: len(part)])
    return cast(np.ndarray, np.concatenate(parts))
