"""ResNet-18/34/50, trainable from scratch with GroupNorm or filled from a torchvision state dict."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectra_jax.models._base import Model
from spectra_jax.models._layers import ConvFrozenBatchNorm, ConvGroupNorm
from spectra_jax.models._loading import load_conv_batch_norm

# Blocks in each of the four stages, and whether they are bottleneck blocks (1x1, 3x3, 1x1).
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}
STAGE_WIDTHS = (64, 128, 256, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMS = ("group", "frozen_batch")
STEMS = ("imagenet", "small")


class ResNet(nn.Module):
    """He et al. 2015 with the stride in the 3x3 convolution, as torchvision has it.

    Attributes:
        depth: 18, 34 or 50.
        norm: "group" or "frozen_batch".
        stem: "imagenet" (7x7 stride 2, max pooling) or "small" (3x3 stride 1) for images up to about 64 px.
    """

    depth: int
    norm: str
    stem: str

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        mean, std = (np.asarray(value, images.dtype)[None, None, None, :] for value in (IMAGENET_MEAN, IMAGENET_STD))
        x = (images - mean) / std
        if self.stem == "imagenet":
            x = nn.relu(self._conv(x, 64, 7, 2, "stem"))
            x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        else:
            x = nn.relu(self._conv(x, 64, 3, 1, "stem"))
        blocks, is_bottleneck = DEPTHS[self.depth]
        block = self._bottleneck_block if is_bottleneck else self._basic_block
        for stage, (width, count) in enumerate(zip(STAGE_WIDTHS, blocks, strict=True), start=1):
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                x = block(x, width, stride, f"layer{stage}_{index}")
        return jnp.mean(x, axis=(1, 2))

    def _conv(
        self, x: Array, width: int, kernel_size: int, stride: int, name: str, *, ends_branch: bool = False
    ) -> Array:
        margin = (kernel_size // 2, kernel_size // 2)  # torch pads symmetrically where "SAME" does not
        padding = (margin, margin)
        if self.norm == "frozen_batch":
            return ConvFrozenBatchNorm(width, kernel_size, stride, padding, name=name)(x)
        return ConvGroupNorm(width, kernel_size, stride, padding, ends_branch, name=name)(x)

    def _basic_block(self, x: Array, width: int, stride: int, name: str) -> Array:
        y = nn.relu(self._conv(x, width, 3, stride, f"{name}_conv1"))
        y = self._conv(y, width, 3, 1, f"{name}_conv2", ends_branch=True)
        return nn.relu(y + self._shortcut(x, width, stride, name))

    def _bottleneck_block(self, x: Array, width: int, stride: int, name: str) -> Array:
        y = nn.relu(self._conv(x, width, 1, 1, f"{name}_conv1"))
        y = nn.relu(self._conv(y, width, 3, stride, f"{name}_conv2"))
        y = self._conv(y, 4 * width, 1, 1, f"{name}_conv3", ends_branch=True)
        return nn.relu(y + self._shortcut(x, 4 * width, stride, name))

    def _shortcut(self, x: Array, width: int, stride: int, name: str) -> Array:
        if stride == 1 and x.shape[-1] == width:
            return x
        return self._conv(x, width, 1, stride, f"{name}_downsample")


def build(
    *,
    num_attributes: int,
    num_classes: int,
    head_bias: bool = False,
    depth: Literal[18, 34, 50] = 18,
    norm: Literal["group", "frozen_batch"] = "group",
    stem: Literal["imagenet", "small"] = "imagenet",
    frozen_backbone: bool = False,
    dropout_rate: float = 0.0,
) -> Model:
    """A ResNet.

    Args:
        num_attributes: n.
        num_classes: c.
        head_bias: whether the head has a bias.
        depth: 18, 34 or 50.
        norm: "group" trains from scratch; "frozen_batch" keeps fixed BatchNorm statistics and can load a torchvision
            state dict (`Model.load_pretrained`, .safetensors). Do not train "frozen_batch" from scratch: with its
            initial statistics it normalises nothing.
        stem: "imagenet" for 224 px, "small" for 32 to 64 px.
        frozen_backbone: train only bottleneck and head; for loaded weights.
        dropout_rate: before the bottleneck.
    """
    for label, value, choices in (("depth", depth, tuple(DEPTHS)), ("norm", norm, NORMS), ("stem", stem, STEMS)):
        if value not in choices:
            raise ValueError(f"unknown {label} {value!r} for model 'resnet'; choose one of {choices}")
    loadable = norm == "frozen_batch" and stem == "imagenet"
    return Model(
        "resnet",
        num_attributes,
        num_classes,
        ResNet(depth, norm, stem),
        image_size=224 if stem == "imagenet" else 64,
        min_image_size=32 if stem == "imagenet" else 8,
        dropout_rate=dropout_rate,
        head_bias=head_bias,
        frozen_backbone=frozen_backbone,
        weight_loader=_load_torchvision if loadable else None,
    )


def _load_torchvision(backbone: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return load_conv_batch_norm(backbone, tensors, {layer: _torchvision_names(layer) for layer in backbone})


def _torchvision_names(layer: str) -> tuple[str, str]:
    """For example "layer1_0_conv2" -> ("layer1.0.conv2", "layer1.0.bn2")."""
    if layer == "stem":
        return "conv1", "bn1"
    stage, index, part = layer.split("_")
    block = f"{stage}.{index}"
    if part == "downsample":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.{part}", f"{block}.{part.replace('conv', 'bn')}"
