"""What the training loop reads: batches of images, or of the features of a frozen backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from experiments.cli.command import UserError
from experiments.cli.devices import cache_dir
from spectra_jax.data import BatchIterator, Dataset, array_batches
from spectra_jax.features import FeatureSet, cached_features, fingerprint, standardization
from spectra_jax.logging import Console
from spectra_jax.models import Model, Params
from spectra_jax.sharding import data_mesh, place_batch
from spectra_jax.training import (
    TrainConfig,
    balanced_positive_weight,
    check_adversarial,
    check_certified,
    check_parts,
    with_loss_parameters,
)

FEATURE_BATCH = 32


class Inputs(NamedTuple):
    """The batches of one run.

    Attributes:
        train: endless and shuffled.
        split: a split's name -> one pass over it in its stored order.
        attributes: (N, n) labels of the training split.
        params: the model's parameters, standardising features where there is a frozen backbone.
    """

    train: BatchIterator
    split: Callable[[str], BatchIterator]
    attributes: Float[np.ndarray, "N n"]
    params: Params


def first_params(model: Model, key: PRNGKeyArray, config: TrainConfig) -> Params:
    """The parameters before the first step: drawn, with the backbone weights that `config.weights` names if any.

    Raises:
        UserError: the weights are missing, or are those of another network; a reconstruction or attacks without
            images, certified radii without a proof, or parts of a model that does not look for them.
    """
    if model.frozen_backbone and not config.weights:
        raise UserError(f"Model {model.name!r} keeps its backbone frozen: give its --weights.")
    try:
        check_adversarial(model, config)
        check_certified(model, config)
        check_parts(model, config)
        params = model.init(key, (config.image_size, config.image_size, 3))
        params = with_loss_parameters(model, params, config, jax.random.fold_in(key, 1))
    except ValueError as error:
        raise UserError(str(error)) from error
    if not config.weights:
        return params
    try:
        if config.weights == "package":
            from data_prep.pretrained import efficientnet_lite0_weights

            path = efficientnet_lite0_weights(cache_dir() / "weights")
        else:
            path = Path(config.weights)
        return model.load_pretrained(params, path)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"--weights {config.weights}: {error}") from error


def positive_weight(config: TrainConfig, attributes: Float[np.ndarray, "N n"]) -> jax.Array | None:
    """Weights of the present answers in the attribute loss, as `config.attribute_weighting` says."""
    return jnp.asarray(balanced_positive_weight(attributes)) if config.attribute_weighting == "balanced" else None


def make_inputs(
    model: Model, params: Params, dataset: Dataset, config: TrainConfig, image_size: int, *, console: Console
) -> Inputs:
    """The batches for `model`: images, or features computed now (once) when its backbone is frozen."""
    shares: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    endless: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "shuffle": True,
        "num_epochs": None,
        # A nearly empty last batch would weigh as much as a full one.
        "drop_remainder": dataset.num_examples(config.train_split) >= config.batch_size,
        **shares,
    }
    if not model.frozen_backbone:
        images: dict[str, Any] = {"image_size": image_size}
        attributes = np.stack([record["attributes"] for record in dataset.source(config.train_split)])
        return Inputs(
            dataset.batches(config.train_split, flip=config.flip, parts=bool(config.lambda_parts), **images, **endless),
            lambda split: dataset.batches(split, batch_size=config.batch_size, **images, **shares),
            attributes.astype(np.float32),
            params,
        )

    folder = cache_dir() / "features" / fingerprint(model, params, dataset.path.name, image_size)
    # Every process needs all rows, so each computes all of them on its own devices.
    mesh = data_mesh(jax.local_devices())

    def features(split: str) -> FeatureSet:
        return cached_features(
            model,
            params,
            dataset.batches(split, batch_size=FEATURE_BATCH, image_size=image_size),
            folder / f"{split}.npz",
            place=lambda batch: place_batch(batch, mesh),
            console=console,
            title=f"features of {split}",
        )

    parts = {split: features(split) for split in ("train", "validation", "test") if dataset.num_examples(split)}
    train = FeatureSet.concatenate(parts[split] for split in config.train_split.split("+") if split in parts)
    return Inputs(
        array_batches(*train, **endless),
        lambda split: array_batches(*parts[split], batch_size=config.batch_size, **shares),
        train.attributes,
        model.with_feature_statistics(params, *map(jnp.asarray, standardization(train.inputs))),
    )
