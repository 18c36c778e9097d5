"""The inner maximisation of adversarial training: images in a small ball around those given that raise a loss."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

Norm = Literal["l2", "linf"]


def attack_images(
    loss_fn: Callable[[Float[Array, "b h w k"]], Float[Array, " b"]],
    images: Float[Array, "b h w k"],
    key: PRNGKeyArray,
    *,
    radius: float,
    norm: Norm = "l2",
    steps: int = 3,
) -> Float[Array, "b h w k"]:
    """Projected gradient ascent from a random start (Madry et al., 2018), pure and of fixed cost.

    Each step follows the gradient's direction (L2) or its signs (Linf) for 2.5 radius / (steps + 1), so that the walk
    can cross the ball and a single step is 1.25 radius, as fast adversarial training has it (Wong et al., 2020).

    Args:
        loss_fn: images -> one loss per image, none depending on another image. Whatever else it needs is a constant
            here: no gradient leaves this function, neither to the images nor to what `loss_fn` closes over.
        images: (b, h, w, channels) in [0, 1].
        key: of the random start.
        radius: of the ball, in units of [0, 1]: Euclidean length over all pixels and channels (L2), or the largest
            change of one value (Linf).
        norm: "l2" or "linf".
        steps: gradients to take.

    Returns:
        Images in [0, 1] and within the ball, up to rounding.
    """
    images = jax.lax.stop_gradient(images)
    step_size = 2.5 * radius / (steps + 1)
    gradient = jax.grad(lambda candidates: jnp.sum(loss_fn(candidates)))

    def placed(change: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        # Cutting to [0, 1] after the projection only brings each value nearer to where it started: still in the ball.
        return jnp.clip(images + _project(change, radius, norm), 0, 1)

    def step(_: int, attacked: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        return placed(attacked - images + step_size * _ascent(gradient(attacked), norm))

    start = placed(_random_change(key, images, radius, norm))
    # Unrolled: on CPUs XLA runs convolutions inside a loop at half their speed.
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, start, unroll=min(steps, 8)))


def _random_change(key: PRNGKeyArray, images: Float[Array, "b h w k"], radius: float, norm: Norm) -> Array:
    """Linf: uniform in the ball. L2: a uniform direction and a uniform length, so that short changes occur too."""
    if norm == "linf":
        return jax.random.uniform(key, images.shape, images.dtype, -radius, radius)
    direction_key, length_key = jax.random.split(key)
    length = jax.random.uniform(length_key, (len(images), 1, 1, 1), images.dtype, 0, radius)
    return length * _ascent(jax.random.normal(direction_key, images.shape, images.dtype), norm)


def _ascent(gradient: Float[Array, "b h w k"], norm: Norm) -> Float[Array, "b h w k"]:
    """The direction of length 1 in which a loss rises most; 0 where the gradient is 0."""
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled first: the square of a well-classified image's gradient would underflow.
    largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    scaled = gradient / jnp.where(largest == 0, 1, largest)
    return scaled / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(scaled), axis=(1, 2, 3), keepdims=True)), 1)


def _project(change: Float[Array, "b h w k"], radius: float, norm: Norm) -> Float[Array, "b h w k"]:
    """The nearest point of the ball."""
    project = optax.projections.projection_linf_ball if norm == "linf" else optax.projections.projection_l2_ball
    return jax.vmap(lambda one: project(one, radius))(change)
