"""From distances between attributes to distances between images: what an encoder of known Lipschitz constant proves.

If ||phi(x) - phi(x')|| <= L ||x - x'|| for all images, whatever needs a change of the attributes by d needs a change of
the image by d / L (Euclidean, over the pixels that the encoder is given; what was done to a photograph before, resizing
or JPEG, is not covered). A certificate is a proof about numbers, so it is computed on the host, in float64, and
everything that rounding may have done, in the encoder, in the logits and here, is taken off.
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
    at_least_float32,
    check_array,
    check_images,
    check_problem,
    is_concrete,
)
from spectra_jax.perturbations.projection import projection_perturbation
from spectra_jax.switches import public
from spectra_jax.types import Head, Status

# Pairs whose multipliers are on the host at a time.
_PAIRS = 4096
_UNIT_ROUNDOFF = 2.0**-53
# How far away, in lengths of the attributes, a target is certified at most that cannot be reached at all.
_OUT_OF_REACH = 16.0


class Certificate(NamedTuple):
    """Changes of an image that provably leave an answer as it is.

    Attributes:
        radius: (b,), (b, t) or (b, n): no image at a smaller Euclidean distance has another answer, or is named as that
            target. 0 where nothing is proven; inf where no image at all does it.
        answer: (b,) the class, or (b, n) whether each attribute is present; of an abstention -1.
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


def certify(
    model: Any,
    params: Any,
    images: Float[Array | np.ndarray, "b h w 3"],
    *,
    targets: Int[Array | np.ndarray, "b ..."] | None = None,
    batch_size: int = 32,
) -> Certificate:
    """`certified_radius` of a model's images: encodes them in float64 and takes off what rounding may have done.

    The certificate is about the network with these parameters, evaluated in float64. What float32 makes of it was never
    seen to differ by more than some 1e-6, but is proven only to within `encoder_rounding`.

    Args:
        model: one that `lipschitz_bound` knows.
        params: its parameters.
        images: (b, h, w, 3) in [0, 1].
        targets: (b,) or (b, t) classes that are not to be reached; None for "any but the predicted one".
        batch_size: images encoded at a time.

    Returns:
        Certificate: radius (b,) or of the shape of `targets`, Euclidean, in units of [0, 1].

    Raises:
        ValueError: nothing is proven of this architecture, or shapes do not match.
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
    """The share of images that are named correctly, and provably so at every image within each radius.

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


def lipschitz_bound(model: Any, params: Any) -> LipschitzBound:
    """The Lipschitz constant that is proven of a model's encoder with these parameters.

    Args:
        model: from `build_model`.
        params: its parameters.

    Returns:
        LipschitzBound.

    Raises:
        ValueError: nothing is proven of this architecture.
    """
    return LipschitzBound(*_controlled(model).lipschitz_bound(params))


def encoder_rounding(model: Any, params: Any, image_shape: tuple[int, int, int]) -> float:
    """How far rounding can take a model's attributes from those of exact arithmetic, whatever the image in [0, 1].

    Rounding errors of a network whose layers enlarge nothing add up instead of multiplying: the bound is the sum of
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
        ValueError: nothing is proven of this architecture.
    """
    return _controlled(model).encoder_rounding(params, image_shape)


def _controlled(model: Any) -> Any:
    if not hasattr(model, "lipschitz_bound"):
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"model {name!r} has no proven Lipschitz bound; expected one that is built to have it: "
            "build_model('lipschitz_cnn'). For any other encoder smoothed_certificate gives a probabilistic one"
        )
    return model


@public()
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
        rounding: (b,) or one number for all, how far the computed attributes of any image near by may be from the exact
            ones, see
            `encoder_rounding`.

    Returns:
        Certificate: radius (b,) or of the shape of `targets`. A tie is certified for nothing, and so are attributes
        that are NaN or infinite.

    Raises:
        ValueError: shapes do not match, lipschitz is not a positive number, rounding is negative, or a value is being
            traced by jit.
    """
    given = _checked(head, attributes, lipschitz, rounding)
    finite = np.isfinite(given.attributes).all(axis=1)
    exact = _Geometry(head, np.where(finite[:, None], given.attributes, 0), given.unit_roundoff)
    if targets is None:
        distance = exact.to_any_other()
    else:
        columns = as_target_columns(head, targets, len(finite))
        distance = exact.to_targets(columns).reshape(np.shape(targets))
        finite = finite.reshape(-1, *[1] * (distance.ndim - 1))
    radius = np.where(finite, given.certified(distance), 0.0)
    return Certificate(radius, exact.predicted, 1.0, given.how)


@public()
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
    # The classifier computes scale * e + offset in its own type, and this is float64.
    slack = 4 * given.unit_roundoff * (np.abs(given.attributes) + np.abs(threshold))
    radius = given.certified(np.where(np.isfinite(distance), distance - slack, 0))
    return Certificate(radius, given.attributes + threshold > 0, 1.0, given.how)


class _Given(NamedTuple):
    attributes: Float[np.ndarray, "b n"]
    lipschitz: float
    rounding: Float[np.ndarray, " b"]
    unit_roundoff: float

    @property
    def how(self) -> str:
        return f"Lipschitz constant {self.lipschitz:.7g} of the encoder, exact distances between attributes"

    def certified(self, distance: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b ..."]:
        """Rounding moves the attributes of the image and those of the other one."""
        rounding = self.rounding.reshape(-1, *[1] * (distance.ndim - 1))
        left = np.maximum(distance - 2 * rounding, 0) * (1 - 8 * _UNIT_ROUNDOFF)
        return np.nan_to_num(left / self.lipschitz, nan=0.0, posinf=np.inf)


def _checked(head: Head | None, attributes: Any, lipschitz: Any, rounding: Any) -> _Given:
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((head, attributes, lipschitz, rounding))):
        raise ValueError(
            "attributes or another argument is traced; expected numbers, which a proof is about: call it outside jit, "
            "vmap and grad"
        )
    if head is not None:
        check_array("attributes", attributes)  # those that are not finite are certified for nothing, and not refused
        numbers = np.asarray(attributes)
        check_problem(head, np.where(np.isfinite(numbers), numbers, numbers.dtype.type(0)), ndim=2)
    values, length = np.asarray(rounding, np.float64), len(attributes)
    if not 0 < float(lipschitz) < np.inf:
        raise ValueError(f"lipschitz is {lipschitz}; expected a positive number, as lipschitz_bound gives it")
    if values.shape not in ((), (length,)) or not (values >= 0).all():
        raise ValueError(f"rounding is {rounding}; expected one number >= 0, or {length} of them")
    dtype = at_least_float32(jnp.zeros((), attributes.dtype)).dtype if attributes.dtype != np.float64 else np.float64
    unit_roundoff = float(np.finfo(dtype).eps) / 2
    return _Given(
        np.asarray(attributes, np.float64), float(lipschitz), np.broadcast_to(values, (length,)), unit_roundoff
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


class _Geometry:
    """Lower bounds on distances in the space of attributes, rounding of every kind taken off."""

    def __init__(self, head: Head, attributes: Float[np.ndarray, "b n"], unit_roundoff: float):
        self.head, self.attributes = head, attributes
        self.weights = np.asarray(head.weights, np.float64)
        self.bias = np.zeros(len(self.weights)) if head.bias is None else np.asarray(head.bias, np.float64)
        self.logits = attributes @ self.weights.T + self.bias
        self.predicted = np.argmax(self.logits, axis=1).astype(np.int32)
        self.lengths = np.linalg.norm(self.weights, axis=1)
        self.sizes = np.linalg.norm(attributes, axis=1)
        # A sum of n products, a bias and a comparison: of the classifier in its own type, and of this class in float64.
        terms = self.weights.shape[1] + 4
        self.relative = terms * unit_roundoff / (1 - terms * unit_roundoff) + 2 * terms * _UNIT_ROUNDOFF

    def _rounding(self, size: float, target: int) -> Float[np.ndarray, " c"]:
        """Of l_k - l_target for all k, where the attributes are of this length."""
        finite = np.where(np.isfinite(self.bias), np.abs(self.bias), 0)
        return self.relative * ((self.lengths + self.lengths[target]) * size + finite + finite[target])

    def to_any_other(self) -> Float[np.ndarray, " b"]:
        distance = np.zeros(len(self.attributes))
        for own in np.unique(self.predicted):
            rows = np.flatnonzero(self.predicted == own)
            apart = np.linalg.norm(self.weights[own] - self.weights, axis=1) * (1 + 4 * self.relative)
            gaps = self.logits[rows, own, None] - self.logits[rows]
            with np.errstate(divide="ignore", invalid="ignore"):
                # Rows of equal weights differ by their bias alone, which no change of the attributes alters.
                first = np.where(gaps > 0, gaps, 0) / apart
                first = np.where(np.isnan(first), 0, first)
                farthest = self.sizes[rows] + np.max(np.where(np.isfinite(first), first, 0), axis=1)
                sure = gaps - np.stack([self._rounding(size, own) for size in farthest])
                second = np.where(sure > 0, np.minimum(first, sure / apart), 0)
            second[:, own] = np.inf
            distance[rows] = second.min(axis=1)
        return distance

    def to_targets(self, targets: Int[np.ndarray, "b t"]) -> Float[np.ndarray, "b t"]:
        distance = np.zeros(targets.shape)
        samples, columns = np.divmod(np.arange(targets.size), max(targets.shape[1], 1))
        for start in range(0, targets.size, _PAIRS):
            chosen = slice(start, start + _PAIRS)
            rows, goals = samples[chosen], targets[samples[chosen], columns[chosen]]
            distance[rows, columns[chosen]] = self._proven(rows, goals)
        return distance

    def _proven(self, rows: Int[np.ndarray, " p"], goals: Int[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        dtype = at_least_float32(jnp.asarray(self.head.weights)).dtype
        solve = jax.vmap(partial(projection_perturbation, self.head))
        found = solve(jnp.asarray(self.attributes[rows], dtype), jnp.asarray(goals, jnp.int32))
        multipliers, status = np.asarray(found.multipliers, np.float64), np.asarray(found.status)
        usable = np.isfinite(multipliers).all(axis=1) & np.isin(status, (Status.SOLVED, Status.INFEASIBLE))
        multipliers = np.where(usable[:, None], np.maximum(multipliers, 0), 0)
        proven = np.zeros(len(rows))
        for place, (row, goal) in enumerate(zip(rows, goals, strict=True)):
            if self.bias[goal] == -np.inf:
                proven[place] = np.inf
                continue
            offsets = np.where(np.isfinite(self.logits[row]), self.logits[row] - self.logits[row, goal], -np.inf)
            # The predicted class alone is a proof as well, should rounding have spoilt the other.
            alone = np.where(np.arange(len(self.bias)) == self.predicted[row], 1.0, 0.0)
            for weighting in (multipliers[place], alone):
                empty = status[place] == Status.INFEASIBLE
                proven[place] = max(proven[place], self._dual(row, goal, weighting, offsets, empty=empty))
        return proven

    def _dual(self, row: int, goal: int, multipliers: np.ndarray, offsets: np.ndarray, *, empty: bool) -> float:
        used = np.flatnonzero((multipliers > 0) & np.isfinite(offsets))
        if not used.size:
            return 0.0
        weights, heights = multipliers[used] / multipliers[used].max(), offsets[used]
        combined = weights.sum() * self.weights[goal] - weights @ self.weights[used]
        # float64 sums of the used rows, each term bounded by its own size.
        error = 4 * (len(used) + 4) * _UNIT_ROUNDOFF * (weights @ (self.lengths[used] + self.lengths[goal]))
        length = np.linalg.norm(combined) * (1 + 4 * self.weights.shape[1] * _UNIT_ROUNDOFF) + error
        height = weights @ heights
        if height <= 0 or length <= 0:
            return 0.0
        # The classifier's logits at the other image are rounded as well, and its attributes are at most this long.
        farthest = _OUT_OF_REACH * self.sizes[row] if empty else height / length
        sure = heights - self._rounding(self.sizes[row] + farthest, goal)[used]
        total = weights @ sure - 4 * (len(used) + 4) * _UNIT_ROUNDOFF * (weights @ np.abs(heights))
        return float(max(min(farthest, total / length), 0.0))
