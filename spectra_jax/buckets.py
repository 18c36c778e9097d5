"""Batches padded to a few sizes, so that another number of samples does not mean another compilation."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from spectra_jax.checks import is_concrete

P = ParamSpec("P")
R = TypeVar("R")
# Up to here sizes double; from here on a bucket is at most a quarter larger than the one before, as the work of samples
# that only pad is wasted.
_DOUBLED = 64


def bucket_size(count: int) -> int:
    """The smallest size of a bucket that holds so many samples."""
    if count <= 1:
        return count
    power = 1 << (count - 1).bit_length()
    if power <= _DOUBLED:
        return power
    step = power // 8
    return -(-count // step) * step


def in_buckets(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function of (head, attributes (b, n), ...) compile once for each bucket of sizes when called eagerly.

    Attributes are padded with their first sample on the host, and the answers cut there, which compiles nothing.
    Nothing changes while JAX traces, for arrays on several devices, and where an option has a row per sample too.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs))
        attributes = args[1] if len(args) > 1 else None
        if (
            not isinstance(attributes, jax.Array | np.ndarray)
            or attributes.ndim != 2
            or not all(map(is_concrete, leaves))
            or any(isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 for leaf in leaves)
            or kwargs.get("logits") is not None
            or bucket_size(len(attributes)) == len(attributes)
        ):
            return function(*args, **kwargs)
        count = len(attributes)
        call: Callable[..., R] = function
        with jax.transfer_guard("allow"):
            rows = np.asarray(attributes)
            padded = np.concatenate([rows, np.repeat(rows[:1], bucket_size(count) - count, axis=0)])
            answers = call(args[0], _like(padded, attributes), *args[2:], **kwargs)
            return jax.tree.map(lambda leaf: _cut(leaf, count), answers)

    return called


def _cut(leaf: jax.Array, count: int) -> Any:
    # Everything concrete within somebody's jit is answered with tracers.
    return _like(np.asarray(leaf)[:count], leaf) if is_concrete(leaf) else leaf[:count]


def _like(values: np.ndarray, array: Any) -> Any:
    """The values where an array lies: of NumPy, or on the device of JAX's."""
    if not isinstance(array, jax.Array):
        return values
    return jax.device_put(values, array.sharding if array.committed else None)
