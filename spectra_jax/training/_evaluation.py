"""Predictions over a split and the figures drawn from them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.losses import attribute_loss, classification_loss
from spectra_jax.metrics import attribute_metrics
from spectra_jax.models import Model, Params
from spectra_jax.training._step import forward
from spectra_jax.types import AnyBatch


class Predictions(NamedTuple):
    """What the model says about a split, on the host, padding removed.

    Attributes:
        attributes: (N, n) unnormalised.
        attribute_logits: (N, n) see `Model.attribute_logits`; for most models the attributes.
        logits: (N, c).
        attribute_labels: (N, n) in {0, 1}.
        labels: (N,).
    """

    attributes: Float[Array | np.ndarray, "N n"]
    attribute_logits: Float[Array | np.ndarray, "N n"]
    logits: Float[Array | np.ndarray, "N c"]
    attribute_labels: Float[Array | np.ndarray, "N n"]
    labels: Int[Array | np.ndarray, " N"]


EvalResult = tuple[Predictions, Bool[Array, " b"]]
EvalStep = Callable[[Params, AnyBatch], EvalResult]


def make_eval_step(model: Model, *, sharding: Sharding | None = None) -> EvalStep:
    """Builds the jitted (params, batch) -> (predictions, valid); `sharding` gathers the rows to every process."""

    def step(params: Params, batch: AnyBatch) -> EvalResult:
        attributes, logits = forward(model, params, batch.inputs)
        shown = model.attribute_logits(params, attributes)
        return Predictions(attributes, shown, logits, batch.attributes, batch.labels), batch.valid

    return jax.jit(step, out_shardings=sharding)


def predict(
    eval_step: EvalStep,
    params: Params,
    batches: Iterable[AnyBatch],
    *,
    place: Callable[[AnyBatch], AnyBatch] = lambda batch: batch,
) -> Predictions:
    """Runs the model over a split and collects its predictions on the host.

    Raises:
        ValueError: the split has no example.
    """
    parts: list[Predictions] = []
    waiting: EvalResult | None = None

    def collect(result: EvalResult) -> None:
        predictions, valid = jax.device_get(result)
        parts.append(Predictions(*(leaf[valid] for leaf in predictions)))

    for batch in batches:
        # One batch behind: the device works on the next while the host copies this one.
        result = eval_step(params, place(batch))
        if waiting is not None:
            collect(waiting)
        waiting = result
    if waiting is None:
        raise ValueError("batches is empty; expected at least one example")
    collect(waiting)
    return Predictions(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def evaluate(predictions: Predictions) -> dict[str, float]:
    """Losses, class accuracy and attribute balanced accuracy, F1 and mAP of predictions.

    The losses are the plain ones (no smoothing, no attribute weights), comparable between configurations.
    """
    _, attribute_logits, logits, attribute_labels, labels = predictions
    scores = attribute_metrics(jnp.asarray(attribute_logits), jnp.asarray(attribute_labels))
    return {
        "attribute_loss": float(attribute_loss(jnp.asarray(attribute_logits), jnp.asarray(attribute_labels))),
        "class_loss": float(classification_loss(jnp.asarray(logits), jnp.asarray(labels))),
        "class_accuracy": float(np.mean(np.argmax(logits, axis=-1) == labels)),
        "attribute_balanced_accuracy": scores["balanced_accuracy"],
        "attribute_f1": scores["f1"],
        "attribute_map": scores["map"],
    }
