"""Training losses: attribute BCE, class CE, stability, consistency, and their weighted sum (Sections 2.3, 3.1-3.3)."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import at_least_float32, check_attributes, check_choice
from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.all_pairs import all_pairs_norms
from spectra_jax.perturbations.geometry import head_logits, safe_norm, safe_sqrt, squared_distances
from spectra_jax.switches import public
from spectra_jax.types import Head

P = ParamSpec("P")
R = TypeVar("R")

# Rows of the head closer than this part of its largest weight count as so far apart in `margin_logits`.
_TWINS = 1e-3
STABILITY_FORMS = ("squared", "log_relative", "hinge")


def masked_mean(values: Float[Array, " b"], valid: Bool[Array, " b"] | None = None) -> Float[Array, ""]:
    """Mean of per-sample values over the valid rows; 0 when none is valid."""
    if valid is None:
        return jnp.mean(values)
    weight = valid.astype(values.dtype)
    # where, not a product: a padded row may hold NaN and must not leak it.
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(weight), 1)


def _without_padding(rows: Float[Array, "b ..."], valid: Bool[Array, " b"] | None) -> Float[Array, "b ..."]:
    """Rows with the padded ones set to 0 before any arithmetic: masking the loss alone leaves NaN gradients."""
    return rows if valid is None else jnp.where(valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)


@public()
def attribute_loss(
    attributes: Float[Array, "b n"],
    labels: Float[Array, "b n"],
    *,
    positive_weight: Float[Array, " n"] | None = None,
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy on the attributes, averaged over attributes and valid samples.

    Args:
        attributes: (b, n) unnormalised attribute values (logits).
        labels: (b, n) in [0, 1].
        positive_weight: (n,) factor on the term of present attributes, to counter rare attributes.
        valid: (b,) rows to count.

    Returns:
        Scalar loss in nats.
    """
    attributes, labels = _without_padding(attributes, valid), _without_padding(labels, valid)
    present = optax.sigmoid_binary_cross_entropy(attributes, jnp.ones_like(attributes)) * labels
    absent = optax.sigmoid_binary_cross_entropy(attributes, jnp.zeros_like(attributes)) * (1 - labels)
    if positive_weight is not None:
        present = present * jnp.broadcast_to(positive_weight, present.shape)
    return masked_mean(jnp.mean(present + absent, axis=-1), valid)


@public()
def classification_loss(
    logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    *,
    label_smoothing: float = 0.0,
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy with optional label smoothing, averaged over valid samples.

    Args:
        logits: (b, c).
        labels: (b,) class indices.
        label_smoothing: share of the target mass spread evenly over all classes.
        valid: (b,) rows to count.

    Returns:
        Scalar loss in nats.
    """
    logits = _without_padding(logits, valid)
    labels = jnp.asarray(labels, jnp.int32)  # small types cannot count to the number of classes
    one_hot = labels[:, None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    targets = optax.smooth_labels(one_hot.astype(logits.dtype), label_smoothing)
    return masked_mean(optax.softmax_cross_entropy(logits, targets), valid)


@public()
def margin_logits(
    head: Head,
    attributes: Float[Array, "b n"],
    labels: Int[Array, " b"],
    *,
    radius: float,
    temperature: float = 0.15,
) -> Float[Array, "b c"]:
    """What the cross-entropy gets in place of the logits when every class should be `radius` away from its rivals.

    (radius - (l_y - l_k) / ||w_y - w_k||) / temperature for each rival k of the true class y, and 0 for y: each rival's
    logit is raised by radius * ||w_y - w_k||, as in EMMA (Hu et al. 2023), and all are in units of the distance to the
    boundary. Behind an encoder of Lipschitz constant 1 these are distances between images, so that
    the loss asks for a certified radius. Behind any other encoder the attributes only need to grow.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n).
        labels: (b,) true classes.
        radius: the required distance, in units of the attributes.
        temperature: how far from it a sample still counts, in the same units.

    Returns:
        (b, c).

    Raises:
        ValueError: shapes do not match.
    """
    check_attributes(head, attributes, ndim=2)
    head, attributes = at_least_float32((head, attributes))
    logits = head_logits(head, attributes)
    labels = labels.astype(jnp.int32)  # there may be more classes than an 8-bit type counts
    is_true = labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # Of twin classes: what cannot be told apart is not pushed apart without bound.
    apart = jnp.maximum(safe_sqrt(squared_distances(head.weights)[labels]), _TWINS * jnp.max(jnp.abs(head.weights)))
    rivals = (radius + formulas.boundary_distance(formulas.offset(logits, own, 0), apart)) / temperature
    return jnp.where(is_true, 0, rivals)


@public()
def consistency_loss(
    logits: Float[Array, "b c"], attacked_logits: Float[Array, "b c"], *, valid: Bool[Array, " b"] | None = None
) -> Float[Array, ""]:
    """How far an attack moved the class probabilities: mean KL(softmax(logits) || softmax(attacked_logits)).

    The second term of TRADES (Zhang et al., 2019), which asks for the same class on images near each other, whatever
    that class is. The gradient reaches both arguments.

    Args:
        logits: (b, c) of the images.
        attacked_logits: (b, c) of the images under attack.
        valid: (b,) rows to count.

    Returns:
        Scalar in nats, at least 0.
    """
    logits, attacked_logits = _without_padding(logits, valid), _without_padding(attacked_logits, valid)
    return masked_mean(divergence(logits, attacked_logits), valid)


def divergence(logits: Float[Array, "b c"], other_logits: Float[Array, "b c"]) -> Float[Array, " b"]:
    """KL(softmax(logits) || softmax(other_logits)) of each row, in nats."""
    targets, predictions = (jax.nn.log_softmax(each, axis=-1) for each in (logits, other_logits))
    return optax.losses.kl_divergence_with_log_targets(predictions, targets)


@public()
def stability_loss(
    head: Head,
    attributes: Float[Array, "b n"],
    *,
    method: str = "boundary",
    form: str = "log_relative",
    required_distance: float = 0.1,
    nearest: bool = True,
    logits: Float[Array, "b c"] | None = None,
    detach_logits: bool = False,
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Loss that pushes class boundaries away from the samples (Sections 3.1, 3.2).

    form="squared" is the paper's -||delta||^2. It is unbounded below: scaling e scales delta, so training can lower
    it forever without any gain in robustness. The other two depend only on the relative distance r = ||delta|| / ||e||,
    which no rescaling changes: "log_relative" is -log r; "hinge" is max(0, required_distance - r) and ignores samples
    that are far enough away.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes.
        method: which delta: "boundary", "projection" or "pinv". For the nearest class the first two agree, and
            "boundary" is much cheaper. "pinv" without bias at rank(C W) = n has no gradient with respect to W.
        form: "squared", "log_relative" or "hinge".
        required_distance: r from which the hinge is 0.
        nearest: use the nearest class only; otherwise the mean over all classes that can be reached.
        logits: (b, c) in place of W e + b: the paper's "l_global can be treated as a learnable parameter".
        detach_logits: stop the gradient through the logits and ||e||, so that only the geometry of W learns. With
            fixed logits, smaller weights count as larger distances: combine it with a term that fixes W's scale.
        valid: (b,) rows to count.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes do not match, unknown method or form.
    """
    check_attributes(head, attributes, ndim=2)
    check_choice("form", form, STABILITY_FORMS)
    head, attributes, logits = at_least_float32((head, attributes, logits))
    attributes = _without_padding(attributes, valid)
    logits = head_logits(head, attributes) if logits is None else _without_padding(logits, valid)
    if detach_logits:
        # ||e|| as well: against fixed logits, shrinking e alone would look like a gain in relative distance.
        logits, attributes = jax.lax.stop_gradient((logits, attributes))
    norms = all_pairs_norms(head, attributes, method=method, logits=logits)
    predicted = jnp.argmax(logits, axis=-1)
    others = (jnp.arange(norms.shape[-1])[None, :] != predicted[:, None]) & jnp.isfinite(norms)
    if nearest:
        others = others & (norms <= jnp.min(jnp.where(others, norms, jnp.inf), axis=-1, keepdims=True))
    # A distance of 0 or an erased sample has no logarithm: the smallest normal number keeps both finite.
    tiny = float(jnp.finfo(norms.dtype).tiny)
    relative = formulas.relative_margin(norms, safe_norm(attributes)[:, None])
    values = {
        "squared": lambda: -jnp.square(jnp.where(others, norms, 0)),
        "log_relative": lambda: -jnp.log(jnp.maximum(jnp.where(others, relative, 1), tiny)),
        "hinge": lambda: jnp.maximum(required_distance - jnp.where(others, relative, 0), 0),
    }[form]()
    counts = jnp.sum(others, axis=-1)
    means = jnp.sum(jnp.where(others, values, 0), axis=-1) / jnp.maximum(counts, 1).astype(norms.dtype)
    # A diverged sample must be seen by whoever guards the training, not count as one without rivals.
    means = jnp.where(jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, means)
    return masked_mean(means, valid)


class LossTerms(NamedTuple):
    """The training loss and what it is made of (Section 3.3, Eq. 7).

    Attributes:
        total: the weighted sum that training lowers.
        terms: each active term by name, before its weight: "attribute_loss" and "class_loss" always; "stability_loss",
            "sparsity_loss", "reconstruction_loss", "consistency_loss" and "part_loss" where their weight is not 0.
    """

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]


@public()
def loss_terms(
    head: Head,
    attributes: Float[Array, "b n"],
    attribute_labels: Float[Array, "b n"],
    labels: Int[Array, " b"],
    *,
    lambda_attribute: float = 0.7,
    lambda_class: float = 0.3,
    lambda_stability: float = 0.0,
    lambda_sparsity: float = 0.0,
    lambda_reconstruction: float = 0.0,
    lambda_consistency: float = 0.0,
    lambda_parts: float = 0.0,
    images: Float[Array, "b h w k"] | None = None,
    reconstructions: Float[Array, "b h w k"] | None = None,
    attacked_logits: Float[Array, "b c"] | None = None,
    log_places: Float[Array, "b r h w"] | None = None,
    places: Float[Array, "b r h w"] | None = None,
    attribute_logits: Float[Array, "b n"] | None = None,
    positive_weight: Float[Array, " n"] | None = None,
    label_smoothing: float = 0.0,
    certified_radius: float = 0.0,
    margin_temperature: float = 0.15,
    stability_method: str = "boundary",
    stability_form: str = "log_relative",
    stability_distance: float = 0.1,
    stability_logits: Float[Array, "b c"] | None = None,
    stability_detach: bool = False,
    valid: Bool[Array, " b"] | None = None,
) -> LossTerms:
    """All training terms and their weighted sum (Section 3.3, Eq. 7); optional terms of weight 0 are not computed.

    This is the only place where the loss is composed: `total_loss` and the training step both call it.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) unnormalised attributes phi(x).
        attribute_labels: (b, n) in [0, 1].
        labels: (b,) class indices.
        lambda_attribute: weight of `attribute_loss`.
        lambda_class: weight of `classification_loss`.
        lambda_stability: weight of `stability_loss`.
        lambda_sparsity: weight of `sparsity_loss`.
        lambda_reconstruction: weight of `reconstruction_loss`.
        lambda_consistency: weight of `consistency_loss`.
        lambda_parts: weight of `part_loss`.
        images: (b, h, w, channels), for the reconstruction term.
        reconstructions: (b, h, w, channels), a decoder's output, for the reconstruction term.
        attacked_logits: (b, c) of the same images under attack, for the consistency term.
        log_places: (b, r, h, w) where a model sees each region, for the part term.
        places: (b, r, h, w) where each region is, for the part term.
        attribute_logits: (b, n) the input of `attribute_loss`; the attributes by default.
        positive_weight: see `attribute_loss`.
        label_smoothing: see `classification_loss`.
        certified_radius: `radius` of `margin_logits`, which `classification_loss` gets in place of the logits. 0: off.
        margin_temperature: `temperature` of `margin_logits`.
        stability_method: `method` of `stability_loss`.
        stability_form: `form` of `stability_loss`.
        stability_distance: `required_distance` of `stability_loss`, for the form "hinge".
        stability_logits: (b, c) `logits` of `stability_loss`, in place of the head's own.
        stability_detach: `detach_logits` of `stability_loss`.
        valid: (b,) rows to count.

    Returns:
        LossTerms: scalars.

    Raises:
        ValueError: attributes do not match the head, or a term lacks its input: reconstruction without images and
            reconstructions, consistency without attacked_logits, or parts without log_places and places.
    """
    check_attributes(head, attributes, ndim=2)
    attributes = _without_padding(attributes, valid)
    logits = head_logits(head, attributes)
    margins = logits
    if certified_radius:
        margins = margin_logits(head, attributes, labels, radius=certified_radius, temperature=margin_temperature)
    given = attributes if attribute_logits is None else attribute_logits
    weights = {"attribute_loss": lambda_attribute, "class_loss": lambda_class}
    terms = {
        "attribute_loss": attribute_loss(given, attribute_labels, positive_weight=positive_weight, valid=valid),
        "class_loss": classification_loss(margins, labels, label_smoothing=label_smoothing, valid=valid),
    }
    if lambda_stability:
        weights["stability_loss"] = lambda_stability
        terms["stability_loss"] = stability_loss(
            head,
            attributes,
            method=stability_method,
            form=stability_form,
            required_distance=stability_distance,
            logits=stability_logits,
            detach_logits=stability_detach,
            valid=valid,
        )
    if lambda_sparsity:
        weights["sparsity_loss"] = lambda_sparsity
        terms["sparsity_loss"] = sparsity_loss(attributes, valid=valid)
    if lambda_reconstruction:
        if images is None or reconstructions is None:
            raise ValueError(
                f"images or reconstructions is None; expected both for lambda_reconstruction={lambda_reconstruction:g}"
            )
        weights["reconstruction_loss"] = lambda_reconstruction
        terms["reconstruction_loss"] = reconstruction_loss(reconstructions, images, valid=valid)
    if lambda_consistency:
        if attacked_logits is None:
            raise ValueError(f"attacked_logits is None; expected logits for lambda_consistency={lambda_consistency:g}")
        weights["consistency_loss"] = lambda_consistency
        terms["consistency_loss"] = consistency_loss(logits, attacked_logits, valid=valid)
    if lambda_parts:
        if log_places is None or places is None:
            raise ValueError(f"log_places or places is None; expected both for lambda_parts={lambda_parts:g}")
        weights["part_loss"] = lambda_parts
        terms["part_loss"] = part_loss(log_places, places, valid=valid)
    total = jnp.zeros((), attributes.dtype)
    for name, term in terms.items():
        total = total + weights[name] * term
    return LossTerms(total, terms)


def _with_arguments_of(function: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Gives a function the arguments of another one, for type checkers, for `inspect` and in its docstring."""
    signature, text = inspect.signature(function), inspect.getdoc(function) or ""

    def decorate(other: Callable[..., R]) -> Callable[P, R]:
        own: Any = other
        own.__signature__ = signature.replace(return_annotation=inspect.signature(other).return_annotation)
        arguments = text[text.index("Args:") : text.index("Returns:")]
        own.__doc__ = (inspect.getdoc(other) or "").replace("Returns:", f"{arguments}Returns:")
        return own

    return decorate


@public()
@_with_arguments_of(loss_terms)
def total_loss(*args: Any, **kwargs: Any) -> Float[Array, ""]:
    """Weighted sum of all training terms (Section 3.3, Eq. 7), the `total` of `loss_terms`.

    Returns:
        Scalar.

    Raises:
        ValueError: see `loss_terms`.
    """
    return loss_terms(*args, **kwargs).total


@public()
def sparsity_loss(attributes: Float[Array, "b n"], *, valid: Bool[Array, " b"] | None = None) -> Float[Array, ""]:
    """Mean share of present attributes, mean_f sigmoid(e_f): an L1 penalty on the normalised attributes (Section 3.3).

    Args:
        attributes: (b, n) unnormalised attributes.
        valid: (b,) rows to count.

    Returns:
        Scalar in [0, 1].
    """
    return masked_mean(jnp.mean(jax.nn.sigmoid(_without_padding(attributes, valid)), axis=-1), valid)


@public()
def reconstruction_loss(
    reconstructions: Float[Array, "b h w k"], images: Float[Array, "b h w k"], *, valid: Bool[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Mean squared error of a decoder's images (Section 3.3).

    Args:
        reconstructions, images: (b, h, w, channels) in [0, 1].
        valid: (b,) rows to count.

    Returns:
        Scalar.
    """
    difference = _without_padding(reconstructions - images, valid)
    return masked_mean(jnp.mean(jnp.square(difference), axis=(1, 2, 3)), valid)


@public()
def part_loss(
    log_places: Float[Array, "b r h w"], places: Float[Array, "b r h w"], *, valid: Bool[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Cross-entropy between where a model sees each region and where it is, over the regions that are visible.

    Args:
        log_places: (b, r, h, w) log-probabilities over each map, such as `PartModel.log_places`.
        places: (b, r, h, w) weights that sum to 1 over each map, or to 0 where the region is hidden, such as
            `region_maps`.
        valid: (b,) rows to count.

    Returns:
        Scalar in nats; 0 where nothing is visible.
    """
    log_places, places = _without_padding(log_places, valid), _without_padding(places, valid)
    visible = jnp.sum(jnp.sum(places, axis=(2, 3)) > 0, axis=1).astype(log_places.dtype)
    return masked_mean(-jnp.sum(places * log_places, axis=(1, 2, 3)) / jnp.maximum(visible, 1), valid)
