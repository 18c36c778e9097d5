"""Counterfactual concept bottleneck models (Dominici, Barbiero, Giannini, Gjoreski, Marra and Langheinrich, 2024).

The publication (arXiv 2402.01408) trains a bottleneck and a generator of counterfactual concepts together, as one
variational model: latents z of an image x give the concepts c, and a task predictor names the class y from c; a second
latent z', drawn given z, c, y and the class y' that is asked for, gives counterfactual concepts c', which the same
predictor is to name y'. The posterior of z is held to a standard normal prior, that of z' to a prior that does not know
y', and c' is kept near c. No search is made afterwards.

This is a variant, not a reproduction: it was written from the abstract and reviews of the publication, and its objective
differs from that of the public code, which

- keeps the latents near, by the L2 distance of z and z', where this keeps the concepts near, by their L1 distance;
- takes both divergences from the prior to the posterior and averages them over the latents, where this takes them from
  the posterior to the prior and sums them; and adds one of the standard normal from the prior of z', absent here;
- weights its terms by data set, other than here;
- multiplies the logits of the concepts by 4, gives z' the logits of y where this gives the class itself, and may ask
  for the class that an image has already;
- has deeper networks, and a task predictor with a hidden layer or without. Here it is linear, as exact answers need.

The answer is the most probable counterfactual, the mean of z', as the code's for a single draw; z is its mean as well.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.cited_systems.minimise import minimise
from experiments.cited_systems.subject import features_of
from experiments.runs.loading import LoadedRun
from spectra_jax import Head, head_logits

LATENTS, HIDDEN = 32, 128
STEPS, BATCH, LEARNING_RATE = 2000, 64, 3e-3
DIVERGENCE = 1e-3  # weight of both Kullback-Leibler divergences, in nats per example
NEARNESS = 1.0  # weight of the mean absolute difference of the concepts

Params = dict[str, Any]
Gaussian = tuple[Float[Array, "b d"], Float[Array, "b d"]]  # mean and logarithm of the variance


class Losses(NamedTuple):
    """The terms of a batch, scalars: means over its examples, the divergences before they are weighted."""

    concepts: Float[Array, ""]
    label: Float[Array, ""]
    divergence: Float[Array, ""]
    counterfactual: Float[Array, ""]
    counterfactual_divergence: Float[Array, ""]
    nearness: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """What is minimised."""
        return (
            self.concepts
            + self.label
            + self.counterfactual
            + DIVERGENCE * (self.divergence + self.counterfactual_divergence)
            + NEARNESS * self.nearness
        )


def init(key: PRNGKeyArray, *, num_features: int, num_concepts: int, num_classes: int) -> Params:
    """First parameters; features are standardised with params["mean"] and params["std"], which are not trained."""
    given = LATENTS + num_concepts + num_classes
    keys = iter(jax.random.split(key, 8))

    def layer(rows: int, columns: int) -> Params:
        scale = np.float32(np.sqrt(2 / rows))
        return {"weights": scale * jax.random.normal(next(keys), (rows, columns)), "bias": jnp.zeros(columns)}

    def network(rows: int) -> Params:
        return {"hidden": layer(rows, HIDDEN), "out": layer(HIDDEN, 2 * LATENTS)}

    return {
        "encoder": network(num_features),
        "prior": network(given),
        "posterior": network(given + num_classes),
        "concepts": layer(LATENTS, num_concepts),
        "task": layer(num_concepts, num_classes),
    }


def encode(params: Params, features: Float[Array, "b f"]) -> Gaussian:
    """Posterior of z given standardised features."""
    return _network(params["encoder"], features)


def concepts_of(params: Params, latents: Float[Array, "b d"]) -> Float[Array, "b n"]:
    """Probabilities of the concepts."""
    return jax.nn.sigmoid(_linear(params["concepts"], latents))


def task_head(params: Params) -> Head:
    """The task predictor, linear in the probabilities of the concepts."""
    return Head(params["task"]["weights"].T, params["task"]["bias"])


def divergence(posterior: Gaussian, prior: Gaussian) -> Float[Array, " b"]:
    """Kullback-Leibler divergence of two diagonal normal distributions, in nats."""
    (mean, log_variance), (other, other_log_variance) = posterior, prior
    ratio = (jnp.exp(log_variance) + jnp.square(mean - other)) / jnp.exp(other_log_variance)
    return 0.5 * jnp.sum(ratio - 1 + other_log_variance - log_variance, axis=-1)


def losses(
    params: Params,
    features: Float[Array, "b f"],
    concepts: Float[Array, "b n"],
    labels: Int[Array, " b"],
    targets: Int[Array, " b"],
    noise: Float[Array, "2 b d"],
) -> Losses:
    """The terms of a batch.

    Args:
        params: from `init`.
        features: standardised.
        concepts: 0 or 1.
        labels: classes.
        targets: classes asked for, others than the labels.
        noise: standard normal numbers that make the two samples.
    """
    posterior = encode(params, features)
    latents = _sample(posterior, noise[0])
    found = concepts_of(params, latents)
    head = task_head(params)
    before, after = (jax.nn.one_hot(each, head.weights.shape[0]) for each in (labels, targets))
    given = jnp.concatenate([latents, found, before], axis=-1)
    changed = _network(params["posterior"], jnp.concatenate([given, after], axis=-1))
    counterfactual = concepts_of(params, _sample(changed, noise[1]))
    standard = (jnp.zeros_like(latents), jnp.zeros_like(latents))
    return Losses(
        _binary_cross_entropy(_linear(params["concepts"], latents), concepts),
        _cross_entropy(head_logits(head, found), before),
        jnp.mean(divergence(posterior, standard)),
        _cross_entropy(head_logits(head, counterfactual), after),
        jnp.mean(divergence(changed, _network(params["prior"], given))),
        jnp.mean(jnp.abs(counterfactual - found)),
    )


def counterfactual(
    params: Params, features: Float[Array, "b f"], targets: Int[Array, " b"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """The most probable concepts of standardised features, and those that are to make them the targets."""
    latents = encode(params, features)[0]
    found = concepts_of(params, latents)
    head = task_head(params)
    classes = (jnp.argmax(head_logits(head, found), axis=-1), targets)
    before, after = (jax.nn.one_hot(each, head.weights.shape[0]) for each in classes)
    given = jnp.concatenate([latents, found, before, after], axis=-1)
    return found, concepts_of(params, _network(params["posterior"], given)[0])


def train(
    features: Float[np.ndarray, "N f"], concepts: Float[np.ndarray, "N n"], labels: Int[np.ndarray, " N"], *,
    num_classes: int, seed: int,
) -> Params:  # fmt: skip
    """Learns a training split; every example is asked for another class, drawn anew, each time it comes.

    Args:
        features: standardised.
        concepts: 0 or 1.
        labels: classes.
        num_classes: how many there are.
        seed: of the parameters and of all draws.
    """
    params = init(
        jax.random.key(seed), num_features=features.shape[1], num_concepts=concepts.shape[1], num_classes=num_classes
    )
    rng = np.random.default_rng(seed)

    def draw(_: int) -> tuple[Any, ...]:
        rows = rng.integers(0, len(labels), BATCH)
        others = (labels[rows] + rng.integers(1, num_classes, BATCH)) % num_classes
        noise = rng.standard_normal((2, BATCH, LATENTS), np.float32)
        batch = (features[rows], concepts[rows], labels[rows].astype(np.int32), others.astype(np.int32), noise)
        return tuple(jnp.asarray(part) for part in batch)

    return minimise(
        lambda params, *batch: losses(params, *batch).total, params, draw, steps=STEPS, learning_rate=LEARNING_RATE
    )


class Split(NamedTuple):
    """What the model sees of a split.

    Attributes:
        features: (N, f) of the run's backbone, standardised by those of the training split.
        concepts: (N, n) 0 or 1.
        labels: (N,) classes.
    """

    features: Float[np.ndarray, "N f"]
    concepts: Float[np.ndarray, "N n"]
    labels: Int[np.ndarray, " N"]


def splits(run: LoadedRun) -> tuple[Split, Split]:
    """The training and the test split of a run's data."""
    found = {}
    for name in ("train", "test"):
        arrays = run.dataset.arrays(name, image_size=run.config.image_size)
        found[name] = Split(features_of(run, arrays.inputs), np.round(arrays.attributes), arrays.labels)
    mean, std = found["train"].features.mean(axis=0), found["train"].features.std(axis=0)
    scaled = [
        split._replace(features=((split.features - mean) / np.where(std > 0, std, 1)).astype(np.float32))
        for split in found.values()
    ]
    return scaled[0], scaled[1]


def accuracy(params: Params, test: Split) -> dict[str, float]:
    """Shares of the labels and of the concepts of a split that it names."""
    found = concepts_of(params, encode(params, jnp.asarray(test.features))[0])
    named = np.argmax(np.asarray(head_logits(task_head(params), found)), axis=-1)
    right = (np.asarray(found) > 0.5) == (test.concepts > 0.5)
    return {"class_accuracy": float(np.mean(named == test.labels)), "concept_accuracy": float(np.mean(right))}


def _linear(layer: Params, inputs: Float[Array, "b i"]) -> Float[Array, "b o"]:
    return inputs @ layer["weights"] + layer["bias"][None]


def _network(layers: Params, inputs: Float[Array, "b i"]) -> Gaussian:
    mean, log_variance = jnp.split(_linear(layers["out"], jax.nn.relu(_linear(layers["hidden"], inputs))), 2, axis=-1)
    return mean, jnp.clip(log_variance, -8, 8)  # exp of the first outputs, untrained, would be too large


def _sample(distribution: Gaussian, noise: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return distribution[0] + jnp.exp(distribution[1] / 2) * noise


def _cross_entropy(logits: Float[Array, "b c"], wanted: Float[Array, "b c"]) -> Float[Array, ""]:
    return -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def _binary_cross_entropy(logits: Float[Array, "b n"], wanted: Float[Array, "b n"]) -> Float[Array, ""]:
    return jnp.mean(jax.nn.softplus(logits) - wanted * logits)
