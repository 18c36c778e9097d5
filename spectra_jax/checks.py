"""Validation at the public edge: what was given, what was expected, what to do.

Shapes are static and always checked. Values are checked only when they are concrete, so that every
public function stays usable under jit, vmap and grad.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectra_jax.types import Head


def is_concrete(array: Any) -> bool:
    """Whether the values of `array` can be read now, i.e. it is not being traced by jit, vmap or grad."""
    return not isinstance(array, jax.core.Tracer)


def _span(array: Any) -> tuple[float, float]:
    """Smallest and largest value of a concrete array, also while something else is being traced."""
    with jax.ensure_compile_time_eval():
        return float(jnp.min(array)), float(jnp.max(array))


def check_head(head: Head) -> None:
    """Raises ValueError unless weights are (c, n) with c >= 2 and the bias, if any, is (c,)."""
    shape = jnp.shape(head.weights)
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(f"head.weights has shape {shape}; expected (num_classes >= 2, num_attributes >= 1)")
    if head.bias is not None and jnp.shape(head.bias) != shape[:1]:
        raise ValueError(
            f"head.bias has shape {jnp.shape(head.bias)}; expected {shape[:1]} to match head.weights {shape}"
        )


def as_problem(head: Head, attributes: Any, *, ndim: int) -> tuple[Head, jax.Array]:
    """The head and attributes as JAX arrays, checked: NumPy input works, and nothing is cast silently.

    Raises:
        ValueError: shapes do not match, types are not one floating type, or concrete values are not finite.
    """
    check_attributes(head, attributes, ndim=ndim)
    head, attributes = jax.tree.map(jnp.asarray, (head, attributes))
    for name, array in (("head.weights", head.weights), ("head.bias", head.bias), ("attributes", attributes)):
        if array is None:
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype != head.weights.dtype:
            raise ValueError(
                f"{name} has type {array.dtype} beside weights of type {head.weights.dtype}; expected one floating type"
            )
    if is_concrete(attributes) and attributes.size:
        low, high = _span(attributes)
        if not np.isfinite(low + high):
            raise ValueError("attributes contains NaN or infinite values; leave those samples out or repair them")
    return head, attributes


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
    shape = jnp.shape(attributes)
    num_attributes = head.weights.shape[1]
    if not shape or shape[-1] != num_attributes:
        raise ValueError(
            f"attributes has shape {shape}; expected a last axis of {num_attributes}, "
            f"to match head.weights {head.weights.shape}"
        )
    if ndim is not None and len(shape) != ndim:
        wanted = "(n,), one sample: use jax.vmap for a batch" if ndim == 1 else "(b, n), a batch of samples"
        raise ValueError(f"attributes has shape {shape}; expected {wanted}")


def check_target(head: Head, target: Any) -> None:
    """Raises ValueError if a concrete `target` is not one class index of the head."""
    if jnp.ndim(target) != 0:
        raise ValueError(f"target has shape {jnp.shape(target)}; expected one class index: use jax.vmap for several")
    if not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise ValueError(f"target has type {jnp.result_type(target)}; expected an integer class index")
    if is_concrete(target) and not 0 <= int(target) < head.weights.shape[0]:
        raise ValueError(f"target is {int(target)}; expected a class index from 0 to {head.weights.shape[0] - 1}")


def check_targets(head: Head, targets: Any) -> None:
    """Raises ValueError unless `targets` are integers and, where concrete, class indices of the head."""
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        raise ValueError(f"targets has type {jnp.result_type(targets)}; expected integer class indices")
    if is_concrete(targets) and np.size(targets):
        (low, high), last = _span(targets), head.weights.shape[0] - 1
        if low < 0 or high > last:
            raise ValueError(
                f"targets contains {low if low < 0 else high:.0f}; expected class indices from 0 to {last}"
            )


def check_margin(margin: Any) -> None:
    """Raises ValueError if a concrete `margin` is negative or not finite."""
    if is_concrete(margin) and not (np.all(np.isfinite(margin)) and np.all(np.asarray(margin) >= 0)):
        raise ValueError(f"margin is {margin}; expected a finite number >= 0, in units of the logits")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_images(images: Any) -> None:
    """Raises ValueError unless `images` is a floating (b, h, w, channels) array with finite values in [0, 1]."""
    shape = jnp.shape(images)
    if len(shape) != 4:
        raise ValueError(f"images has shape {shape}; expected (batch, height, width, channels)")
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise ValueError(
            f"images has type {jnp.result_type(images)}; expected floats in [0, 1]: divide uint8 images by 255"
        )
    if is_concrete(images) and np.size(images):
        low, high = _span(images)
        if not np.isfinite(low + high):
            raise ValueError("images contains NaN or infinite values; expected finite numbers in [0, 1]")
        if low < 0 or high > 1:
            advice = "divide 8-bit values by 255" if high > 2 else "clip or rescale it"
            raise ValueError(f"images spans [{low:.4g}, {high:.4g}]; expected values in [0, 1]: {advice}")


def check_unit_scale(name: str, images: Any) -> None:
    """Raises ValueError if `images` are integers or, where concrete, plainly not on the scale of [0, 1].

    Looser than `check_images`: a decoder's output may leave [0, 1] a little and may have any number of axes.
    """
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise ValueError(f"{name} has type {jnp.result_type(images)}; expected floats in [0, 1]: divide uint8 by 255")
    if is_concrete(images) and np.size(images) and _span(images)[1] > 2:
        raise ValueError(
            f"{name} reaches {_span(images)[1]:.4g}; expected values in [0, 1]: divide 8-bit values by 255"
        )


def check_mutable(head: Head, mutable: Any) -> None:
    """Raises ValueError unless `mutable` is None or a boolean mask over the attributes."""
    if mutable is None:
        return
    wanted = head.weights.shape[1:]
    if jnp.shape(mutable) != wanted or jnp.result_type(mutable) != jnp.bool_:
        raise ValueError(
            f"mutable has shape {jnp.shape(mutable)} and type {jnp.result_type(mutable)}; "
            f"expected {wanted} booleans, True where the attribute may change"
        )


def check_scale(head: Head, scale: Any) -> None:
    """Raises ValueError unless `scale` is None or one number per attribute, positive and finite where concrete."""
    if scale is None:
        return
    wanted = head.weights.shape[1:]
    if jnp.shape(scale) != wanted:
        raise ValueError(f"scale has shape {jnp.shape(scale)}; expected {wanted}, one unit per attribute")
    if is_concrete(scale) and not (np.all(np.isfinite(scale)) and np.all(np.asarray(scale) > 0)):
        raise ValueError("scale has entries that are not positive and finite; leave constant attributes out by mutable")


def check_ranges(head: Head, lower: Any, upper: Any) -> tuple[jax.Array, jax.Array]:
    """The ends of the attributes' ranges as arrays of the head's type, -inf and inf where None.

    Raises:
        ValueError: not one number per attribute; where concrete, NaN or a lower end above the upper one.
    """
    wanted, dtype = head.weights.shape[1:], head.weights.dtype
    ends = []
    for name, end, absent in (("lower", lower, -np.inf), ("upper", upper, np.inf)):
        if end is not None and jnp.shape(end) != wanted:
            raise ValueError(f"{name} has shape {jnp.shape(end)}; expected {wanted}, one end per attribute")
        ends.append(np.full(wanted, absent, dtype) if end is None else end)
    if all(is_concrete(end) for end in ends):
        wrong = np.flatnonzero(~(np.asarray(ends[0]) <= np.asarray(ends[1])))
        if wrong.size:
            raise ValueError(
                f"the range of attribute {wrong[0]} is [{float(ends[0][wrong[0]])}, {float(ends[1][wrong[0]])}]; "
                "expected lower <= upper and no NaN"
            )
    return jnp.asarray(ends[0], dtype), jnp.asarray(ends[1], dtype)


def check_groups(head: Head, groups: Any, threshold: Any) -> jax.Array:
    """The group of every attribute as int32.

    Raises:
        ValueError: not one integer per attribute; where concrete, one outside -1 .. n - 1, or a negative threshold.
    """
    wanted = head.weights.shape[1:]
    if jnp.shape(groups) != wanted or not jnp.issubdtype(jnp.result_type(groups), jnp.integer):
        raise ValueError(
            f"groups has shape {jnp.shape(groups)} and type {jnp.result_type(groups)}; "
            f"expected {wanted} integers, the group of each attribute or -1"
        )
    if is_concrete(groups) and np.size(groups):
        low, high = _span(groups)
        if low < -1 or high >= wanted[0]:
            raise ValueError(
                f"groups contains {low if low < -1 else high:.0f}; expected -1, or a group from 0 to {wanted[0] - 1}"
            )
    if is_concrete(threshold) and not (np.ndim(threshold) == 0 and np.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold is {threshold}; expected a finite number >= 0, in units of the attributes")
    return jnp.asarray(groups, jnp.int32)
