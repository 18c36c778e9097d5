"""Gauss-Newton steps through the encoder: the shortest image change that realises the wanted attributes to first order.

With J the Jacobian of the encoder and r = e + delta - phi(x'), the step is J^T (J J^T + mu I)^-1 r. The system of n
unknowns is solved by a few conjugate gradients, each one product with J^T and one with J; J itself is never formed.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectra_jax.inversion.config import InversionConfig, Method
from spectra_jax.inversion.encoder import EncodeFn, lead_of, per_sample
from spectra_jax.inversion.step import Aim, Move, Sample
from spectra_jax.types import Head

_ITERATIONS = 6
_DAMPING = 1e-2  # of the curvature along r: what the encoder hardly responds to is not worth a large change


@jax.tree_util.register_static
@dataclass(frozen=True)
class GaussNewton(Method):
    """The shortest change of the image that realises the wanted attributes to first order, iterated."""

    name: ClassVar[str] = "gauss_newton"
    passes: ClassVar[tuple[int, int]] = (1 + _ITERATIONS, 1 + _ITERATIONS)

    def init(self, images: Float[Array, "b h w k"]) -> tuple[()]:
        """Nothing is remembered from step to step."""
        return ()

    def step(
        self, encode: EncodeFn, head: Head, sample: Sample, aim: Aim, images: Float[Array, "b h w k"], state: tuple[()],
        *, config: InversionConfig,
    ) -> Move:  # fmt: skip
        """One Gauss-Newton step."""
        attributes, forward = jax.linearize(encode, images)
        transpose = jax.linear_transpose(forward, images)

        def backward(change):
            (pixels,) = transpose(change)
            return sample.restrict(pixels)

        aims = aim(attributes)
        residual = aims - attributes
        along = backward(residual)
        norm = jnp.sum(jnp.square(residual), axis=-1)
        curvature = jnp.sum(jnp.square(along), axis=tuple(range(1, along.ndim))) / jnp.where(norm > 0, norm, 1)
        damping = (_DAMPING * curvature)[:, None]

        def product(values):
            return forward(backward(values)) + damping * values

        step = backward(_conjugate_gradients(product, residual))
        finite = jnp.all(jnp.isfinite(attributes), axis=-1) & jnp.all(jnp.isfinite(step), axis=(1, 2, 3))
        won = lead_of(head, attributes, sample.targets).by(config.margin)
        moved = jnp.clip(images + jnp.where(per_sample(finite, step), step, 0), 0, 1)
        return Move(images=moved, state=state, aims=aims, finished=won, success=won, answer=images, finite=finite)


def _conjugate_gradients(product, wanted: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Solves every sample's system with its own step lengths, which library solvers for one large system do not."""

    def ratio(above, below):
        return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)[:, None]

    solution, residual, direction = jnp.zeros_like(wanted), wanted, wanted
    for _ in range(_ITERATIONS):
        image = product(direction)
        before = jnp.sum(jnp.square(residual), axis=-1)
        length = ratio(before, jnp.sum(direction * image, axis=-1))
        solution, residual = solution + length * direction, residual - length * image
        direction = residual + ratio(jnp.sum(jnp.square(residual), axis=-1), before) * direction
    return solution
