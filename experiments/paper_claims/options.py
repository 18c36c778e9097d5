"""What the claims are measured on; imports nothing heavy."""

from dataclasses import dataclass

from experiments.cli.command import UserError
from experiments.counterfactuals.options import InversionOptions

FLIPS = InversionOptions(method="gauss_newton", margin=0.2, max_steps=60, shrink_steps=8)
SINGLES = InversionOptions(method="nearest", max_steps=60, refine_steps=4)


@dataclass(frozen=True)
class ClaimConfig:
    """What the claims are measured on.

    Attributes:
        num_pairs: number of class flips (test image, target), half towards the nearest class, half towards a random
            one.
        images_per_attribute: test images per attribute; each is changed to raise and to lower the attribute.
        groups: only move attributes of these groups, for example has_nape_color; all if not given.
        step: number of standard deviations that an attribute is asked to move.
        few_pixel_pairs: number of flips whose changed pixels are pruned, at most.
        random_weights: also make the requests to a network with random weights, a control of 5.2.2.
        margin: lead of the target in a flip's request, in logits.
        batch_size: number of flips searched together.
        inversion: how to search for the pictures of flips.
        single: how to search for the pictures in which one attribute moves.
    """

    num_pairs: int = 500
    images_per_attribute: int = 2
    groups: tuple[str, ...] = ()
    step: float = 1.0
    few_pixel_pairs: int = 500
    random_weights: bool = True
    margin: float = 1.0
    batch_size: int = 64
    inversion: InversionOptions = FLIPS
    single: InversionOptions = SINGLES

    def __post_init__(self) -> None:
        for name in ("num_pairs", "images_per_attribute", "few_pixel_pairs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not 0 < self.step < float("inf"):
            raise UserError(f"--step {self.step:g}: expected a positive number of standard deviations")
        if not 0 <= self.margin < float("inf"):
            raise UserError(f"--margin {self.margin:g}: expected a number of logits, 0 or more")
