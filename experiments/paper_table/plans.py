"""The rows of the paper's table: how each architecture is trained for it, and with which pairs it is attacked."""

import dataclasses
from typing import Any, Literal, NamedTuple

from experiments.counterfactuals.options import InversionOptions, PairConfig
from spectra_jax.training import PRESETS, TrainConfig

Variant = Literal["plain", "stability"]
VARIANTS: tuple[Variant, ...] = ("plain", "stability")


class Plan(NamedTuple):
    """How one architecture is trained for the table.

    Attributes:
        train: the preset with the table's changes; every variant and seed shares it.
        stability: what the stability-trained variant changes in it.
        training, attack: rough minutes on two free CPU cores, for the estimate of the time left.
        is_cheap: whether it is trained with several seeds.
        batch_size: pairs inverted together, at most. A batch takes as long as its slowest image, so where the encoder
            is as fast with two images as with eight, two it is.
    """

    train: TrainConfig
    stability: dict[str, Any]
    training: float
    attack: float
    is_cheap: bool = False
    batch_size: int = 8


def _from_preset(model: str, **changes: Any) -> TrainConfig:
    # Every model weighs rare attributes up: without that, balanced attribute accuracy compares thresholds, not models.
    return dataclasses.replace(PRESETS[model], attribute_weighting="balanced", **changes)


# A network from scratch collapses to one class under the logarithm, whose pull never ends; the hinge is content at a
# relative margin of 0.1.
_HINGE = {"lambda_stability": 1.0, "stability_form": "hinge"}
PLANS: dict[str, Plan] = {
    "linear": Plan(_from_preset("linear"), _HINGE, 0.5, 0.5, is_cheap=True),
    "cnn": Plan(_from_preset("cnn"), _HINGE, 1.5, 1.0),
    "deep_cnn": Plan(_from_preset("deep_cnn", epochs=12), _HINGE, 2.0, 1.5),
    # At 64 pixels the last stage is 2 x 2 with 512 channels, where XLA's convolution on a CPU takes many times as long
    # as at 3 x 3; 72 pixels avoid that.
    "resnet": Plan(_from_preset("resnet", epochs=8, image_size=72, batch_size=32), _HINGE, 5.0, 2.0),
    "efficientnet_lite0": Plan(
        _from_preset("efficientnet_lite0"),
        {"lambda_stability": 0.1, "stability_form": "log_relative"},
        training=1.0,
        attack=6.0,
        is_cheap=True,
        batch_size=2,
    ),
}


def default_pairs() -> PairConfig:
    """200 pairs; half as many steps as elsewhere, each twice as large, so that the table takes an hour."""
    return PairConfig(
        num_pairs=200, inversion=InversionOptions(step_size=0.01, max_steps=100, margin=0.2, shrink_steps=8)
    )
