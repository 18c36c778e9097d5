"""A small CNN that reads the attributes of a part at the place where it sees that part.

An attribute bottleneck that is read off the whole image may infer the colour of the nape from that of the crown, as
long as the two go together in the training data. Here a map of each part, trained on part points with
`losses.part_loss`, says where the part is, and its attributes get only the features of that place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spectra_jax.models._base import Model, Params
from spectra_jax.models._layers import ConvGroupNorm, check_widths, pool_to_grid

Regions = tuple[tuple[int, ...], ...]
PLACES = "places"  # the collection in which a backbone leaves where it saw the regions
_GRID = 4  # side of the grid of averages that attributes of the whole object are read from


class PartCNN(nn.Module):
    """Features at a quarter of the side, and where each region is, looked for at an eighth.

    What is read sees 17 pixels around its place; where it is read may depend on the whole image.

    Attributes:
        widths: channels of the two strided layers, of the features, and of the layers that look for the regions.
        num_regions: r.
    """

    widths: tuple[int, ...]
    num_regions: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        """Features, region by region and then of the whole; leaves the maps' log-probabilities in PLACES."""
        first, second, third, last = self.widths
        x = 4 * images - 2
        x = nn.relu(ConvGroupNorm(first, kernel_size=5, stride=2)(x))
        x = nn.relu(ConvGroupNorm(second, stride=2)(x))
        local = nn.relu(ConvGroupNorm(third)(x))
        wide = nn.relu(ConvGroupNorm(last, stride=2)(local))
        wide = nn.relu(ConvGroupNorm(last)(wide))
        finer = jax.image.resize(wide, (*local.shape[:3], last), "linear")
        seen = nn.relu(ConvGroupNorm(third, kernel_size=1)(jnp.concatenate([local, finer], axis=-1)))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (third, self.num_regions), jnp.float32)
        scores = jnp.einsum("bhwd,dr->brhw", seen, kernel, precision=jax.lax.Precision.HIGHEST)
        log_places = jax.nn.log_softmax(scores.reshape(*scores.shape[:2], -1), axis=-1).reshape(scores.shape)
        self.sow(PLACES, "log", log_places)
        read = jnp.einsum("brhw,bhwd->brd", jnp.exp(log_places), local, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([read.reshape(len(images), -1), pool_to_grid(wide, _GRID)], axis=-1)


@dataclass(frozen=True)
class PartModel(Model):
    """A `Model` whose attributes are read part by part.

    Attributes:
        regions: r sets of parts, positions among the part points of the data; where any of them is visible, the region
            is there.
        attribute_regions: (n,) the region each attribute is read from, -1 for the whole image.
    """

    regions: Regions = ()
    attribute_regions: tuple[int, ...] = ()

    def bottleneck(
        self, params: Params, features: Float[Array, "b f"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b n"]:
        """The unnormalised attributes (b, n) of features (b, f), each of those of its own region."""
        layer = params["bottleneck"]
        kernel = layer["kernel"] * jnp.asarray(self._reads(len(layer["kernel"])), layer["kernel"].dtype)
        return super().bottleneck({**params, "bottleneck": layer | {"kernel": kernel}}, features, key=key)

    def log_places(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b r h w"]:
        """Log-probability that each region is at each place of a map with a quarter of the image's side."""
        return self.encode_with_places(params, images)[1]

    def encode_with_places(
        self, params: Params, images: Float[Array, "b h w 3"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b n"], Float[Array, "b r h w"]]:
        """`encode` and `log_places` at the cost of one of them, gradients included."""
        self._check_images(images)
        images = images.astype(params["head"]["weights"].dtype)
        features, left = self.backbone.apply({"params": params["backbone"]}, images, mutable=[PLACES])
        return self.bottleneck(params, cast(Array, features), key=key), left[PLACES]["log"][0]

    def _reads(self, num_features: int) -> Bool[np.ndarray, "f n"]:
        """Which attribute reads which feature."""
        width = cast(Any, self.backbone).widths[2]
        of_parts = np.repeat(np.arange(len(self.regions)), width)
        region = np.concatenate([of_parts, np.full(num_features - len(of_parts), -1)])
        return region[:, None] == np.asarray(self.attribute_regions)[None, :]


def build(
    *,
    num_attributes: int,
    num_classes: int,
    regions: Regions,
    attribute_regions: Sequence[int],
    head_bias: bool = False,
    widths: Sequence[int] = (16, 48, 96, 128),
    dropout_rate: float = 0.0,
) -> PartModel:
    """The part-aware CNN.

    Args:
        num_attributes: n.
        num_classes: c.
        regions: r sets of parts, positions among the part points of the data.
        attribute_regions: (n,) the region each attribute is read from, -1 for the whole image.
        head_bias: whether the head has a bias.
        widths: channels (multiples of 8) of the two strided layers, of the features, and of the search for the parts.
        dropout_rate: share of the features dropped in training.

    Raises:
        ValueError: not 4 widths, no region, or not a region for each attribute.
    """
    if len(widths) != 4:
        raise ValueError(f"model 'part_cnn' has 4 widths, got {len(widths)}")
    regions, chosen = tuple(tuple(region) for region in regions), tuple(int(region) for region in attribute_regions)
    if not regions or not all(regions):
        raise ValueError(f"regions is {regions}; expected at least one, each with at least one part")
    if len(chosen) != num_attributes or not all(-1 <= region < len(regions) for region in chosen):
        raise ValueError(
            f"attribute_regions has {len(chosen)} entries from {min(chosen, default=0)} to {max(chosen, default=0)}; "
            f"expected one for each of {num_attributes} attributes, from -1 to {len(regions) - 1}"
        )
    return PartModel(
        "part_cnn",
        num_attributes,
        num_classes,
        PartCNN(check_widths(widths), len(regions)),
        image_size=64,
        min_image_size=8 * _GRID,
        dropout_rate=dropout_rate,
        head_bias=head_bias,
        regions=regions,
        attribute_regions=chosen,
    )
