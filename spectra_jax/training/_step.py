"""The pure part of training: optimiser, state, loss and the jitted step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from spectra_jax import losses
from spectra_jax.localization import region_maps
from spectra_jax.metrics import class_accuracy
from spectra_jax.models import Decoder, Model, Params, build_decoder
from spectra_jax.perturbations import head_logits
from spectra_jax.training._adversarial import attack_images
from spectra_jax.training._config import TrainConfig
from spectra_jax.types import AnyBatch, PartBatch

# Parameters that only a loss uses, beside those of the model.
FREE_LOGITS, DECODER = "free_logits", "decoder"
# Folded into a step's key for the attack's random start: dropout keeps the keys it has without one.
ATTACK_KEY = 2

Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        step: how many steps were taken.
        params: the model's parameters, and those that only the loss uses, see `with_loss_parameters`.
        opt_state: the optimiser's, for the trained part of the parameters only.
        key: the run's random key; step s uses fold_in(key, s), so the key itself never changes.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    key: PRNGKeyArray


def trained_part(model: Model, params: Params) -> Params:
    """The top-level parts of `params` that are differentiated: all, or all but a frozen backbone."""
    return {name: part for name, part in params.items() if not (model.frozen_backbone and name == "backbone")}


def make_optimizer(model: Model, config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping and a linear warm-up followed by a cosine to zero over `num_steps`.

    Weight decay reaches weight matrices and kernels only: not biases, norm scales, stored statistics or free logits.
    """

    def decayed(trained: Params) -> PyTree:
        mask = model.trainable_mask(trained)
        weights = jax.tree.map(lambda leaf, may_change: may_change and leaf.ndim > 1, trained, mask)
        return {name: False if name == FREE_LOGITS else part for name, part in weights.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config, num_steps), weight_decay=config.weight_decay, mask=decayed),
    )


def learning_rate_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """The learning rate at each step."""
    warmup_steps = min(round(config.warmup * num_steps), num_steps - 1)
    start = 0.0 if warmup_steps else config.learning_rate
    return optax.warmup_cosine_decay_schedule(start, config.learning_rate, warmup_steps, num_steps)


def init_state(model: Model, optimizer: optax.GradientTransformation, params: Params, key: PRNGKeyArray) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained_part(model, params)), key)


def with_loss_parameters(model: Model, params: Params, config: TrainConfig, key: PRNGKeyArray) -> Params:
    """`params` with those that the loss of `config` trains beside the model's; the very same where there are none.

    stability_logits="learned" adds "free_logits" (c, c): row y takes the place of W e + b in the stability loss for
    every example of class y. It starts where the softmax gives class y 0.9 and the others equal shares. As nothing ties
    these logits to the model's, their gaps may grow at no cost. With the form "log_relative" this only chooses the
    rival k, and what is left for the model is log ||w_y - w_k|| + log ||e||: a pressure on both norms, which the class
    loss resists by spending them well. The hinge is content once the gaps have grown; "squared" never is.

    lambda_reconstruction adds "decoder", the parameters of `training_decoder`.

    Args:
        model: from `build_model`.
        params: from its `init`.
        config: which terms there are.
        key: for the parameters that are drawn.

    Returns:
        A new dict.

    Raises:
        ValueError: a reconstruction is asked for where the batches hold no images.
    """
    added: Params = {}
    if config.lambda_stability and config.stability_logits == "learned":
        gap = math.log(9 * (model.num_classes - 1))
        dtype = params["head"]["weights"].dtype
        added[FREE_LOGITS] = gap * (jnp.eye(model.num_classes, dtype=dtype) - 1 / model.num_classes)
    if config.lambda_reconstruction:
        added[DECODER] = training_decoder(model, config).init(key)
    return {**params, **added}


def training_decoder(model: Model, config: TrainConfig) -> Decoder:
    """The decoder of the reconstruction term: from the model's attributes to images of the size it is trained on.

    Raises:
        ValueError: the model's backbone is frozen, so that its batches hold features and no images.
    """
    if model.frozen_backbone:
        raise ValueError(
            f"lambda_reconstruction={config.lambda_reconstruction:g} needs images, but the backbone of {model.name!r} "
            "is frozen and its batches hold features. Leave it at 0 and train a decoder on the attributes afterwards: "
            "python -m experiments.reconstruct"
        )
    return build_decoder(num_attributes=model.num_attributes, image_size=config.image_size or model.image_size)


def balanced_positive_weight(attributes: Float[Array | np.ndarray, "N n"]) -> Float[np.ndarray, " n"]:
    """Weights that make the present and the absent answers of each attribute count alike in the loss.

    (1 - p) / p for an attribute present in a share p of the training examples, clipped to [0.1, 10] because an
    attribute seen twice would otherwise drown all others. It trades precision for recall: balanced accuracy rises,
    but sigmoid(e) is no longer a probability.

    Args:
        attributes: (N, n) labels of the training split in [0, 1].

    Returns:
        (n,) float32.
    """
    present = np.mean(np.asarray(attributes, np.float64), axis=0)
    with np.errstate(divide="ignore"):
        return np.clip((1 - present) / present, 0.1, 10).astype(np.float32)


def forward(
    model: Model, params: Params, inputs: Float[Array, "b ..."], *, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, "b n"], Float[Array, "b c"]]:
    """Attributes and logits of images (b, h, w, 3) or of precomputed backbone features (b, f)."""
    encode = model.bottleneck if inputs.ndim == 2 else model.encode
    attributes = encode(params, inputs, key=key)
    return attributes, head_logits(model.head(params), attributes)


def check_adversarial(model: Model, config: TrainConfig) -> None:
    """Raises a ValueError where `config` attacks images that the batches of `model` do not hold."""
    if config.adversarial_radius and model.frozen_backbone:
        raise ValueError(
            f"adversarial_radius={config.adversarial_radius:g} needs images, but the backbone of {model.name!r} is "
            "frozen and its batches hold features. Train the backbone too (model_options frozen_backbone=False, at "
            "many times the cost) or choose another model."
        )


def check_certified(model: Model, config: TrainConfig) -> None:
    """Raises a ValueError where `config` asks for certified radii of a model of which nothing is proven."""
    if config.certified_radius and not hasattr(model, "lipschitz_bound"):
        raise ValueError(
            f"certified_radius is {config.certified_radius:g}, but nothing is proven about model {model.name!r}; "
            "expected 'lipschitz_cnn', whose attributes change no faster than its images. Leave it at 0 for others"
        )


def check_parts(model: Model, config: TrainConfig) -> None:
    """Raises a ValueError where `config` asks for the places of parts of a model that does not look for them."""
    if config.lambda_parts and not hasattr(model, "log_places"):
        raise ValueError(
            f"lambda_parts is {config.lambda_parts:g}, but model {model.name!r} does not look for parts; expected "
            "'part_cnn'. Leave it at 0 for others"
        )


def _with_places(
    model: Any, params: Params, batch: AnyBatch, inputs: Array, key: PRNGKeyArray
) -> tuple[Array, Array, dict[str, Array]]:
    """As `forward`, and where the model sees the regions of its inputs and where they are."""
    if not isinstance(batch, PartBatch):
        raise ValueError(
            f"batch is a {type(batch).__name__}; expected a PartBatch, with part points, for lambda_parts > 0: ask for "
            "batches with parts=True"
        )
    attributes, log_places = model.encode_with_places(params, inputs, key=key)
    height, width = log_places.shape[2:]
    places = region_maps(batch.parts, model.regions, height=height, width=width)
    return attributes, head_logits(model.head(params), attributes), {"log_places": log_places, "places": places}


def _attacked(model: Model, params: Params, batch: AnyBatch, config: TrainConfig, key: PRNGKeyArray) -> Array:
    """The batch's images, attacked where the loss of `config` looks: at the class, or at the change of its naming."""
    # Without dropout: the model that will be used is the one to be attacked. Constants: training lowers the loss at
    # the attacked images, it does not learn to lead the attack astray.
    params = jax.lax.stop_gradient(params)
    given = forward(model, params, batch.inputs)[1]

    def loss_fn(images: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        logits = forward(model, params, images)[1]
        if config.lambda_consistency:
            return losses.divergence(given, logits)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    return attack_images(
        loss_fn,
        batch.inputs,
        key,
        radius=config.adversarial_radius,
        norm=config.adversarial_norm,
        steps=config.adversarial_steps,
    )


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    *,
    positive_weight: Float[Array, " n"] | None = None,
    sharding: Sharding | None = None,
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]]:
    """Builds the jitted step (state, batch) -> (state, metrics). The state passed in is donated: do not use it again.

    A step whose loss or gradient is not finite leaves parameters and optimiser as they were and says so in
    metrics["finite"].

    Args:
        model: from `build_model`.
        optimizer: from `make_optimizer`.
        config: what the loss is made of; where it trains parameters of its own, the state has those of
            `with_loss_parameters`.
        positive_weight: (n,) for `attribute_loss`.
        sharding: of state and metrics, replicated over the devices when there are several.

    Returns:
        The step. Its metrics are device scalars: loss, every active term of `loss_terms` by name, class_accuracy (of
        the attacked images where they take the place of the given ones), gradient_norm and finite.

    Raises:
        ValueError: attacks or a reconstruction are asked for where the batches hold no images, or certified radii of a
            model of which nothing is proven, or parts of one that does not look for them.
    """
    check_adversarial(model, config)
    check_certified(model, config)
    check_parts(model, config)
    decoder = training_decoder(model, config) if config.lambda_reconstruction else None

    def loss_fn(trained: Params, rest: Params, batch: AnyBatch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        params = {**rest, **trained}
        dropout_key, _ = jax.random.split(key)
        inputs, attacked_logits = batch.inputs, None
        if config.adversarial_radius:
            attacked = _attacked(model, params, batch, config, jax.random.fold_in(key, ATTACK_KEY))
            if config.lambda_consistency:
                _, attacked_logits = forward(model, params, attacked, key=dropout_key)
            else:
                inputs = attacked
        maps: dict[str, Array] = {}
        if config.lambda_parts:
            attributes, logits, maps = _with_places(model, params, batch, inputs, dropout_key)
        else:
            attributes, logits = forward(model, params, inputs, key=dropout_key)
        free = config.lambda_stability and config.stability_logits == "learned"
        loss, terms = losses.loss_terms(
            model.head(params),
            attributes,
            batch.attributes,
            batch.labels,
            lambda_attribute=config.lambda_attribute,
            lambda_class=config.lambda_class,
            lambda_stability=config.lambda_stability,
            lambda_sparsity=config.lambda_sparsity,
            lambda_reconstruction=config.lambda_reconstruction,
            lambda_consistency=config.lambda_consistency,
            lambda_parts=config.lambda_parts,
            images=None if decoder is None else batch.inputs,
            reconstructions=None if decoder is None else decoder.decode(params[DECODER], attributes),
            attacked_logits=attacked_logits,
            **maps,
            attribute_logits=model.attribute_logits(params, attributes),
            positive_weight=positive_weight,
            label_smoothing=config.label_smoothing,
            certified_radius=config.certified_radius,
            margin_temperature=config.margin_temperature,
            stability_method=config.stability_method,
            stability_form=config.stability_form,
            stability_distance=config.stability_distance,
            stability_logits=params[FREE_LOGITS][batch.labels] if free else None,
            stability_detach=config.stability_logits == "detached",
            valid=batch.valid,
        )
        metrics: Metrics = {**terms, "class_accuracy": class_accuracy(logits, batch.labels, valid=batch.valid)}
        return loss, {"loss": loss, **metrics}

    def step(state: TrainState, batch: AnyBatch) -> tuple[TrainState, Metrics]:
        trained = trained_part(model, state.params)
        key = jax.random.fold_in(state.key, state.step)
        gradient, metrics = jax.grad(loss_fn, has_aux=True)(trained, state.params, batch, key)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        # optax mixes its integer step count with floats; under strict promotion that is an error not of our making.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        taken = (optax.apply_updates(trained, updates), opt_state)
        trained, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), taken, (trained, state.opt_state)
        )
        state = TrainState(state.step + 1, {**state.params, **trained}, opt_state, state.key)
        return state, {**metrics, "gradient_norm": norm, "finite": finite}

    return jax.jit(step, donate_argnums=0, out_shardings=sharding)
