"""The options of attacks; imports nothing heavy."""

from dataclasses import dataclass

from experiments.cli.command import UserError
from experiments.cli.options import Seed
from experiments.counterfactuals.options import InversionOptions

NEAREST = InversionOptions(method="nearest", refine_steps=20)  # the smallest change of the image, as Foolbox wants it


@dataclass(frozen=True)
class AttackConfig:
    """What is attacked, and how hard.

    Attributes:
        num_images: number of test images, the same for all runs; misclassified ones count as lost and are not attacked.
        l2_radii: radii of L2 projected gradient descent, Euclidean over all pixels and channels in [0, 1].
        linf_levels: radii of L-infinity projected gradient descent, in grey levels of 255.
        pgd_steps: steps of either projected gradient descent.
        ddn_steps: steps of DDN (Rony et al., 2019), which looks for the smallest L2 change.
        carlini_steps: steps in each of the 5 searches of Carlini and Wagner's L2 attack; 0 skips the attack.
        nearest: also attack with this library's own search.
        boundary_steps: steps of the Boundary attack (Brendel et al., 2018), which sees only the predicted class and
            is not misled by meaningless gradients; 0 skips the attack, and about 2,000 give a meaningful result.
        batch_size: number of images attacked together.
        image_seed: seed of the choice of images.
    """

    num_images: int = 128
    l2_radii: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    linf_levels: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pgd_steps: int = 40
    ddn_steps: int = 100
    carlini_steps: int = 100
    nearest: bool = True
    boundary_steps: int = 0
    batch_size: int = 32
    image_seed: Seed = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "pgd_steps", "ddn_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        for name in ("carlini_steps", "boundary_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")
        for name in ("l2_radii", "linf_levels"):
            radii = getattr(self, name)
            if not radii or min(radii) <= 0 or list(radii) != sorted(set(radii)):
                raise UserError(f"--{name.replace('_', '-')} {radii}: expected positive numbers in increasing order")
