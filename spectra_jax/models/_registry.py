"""From an architecture's name to a Model."""

import inspect
from collections.abc import Callable
from typing import Any

from spectra_jax.models import cnn, deep_cnn, efficientnet_lite, linear, lipschitz_cnn, part_cnn, resnet
from spectra_jax.models._base import Model

BUILDERS: dict[str, Callable[..., Model]] = {
    "linear": linear.build,
    "cnn": cnn.build,
    "deep_cnn": deep_cnn.build,
    "resnet": resnet.build,
    "efficientnet_lite0": efficientnet_lite.build,
    "lipschitz_cnn": lipschitz_cnn.build,
    "part_cnn": part_cnn.build,
}


def build_model(name: str, *, num_attributes: int, num_classes: int, **options: Any) -> Model:
    """Builds an attribute-bottleneck classifier by name.

    Args:
        name: "linear", "cnn", "deep_cnn", "resnet", "efficientnet_lite0", "lipschitz_cnn" or "part_cnn".
        num_attributes: n, the width of the bottleneck.
        num_classes: c.
        **options: of that architecture (its `build` function documents them); all take head_bias=False.

    Returns:
        The model; parameters come from its `init` and, where it applies, `load_pretrained`.

    Raises:
        ValueError: an unknown name or option, naming the choices.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(BUILDERS)}")
    known = [option for option in inspect.signature(BUILDERS[name]).parameters if not option.startswith("num_")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)} for model {name!r}; it takes {', '.join(known)}")
    return BUILDERS[name](num_attributes=num_attributes, num_classes=num_classes, **options)
