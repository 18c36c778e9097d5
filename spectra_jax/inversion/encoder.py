"""What every search method needs from the encoder and the head."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import head_logits
from spectra_jax.types import Head

EncodeFn = Callable[[Float[Array, "b h w k"]], Float[Array, "b n"]]


class Lead(NamedTuple):
    """How far the target is ahead.

    Attributes:
        lead: (b,) logits between the target and its best rival; where a class is to be left, between its best rival
            and it.
        rival: (b,) that rival; the class to be left.
        named: (b,) whether argmax names the target, or any class but the one to be left; it decides ties.
    """

    lead: Float[Array, " b"]
    rival: Int[Array, " b"]
    named: Bool[Array, " b"]

    def by(self, margin: float) -> Bool[Array, " b"]:
        """Whether the classifier names the target with that margin."""
        return (self.lead >= margin) & self.named


def lead_of(head: Head, attributes: Float[Array, "b n"], targets: Int[Array, " b"]) -> Lead:
    """The lead of each target over its best rival; of targets as `Sample` has them."""
    logits = head_logits(head, attributes)
    classes, leave = classes_of(targets)
    others = jnp.where(jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] != classes[:, None], logits, -jnp.inf)
    rival, named = (jnp.argmax(array, axis=-1).astype(jnp.int32) for array in (others, logits))
    lead = formulas.lead(logits, classes)
    return Lead(jnp.where(leave, -lead, lead), jnp.where(leave, classes, rival), (named == classes) ^ leave)


def classes_of(targets: Int[Array, " b"]) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """The class that each target of a `Sample` is about, and whether it is to be left."""
    targets = jnp.asarray(targets, jnp.int32)  # small types cannot count to the number of classes
    return jnp.where(targets < 0, ~targets, targets), targets < 0


def as_partial(encode_fn: EncodeFn) -> jax.tree_util.Partial:
    """The function as a pytree: arrays bound to it become inputs of the compiled search, not constants in it."""
    if isinstance(encode_fn, jax.tree_util.Partial):
        return encode_fn
    if not isinstance(encode_fn, functools.partial):
        return jax.tree_util.Partial(encode_fn)
    settings = {n: value for n, value in encode_fn.keywords.items() if value is None or isinstance(value, int | str)}
    arrays = {name: value for name, value in encode_fn.keywords.items() if name not in settings}
    function = _WithSettings(encode_fn.func, tuple(sorted(settings.items()))) if settings else encode_fn.func
    return jax.tree_util.Partial(function, *encode_fn.args, **arrays)


@dataclass(frozen=True)
class _WithSettings:
    """A function with static keywords, such as train=False or axis=1; equal ones share a compilation."""

    function: Callable[..., Array]
    settings: tuple[tuple[str, int | str | None], ...]

    def __call__(self, *arguments: Any, **keywords: Any) -> Array:
        return self.function(*arguments, **keywords, **dict(self.settings))


def in_types(encode: jax.tree_util.Partial, given: Any, wanted: Any) -> jax.tree_util.Partial:
    """The same encoder, shown images in the type given to `invert`, with its answers in the type of the search."""
    return jax.tree_util.Partial(_InTypes(jnp.dtype(given), jnp.dtype(wanted)), encode)


@dataclass(frozen=True)
class _InTypes:
    given: Any
    wanted: Any

    def __call__(self, encode: jax.tree_util.Partial, images: Float[Array, "b h w k"]) -> Float[Array, "b n"]:
        attributes = encode(images.astype(self.given))
        if not jnp.issubdtype(attributes.dtype, jnp.floating):
            raise ValueError(f"encode_fn returns type {attributes.dtype}; expected floats, one column per attribute")
        return attributes.astype(self.wanted)


def in_bfloat16(encode: jax.tree_util.Partial) -> jax.tree_util.Partial:
    """The same encoder with its images and bound arrays in bfloat16 and its answer in the images' precision."""
    return jax.tree_util.Partial(_run_in_bfloat16, encode)


def _run_in_bfloat16(encode: jax.tree_util.Partial, images: Float[Array, "b h w k"]) -> Float[Array, "b n"]:
    def reduce(leaf):
        return leaf.astype(jnp.bfloat16) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(reduce, encode)(images.astype(jnp.bfloat16)).astype(images.dtype)


def per_sample(values: Array, like: Array) -> Array:
    """One flag or factor per sample, shaped to broadcast against arrays with further axes."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
