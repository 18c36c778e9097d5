"""The common training loop for the small networks of the cited systems."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree


def minimise(
    loss: Callable[..., Float[Array, ""]], params: PyTree, draw: Callable[[int], tuple[Any, ...]], *,
    steps: int, learning_rate: float,
) -> PyTree:  # fmt: skip
    """Adam, with a step size that goes down a cosine to 0.

    Args:
        loss: of the parameters and a batch.
        params: to begin with.
        draw: the number of a step -> its batch, the arguments of `loss` after the parameters.
        steps: how many.
        learning_rate: the first step size.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def step(params: PyTree, state: optax.OptState, *batch: Any) -> tuple[PyTree, optax.OptState]:
        gradient = jax.grad(loss)(params, *batch)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(steps):
        params, state = step(params, state, *draw(number))
    return params
