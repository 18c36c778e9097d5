"""From an image to a small grid of latents and back: the generator on whose manifold other systems search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from spectra_jax.models._init import draw_parameters
from spectra_jax.models._layers import Convolution, ResidualBlock, check_widths, pixel_shuffle, pixel_unshuffle

Params = dict[str, Any]


class LatentEncoder(nn.Module):
    """Squares of four pixels become four times the channels, again and again; yields a map of latents.

    No norm and no nonlinearity stands between a colour and its latent but in the residual branches: colours are
    absolute, and norms would lose them.
    """

    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b i j d"]:
        x = 4 * images - 2
        for width in self.widths:
            x = ResidualBlock(width)(Convolution(width)(pixel_unshuffle(x)))
        return Convolution(self.channels, kernel_size=1)(x)


class LatentDecoder(nn.Module):
    """The way back; every convolution runs at the resolution before its upsampling. Yields logits of the colours."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, latents: Float[Array, "b i j d"]) -> Float[Array, "b h w 3"]:
        x = Convolution(self.widths[0])(latents)
        for width in self.widths[1:]:
            x = pixel_shuffle(Convolution(4 * width)(ResidualBlock(x.shape[-1])(x)))
        x = ResidualBlock(x.shape[-1])(x)
        return pixel_shuffle(Convolution(12)(x))


@dataclass(frozen=True)
class AutoEncoder:
    """Images -> latents -> images; immutable, hashable, every method pure, like `Model`. See `build_autoencoder`.

    Attributes:
        image_size: side of the square images, in pixels.
        grid: side of the map of latents.
        channels: latents at each place of it.
        encoder, decoder: flax modules.
    """

    image_size: int
    grid: int
    channels: int
    encoder: nn.Module
    decoder: nn.Module

    @property
    def num_latents(self) -> int:
        """d, the latents of an image."""
        return self.grid**2 * self.channels

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh float32 parameters: {"encoder": ..., "decoder": ..., "latent_mean" (d,), "latent_std" (d,)}.

        The statistics standardise the latents and are the identity until `with_statistics` sets them. They are not
        trained.
        """
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        latents, encoder = jax.eval_shape(self.encoder.init_with_output, key, image)
        decoder = jax.eval_shape(self.decoder.init, key, latents)
        first, second = jax.random.split(key)
        zeros = jnp.zeros(self.num_latents, jnp.float32)
        return {
            "encoder": draw_parameters(first, encoder["params"]),
            "decoder": draw_parameters(second, decoder["params"]),
            "latent_mean": zeros,
            "latent_std": jnp.ones_like(zeros),
        }

    def with_statistics(self, params: Params, latents: Float[Array | np.ndarray, "N d"]) -> Params:
        """New parameters whose latents have mean 0 and standard deviation 1 where they were `latents` (N, d).

        The images of `decode(encode(images))` stay the same.
        """
        wide = np.asarray(latents, np.float64)
        mean, std = wide.mean(axis=0), wide.std(axis=0)
        before, scale = params["latent_mean"], params["latent_std"]
        return {
            **params,
            "latent_mean": before + scale * jnp.asarray(mean, before.dtype),
            "latent_std": scale * jnp.asarray(np.where(std > 0, std, 1), before.dtype),
        }

    def encode(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The standardised latents (b, d) of images (b, image_size, image_size, 3) in [0, 1].

        Raises:
            ValueError: images of another size.
        """
        wanted = (self.image_size, self.image_size, 3)
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise ValueError(f"images has shape {images.shape}; expected {('b', *wanted)}")
        images = images.astype(params["latent_mean"].dtype)
        grid = cast(Array, self.encoder.apply({"params": params["encoder"]}, images))
        mean, std = jax.lax.stop_gradient((params["latent_mean"], params["latent_std"]))
        return (grid.reshape(len(images), -1) - mean[None, :]) / std[None, :]

    def decode(self, params: Params, latents: Float[Array, "b d"]) -> Float[Array, "b h w 3"]:
        """Images (b, image_size, image_size, 3) in [0, 1] of standardised latents (b, d).

        Raises:
            ValueError: the latents are not (b, d).
        """
        if latents.ndim != 2 or latents.shape[-1] != self.num_latents:
            raise ValueError(f"latents has shape {latents.shape}; expected (b, {self.num_latents})")
        mean, std = jax.lax.stop_gradient((params["latent_mean"], params["latent_std"]))
        grid = (latents * std[None, :] + mean[None, :]).reshape(-1, self.grid, self.grid, self.channels)
        return nn.sigmoid(cast(Array, self.decoder.apply({"params": params["decoder"]}, grid)))


def build_autoencoder(*, image_size: int, channels: int = 8, widths: Sequence[int] = (24, 48, 96)) -> AutoEncoder:
    """An auto-encoder for square images whose side is a multiple of 2 ** len(widths).

    Args:
        image_size: side in pixels.
        channels: latents at each place of the grid; with the grid's side they say how much of an image is kept.
        widths: channels after each halving of the side, multiples of 8; the decoder has them in reverse.

    Returns:
        The auto-encoder; parameters come from its `init`.

    Raises:
        ValueError: the side is no such multiple, or channels or a width is not positive.
    """
    widths = check_widths(widths)
    grid, rest = divmod(image_size, 2 ** len(widths))
    if rest or grid < 1:
        raise ValueError(
            f"image_size is {image_size}; expected a multiple of {2 ** len(widths)} pixels, one halving for each width"
        )
    if channels < 1:
        raise ValueError(f"channels is {channels}; expected 1 or more")
    return AutoEncoder(image_size, grid, channels, LatentEncoder(widths, channels), LatentDecoder(widths[::-1]))
