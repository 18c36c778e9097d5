"""Decoding the attributes of a trained run: the examples, the decoder's training and its figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.reconstruct.options import DecoderConfig
from experiments.runs.inputs import make_inputs
from experiments.runs.loading import LoadedRun
from experiments.runs.record import Record
from experiments.training import generator
from experiments.training.generator import in_chunks
from spectra_jax import head_logits, psnr, reconstruction_loss, ssim
from spectra_jax.data import array_batches
from spectra_jax.logging import Console
from spectra_jax.models import Decoder, Params
from spectra_jax.training import Metrics, TrainState, make_eval_step, predict
from spectra_jax.types import AnyBatch

# Of the test split; running the backbone on every image twice would take longer than training the decoder.
CLASSIFIED = 384
# Steps between two looks at the validation split, and two checkpoints, of a decoder in training.
EVERY = 50
# Of the ridge regression, for attributes of standard deviation 1 and the mean squared error over the examples.
PENALTIES = np.logspace(-4, 1, 11)


class Examples(NamedTuple):
    """A split as the decoder sees it.

    Attributes:
        attributes: (N, n) unnormalised, as the run's model predicts them.
        images: (N, h, w, 3) float32 in [0, 1] at the decoder's size.
        labels: (N,) true classes.
        predicted: (N,) the model's classes.
    """

    attributes: Float[np.ndarray, "N n"]
    images: Float[np.ndarray, "N h w 3"]
    labels: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, " N"]


def load_examples(run: LoadedRun, image_size: int, *, console: Console) -> Callable[[str], Examples]:
    """Split -> its examples; the features of a frozen backbone come from the cache of the training."""
    inputs = make_inputs(run.model, run.params, run.dataset, run.config, run.config.image_size, console=console)
    inputs.train.close()
    step = make_eval_step(run.model)

    def load(split: str) -> Examples:
        said = predict(step, run.params, inputs.split(split))
        pixels = run.dataset.arrays(split, image_size=image_size).inputs
        predicted = np.argmax(said.logits, axis=-1)
        return Examples(
            np.asarray(said.attributes), pixels.astype(np.float32) / 255, np.asarray(said.labels), predicted
        )

    return load


def set_aside(train: Examples) -> tuple[Examples, Examples]:
    """Without a validation split: nine tenths of the training split, and every tenth example as a substitute."""
    held_out = np.arange(len(train.labels)) % 10 == 9
    return Examples(*(part[~held_out] for part in train)), Examples(*(part[held_out] for part in train))


def linear_decoder(decoder: Decoder, train: Examples, held_out: Examples, *, seed: int) -> Params:
    """Parameters with which `decoder` is the ridge regression from the attributes to the pixels of `train`.

    The penalty is the one of PENALTIES with the best PSNR on `held_out`. It is not chosen on the training images, of
    which the encoder is surer than of others.
    """
    params = decoder.with_statistics(decoder.init(jax.random.key(seed)), train.attributes)
    center, scale = (np.asarray(params[f"feature_{name}"], np.float64) for name in ("mean", "std"))
    rows, held_out_rows = ((split.attributes - center) / scale for split in (train, held_out))
    mean = train.images.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    targets = (train.images - mean).reshape(len(rows), -1)
    projected = (rows @ vectors / len(rows)).astype(np.float32).T @ targets  # (n, h w 3)

    def kernel(penalty: float) -> np.ndarray:
        shrunk = vectors / (np.maximum(values, 0) + penalty)
        return (shrunk.astype(np.float32) @ projected).reshape(-1, *mean.shape)

    def quality(penalty: float) -> float:
        drawn = mean + np.tensordot(held_out_rows.astype(np.float32), kernel(penalty), 1)
        return mean_psnr(np.clip(drawn, 0, 1), held_out.images)

    return decoder.with_linear(params, kernel(max(PENALTIES, key=quality)), mean)


class BestSoFar(NamedTuple):
    """What a checkpoint of a decoder in training holds.

    Attributes:
        params: the network of the best PSNR on the validation split so far.
        psnr: that PSNR in dB.
        step: at which it was reached.
        state: of the training; its `params` are the network's alone.
    """

    params: Params
    psnr: Float[Array, ""]
    step: Int[Array, ""]
    state: TrainState


def train_decoder(
    decoder: Decoder,
    start: Params,
    train: Examples,
    held_out: Examples,
    config: DecoderConfig,
    out: Path,
    *,
    seed: int,
    console: Console,
) -> tuple[Params, int, int]:
    """Trains the correction of a `linear_decoder`, or resumes, with metrics and checkpoints in `out`.

    Args:
        decoder: what to train.
        start: its parameters, of which only those of the network are trained.
        train: the examples.
        held_out: says which parameters are kept: the start's or those of a later look, every EVERY steps.
        config: of the training.
        out: a folder of this script.
        seed: of the order of the examples.
        console: told about progress.

    Returns:
        The parameters of the best PSNR on `held_out`; the step at which they were reached, 0 for the start; and 0 or
        the exit code where the user stopped it.
    """
    optimizer = generator.make_optimizer(config.learning_rate, config.steps)
    batches = array_batches(
        train.images,
        train.attributes,
        train.labels,
        batch_size=config.batch_size,
        seed=seed,
        shuffle=True,
        num_epochs=None,
    )

    def quality(network: Params) -> float:
        images = decode_all(decoder, {**start, "network": network}, held_out.attributes)
        return mean_psnr(images, held_out.images)

    def keep(network: Params, psnr: float, step: int, state: TrainState) -> BestSoFar:
        copies = jax.tree.map(jnp.array, network)  # the step donates what it is given
        return BestSoFar(copies, jnp.asarray(psnr, jnp.float32), jnp.asarray(step, jnp.int32), state)

    network = start["network"]
    first = TrainState(
        jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, network), optimizer.init(network), jax.random.key(seed)
    )
    before = keep(network, quality(network), 0, first)
    record = Record(out, cast(Any, before), console=console)
    best = cast(BestSoFar, record.state)
    if record.progress.step == 0:
        psnr_before = {"reconstruction_psnr": float(before.psnr)}
        record.log({"step": 0, "epoch": 0.0, "split": "validation", **psnr_before})

    def look(network: Params) -> dict[str, dict[str, float]]:
        nonlocal best
        found = quality(network)
        if found > best.psnr:
            best = keep(network, found, record.progress.step, best.state)
        return {"validation": {"reconstruction_psnr": found}}

    _, code = generator.train(
        record,
        best.state,
        make_decoder_step(decoder, start, optimizer),
        batches,
        title="training the decoder",
        num_steps=config.steps,
        every=EVERY,
        console=console,
        evaluate=look,
        save=lambda state, progress: record.save(cast(Any, best._replace(state=state)), progress),
    )
    return {**start, "network": best.params}, int(best.step), code


def make_decoder_step(
    decoder: Decoder, start: Params, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]]:
    """The jitted step of a decoder's network alone; a batch holds images as inputs and the encoder's attributes.

    Args:
        decoder: what to train.
        start: its parameters; all but the network's stay.
        optimizer: of the network's parameters.
    """

    def loss_fn(network: Params, fixed: Params, batch: AnyBatch) -> Float[Array, ""]:
        images = decoder.decode({**fixed, "network": network}, batch.attributes)
        return reconstruction_loss(images, batch.inputs, valid=batch.valid)

    return generator.make_step(loss_fn, {name: part for name, part in start.items() if name != "network"}, optimizer)


def decode_all(decoder: Decoder, params: Params, attributes: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N h w 3"]:
    """The decoder's images of any number of attribute vectors."""
    return in_chunks(jax.jit(decoder.decode), params, attributes)


def class_means(train: Examples, num_classes: int) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "c h w 3"]]:
    """The mean training image, and that of each class (the overall mean for a class without images)."""
    overall = train.images.mean(axis=0)
    own = [train.images[train.labels == k] for k in range(num_classes)]
    return overall, np.stack([images.mean(axis=0) if len(images) else overall for images in own])


def mean_psnr(images: Float[np.ndarray, "N h w 3"], reference: Float[np.ndarray, "N h w 3"]) -> float:
    """Mean over the images of their PSNR in dB."""
    return float(np.mean(psnr(jnp.asarray(images), jnp.asarray(reference))))


def reconstruction_figures(
    run: LoadedRun, decoder: Decoder, params: Params, linear: Params, train: Examples, test: Examples
) -> dict[str, float]:
    """How good the reconstructions of the test split are, each beside what knows less.

    Returns:
        PSNR in dB, mean over images: of the reconstructions, of those of the `linear_decoder` ("_linear"), of the mean
        training image ("_baseline"), of the mean training image of the predicted class ("_class_mean"), and of the
        training images themselves ("train/"); SSIM likewise; and the model's class accuracy on reconstructions, beside
        that on the photographs shrunk to the same size, over the first CLASSIFIED of an even choice of test images.
    """
    decoded, by_regression = (decode_all(decoder, p, test.attributes) for p in (params, linear))
    overall, means = class_means(train, run.info.num_classes)
    flat, by_class = np.broadcast_to(overall, test.images.shape), means[test.predicted]
    figures = {
        "test/reconstruction_psnr": mean_psnr(decoded, test.images),
        "test/reconstruction_psnr_linear": mean_psnr(by_regression, test.images),
        "test/reconstruction_psnr_baseline": mean_psnr(flat, test.images),
        "test/reconstruction_psnr_class_mean": mean_psnr(by_class, test.images),
        "train/reconstruction_psnr": mean_psnr(decode_all(decoder, params, train.attributes), train.images),
    }
    chosen = np.unique(np.linspace(0, len(test.labels) - 1, CLASSIFIED).astype(int))
    if min(test.images.shape[1:3]) >= 11:  # the window of SSIM
        compared = {"": decoded, "_linear": by_regression, "_baseline": flat, "_class_mean": by_class}
        for name, images in compared.items():
            values = ssim(jnp.asarray(images[chosen]), jnp.asarray(test.images[chosen]))
            figures[f"test/reconstruction_ssim{name}"] = float(np.mean(values))
    size = run.config.image_size

    def classify(params: Params, images: Array) -> Array:
        scaled = jax.image.resize(images, (len(images), size, size, 3), "bilinear")
        return jnp.argmax(head_logits(run.model.head(params), run.model.encode(params, scaled)), axis=-1)

    apply = jax.jit(classify)
    for name, images in (("reconstruction", decoded), ("shrunk", test.images)):
        said = in_chunks(apply, run.params, images[chosen])
        figures[f"test/{name}_class_accuracy"] = float(np.mean(said == test.labels[chosen]))
    return figures
