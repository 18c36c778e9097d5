"""Fresh parameters for any module from the shapes and names of its leaves."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

# Residual branches end with a small scale, so that a deep network starts near the identity.
CONSTANTS = {
    "bias": 0.0,
    "offset": 0.0,
    "log_weight": 0.0,
    "scale": 1.0,
    "branch_scale": 0.1,
    "running_mean": 0.0,
    "running_var": 1.0,
}


def draw_parameters(key: PRNGKeyArray, shapes: Any) -> Any:
    """He-normal kernels (variance 2 / fan-in), orthogonal ones and constants for the rest, chosen by the leaf's name.

    All normal kernels are cut from one draw: flax's own init compiles a sampler for every layer, which takes seconds
    for a small network and half a minute for a deep one.

    Args:
        key: random key.
        shapes: nested dict of arrays or shape structs whose leaves are called "kernel", "orthogonal_kernel" or
            one of CONSTANTS.

    Returns:
        The same nested dict with float32 arrays.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    named_shapes = tuple((path[-1].key, leaf.shape) for path, leaf in leaves)
    return jax.tree_util.tree_unflatten(tree, _draw(key, named_shapes))


@partial(jax.jit, static_argnums=1)
def _draw(key: PRNGKeyArray, leaves: tuple[tuple[str, tuple[int, ...]], ...]) -> list[jax.Array]:
    total = sum(math.prod(shape) for name, shape in leaves if name == "kernel")
    normal = jax.random.normal(key, (total,), jnp.float32)
    parameters, start = [], 0
    for index, (name, shape) in enumerate(leaves):
        if name == "kernel":
            size = math.prod(shape)
            std = math.sqrt(2 * shape[-1] / size)
            parameters.append(std * normal[start : start + size].reshape(shape))
            start += size
        elif name == "orthogonal_kernel":
            parameters.append(jax.nn.initializers.orthogonal()(jax.random.fold_in(key, index), shape, jnp.float32))
        else:
            parameters.append(jnp.full(shape, CONSTANTS[name], jnp.float32))
    return parameters
