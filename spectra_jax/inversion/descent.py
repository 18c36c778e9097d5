"""Descent on MSE(phi(x'), e + delta) + lambda (1 - SSIM(x', x)): the paper's loop, and Adam on the same loss."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from spectra_jax.inversion import loss
from spectra_jax.inversion.config import InversionConfig, Method, check_positive
from spectra_jax.inversion.encoder import EncodeFn, lead_of, per_sample
from spectra_jax.inversion.step import Aim, Move, Sample
from spectra_jax.types import Head


class Seen(NamedTuple):
    """What an evaluation of the loss says of each sample.

    Attributes:
        images: (b, h, w, channels) that were looked at.
        attributes: (b, n) of these.
        aims: (b, n) the attributes wanted.
        finite: (b,) whether loss and gradient are.
    """

    images: Float[Array, "b h w k"]
    attributes: Float[Array, "b n"]
    aims: Float[Array, "b n"]
    finite: Bool[Array, " b"]


def evaluate(
    look: Callable[[Array], tuple[Array, Array]], sample: Sample, aim: Aim, values: Array, *, config: InversionConfig
) -> tuple[Seen, Array]:
    """The paper's loss and its gradient with respect to what the images are made of.

    Args:
        look: values (b, ...) -> images and their attributes; pixels are their own image.
        sample: what is asked for.
        aim: attributes -> the attributes wanted.
        values: (b, ...) where the search is.
        config: the settings that all methods share.

    Returns:
        What was seen, and the gradient in the shape of `values`.
    """

    def objective(values):
        candidates, attributes = look(values)
        aims = aim(jax.lax.stop_gradient(attributes))
        each = loss.inversion_loss(attributes, aims, candidates, sample.images, ssim_weight=config.ssim_weight)
        # Samples do not interact, so the gradient of the sum is each sample's own.
        return jnp.sum(each), (each, candidates, attributes, aims)

    (_, (each, images, attributes, aims)), gradient = jax.value_and_grad(objective, has_aux=True)(values)
    finite = jnp.isfinite(each) & jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, gradient.ndim)))
    return Seen(images, attributes, aims, finite), gradient


@dataclass(frozen=True)
class _Descent(Method):
    step_size: float = 0.005

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    @abc.abstractmethod
    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates."""

    def init(self, images: Float[Array, "b h w k"]) -> PyTree:
        """The optimiser's state of each sample: they start at different times."""
        return jax.vmap(self.optimizer().init)(images)

    def step(
        self, encode: EncodeFn, head: Head, sample: Sample, aim: Aim, images: Float[Array, "b h w k"], state: PyTree,
        *, config: InversionConfig,
    ) -> Move:  # fmt: skip
        """One step of the optimiser (Section 2.6)."""

        def encoded(candidates):
            return candidates, encode(candidates)

        seen, gradient = evaluate(encoded, sample, aim, images, config=config)
        finite, attributes, aims = seen.finite, seen.attributes, seen.aims
        gradient = sample.restrict(gradient)
        # optax mixes its integer step count with floats, an error under strict promotion that is not of our making.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = jax.vmap(self.optimizer().update)(gradient, state, images)
        won = lead_of(head, attributes, sample.targets).by(config.margin)
        moved = jnp.clip(images + jnp.where(per_sample(finite, updates), updates, 0), 0, 1)
        return Move(images=moved, state=state, aims=aims, finished=won, success=won, answer=images, finite=finite)


@jax.tree_util.register_static
@dataclass(frozen=True)
class GradientDescent(_Descent):
    """The paper's loop (Section 2.6): plain gradient descent towards the wanted attributes.

    Attributes:
        step_size: learning rate eta.
    """

    name: ClassVar[str] = "gradient_descent"

    def optimizer(self) -> optax.GradientTransformation:
        """Plain gradient descent."""
        return optax.sgd(self.step_size)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Adam(_Descent):
    """Descent on the paper's loss with a step size adapted to each pixel (Kingma and Ba, 2015).

    Attributes:
        step_size: learning rate eta, in units of [0, 1].
    """

    name: ClassVar[str] = "adam"

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with optax's other settings."""
        return optax.adam(self.step_size)
