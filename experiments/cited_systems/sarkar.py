"""Ante-hoc concepts (Sarkar, Vijaykeerthy, Sarkar and Balasubramanian, CVPR 2022).

The publication trains, together with a classifier, a concept encoder on its features, a concept decoder that draws the
image back and a second, simple classifier on the concepts, whose prediction is to be that of the first. Losses: the
classifier's cross-entropy; fidelity, the squared difference of the two predictions; reconstruction, the squared
difference of the images; and an L1 norm that keeps the concepts few.

Its public code, as we read it, minimises cross-entropy + 1e-4 * fidelity with no gradient through the first prediction;
the concept loss, reconstruction and L1, is computed and its addition commented out. So its concepts have no decoder
worth the name and answer with no image: that reading is compared by its fidelity alone.

Here the classifier is the one that all systems explain and stays as it is, which makes its cross-entropy a constant
and the weight of a fidelity that stands alone immaterial. The concept decoder ends in the latents of the auto-encoder
that the systems share, and the reconstruction is measured there. The publication changes concepts by hand; here the
change is the shortest for which the concept classifier names the target, lengthened until the classifier itself does.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from experiments.cited_systems.minimise import minimise
from experiments.cited_systems.subject import Search, Subject, features_of
from spectra_jax import Head, head_logits, projection_perturbation
from spectra_jax.inversion.encoder import per_sample

Reading = Literal["as defined", "as coded"]
READINGS: tuple[Reading, ...] = ("as defined", "as coded")
CONCEPTS = 128
SPARSITY = 0.01  # weight of the mean absolute concept
STEPS, BATCH, LEARNING_RATE = 1000, 64, 5e-3
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # by which a change of the concepts is lengthened


class Concepts(NamedTuple):
    """The three linear maps, on standardised features; the arrays are stored as they are.

    Attributes:
        mean, std: (f,) of the features.
        encoder, encoder_bias: (f, k), (k,) features -> concepts.
        decoder, decoder_bias: (k, d), (d,) concepts -> latents.
        classifier, classifier_bias: (c, k), (c,) concepts -> logits.
    """

    mean: Float[Array, " f"]
    std: Float[Array, " f"]
    encoder: Float[Array, "f k"]
    encoder_bias: Float[Array, " k"]
    decoder: Float[Array, "k d"]
    decoder_bias: Float[Array, " d"]
    classifier: Float[Array, "c k"]
    classifier_bias: Float[Array, " c"]

    @property
    def head(self) -> Head:
        """The classifier on the concepts."""
        return Head(self.classifier, self.classifier_bias)

    def encode(self, features: Float[Array, "b f"]) -> Float[Array, "b k"]:
        """Features -> concepts."""
        return (features - self.mean[None]) / self.std[None] @ self.encoder + self.encoder_bias[None]

    def decode(self, concepts: Float[Array, "b k"]) -> Float[Array, "b d"]:
        """Concepts -> latents of the auto-encoder."""
        return concepts @ self.decoder + self.decoder_bias[None]


class Losses(NamedTuple):
    """The terms of the publication that concern the concepts; scalars."""

    fidelity: Float[Array, ""]
    reconstruction: Float[Array, ""]
    sparsity: Float[Array, ""]

    def total(self, reading: Reading) -> Float[Array, ""]:
        """What is minimised."""
        if reading == "as coded":
            return self.fidelity
        return self.fidelity + self.reconstruction + SPARSITY * self.sparsity


def losses(
    concepts: Concepts, features: Float[Array, "b f"], latents: Float[Array, "b d"], logits: Float[Array, "b c"]
) -> Losses:
    """The losses of a batch.

    Args:
        concepts: the maps.
        features: (b, f) of the classifier's backbone.
        latents: (b, d) of the images.
        logits: (b, c) of the classifier itself.
    """
    found = concepts.encode(features)
    return Losses(
        jnp.mean(jnp.square(head_logits(concepts.head, found) - logits)),
        jnp.mean(jnp.square(concepts.decode(found) - latents)),
        jnp.mean(jnp.abs(found)),
    )


def train(
    features: Float[np.ndarray, "N f"], latents: Float[np.ndarray, "N d"], logits: Float[np.ndarray, "N c"], *,
    reading: Reading, seed: int,
) -> Concepts:  # fmt: skip
    """Learns the concepts of a training split by Adam."""
    count, width = features.shape
    keys = jax.random.split(jax.random.key(seed), 3)

    def normal(key: Any, rows: int, columns: int) -> Array:
        return jax.random.normal(key, (rows, columns), jnp.float32) / np.sqrt(rows)

    std = features.std(axis=0)
    kept = {"mean": features.mean(axis=0), "std": np.where(std > 0, std, 1)}
    fixed = {name: jnp.asarray(value, jnp.float32) for name, value in kept.items()}
    learnt = {
        "encoder": normal(keys[0], width, CONCEPTS),
        "encoder_bias": jnp.zeros(CONCEPTS, jnp.float32),
        "decoder": normal(keys[1], CONCEPTS, latents.shape[1]),
        "decoder_bias": jnp.zeros(latents.shape[1], jnp.float32),
        "classifier": normal(keys[2], CONCEPTS, logits.shape[1]).T,
        "classifier_bias": jnp.zeros(logits.shape[1], jnp.float32),
    }
    rng, parts = np.random.default_rng(seed), (features, latents, logits)

    def draw(_: int) -> tuple[Array, ...]:
        rows = rng.integers(0, count, BATCH)
        return tuple(jnp.asarray(part[rows]) for part in parts)

    def loss(learnt: dict[str, Array], *batch: Array) -> Float[Array, ""]:
        return losses(Concepts(**fixed, **learnt), *batch).total(reading)

    learnt = minimise(loss, learnt, draw, steps=STEPS, learning_rate=LEARNING_RATE)
    return Concepts(**fixed, **learnt)


def train_on(subject: Subject, *, reading: Reading, seed: int) -> Concepts:
    """The concepts of the classifier on its own training split."""
    run = subject.run
    pixels = run.dataset.arrays("train", image_size=run.config.image_size).inputs
    features = features_of(run, pixels)
    latents = subject.trained.encode(pixels.astype(np.float32) / 255)
    said = head_logits(subject.head, run.model.bottleneck(run.params, jnp.asarray(features)))
    return train(features, latents, np.asarray(said), reading=reading, seed=seed)


def search(subject: Subject, concepts: Concepts, *, margin: float) -> Search:
    """The counterfactual: the shortest change of the concepts that reaches the target, lengthened until it does."""
    run = subject.run

    @jax.jit
    def solve(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> tuple[Array, Array]:
        found = concepts.encode(run.model.features(run.params, images))
        change = jax.vmap(
            lambda c, j: projection_perturbation(concepts.head, c, j, margin=jnp.asarray(margin, c.dtype)).delta
        )(found, targets)
        return found, change

    @jax.jit
    def draw(found: Float[Array, "b k"], targets: Int[Array, " b"]) -> tuple[Array, Array]:
        images = subject.draw(concepts.decode(found))
        return images, subject.judge(images, targets)[1].by(margin)

    def answer(images: Float[Array, "b h w 3"], targets: Int[Array, " b"]) -> Float[Array, "b h w 3"]:
        found, change = solve(images, targets)
        best, won = draw(found + FACTORS[0] * change, targets)
        for factor in FACTORS[1:]:
            drawn, reached = draw(found + factor * change, targets)
            best, won = jnp.where(per_sample(won, drawn), best, drawn), won | reached
        return best

    return answer


def fidelity(subject: Subject, concepts: Concepts, images: UInt8[np.ndarray, "N h w 3"]) -> Bool[np.ndarray, " N"]:
    """Whether the classifier on the concepts names the class that the classifier itself names, (N,)."""
    features = jnp.asarray(features_of(subject.run, images))
    own = head_logits(subject.head, subject.run.model.bottleneck(subject.run.params, features))
    said = head_logits(concepts.head, concepts.encode(features))
    return np.asarray(jnp.argmax(own, axis=-1) == jnp.argmax(said, axis=-1))
