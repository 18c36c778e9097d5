"""The options of attacks; light imports only."""

from dataclasses import dataclass

from experiments.cli.command import UserError
from experiments.cli.options import Seed
from experiments.counterfactuals.options import InversionOptions

NEAREST = InversionOptions(method="nearest", refine_steps=20)  # the smallest change of the image, as Foolbox wants it


@dataclass(frozen=True)
class AttackConfig:
    """What is attacked, and how hard.

    Attributes:
        num_images: test images, the same for all runs; those named wrongly count as lost and are not attacked.
        l2_radii: for L2 projected gradient descent, Euclidean over all pixels and channels in [0, 1].
        linf_levels: for L-infinity projected gradient descent, in grey levels of 255.
        pgd_steps: of both.
        ddn_steps: of DDN (Rony et al., 2019), which looks for the smallest L2 change.
        carlini_steps: in each of 5 searches of Carlini and Wagner's L2 attack; 0 leaves it out.
        nearest: attack with this library's own search too.
        boundary_steps: of the Boundary attack (Brendel et al., 2018), which sees nothing but the class and is not
            led astray by meaningless gradients; 0 leaves it out, and 2,000 say something.
        batch_size: images attacked together.
        image_seed: of the choice of images.
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
                raise UserError(f"--{name.replace('_', '-')} {radii}: expected positive numbers in rising order")
