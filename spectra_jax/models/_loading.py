"""From PyTorch state dicts to the parameters of convolution + BatchNorm layers."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

BATCH_NORM = {"scale": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}


def load_conv_batch_norm(
    backbone: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, np.ndarray],
    torch_names: Mapping[str, tuple[str, str]],
) -> dict[str, dict[str, Any]]:
    """Fills `ConvFrozenBatchNorm` layers from a state dict. Tensors it does not need (a classifier) are ignored.

    Args:
        backbone: parameters by layer, of which only shape and dtype are used.
        tensors: the state dict.
        torch_names: for each layer, the names of its convolution and of its BatchNorm in the state dict.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """

    def fetch(name: str, like: Any, transpose: bool = False) -> Any:
        if name not in tensors:
            raise ValueError(f"the weight file has no tensor {name!r}; is it of this architecture?")
        value = np.asarray(tensors[name])
        if transpose and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        if value.shape != like.shape:
            raise ValueError(f"tensor {name!r} has shape {value.shape} in our layout, the model needs {like.shape}")
        return jnp.asarray(value, like.dtype)

    loaded = {}
    for layer, parameters in backbone.items():
        convolution, norm = torch_names[layer]
        loaded[layer] = {"kernel": fetch(f"{convolution}.weight", parameters["kernel"], transpose=True)}
        for ours, theirs in BATCH_NORM.items():
            loaded[layer][ours] = fetch(f"{norm}.{theirs}", parameters[ours])
    return loaded
