"""The paper's linear encoder: attributes are a linear function of the pixels."""

from flax import linen as nn
from jaxtyping import Array, Float

from spectra_jax.models._base import Model


class FlatPixels(nn.Module):
    """Pixels scaled to [-1, 1] and flattened; no parameters."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b f"]:
        return (2 * images - 1).reshape(images.shape[0], -1)


def build(*, num_attributes: int, num_classes: int, head_bias: bool = False) -> Model:
    """The linear encoder. Tied to one image size; for baselines and exact tests, not for accuracy."""
    return Model("linear", num_attributes, num_classes, FlatPixels(), image_size=32, head_bias=head_bias)
