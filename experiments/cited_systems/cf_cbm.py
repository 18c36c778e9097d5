"""Counterfactual concept bottleneck models (Dominici, Barbiero, Giannini, Gjoreski, Marra and Langheinrich, 2024).

The publication (arXiv 2402.01408) trains a bottleneck and a generator of counterfactual concepts together, as one
variational model: latents z of an image x give the concepts c, and a task predictor names the class y from c; a second
latent z', drawn given z, c, y and the class y' that is asked for, gives counterfactual concepts c', which the same
predictor is to name y'. z has a standard normal prior, z' one that does not know y', and the two are kept close. No
search is made afterwards: the answer is the most probable counterfactual, the mean of z'.

This is the model that the public code has for CUB (github.com/gabriele-dominici/Counterfactual-CBM, the class
CounterfactualCBM_V3_1), with its networks, terms and weights. What the code does where a reader of the publication
would not expect it:

- the logits of the concepts are multiplied by 4;
- the class is named, in training as well, from the concepts of the mean of z, while those of the draw are learnt beside
  them and given to z';
- z' is given the logits of y, not the class itself;
- all divergences are taken from the prior to the posterior and averaged over the latents, and a third one holds the
  prior of z' to the standard normal distribution;
- z and z' are kept close by their Euclidean distance;
- the class asked for in training is drawn from all classes, that of the image included.

Ours are four things: x are the features of the run's backbone, standardised; the task predictor is linear, where the
code's experiments have a hidden layer, as exact answers need; the step size goes down a cosine, without weight decay;
and the last parameters are kept, where the code keeps those with the best figures on its test split.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.cited_systems.minimise import minimise
from experiments.cited_systems.subject import features_of
from experiments.cli.command import UserError
from experiments.runs.loading import LoadedRun
from spectra_jax import Head, head_logits

LATENTS = 128  # and the width of every hidden layer
SHARPNESS = 4  # factor of the logits of the concepts
STEPS, BATCH, LEARNING_RATE = 2000, 256, 5e-3

Params = dict[str, Any]
Gaussian = tuple[Float[Array, "b d"], Float[Array, "b d"]]  # mean and logarithm of the variance


# Of the terms of `Losses`, in their order: the code's for CUB.
WEIGHTS = (1.0, 1.0, 0.1, 0.02, 0.2, 0.2, 0.2, 0.03)


class Losses(NamedTuple):
    """The terms of a batch, scalars: means over its examples, concepts and latents, before they are weighted.

    Attributes:
        concepts: binary cross-entropy of the concepts of the mean of z.
        drawn_concepts: the same of the draw of z.
        label: cross-entropy of the class.
        counterfactual: cross-entropy of the class asked for, of the counterfactual concepts.
        divergence: KL(standard normal || posterior of z), in nats, as the two below.
        counterfactual_divergence: KL(prior of z' || its posterior).
        prior_divergence: KL(standard normal || prior of z').
        distance: Euclidean, of z and z'.
    """

    concepts: Float[Array, ""]
    drawn_concepts: Float[Array, ""]
    label: Float[Array, ""]
    counterfactual: Float[Array, ""]
    divergence: Float[Array, ""]
    counterfactual_divergence: Float[Array, ""]
    prior_divergence: Float[Array, ""]
    distance: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """What is minimised: the terms by their WEIGHTS."""
        return jnp.stack(self) @ jnp.asarray(WEIGHTS, jnp.float32)


def init(key: PRNGKeyArray, *, num_features: int, num_concepts: int, num_classes: int) -> Params:
    """First parameters."""
    given = LATENTS + num_concepts + num_classes
    keys = iter(jax.random.split(key, 30))

    def layer(rows: int, columns: int) -> Params:
        bound = rows**-0.5
        shapes = {"weights": (rows, columns), "bias": (columns,)}
        return {
            name: jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound) for name, shape in shapes.items()
        }

    def network(rows: int, columns: int = LATENTS) -> Params:
        return {"hidden": layer(rows, LATENTS), "out": layer(LATENTS, columns)}

    def gaussian(rows: int) -> Params:
        return {"mean": network(rows), "log_variance": network(rows)}

    return {
        "encoder": gaussian(num_features),
        "prior": gaussian(given),
        "posterior": gaussian(given + num_classes),
        "concepts": network(LATENTS, num_concepts),
        "task": layer(num_concepts, num_classes),
    }


def encode(params: Params, features: Float[Array, "b f"]) -> Gaussian:
    """Posterior of z given standardised features."""
    return _gaussian(params["encoder"], features)


def concept_logits(params: Params, latents: Float[Array, "b d"]) -> Float[Array, "b n"]:
    """Logits of the concepts."""
    return SHARPNESS * _network(params["concepts"], latents)


def concepts_of(params: Params, latents: Float[Array, "b d"]) -> Float[Array, "b n"]:
    """Probabilities of the concepts."""
    return jax.nn.sigmoid(concept_logits(params, latents))


def task_head(params: Params) -> Head:
    """The task predictor, linear in the probabilities of the concepts."""
    return Head(params["task"]["weights"].T, params["task"]["bias"])


def divergence(of: Gaussian, other: Gaussian) -> Float[Array, ""]:
    """Kullback-Leibler divergence KL(of || other) of diagonal normal distributions, in nats, mean over all latents."""
    (mean, log_variance), (other_mean, other_log_variance) = of, other
    ratio = (jnp.exp(log_variance) + jnp.square(mean - other_mean)) / jnp.exp(other_log_variance)
    return 0.5 * jnp.mean(ratio - 1 + other_log_variance - log_variance)


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
        targets: classes asked for.
        noise: standard normal numbers that make the two draws.
    """
    encoded = encode(params, features)
    latents = _draw(encoded, noise[0])
    drawn = concept_logits(params, latents)
    head = task_head(params)
    named = head_logits(head, concepts_of(params, encoded[0]))
    given = jnp.concatenate([latents, jax.nn.sigmoid(drawn), named], axis=-1)
    posterior = _posterior(params, given, targets)
    prior = _gaussian(params["prior"], given)
    changed = _draw(posterior, noise[1])
    standard = (jnp.zeros_like(latents), jnp.zeros_like(latents))
    binary, categorical = optax.sigmoid_binary_cross_entropy, optax.softmax_cross_entropy_with_integer_labels
    return Losses(
        concepts=jnp.mean(binary(concept_logits(params, encoded[0]), concepts)),
        drawn_concepts=jnp.mean(binary(drawn, concepts)),
        label=jnp.mean(categorical(named, labels)),
        counterfactual=jnp.mean(categorical(head_logits(head, concepts_of(params, changed)), targets)),
        divergence=divergence(standard, encoded),
        counterfactual_divergence=divergence(prior, posterior),
        prior_divergence=divergence(standard, prior),
        distance=jnp.mean(jnp.linalg.norm(latents - changed, axis=-1)),
    )


def counterfactual(
    params: Params, features: Float[Array, "b f"], targets: Int[Array, " b"]
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """The most probable concepts of standardised features, and those that are to make them the targets."""
    latents = encode(params, features)[0]
    found = concepts_of(params, latents)
    given = jnp.concatenate([latents, found, head_logits(task_head(params), found)], axis=-1)
    return found, concepts_of(params, _posterior(params, given, targets)[0])


def train(
    features: Float[np.ndarray, "N f"], concepts: Float[np.ndarray, "N n"], labels: Int[np.ndarray, " N"], *,
    num_classes: int, seed: int,
) -> Params:  # fmt: skip
    """Learns a training split; every example is asked for a class, drawn anew, each time it comes.

    Args:
        features: standardised.
        concepts: 0 or 1.
        labels: classes.
        num_classes: how many there are.
        seed: of the parameters and of all draws.

    Raises:
        UserError: the training diverged.
    """
    params = init(
        jax.random.key(seed), num_features=features.shape[1], num_concepts=concepts.shape[1], num_classes=num_classes
    )
    rng = np.random.default_rng(seed)

    def draw(_: int) -> tuple[Any, ...]:
        rows = rng.integers(0, len(labels), BATCH)
        asked = rng.integers(0, num_classes, BATCH)
        noise = rng.standard_normal((2, BATCH, LATENTS), np.float32)
        batch = (features[rows], concepts[rows], labels[rows].astype(np.int32), asked.astype(np.int32), noise)
        return tuple(jnp.asarray(part) for part in batch)

    learnt = minimise(
        lambda params, *batch: losses(params, *batch).total, params, draw, steps=STEPS, learning_rate=LEARNING_RATE
    )
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(learnt)):
        raise UserError(f"The training of CF-CBM diverged with --seed {seed}; choose another seed.")
    return learnt


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


def _network(layers: Params, inputs: Float[Array, "b i"]) -> Float[Array, "b o"]:
    return _linear(layers["out"], jax.nn.leaky_relu(_linear(layers["hidden"], inputs)))


def _gaussian(networks: Params, inputs: Float[Array, "b i"]) -> Gaussian:
    return _network(networks["mean"], inputs), _network(networks["log_variance"], inputs)


def _posterior(params: Params, given: Float[Array, "b g"], targets: Int[Array, " b"]) -> Gaussian:
    asked = jax.nn.one_hot(targets, params["task"]["bias"].shape[0])
    return _gaussian(params["posterior"], jnp.concatenate([given, asked], axis=-1))


def _draw(distribution: Gaussian, noise: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return distribution[0] + jnp.exp(distribution[1] / 2) * noise
