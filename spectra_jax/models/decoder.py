"""From attributes back to an image: the decoder of the reconstruction term (Section 3.3, Eq. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from spectra_jax.models._init import draw_parameters
from spectra_jax.models._layers import ConvGroupNorm, Convolution, check_widths, group_norm, pixel_shuffle

Params = dict[str, Any]
# The coarsest map is at most this wide: small enough for one dense layer to lay out the whole picture.
LARGEST_GRID = 7
# A linear picture keeps this distance from black and white, where its logit would be infinite: half a grey level.
DARKEST = 0.5 / 255


class ShufflingDecoder(nn.Module):
    """A dense layer to a coarse map, then convolutions that trade four channels for twice the side; yields logits.

    Every convolution runs at the resolution before its upsampling, which on CPU is what keeps the decoder cheaper than
    the encoder.
    """

    widths: tuple[int, ...]
    grid: int
    image_size: int

    @nn.compact
    def __call__(self, attributes: Float[Array, "b n"]) -> Float[Array, "b h w 3"]:
        first = self.widths[0]
        shape = (attributes.shape[-1], self.grid**2 * first)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (first,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (first,), jnp.float32)
        x = jnp.matmul(attributes, kernel).reshape(-1, self.grid, self.grid, first)
        x = nn.relu(group_norm(x, scale, bias, 8))
        for width in self.widths[1:]:
            x = pixel_shuffle(nn.relu(ConvGroupNorm(4 * width)(x)))
        # Three colours of four pixels, without norm because colours are absolute.
        x = pixel_shuffle(Convolution(12, name="colours")(x))
        margin = (x.shape[1] - self.image_size) // 2
        return x[:, margin : margin + self.image_size, margin : margin + self.image_size]


@dataclass(frozen=True)
class Decoder:
    """Attributes -> images; immutable, hashable, every method pure, like `Model`. Build one with `build_decoder`.

    Attributes:
        num_attributes: n.
        image_size: side of the square images, in pixels.
        network: flax module from standardised attributes to the logits of images.
    """

    num_attributes: int
    image_size: int
    network: nn.Module

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh float32 parameters: {"network": ..., "feature_mean" (n,), "feature_std" (n,)}.

        The statistics standardise the attributes and are the identity until `with_statistics` sets them. They are not
        trained.
        """
        attributes = jax.ShapeDtypeStruct((1, self.num_attributes), jnp.float32)
        variables = jax.eval_shape(self.network.init, key, attributes)
        zeros = jnp.zeros(self.num_attributes, jnp.float32)
        return {
            "network": draw_parameters(key, variables["params"]),
            "feature_mean": zeros,
            "feature_std": jnp.ones_like(zeros),
        }

    def with_statistics(self, params: Params, attributes: Float[Array | np.ndarray, "N n"]) -> Params:
        """New parameters that standardise by the mean and standard deviation of `attributes` (N, n)."""
        wide = np.asarray(attributes, np.float64)
        dtype = params["feature_mean"].dtype
        std = np.where(wide.std(axis=0) > 0, wide.std(axis=0), 1)
        return {
            **params,
            "feature_mean": jnp.asarray(wide.mean(axis=0), dtype),
            "feature_std": jnp.asarray(std, dtype),
        }

    def with_linear(
        self, params: Params, kernel: Float[Array | np.ndarray, "n h w 3"], mean: Float[Array | np.ndarray, "h w 3"]
    ) -> Params:
        """New parameters that decode to mean + standardised attributes @ kernel, clipped to [0, 1].

        The network becomes a correction of that picture, in logits, and starts at zero. Like the statistics, the
        linear map is not trained.

        Args:
            params: with the statistics by which the attributes are standardised.
            kernel: (n, image_size, image_size, 3).
            mean: (image_size, image_size, 3), the picture of the mean attributes.
        """
        colours = jax.tree.map(jnp.zeros_like, params["network"]["colours"])
        dtype = params["feature_mean"].dtype
        linear = {"kernel": jnp.asarray(kernel, dtype), "mean": jnp.asarray(mean, dtype)}
        return {**params, "network": {**params["network"], "colours": colours}, "linear": linear}

    def decode(self, params: Params, attributes: Float[Array, "b n"]) -> Float[Array, "b h w 3"]:
        """Images (b, image_size, image_size, 3) in [0, 1] of unnormalised attributes (b, n).

        Raises:
            ValueError: the attributes are not (b, n).
        """
        if attributes.ndim != 2 or attributes.shape[-1] != self.num_attributes:
            raise ValueError(f"attributes has shape {attributes.shape}; expected (b, {self.num_attributes})")
        mean, std = jax.lax.stop_gradient((params["feature_mean"], params["feature_std"]))
        standardised = (attributes - mean[None, :]) / std[None, :]
        logits = cast(Array, self.network.apply({"params": params["network"]}, standardised))
        if "linear" in params:
            linear = jax.lax.stop_gradient(params["linear"])
            picture = linear["mean"][None] + jnp.tensordot(standardised, linear["kernel"], 1)
            logits += jax.scipy.special.logit(jnp.clip(picture, DARKEST, 1 - DARKEST))
        return nn.sigmoid(logits)


def build_decoder(*, num_attributes: int, image_size: int, widths: Sequence[int] = (128, 64, 32, 24, 16, 8)) -> Decoder:
    """A decoder for square images of any size from 4 pixels.

    Args:
        num_attributes: n.
        image_size: side in pixels.
        widths: channels of the coarsest map and after each doubling, multiples of 8; the last doubling yields the
            three colours. Entries that a small image has no doubling for are not used.

    Returns:
        The decoder; parameters come from its `init`.

    Raises:
        ValueError: the image is too small, or needs more doublings than there are widths.
    """
    if image_size < 4:
        raise ValueError(f"image_size must be at least 4 pixels, got {image_size}")
    doublings = 1
    while -(-image_size // 2**doublings) > LARGEST_GRID:
        doublings += 1
    if doublings > len(widths):
        raise ValueError(f"images of {image_size} pixels need {doublings} widths, got {len(widths)}")
    grid = -(-image_size // 2**doublings)
    network = ShufflingDecoder(check_widths(widths)[:doublings], grid, image_size)
    return Decoder(num_attributes, image_size, network)
