"""Validation in public functions: what was given, what was expected, what to do.

Shapes are static and always checked. Values are checked only when they are concrete, so that every
public function stays usable under jit, vmap and grad.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from spectra_jax.types import Head

# Images are off the scale of [0, 1] from so far below 0; rounding errors, of resampling say, are smaller.
_OFF_SCALE = 1e-3


def is_concrete(array: Any) -> bool:
    """Whether the values of `array` can be read now, i.e. it is not being traced by jit, vmap or grad."""
    return not isinstance(array, jax.core.Tracer)


def _span(array: Any) -> tuple[Any, Any]:
    """Smallest and largest value of a concrete array, in its own type, also while something else is being traced."""
    if not isinstance(array, jax.Array):
        return np.min(array), np.max(array)  # JAX would cut 64-bit numbers off before they are looked at
    # A NaN or an infinite bias is for the caller to judge, not for JAX's debugging switches.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        return jax.device_get((jnp.min(array), jnp.max(array)))


def check_array(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is an array of numbers or booleans, of JAX or NumPy.

    Lists are refused wherever arrays are wanted: what they are converted to would depend on the function.
    """
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        given = "None" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"{name} is {given}; expected an array: jnp.asarray makes one of numbers in lists")
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == jnp.bool_):
        raise ValueError(f"{name} has type {value.dtype}; expected an array of numbers")


def _check_scalar(name: str, value: Any, kinds: tuple[Any, ...], expected: str) -> None:
    """Raises ValueError unless `value` is one number of one of the kinds, of Python, NumPy or JAX."""
    if not isinstance(value, int | float | jax.Array | np.ndarray | np.generic):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    if np.ndim(value) != 0:
        raise ValueError(f"{name} has shape {np.shape(value)}; expected {expected}: use jax.vmap for several")
    dtype = value.dtype if hasattr(value, "dtype") else np.dtype(type(value))
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise ValueError(f"{name} is {value} of type {dtype}; expected {expected}")


def at_least_float32(tree: Any) -> Any:
    """The same arrays, those of half precision in float32: sums and squares of float16 overflow at 65,504."""

    def raised(leaf):
        dtype = jnp.result_type(leaf)
        half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
        return jnp.asarray(leaf, jnp.float32) if half else leaf

    return jax.tree.map(raised, tree)


def check_head(head: Head) -> None:
    """Raises ValueError unless weights are (c, n) with c >= 2 and the bias, if any, is (c,)."""
    if not isinstance(head, Head):
        raise ValueError(f"head is of type {type(head).__name__}; expected spectra_jax.Head(weights, bias)")
    check_array("head.weights", head.weights)
    shape = jnp.shape(head.weights)
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(f"head.weights has shape {shape}; expected (num_classes >= 2, num_attributes >= 1)")
    if head.bias is None:
        return
    check_array("head.bias", head.bias)
    if jnp.shape(head.bias) != shape[:1]:
        raise ValueError(
            f"head.bias has shape {jnp.shape(head.bias)}; expected {shape[:1]} to match head.weights {shape}"
        )


def check_finite_head(head: Head) -> None:
    """Raises ValueError if concrete weights or biases are NaN or infinite; a bias of -inf only masks its class."""
    if is_concrete(head.weights) and not np.isfinite(_span(head.weights)).all():
        raise ValueError("head.weights contains NaN or infinite values; has its training diverged?")
    if head.bias is not None and is_concrete(head.bias):
        low, high = _span(head.bias)
        if np.isnan(low) or not np.isfinite(high):
            raise ValueError(
                f"head.bias spans {low} to {high}; expected finite numbers, or -inf for some classes to mask them"
            )


def check_problem(head: Head, attributes: Any, *, ndim: int) -> None:
    """Checks a head and attributes, of JAX or NumPy, without converting them.

    Raises:
        ValueError: shapes do not match, types are not one floating type (half precision counts as float32), or
            concrete values are not finite; a bias may be -inf, which masks the class.
    """
    check_attributes(head, attributes, ndim=ndim)
    wanted = _working_type(head.weights)
    for name, array in (("head.weights", head.weights), ("head.bias", head.bias), ("attributes", attributes)):
        if array is None:
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating) or _working_type(array) != wanted:
            raise ValueError(
                f"{name} has type {array.dtype} beside weights of type {head.weights.dtype}; expected one floating type"
            )
    check_finite_head(head)
    if is_concrete(attributes) and attributes.size and not np.isfinite(_span(attributes)).all():
        raise ValueError("attributes contains NaN or infinite values; remove or repair these samples")


def _working_type(array: Any) -> Any:
    """The type that JAX computes with an array in, half precision in float32."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return jnp.dtype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def as_problem(head: Head, attributes: Any, *, ndim: int) -> tuple[Head, jax.Array]:
    """The head and attributes as JAX arrays of one type, checked: NumPy input works, and nothing loses digits silently.

    Half precision is computed in float32, which holds all its numbers.

    Raises:
        ValueError: as `check_problem`.
    """
    check_problem(head, attributes, ndim=ndim)
    bias = None if head.bias is None else jnp.asarray(head.bias)
    return at_least_float32((Head(jnp.asarray(head.weights), bias), jnp.asarray(attributes)))


def as_pair(head: Head, attributes: Any, target: Any, margin: Any) -> tuple[Head, jax.Array, jax.Array, jax.Array]:
    """`as_problem` for one sample, with its target class as int32 and the margin in the attributes' type.

    Raises:
        ValueError: as `as_problem`; target not one class index of the head; margin negative or not finite.
    """
    head, attributes = as_problem(head, attributes, ndim=1)
    check_target(head, target)
    check_margin(margin)
    return head, attributes, jnp.asarray(target, jnp.int32), jnp.asarray(margin, attributes.dtype)


def check_attributes(head: Head, attributes: Any, *, ndim: int | None = None) -> None:
    """Raises ValueError unless the last axis of `attributes` matches the head (and it has `ndim` axes)."""
    check_head(head)
    check_array("attributes", attributes)
    shape = jnp.shape(attributes)
    num_attributes = head.weights.shape[1]
    if not shape or shape[-1] != num_attributes:
        # Flax, Equinox and scikit-learn disagree on which way round a kernel is.
        turned = bool(shape) and shape[-1] == head.weights.shape[0]
        hint = "; is it a kernel of shape (n, c)? Then give Head(kernel.T)" if turned else ""
        raise ValueError(
            f"attributes has shape {shape}; expected a last axis of {num_attributes}, "
            f"to match head.weights {head.weights.shape}{hint}"
        )
    if ndim is not None and len(shape) != ndim:
        wanted = "(n,), one sample: use jax.vmap for a batch" if ndim == 1 else "(b, n), a batch of samples"
        raise ValueError(f"attributes has shape {shape}; expected {wanted}")


def check_target(head: Head, target: Any) -> None:
    """Raises ValueError if a concrete `target` is not one class index of the head."""
    _check_scalar("target", target, (jnp.integer,), "one integer class index")
    if is_concrete(target) and not 0 <= int(target) < head.weights.shape[0]:
        raise ValueError(f"target is {int(target)}; expected a class index from 0 to {head.weights.shape[0] - 1}")


def check_targets(head: Head, targets: Any) -> None:
    """Raises ValueError unless `targets` are integers and, where concrete, class indices of the head."""
    check_array("targets", targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets has type {targets.dtype}; expected integer class indices")
    if is_concrete(targets) and np.size(targets):
        (low, high), last = _span(targets), head.weights.shape[0] - 1
        if low < 0 or high > last:
            raise ValueError(f"targets contains {low if low < 0 else high}; expected class indices from 0 to {last}")


def as_target_columns(head: Head, targets: Any, count: int) -> Int[np.ndarray, "b t"]:
    """Concrete targets of (b,) or (b, t) as (b, t).

    Raises:
        ValueError: as `check_targets`; not a row for each of `count` samples.
    """
    check_targets(head, targets)
    if np.ndim(targets) not in (1, 2) or np.shape(targets)[0] != count:
        raise ValueError(f"targets has shape {np.shape(targets)}; expected ({count},) or ({count}, t)")
    return np.asarray(targets).reshape(count, math.prod(np.shape(targets)[1:]))  # of no samples too


def check_margin(margin: Any) -> None:
    """Raises ValueError unless `margin` is one number that, where concrete, is finite and not negative."""
    expected = "a finite number >= 0, in units of the logits"
    _check_scalar("margin", margin, (jnp.floating, jnp.integer), expected)
    if is_concrete(margin) and not 0 <= float(margin) < np.inf:
        raise ValueError(f"margin is {margin}; expected {expected}")


def check_count(name: str, value: Any) -> int:
    """The value as a Python int.

    Raises:
        ValueError: it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
    return int(value)


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError unless `value` is one number and, where concrete, strictly between the ends."""
    expected = f"a number between {low:g} and {high:g}, both excluded"
    _check_scalar(name, value, (jnp.floating, jnp.integer), expected)
    if is_concrete(value) and not low < float(value) < high:
        raise ValueError(f"{name} is {value}; expected {expected}")


def check_key(key: Any) -> None:
    """Raises ValueError unless `key` is one random key of JAX, of the new or of the old kind."""
    expected = "one random key, such as jax.random.key(0)"
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"key is {key!r}; expected {expected}")
    ndim = 0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1
    if key.ndim != ndim or (ndim == 1 and key.dtype != np.uint32):
        raise ValueError(f"key has shape {key.shape} and type {key.dtype}; expected {expected}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_images(images: Any) -> None:
    """Raises ValueError unless `images` is a floating (b, h, w, channels) array with finite values in [0, 1]."""
    check_array("images", images)
    shape = jnp.shape(images)
    if len(shape) != 4:
        raise ValueError(f"images has shape {shape}; expected (batch, height, width, channels)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images has type {images.dtype}; expected floats in [0, 1]: divide uint8 images by 255")
    if is_concrete(images) and np.size(images):
        low, high = _span(images)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("images contains NaN or infinite values; expected finite numbers in [0, 1]")
        if low < 0 or high > 1:
            raise ValueError(
                f"images spans [{low:.4g}, {high:.4g}]; expected values in [0, 1]: {_range_remedy(low, high)}"
            )


def _range_remedy(low: float, high: float) -> str:
    """What brings such images into [0, 1]."""
    if low < -_OFF_SCALE:
        # Networks are fed with images in [-1, 1] or with the mean taken off and divided by the deviation.
        return "rescale (x + 1) / 2" if low >= -1 and high <= 1 else "undo the standardisation, x * deviation + mean"
    return "divide 8-bit values by 255" if high > 2 else "clip or rescale it"


def as_unit_scale(name: str, images: Any) -> jax.Array:
    """Images as a JAX array of float32 or float64, checked to be on the scale of [0, 1].

    Looser than `check_images`: a decoder's output may exceed 1 a little and may have any number of axes, and a NaN is
    for the metric to tell.

    Raises:
        ValueError: no array; integers; where concrete, values below 0 or plainly above 1.
    """
    check_array(name, images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} has type {images.dtype}; expected floats in [0, 1]: divide uint8 by 255")
    if is_concrete(images) and np.size(images):
        low, high = _span(images)
        if low < -_OFF_SCALE:
            raise ValueError(f"{name} goes down to {low:.4g}; expected values in [0, 1]: {_range_remedy(low, high)}")
        if high > 2:
            raise ValueError(f"{name} reaches {high:.4g}; expected values in [0, 1]: {_range_remedy(low, high)}")
    return at_least_float32(jnp.asarray(images))


def check_mutable(head: Head, mutable: Any) -> None:
    """Raises ValueError unless `mutable` is None or a boolean mask over the attributes."""
    if mutable is None:
        return
    wanted = head.weights.shape[1:]
    check_array("mutable", mutable)
    if jnp.shape(mutable) != wanted or mutable.dtype != jnp.bool_:
        raise ValueError(
            f"mutable has shape {jnp.shape(mutable)} and type {mutable.dtype}; "
            f"expected {wanted} booleans, True where the attribute may change"
        )


def check_scale(head: Head, scale: Any) -> None:
    """Raises ValueError unless `scale` is None or one number per attribute, positive and finite where concrete."""
    if scale is None:
        return
    wanted = head.weights.shape[1:]
    check_array("scale", scale)
    if jnp.shape(scale) != wanted:
        raise ValueError(f"scale has shape {jnp.shape(scale)}; expected {wanted}, one unit per attribute")
    if is_concrete(scale) and not (np.all(np.isfinite(scale)) and np.all(np.asarray(scale) > 0)):
        raise ValueError("scale has entries that are not positive and finite; exclude constant attributes by mutable")


def check_ranges(head: Head, lower: Any, upper: Any) -> tuple[jax.Array, jax.Array]:
    """The ends of the attributes' ranges as arrays of the head's type, -inf and inf where None.

    Raises:
        ValueError: not one number per attribute; where concrete, NaN or a lower end above the upper one.
    """
    wanted, dtype = head.weights.shape[1:], head.weights.dtype
    ends = []
    for name, end, absent in (("lower", lower, -np.inf), ("upper", upper, np.inf)):
        if end is not None:
            check_array(name, end)
        if end is not None and jnp.shape(end) != wanted:
            raise ValueError(f"{name} has shape {jnp.shape(end)}; expected {wanted}, one end per attribute")
        ends.append(np.full(wanted, absent, dtype) if end is None else end)
    if all(is_concrete(end) for end in ends):
        below, above = np.asarray(ends[0]), np.asarray(ends[1])
        wrong = np.flatnonzero(~((below <= above) & (below < np.inf) & (above > -np.inf)))
        if wrong.size:
            raise ValueError(
                f"the range of attribute {wrong[0]} is [{float(ends[0][wrong[0]])}, {float(ends[1][wrong[0]])}]; "
                "expected lower <= upper, a lower end that is not inf, an upper end that is not -inf, and no NaN"
            )
    return jnp.asarray(ends[0], dtype), jnp.asarray(ends[1], dtype)


def check_groups(head: Head, groups: Any, threshold: Any) -> jax.Array:
    """The group of every attribute as int32.

    Raises:
        ValueError: not one integer per attribute; where concrete, one outside -1 .. n - 1, or a negative threshold.
    """
    wanted = head.weights.shape[1:]
    check_array("groups", groups)
    if jnp.shape(groups) != wanted or not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(
            f"groups has shape {jnp.shape(groups)} and type {groups.dtype}; "
            f"expected {wanted} integers, the group of each attribute or -1"
        )
    if is_concrete(groups) and np.size(groups):
        low, high = _span(groups)
        if low < -1 or high >= wanted[0]:
            raise ValueError(
                f"groups contains {low if low < -1 else high}; expected -1, or a group from 0 to {wanted[0] - 1}"
            )
    expected = "a finite number >= 0, in units of the attributes"
    _check_scalar("threshold", threshold, (jnp.floating, jnp.integer), expected)
    if is_concrete(threshold) and not 0 <= float(threshold) < np.inf:
        raise ValueError(f"threshold is {threshold}; expected {expected}")
    return jnp.asarray(groups, jnp.int32)
