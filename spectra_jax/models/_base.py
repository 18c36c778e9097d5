"""The one interface every architecture offers: a pure encoder, a linear attribute bottleneck, a linear head.

Parameters are a nested dict with exactly the keys "backbone", "bottleneck" and "head". The flax module of a model is
its backbone only; bottleneck and head are plain matrix products, because the rest of the project reasons about them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from spectra_jax.extras import extra
from spectra_jax.models._init import draw_parameters
from spectra_jax.types import Head

Params = dict[str, Any]
ArrayLike = Array | np.ndarray
WeightLoader = Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], dict[str, Any]]

# Leaves that are data, not weights: no gradient reaches them and no weight decay may shrink them.
STATISTICS = frozenset({"feature_mean", "feature_std", "running_mean", "running_var"})


@dataclass(frozen=True)
class Model:
    """An attribute-bottleneck classifier: images -> features -> n unnormalised attributes -> c logits.

    Immutable and hashable, so it can be closed over or passed to `jax.jit` as a static argument. Build one with
    `build_model`. Every method is pure; images are (b, h, w, 3) floats in [0, 1], scaled inside.

    Attributes:
        name: the architecture's name.
        num_attributes: n.
        num_classes: c.
        backbone: flax module from images to features (b, f).
        image_size: the side in pixels it was designed for.
        min_image_size: the smallest side it accepts.
        dropout_rate: share of features dropped before the bottleneck when a key is given.
        head_bias: whether the head has a bias (the paper's has none).
        frozen_backbone: if True no gradient reaches the backbone's parameters, so features may be computed once.
        weight_loader: maps (backbone parameters, tensors by foreign name) to new backbone parameters, if there is such
            a format.
    """

    name: str
    num_attributes: int
    num_classes: int
    backbone: nn.Module
    image_size: int
    min_image_size: int = 1
    dropout_rate: float = 0.0
    head_bias: bool = False
    frozen_backbone: bool = False
    weight_loader: WeightLoader | None = None

    def __post_init__(self) -> None:
        for label, value, least in (("num_attributes", self.num_attributes, 1), ("num_classes", self.num_classes, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{label} must be an integer >= {least}, got {value!r}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must lie in [0, 1), got {self.dropout_rate}")

    def init(self, key: PRNGKeyArray, image_shape: tuple[int, int, int]) -> Params:
        """Draws fresh float32 parameters.

        Args:
            key: random key.
            image_shape: (h, w, 3). "linear" is tied to it; the others accept other sizes afterwards.

        Returns:
            {"backbone": ..., "bottleneck": {"kernel" (f, n), "bias" (n,)}, "head": {"weights" (c, n)}}; the bottleneck
            of a frozen backbone also holds "feature_mean" (f,) and "feature_std" (f,), the identity until
            `with_feature_statistics` sets them.
        """
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        self._check_images(image)
        backbone_key, bottleneck_key, head_key = jax.random.split(key, 3)
        features, variables = jax.eval_shape(self.backbone.init_with_output, backbone_key, image)
        backbone = draw_parameters(backbone_key, variables.get("params", {}))
        size = features.shape[-1]
        bottleneck = {
            "kernel": _lecun_normal(bottleneck_key, (size, self.num_attributes), fan_in=size),
            "bias": jnp.zeros(self.num_attributes, jnp.float32),
        }
        if self.frozen_backbone:
            bottleneck["feature_mean"] = jnp.zeros(size, jnp.float32)
            bottleneck["feature_std"] = jnp.ones(size, jnp.float32)
        head = {"weights": _lecun_normal(head_key, (self.num_classes, self.num_attributes), fan_in=self.num_attributes)}
        if self.head_bias:
            head["bias"] = jnp.zeros(self.num_classes, jnp.float32)
        return {"backbone": backbone, "bottleneck": bottleneck, "head": head}

    def features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        """The backbone's features (b, f) of images (b, h, w, 3) in [0, 1], in the dtype of the parameters.

        Raises:
            ValueError: images of a wrong rank, dtype, number of channels, or too small.
        """
        self._check_images(images)
        backbone = params["backbone"]
        if self.frozen_backbone:
            backbone = jax.lax.stop_gradient(backbone)
        features = self.backbone.apply({"params": backbone}, images.astype(params["head"]["weights"].dtype))
        return cast(Array, features)

    def bottleneck(
        self, params: Params, features: Float[Array, "b f"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b n"]:
        """The unnormalised attributes (b, n) of features (b, f): one linear layer.

        Args:
            params: the model's parameters.
            features: (b, f), as `features` returns them (not standardised).
            key: enables dropout; without it the result is deterministic.
        """
        layer = params["bottleneck"]
        kernel = layer["kernel"]
        self._check_features(features, kernel)
        features = features.astype(kernel.dtype)
        if "feature_mean" in layer:
            mean, std = jax.lax.stop_gradient((layer["feature_mean"], layer["feature_std"]))
            features = (features - mean[None, :]) / std[None, :]
        if key is not None and self.dropout_rate > 0:
            keep = 1 - self.dropout_rate
            features = jnp.where(jax.random.bernoulli(key, keep, features.shape), features / keep, 0)
        product = jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST)
        return product + layer["bias"][None, :]

    def encode(
        self, params: Params, images: Float[Array, "b h w 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b n"]:
        """The unnormalised attributes (b, n) of images (b, h, w, 3) in [0, 1]; `key` enables dropout."""
        return self.bottleneck(params, self.features(params, images), key=key)

    def attribute_logits(self, params: Params, attributes: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """The logit of every attribute's presence; by default the attribute itself."""
        return attributes

    def fold(self, params: Params) -> Params:
        """Equivalent parameters in which everything that depends only on them is computed once, for many calls."""
        return params

    def head(self, params: Params) -> Head:
        """The linear classifier on the attributes, for the solvers and for `head_logits`."""
        return Head(params["head"]["weights"], params["head"].get("bias"))

    def with_feature_statistics(
        self, params: Params, mean: Float[ArrayLike, " f"], std: Float[ArrayLike, " f"]
    ) -> Params:
        """New parameters whose bottleneck standardises the features first.

        Args:
            params: the model's parameters.
            mean: (f,) mean of each feature over the training split.
            std: (f,) standard deviation; a constant feature (std 0) is only centred.
        """
        layer = params["bottleneck"]
        kernel = layer["kernel"]
        mean, std = (jnp.asarray(value, kernel.dtype) for value in (mean, std))
        if mean.shape != kernel.shape[:1] or std.shape != kernel.shape[:1]:
            raise ValueError(f"mean and std must have shape {kernel.shape[:1]}, got {mean.shape} and {std.shape}")
        std = jnp.where(std > 0, std, jnp.ones_like(std))
        return {**params, "bottleneck": {**layer, "feature_mean": mean, "feature_std": std}}

    def trainable_mask(self, params: Params) -> Params:
        """The tree of `params` with True where an optimiser may change a leaf (and decay its weight).

        False for stored statistics, which weight decay would silently shrink, and for a frozen backbone.
        """

        def trainable(path: tuple[Any, ...], _: Array) -> bool:
            return path[-1].key not in STATISTICS and not (self.frozen_backbone and path[0].key == "backbone")

        return jax.tree_util.tree_map_with_path(trainable, params)

    def load_pretrained(self, params: Params, path: str | Path) -> Params:
        """New parameters whose backbone comes from a .safetensors file with the architecture's original tensor names.

        Raises:
            ValueError: this architecture has no such format, the file is damaged, or a tensor is missing or misshapen.
        """
        if self.weight_loader is None:
            raise ValueError(
                f"model {self.name!r} as configured has no pretrained weights; those that have: efficientnet_lite0 and "
                f"resnet with norm='frozen_batch'"
            )
        with extra("experiments"):
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a .safetensors file, or is damaged: {error}") from error
        return {**params, "backbone": self.weight_loader(params["backbone"], tensors)}

    def _check_features(self, features: Any, kernel: Any) -> None:
        if features.ndim != 2 or features.shape[-1] != kernel.shape[-2]:
            raise ValueError(
                f"model {self.name!r} expects features of shape (b, {kernel.shape[-2]}), got {features.shape}; "
                f"are the images of the size the parameters were initialised for?"
            )

    def _check_images(self, images: Any) -> None:
        if len(images.shape) != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must have shape (b, h, w, 3) (NHWC, RGB), got {tuple(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floats in [0, 1], got {images.dtype}; divide 8-bit pixels by 255")
        if min(images.shape[1:3]) < self.min_image_size:
            raise ValueError(
                f"model {self.name!r} needs images of at least {self.min_image_size} x {self.min_image_size} pixels, "
                f"got {images.shape[1]} x {images.shape[2]}"
            )


def _lecun_normal(key: PRNGKeyArray, shape: tuple[int, int], *, fan_in: int) -> Float[Array, "..."]:
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)
