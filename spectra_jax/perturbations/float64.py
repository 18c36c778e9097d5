"""Parts of a program in float64, whatever the precision of the rest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, computed in float64; its floating-point results have the type of the first such argument.

    With JAX's x64 switch off, float64 survives only while a function is traced: a transformation that comes later would
    ask for it again and get float32. So it must stand where nothing transforms it afterwards: within a function that
    `over_members` or `jax.custom_batching.sequential_vmap` batches, on inputs under stop_gradient. And it must keep to
    operations that name their types: int32 for every index, no argmax, nonzero, select, sort or
    fori_loop.

    Args:
        function: of pytrees of arrays, to a pytree of arrays.

    Returns:
        The function.
    """

    def cast(tree, dtype):
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    def wide(*arguments):
        dtype = next(leaf.dtype for leaf in jax.tree.leaves(arguments) if jnp.issubdtype(leaf.dtype, jnp.floating))
        with jax.enable_x64(True):
            return cast(function(*cast(arguments, jnp.float64)), dtype)

    return wide
