"""Counterfactuals among the images that a generator can draw: the paper's loss, lowered over its latents.

A search over pixels may leave the manifold of natural images; one over the latents z of a generator D cannot, as long
as D draws nothing else. D is any function, such as the decoder of an auto-encoder; the search starts at the latents of
the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from spectra_jax.inversion.config import InversionConfig, Method, check_positive
from spectra_jax.inversion.descent import evaluate
from spectra_jax.inversion.encoder import EncodeFn, as_partial, lead_of, per_sample
from spectra_jax.inversion.step import Aim, Move, Sample
from spectra_jax.types import Head


class Latents(NamedTuple):
    """What is remembered of each sample.

    Attributes:
        values: (b, d) z.
        optimizer: the state of Adam.
    """

    values: Float[Array, "b d"]
    optimizer: PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Manifold(Method):
    """Descent on MSE(phi(D(z)), e + delta) + lambda (1 - SSIM(D(z), x)) over z by Adam.

    The answer is D(z), which differs from the original by what the generator cannot draw, except where a region keeps
    the pixels. Pass functions bound by functools.partial, so that a second call with other parameters reuses the
    compiled search.

    Attributes:
        decode: D, latents (b, d) -> images (b, h, w, channels) in [0, 1].
        encode: images -> the latents (b, d) to start from.
        step_size: learning rate of Adam, in units of the latents.
    """

    name: ClassVar[str] = "manifold"
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    step_size: float = 0.05

    def __post_init__(self) -> None:
        for name in ("decode", "encode"):
            if callable(getattr(self, name)):  # else a leaf that JAX puts here while it takes the method apart
                object.__setattr__(self, name, as_partial(getattr(self, name)))
        if isinstance(self.step_size, int | float):
            check_positive("step_size", self.step_size)

    def init(self, images: Float[Array, "b h w k"]) -> Latents:
        """The latents of the images.

        Raises:
            ValueError: decode draws images of another shape.
        """
        latents = self.encode(images).astype(images.dtype)
        drawn = jax.eval_shape(self.decode, latents).shape
        if drawn != images.shape:
            raise ValueError(f"decode returns shape {drawn}; expected {images.shape}, that of the images")
        return Latents(latents, jax.vmap(self._optimizer().init)(latents))

    def step(
        self, encode: EncodeFn, head: Head, sample: Sample, aim: Aim, images: Float[Array, "b h w k"], state: Latents,
        *, config: InversionConfig,
    ) -> Move:  # fmt: skip
        """One step of Adam."""

        def draw(latents):
            drawn = self.decode(latents).astype(sample.images.dtype)
            return drawn if sample.region is None else jnp.where(sample.region > 0, drawn, sample.images)

        def look(latents):
            drawn = draw(latents)
            return drawn, encode(drawn)

        seen, gradient = evaluate(look, sample, aim, state.values, config=config)
        # optax mixes its integer step count with floats, an error under strict promotion that is not of our making.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = jax.vmap(self._optimizer().update)(gradient, state.optimizer)
        won = lead_of(head, seen.attributes, sample.targets).by(config.margin)
        latents = state.values + jnp.where(per_sample(seen.finite, updates), updates, 0)
        return Move(
            images=draw(latents),
            state=Latents(latents, optimizer),
            aims=seen.aims,
            finished=won,
            success=won,
            answer=seen.images,
            finite=seen.finite,
        )

    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.step_size)
