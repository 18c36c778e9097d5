"""The paper's "complex CNN": nine plain convolutions, no residual connections."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from spectra_jax.models._base import Model
from spectra_jax.models._layers import ConvGroupNorm, check_widths, pool_to_grid


class DeepCNN(nn.Module):
    """Stages of convolutions, each but the first starting with stride 2, then a coarse grid of averages."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    grid: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        x = 4 * images - 2
        x = nn.relu(ConvGroupNorm(self.widths[0], kernel_size=5, stride=2)(x))
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for layer in range(depth):
                stride = 2 if layer == 0 and stage > 0 else 1
                x = nn.relu(ConvGroupNorm(width, stride=stride)(x))
        return pool_to_grid(x, self.grid)


def build(
    *,
    num_attributes: int,
    num_classes: int,
    head_bias: bool = False,
    widths: Sequence[int] = (16, 64, 128),
    depths: Sequence[int] = (2, 3, 3),
    grid: int = 4,
    dropout_rate: float = 0.0,
) -> Model:
    """The deep CNN; `widths` (multiples of 8) and `depths` are channels and convolutions of each stage."""
    if len(widths) != len(depths):
        raise ValueError(f"widths and depths must be equally long, got {len(widths)} and {len(depths)}")
    backbone = DeepCNN(check_widths(widths), tuple(depths), grid)
    return Model(
        "deep_cnn",
        num_attributes,
        num_classes,
        backbone,
        image_size=64,
        min_image_size=grid * 2 ** len(widths),
        dropout_rate=dropout_rate,
        head_bias=head_bias,
    )
