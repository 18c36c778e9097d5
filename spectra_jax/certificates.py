"""From distances between attributes to distances between images: what an encoder of known Lipschitz constant proves.

If ||phi(x) - phi(x')|| <= L ||x - x'|| for all images, whatever needs an attribute change of d needs an image change
of d / L (Euclidean, over the pixels that the encoder is given; earlier processing of a photograph, such as resizing or
JPEG, is not covered). A certificate is a proof about numbers, so it is computed on the host, in float64, and all
possible rounding errors, in the encoder, in the logits and here, are subtracted.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import (
    as_target_columns,
    check_array,
    check_between,
    check_count,
    check_images,
    check_problem,
    is_concrete,
)
from spectra_jax.perturbations.proven_distances import UNIT_ROUNDOFF, ProvenDistances
from spectra_jax.switches import public
from spectra_jax.types import Head


class Certificate(NamedTuple):
    """Changes of an image that provably leave an answer as it is.

    Attributes:
        radius: (b,), (b, t) or (b, n): no image at a smaller Euclidean distance has another answer, or is classified as
            that target. 0 where nothing is proven; inf where a bias of -inf masks that target, or all others.
        answer: (b,) the class, or (b, n) whether each attribute is present; -1 for an abstention.
        confidence: the probability with which a radius holds; 1 for a proof.
        how: in words.
    """

    radius: Float[np.ndarray, "b ..."]
    answer: Int[np.ndarray, " b"] | Bool[np.ndarray, "b n"]
    confidence: float
    how: str


class LipschitzBound(NamedTuple):
    """A number that ||phi(x) - phi(x')|| / ||x - x'|| never exceeds.

    Attributes:
        value: the bound, rounded up.
        how: how it was proven.
    """

    value: float
    how: str


@public(on_host=True)
def certify(
    model: Any,
    params: Any,
    images: Float[Array | np.ndarray, "b h w 3"],
    *,
    targets: Int[Array | np.ndarray, "b ..."] | None = None,
    batch_size: int = 32,
) -> Certificate:
    """`certified_radius` of a model's images: encodes them in float64 and subtracts possible rounding errors.

    The certificate is about the network with these parameters, evaluated in float64. In float32 the network was never
    seen to differ by more than about 1e-6, but this is proven only to within `encoder_rounding`.

    Args:
        model: one that `lipschitz_bound` supports.
        params: its parameters.
        images: (b, h, w, 3) in [0, 1].
        targets: (b,) or (b, t) classes that are not to be reached; None for "any but the predicted one".
        batch_size: images encoded at a time.

    Returns:
        Certificate: radius (b,) or of the shape of `targets`, Euclidean, in units of [0, 1].

    Raises:
        ValueError: nothing is proven about this architecture, or shapes do not match.
    """
    proven = encode_exactly(model, params, images, batch_size=batch_size)
    return certified_radius(
        proven.head, proven.attributes, lipschitz=proven.lipschitz, targets=targets, rounding=proven.rounding
    )


class ExactAttributes(NamedTuple):
    """What the certificates of a model's images are made of.

    Attributes:
        head: in float64.
        attributes: (b, n) in float64.
        lipschitz: see `lipschitz_bound`.
        rounding: see `encoder_rounding`.
    """

    head: Head
    attributes: Float[np.ndarray, "b n"]
    lipschitz: float
    rounding: float


@public(on_host=True)
def encode_exactly(
    model: Any, params: Any, images: Float[Array | np.ndarray, "b h w 3"], *, batch_size: int = 32
) -> ExactAttributes:
    """The attributes of images in float64, with what is proven of them.

    Args:
        model, params, images, batch_size: see `certify`.

    Returns:
        ExactAttributes, for `certified_radius` and `certified_attribute_radius`.

    Raises:
        ValueError: nothing is proven of this architecture.
    """
    _controlled(model)
    check_images(images)
    check_count("batch_size", batch_size)
    _expect_numbers(images=images, params=params)
    pixels = np.asarray(images, np.float64)
    if not len(pixels):
        raise ValueError(f"images has shape {pixels.shape}; expected at least one image")
    with jax.enable_x64(True):
        params = in_float64(model, params)
        parts = []
        for start in range(0, len(pixels), batch_size):
            part = pixels[start : start + batch_size]
            filled = np.pad(part, ((0, min(batch_size, len(pixels)) - len(part)), *[(0, 0)] * 3))
            parts.append(np.asarray(_encode(model, params, filled))[: len(part)])
        head = jax.device_get(model.head(params))
        bound, rounding = lipschitz_bound(model, params).value, encoder_rounding(model, params, pixels.shape[1:])
    return ExactAttributes(head, np.concatenate(parts), bound, rounding)


@partial(jax.jit, static_argnums=0)
def _encode(model: Any, params: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b n"]:
    return model.encode(params, images)


def in_float64(model: Any, params: Any) -> Any:
    """A model's parameters in float64 and folded, within `jax.enable_x64(True)`."""
    parts = {name: params[name] for name in ("backbone", "bottleneck", "head")}
    return model.fold(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), parts))


def certified_accuracy(
    certificate: Certificate, labels: Int[Array | np.ndarray, " b"], radii: Sequence[float]
) -> Float[np.ndarray, " r"]:
    """The share of images that are classified correctly, and provably stay so for every image within each radius.

    Args:
        certificate: of the predicted class.
        labels: (b,) true classes.
        radii: (r,).

    Returns:
        (r,).
    """
    if certificate.radius.shape != np.shape(labels):
        raise ValueError(f"labels has shape {np.shape(labels)}; expected {certificate.radius.shape}, one per image")
    sure = np.where(certificate.answer == np.asarray(labels), certificate.radius, -1.0)
    return np.mean(sure[:, None] > np.asarray(radii, float)[None, :], axis=0)


@public(on_host=True)
def lipschitz_bound(model: Any, params: Any) -> LipschitzBound:
    """The proven Lipschitz constant of a model's encoder with these parameters.

    Args:
        model: from `build_model`.
        params: its parameters.

    Returns:
        LipschitzBound.

    Raises:
        ValueError: nothing is proven about this architecture.
    """
    _expect_numbers(params=params)
    return LipschitzBound(*_controlled(model).lipschitz_bound(params))


@public(on_host=True)
def encoder_rounding(model: Any, params: Any, image_shape: tuple[int, int, int]) -> float:
    """How far rounding can take a model's attributes from those of exact arithmetic, for any image in [0, 1].

    In a network whose layers enlarge nothing, rounding errors add up instead of multiplying: the bound is the sum of
    gamma_m || |K| |x| || over the layers, gamma_m = m u / (1 - m u) (Higham 2002, 3.5). It is a worst case, and in
    float32 a large one (tenths, where errors of 1e-6 are seen); in float64 it is 1e-9, which is why `certify` computes
    in float64.

    Args:
        model: from `build_model`.
        params: its parameters, of the type in which the encoder computes.
        image_shape: (h, w, 3).

    Returns:
        The largest Euclidean length of the error.

    Raises:
        ValueError: nothing is proven about this architecture.
    """
    _expect_numbers(params=params)
    return _controlled(model).encoder_rounding(params, image_shape)


def _controlled(model: Any) -> Any:
    if not hasattr(model, "lipschitz_bound"):
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"model {name!r} has no proven Lipschitz bound; expected one that is built to have it: "
            "build_model('lipschitz_cnn'). For any other encoder, smoothed_certificate gives a probabilistic one"
        )
    return model


@public(on_host=True)
def certified_radius(
    head: Head,
    attributes: Float[Array | np.ndarray, "b n"],
    *,
    lipschitz: float,
    targets: Int[Array | np.ndarray, "b ..."] | None = None,
    rounding: float | Float[Array, " b"] = 0.0,
) -> Certificate:
    """The image change below which the predicted class stays, or below which a target class is not reached.

    For the predicted class i it is min_k (l_i - l_k) / (||w_i - w_k|| L). For a target j it is the length of the exact
    projection onto the region where j wins, divided by L: its multipliers lambda >= 0 are a proof whatever their
    accuracy, as no change shorter than lambda . h / ||sum_k lambda_k (w_j - w_k)|| reaches j (weak duality).

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) of the images, in the type in which the classifier computes its logits.
        lipschitz: L of the encoder, see `lipschitz_bound`.
        targets: (b,) or (b, t) classes that are not to be reached; None for "any but the predicted one".
        rounding: (b,) or one number for all, how far the computed attributes of any nearby image may be from the exact
            ones, see `encoder_rounding`.

    Returns:
        Certificate: radius (b,) or of the shape of `targets`; 0 for a tie and for attributes that are NaN or infinite.

    Raises:
        ValueError: shapes do not match, lipschitz is not a positive number, rounding is negative, or a value is being
            traced by jit.
    """
    given = _checked(head, attributes, lipschitz, rounding)
    finite = np.isfinite(given.attributes).all(axis=1)
    exact = ProvenDistances(head, np.where(finite[:, None], given.attributes, 0), given.dtype)
    if targets is None:
        distance = exact.to_any_other()
    else:
        columns = as_target_columns(head, targets, len(finite))
        distance = exact.to_targets(columns).reshape(np.shape(targets))
        finite = finite.reshape(-1, *[1] * (distance.ndim - 1))
    radius = np.where(finite, given.certified(distance), 0.0)
    return Certificate(radius, exact.predicted, 1.0, given.how)


@public(on_host=True)
def certified_attribute_radius(
    attributes: Float[Array | np.ndarray, "b n"],
    *,
    lipschitz: float,
    scale: Float[Array, " n"] | None = None,
    offset: Float[Array, " n"] | None = None,
    rounding: float | Float[Array, " b"] = 0.0,
) -> Certificate:
    """The image change below which an attribute, present where scale_f e_f + offset_f > 0, stays as it is.

    That is |e_f + offset_f / scale_f| / L: one attribute changes no faster than all of them together.

    Args:
        attributes: (b, n) of the images.
        lipschitz: L of the encoder, see `lipschitz_bound`.
        scale: (n,) positive; 1 by default.
        offset: (n,); 0 by default.
        rounding: see `certified_radius`.

    Returns:
        Certificate: radius (b, n).

    Raises:
        ValueError: shapes do not match, a scale is not positive, or as `certified_radius`.
    """
    check_array("attributes", attributes)
    if np.ndim(attributes) != 2:
        raise ValueError(f"attributes has shape {np.shape(attributes)}; expected (b, n)")
    given = _checked(None, attributes, lipschitz, rounding)
    threshold = thresholds(given.attributes.shape[1], scale, offset)
    distance = np.abs(given.attributes + threshold)
    # The classifier computes scale * e + offset in its own type, where a tiny product may count as 0; this is float64.
    limits, unit = np.finfo(given.dtype), 1.0 if scale is None else np.minimum(np.asarray(scale, np.float64), 1)
    slack = 2 * limits.eps * (np.abs(given.attributes) + np.abs(threshold)) + 4 * float(limits.tiny) / unit
    radius = given.certified(np.where(np.isfinite(distance), distance - slack, 0))
    return Certificate(radius, given.attributes + threshold > 0, 1.0, given.how)


class _Given(NamedTuple):
    attributes: Float[np.ndarray, "b n"]
    lipschitz: float
    rounding: Float[np.ndarray, " b"]
    dtype: Any

    @property
    def how(self) -> str:
        return f"Lipschitz constant {self.lipschitz:.7g} of the encoder, exact distances between attributes"

    def certified(self, distance: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b ..."]:
        """Rounding moves the attributes of the image and those of the other one."""
        rounding = self.rounding.reshape(-1, *[1] * (distance.ndim - 1))
        left = np.maximum(distance - 2 * rounding, 0) * (1 - 8 * UNIT_ROUNDOFF)
        return np.nan_to_num(left / self.lipschitz, nan=0.0, posinf=np.inf)


def _checked(head: Head | None, attributes: Any, lipschitz: Any, rounding: Any) -> _Given:
    _expect_numbers(head=head, attributes=attributes, lipschitz=lipschitz, rounding=rounding)
    if head is not None:
        check_array("attributes", attributes)  # those that are not finite are certified for nothing, and not refused
        numbers = np.asarray(attributes)
        check_problem(head, np.where(np.isfinite(numbers), numbers, numbers.dtype.type(0)), ndim=2)
    if not jnp.issubdtype(attributes.dtype, jnp.floating):
        raise ValueError(f"attributes has type {attributes.dtype}; expected floats")
    check_between("lipschitz", lipschitz, 0.0, np.inf)
    values, length = np.asarray(rounding, np.float64), len(attributes)
    if values.shape not in ((), (length,)) or not (values >= 0).all():
        raise ValueError(f"rounding is {rounding}; expected one number >= 0, or {length} of them")
    # Of half precision, logits are computed in float32.
    dtype = np.float64 if attributes.dtype == np.float64 else np.float32
    return _Given(np.asarray(attributes, np.float64), float(lipschitz), np.broadcast_to(values, (length,)), dtype)


def _expect_numbers(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not all(is_concrete(leaf) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name} is traced; expected numbers, because a proof is about numbers: call it outside jit, vmap, grad"
            )


def thresholds(num_attributes: int, scale: Any, offset: Any) -> Float[np.ndarray, " n"]:
    """offset_f / scale_f, which an attribute is to exceed the negative of; 0 by default."""
    values = []
    for name, value, default in (("scale", scale, 1.0), ("offset", offset, 0.0)):
        value = np.full(num_attributes, default) if value is None else np.asarray(value, np.float64)
        if value.shape != (num_attributes,) or not np.isfinite(value).all():
            raise ValueError(f"{name} has shape {value.shape}; expected ({num_attributes},) finite numbers")
        values.append(value)
    if not (values[0] > 0).all():
        raise ValueError(f"scale goes down to {values[0].min():g}; expected positive numbers")
    return values[1] / values[0]
