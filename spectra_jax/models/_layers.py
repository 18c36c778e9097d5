"""Building blocks shared by the architectures."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, ReLU. GroupNorm looks at one image only, so a batch's rows stay independent.

    Attributes:
        width: channels out.
        stride: of the convolution.
        kernel_size: its side.
        groups: of GroupNorm.
    """

    width: int
    stride: int = 1
    kernel_size: int = 3
    groups: int = 8

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ d"]:
        size = (self.kernel_size, self.kernel_size)
        x = nn.Conv(self.width, size, self.stride, use_bias=False, kernel_init=he_normal)(x)
        return nn.relu(nn.GroupNorm(self.groups)(x))


def pool_to_grid(x: Float[Array, "b h w d"], side: int) -> Float[Array, "b f"]:
    """Averages a feature map over a side x side grid and flattens it: a layout is kept, whatever the image size."""
    rows, columns = (_pooling_matrix(size, side, x.dtype) for size in x.shape[1:3])
    x = jnp.einsum("ih,jw,bhwd->bijd", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
    return x.reshape(x.shape[0], -1)


def _pooling_matrix(size: int, cells: int, dtype: jnp.dtype) -> Float[Array, "cells size"]:
    """Row i averages the pixels that cell i of `cells` covers (by area, so that any size works)."""
    edges = np.arange(cells + 1) * size / cells
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return jnp.asarray(np.clip(overlap, 0, None) * cells / size, dtype)
