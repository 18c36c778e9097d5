"""The subject of all systems: one classifier, one auto-encoder, the same pairs of an image and a target."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from experiments.cited_systems.autoencoder import Trained
from experiments.runs.loading import LoadedRun
from experiments.training.generator import in_chunks
from spectra_jax import Head, head_logits, projection_perturbation
from spectra_jax.inversion.encoder import Lead, lead_of

# From images in [0, 1] and the classes aimed at to the images a system answers with.
Search = Callable[[Float[Array, "b h w 3"], Int[Array, " b"]], Float[Array, "b h w 3"]]


class Pairs(NamedTuple):
    """The questions, a row per pair.

    Attributes:
        rows: of the images in the test split.
        target: class that is asked for.
        images: the originals.
        attributes: of the originals.
        requested: delta, the shortest change of the attributes that reaches the target.
    """

    rows: Int[np.ndarray, " p"]
    target: Int[np.ndarray, " p"]
    images: UInt8[np.ndarray, "p h w 3"]
    attributes: Float[np.ndarray, "p n"]
    requested: Float[np.ndarray, "p n"]


class Subject(NamedTuple):
    """The classifier to be explained and the generator.

    Attributes:
        run: the trained classifier.
        trained: the auto-encoder.
    """

    run: LoadedRun
    trained: Trained

    @property
    def head(self) -> Head:
        """The linear classifier on the attributes."""
        return self.run.model.head(self.run.params)

    @property
    def encode(self) -> functools.partial[Any]:
        """Images -> attributes."""
        return functools.partial(self.run.model.encode, self.run.params)

    def logits(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
        """Images -> logits of the classes."""
        return head_logits(self.head, self.encode(images))

    def judge(self, images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> tuple[Float[Array, "b c"], Lead]:
        """The logits of images, and how far the target of each is ahead."""
        attributes = self.encode(images)
        return head_logits(self.head, attributes), lead_of(self.head, attributes, targets)

    @property
    def to_latents(self) -> functools.partial[Any]:
        """E, images -> latents."""
        return functools.partial(self.trained.model.encode, self.trained.params)

    @property
    def draw(self) -> functools.partial[Any]:
        """D, latents -> images."""
        return functools.partial(self.trained.model.decode, self.trained.params)


def features_of(run: LoadedRun, images: UInt8[np.ndarray, "N h w 3"]) -> Float[np.ndarray, "N f"]:
    """The features of a model's backbone, of images that are resized to what it was trained on."""
    size = run.config.image_size

    def apply(params: Any, pixels: Array) -> Array:
        return run.model.features(params, jax.image.resize(pixels, (len(pixels), size, size, 3), "bilinear"))

    return in_chunks(jax.jit(apply), run.params, images.astype(np.float32) / 255)


def make_pairs(run: LoadedRun, attributes: np.ndarray, rows: np.ndarray, target: np.ndarray, *, margin: float) -> Pairs:
    """The questions with their images and the shortest change of the attributes that answers each."""
    head, before = run.model.head(run.params), attributes[rows]
    solve = jax.jit(jax.vmap(lambda e, j: projection_perturbation(head, e, j, margin=jnp.float32(margin)).delta))
    requested = np.asarray(solve(jnp.asarray(before), jnp.asarray(target)))
    images = run.dataset.images("test", rows, image_size=run.config.image_size)
    return Pairs(rows, target, images, before, requested)
