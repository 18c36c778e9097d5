"""A network whose attributes change no faster than its image: every exact distance between attributes is a certificate.

Isometries take a photograph apart (blocks of pixels become channels), residual SLL layers work on it, AOL matrices
narrow it; there is no normalisation and no pooling. Nothing in it enlarges a difference, see `_lipschitz`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float, PRNGKeyArray

from spectra_jax.models._base import Model, Params
from spectra_jax.models._init import draw_parameters
from spectra_jax.models._lipschitz import (
    AOL,
    ROUNDING,
    SLL,
    Rounding,
    fold,
    layers,
    lipschitz_of,
    rounding_of,
    space_to_channels,
)

# The attributes are small, a few units in all: the scale with which they start as logits.
_FIRST_SCALE = 25.0


class LipschitzCNN(nn.Module):
    """Images to features (b, f), 1-Lipschitz.

    Attributes:
        stem: channels inside the layers at full resolution, which see the photograph before it is cut into blocks.
        widths: channels of each stage; each works at half the resolution of the one before, the first at a quarter.
        blocks: residual layers of each stage.
        features: f.
        dense_blocks: residual layers on the features.
    """

    stem: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    features: int
    dense_blocks: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        x = _with_channels(images - 0.5, 4)
        for hidden in self.stem:
            x = SLL(hidden)(x)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x = _with_channels(space_to_channels(x, 2 if stage else 4), width)
            for _ in range(blocks):
                x = SLL(width)(x)
        x = AOL(self.features)(x.reshape(x.shape[0], 1, 1, -1))
        for _ in range(self.dense_blocks):
            x = SLL(self.features, kernel_size=1)(x)
        return x.reshape(x.shape[0], -1)


def _with_channels(x: Float[Array, "b h w _"], width: int) -> Float[Array, "b h w {width}"]:
    """Empty channels where there are too few, a matrix where there are too many."""
    missing = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing >= 0 else AOL(width)(x)


@dataclass(frozen=True)
class LipschitzModel(Model):
    """A `Model` with ||phi(x) - phi(x')|| <= L ||x - x'||, where L = 1 up to rounding.

    Its attributes are small numbers; `attribute_logits` are trained to predict whether an attribute is present.
    """

    def init(self, key: PRNGKeyArray, image_shape: tuple[int, int, int]) -> Params:
        """Fresh float32 parameters, tied to the size of the images; the bottleneck has a scale and an offset too."""
        params = super().init(key, image_shape)
        size, width = params["bottleneck"]["kernel"].shape
        shapes = {name: jax.ShapeDtypeStruct((width,), jnp.float32) for name in ("bias", "log_weight", "offset")}
        shapes["orthogonal_kernel"] = jax.ShapeDtypeStruct((1, 1, size, width), jnp.float32)
        scale = {"log_scale": jnp.full(width, math.log(_FIRST_SCALE), jnp.float32)}
        return {**params, "bottleneck": draw_parameters(jax.random.fold_in(key, 1), shapes) | scale}

    def features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        """The backbone's features (b, f) of images of the size that the parameters were initialised for."""
        with _of_their_size(self.name, images.shape):
            return super().features(params, images)

    def bottleneck(
        self, params: Params, features: Float[Array, "b f"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b n"]:
        """The attributes (b, n) of features (b, f): one AOL layer, without dropout."""
        layer = params["bottleneck"]
        self._check_features(features, layer["orthogonal_kernel"])
        rows = features.astype(layer["bias"].dtype)[:, None, None, :]
        return cast(Array, self._last.apply({"params": layer}, rows))[:, 0, 0, :]

    def attribute_logits(self, params: Params, attributes: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """scale_f e_f + offset_f: positive where an attribute is predicted."""
        layer = params["bottleneck"]
        return attributes * jnp.exp(layer["log_scale"])[None, :] + layer["offset"][None, :]

    def fold(self, params: Params) -> Params:
        """The parameters with every layer's rescaling stored, once for all calls that use them.

        Not for training, which is refused: with a stored rescaling, a trained kernel could enlarge differences.
        """
        return fold(params)

    def lipschitz_bound(self, params: Params) -> tuple[float, str]:
        """L, and how it is known."""
        bounds = [lipschitz_of(layer) for layer in layers(fold(params))]
        how = f"product of the bounds of {len(bounds)} AOL and SLL layers, in float64 from their kernels"
        return math.prod(bounds), how

    def encoder_rounding(self, params: Params, image_shape: tuple[int, int, int]) -> float:
        """See `spectra_jax.encoder_rounding`."""
        folded = fold(params)
        at, per_unit = map(float, _encoder_rounding(self, folded, image_shape))
        # Stored rescalings may be any numbers: a layer enlarges what comes to it, distances and errors alike.
        enlarged = math.prod(max(lipschitz_of(layer), 1.0) for layer in layers(folded))
        from_grey = math.sqrt(math.prod(image_shape)) / 2
        # The computed inputs of a layer are farther apart by the errors of both: the bound stands on either side.
        kept = 1 - 2 * enlarged * per_unit
        return enlarged * (at + per_unit * enlarged * from_grey) / kept if kept > 0 else math.inf

    @property
    def _last(self) -> AOL:
        return AOL(self.num_attributes)


@contextmanager
def _of_their_size(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Names the images where flax names a parameter that does not fit them."""
    try:
        yield
    except ScopeParamShapeError as error:
        raise ValueError(
            f"images has shape {shape}; expected the size for which the parameters of model {name!r} were initialised: "
            "resize the images, or call init with their shape"
        ) from error


@partial(jax.jit, static_argnums=(0, 2))
def _encoder_rounding(model: LipschitzModel, params: Params, image_shape: tuple[int, int, int]) -> list[Array]:
    """The sums over the layers of what rounding does at a grey image, and of what each unit of distance to it adds."""
    dtype = params["head"]["weights"].dtype
    grey = jnp.full((1, *image_shape), 0.5, dtype)
    with _of_their_size(model.name, grey.shape):
        features, left = model.backbone.apply({"params": params["backbone"]}, grey, mutable=[ROUNDING])
    rows = cast(Array, features)[:, None, None, :]
    _, last = model._last.apply({"params": params["bottleneck"]}, rows, mutable=[ROUNDING])
    first = Rounding(jnp.zeros(1, dtype), jnp.asarray(rounding_of(1, dtype), dtype))  # that of taking the grey off
    layers = jax.tree.leaves((left, last), is_leaf=lambda leaf: isinstance(leaf, Rounding))
    return [jnp.sum(jnp.stack([jnp.max(part) for part in parts])) for parts in zip(first, *layers, strict=True)]


def build(
    *,
    num_attributes: int,
    num_classes: int,
    head_bias: bool = False,
    stem: Sequence[int] = (32,),
    widths: Sequence[int] = (64, 128, 128),
    blocks: Sequence[int] = (3, 3, 2),
    features: int = 512,
    dense_blocks: int = 2,
) -> Model:
    """The Lipschitz network; its parameters are tied to the size of the images, like those of "linear".

    Args:
        num_attributes, num_classes, head_bias: see `build_model`.
        stem: channels inside each layer at full resolution.
        widths: channels of the stages, at a quarter, an eighth, ... of the resolution.
        blocks: residual layers of each stage.
        features: width of the last layers before the attributes.
        dense_blocks: how many of those.

    Raises:
        ValueError: not a number of blocks for each width, or a number that is too small.
    """
    if len(widths) != len(blocks) or not widths:
        raise ValueError(f"blocks is {tuple(blocks)}; expected a number for each of the widths {tuple(widths)}")
    sizes = {"stem": stem, "widths": widths, "features": (features,), "blocks": blocks, "dense_blocks": (dense_blocks,)}
    for name, values in sizes.items():
        least = 0 if "blocks" in name else 1
        if min(values, default=least) < least:
            raise ValueError(f"{name} goes down to {min(values)}; expected numbers of at least {least}")
    backbone = LipschitzCNN(tuple(stem), tuple(widths), tuple(blocks), features, dense_blocks)
    return LipschitzModel(
        "lipschitz_cnn", num_attributes, num_classes, backbone, image_size=64, min_image_size=8, head_bias=head_bias
    )
