"""Building blocks shared by the architectures. None has mutable state and none mixes the images of a batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Padding = str | Sequence[tuple[int, int]]


class ConvGroupNorm(nn.Module):
    """Convolution without bias, then GroupNorm: trainable from scratch at any batch size.

    Attributes:
        width: channels out.
        kernel_size: side of the kernel.
        stride: of the convolution.
        padding: "SAME" or ((top, bottom), (left, right)).
        ends_branch: the result is added to a shortcut; its scale starts small.
        groups: of GroupNorm; divides the width.
    """

    width: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    ends_branch: bool = False
    groups: int = 8

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        x = _convolve(x, kernel, self.stride, self.padding)
        scale_name = "branch_scale" if self.ends_branch else "scale"
        scale = self.param(scale_name, nn.initializers.ones, (self.width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return group_norm(x, scale, bias, self.groups)


class Convolution(nn.Module):
    """A convolution with a bias and nothing else, for what is absolute, such as colours.

    Attributes:
        width: channels out.
        kernel_size: side of the kernel.
    """

    width: int
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return _convolve(x, kernel, 1, "SAME") + bias[None, None, None, :]


class ResidualBlock(nn.Module):
    """x plus two normalised convolutions of it; the shortcut stays linear.

    Attributes:
        width: channels in and out.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        branch = nn.relu(ConvGroupNorm(self.width)(x))
        return x + ConvGroupNorm(self.width, ends_branch=True)(branch)


class ConvFrozenBatchNorm(nn.Module):
    """Convolution without bias, then BatchNorm with stored statistics, folded into one convolution.

    Attributes:
        width: channels out.
        kernel_size: side of the kernel.
        stride: of the convolution.
        padding: "SAME" or ((top, bottom), (left, right)).
        depthwise: one kernel per channel; the width is then that of the input.
        epsilon: BatchNorm's.
    """

    width: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    depthwise: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ d"]:
        channels_in = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels_in, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        mean = jax.lax.stop_gradient(self.param("running_mean", nn.initializers.zeros, (self.width,), jnp.float32))
        variance = jax.lax.stop_gradient(self.param("running_var", nn.initializers.ones, (self.width,), jnp.float32))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        convolve = convolve_depthwise if self.depthwise else _convolve
        x = convolve(x, kernel * factor[None, None, None, :], self.stride, self.padding)
        return x + (bias - mean * factor)[None, None, None, :]


def group_norm(
    x: Float[Array, "b h w d"], scale: Float[Array, " d"], bias: Float[Array, " d"], groups: int, epsilon: float = 1e-6
) -> Float[Array, "b h w d"]:
    """Wu and He 2018. Written here because flax's cannot run in float64 under strict dtype promotion."""

    def group_average(values: Float[Array, "b d"]) -> Float[Array, "b 1 1 d"]:
        average = values.reshape(values.shape[0], groups, -1).mean(axis=-1)
        return jnp.repeat(average, values.shape[-1] // groups, axis=-1)[:, None, None, :]

    centred = x - group_average(x.mean(axis=(1, 2)))
    variance = group_average(jnp.square(centred).mean(axis=(1, 2)))
    return centred * (jax.lax.rsqrt(variance + epsilon) * scale[None, None, None, :]) + bias[None, None, None, :]


def pixel_shuffle(x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ d"]:
    """Four channels of a pixel become a square of four pixels."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * height, 2 * width, channels // 4)


def pixel_unshuffle(x: Float[Array, "b h w d"]) -> Float[Array, "b _ _ _"]:
    """The inverse: a square of four pixels becomes four times the channels of one."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, 4 * channels)


def pool_to_grid(x: Float[Array, "b h w d"], side: int) -> Float[Array, "b f"]:
    """Averages a feature map over a side x side grid and flattens it: a layout is kept, whatever the image size."""
    rows, columns = (_pooling_matrix(size, side, x.dtype) for size in x.shape[1:3])
    x = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
    return x.reshape(x.shape[0], -1)


def check_widths(widths: Sequence[int], *, groups: int = 8) -> tuple[int, ...]:
    """The channels as a tuple (hashable), or a ValueError where GroupNorm could not divide them."""
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths must be positive multiples of {groups}, got {tuple(widths)}")
    return tuple(widths)


def _pooling_matrix(size: int, cells: int, dtype: jnp.dtype) -> Float[Array, "cells size"]:
    """Row i averages the pixels that cell i of `cells` covers (by area, so that any size works)."""
    edges = np.arange(cells + 1) * size / cells
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return jnp.asarray(np.clip(overlap, 0, None) * cells / size, dtype)


def _convolve(
    x: Float[Array, "b h w _"], kernel: Float[Array, "k k _ d"], stride: int, padding: Padding
) -> Float[Array, "b _ _ d"]:
    if kernel.shape[:2] == (1, 1):  # a matrix product: XLA's convolution is 2 to 10 times slower on CPU
        if stride > 1:  # kept apart: compiling for a GPU, XLA aborts where it fuses the slice (openxla/xla#47381)
            x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
        return jnp.matmul(x, kernel[0, 0])
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def convolve_depthwise(
    x: Float[Array, "b h w d"], kernel: Float[Array, "k k 1 d"], stride: int, padding: Padding
) -> Float[Array, "b _ _ d"]:
    """One kernel per channel, as a sum of shifted images: XLA's grouped convolution is about 5 times slower on CPU."""
    size = kernel.shape[0]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (side - size + 1 for side in x.shape[1:3])
    total = jnp.zeros((), x.dtype)
    for row in range(size):
        for column in range(size):
            shifted = x[:, row : row + height : stride, column : column + width : stride]
            total = total + shifted * kernel[row, column][None, None]
    return total
