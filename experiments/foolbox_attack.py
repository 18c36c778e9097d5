"""Foolbox and SPECTRA, both ways: our classifiers as Foolbox models, our search for images as a Foolbox attack."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments._command import check_run_folder, parse, run_main
from spectra_jax import InversionConfig
from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from experiments._foolbox import BottleneckModel as BottleneckModel
    from experiments._foolbox import SpectraAttack as SpectraAttack
    from experiments._foolbox import foolbox as foolbox
    from experiments._foolbox import foolbox_model as foolbox_model
else:
    import_on_use(__name__)

NEAREST = InversionConfig(method="nearest", refine_steps=20)  # the smallest change of the image, as Foolbox wants it


@dataclass(frozen=True)
class Args:
    """Attacks test images of a run with SPECTRA and with Foolbox's DDN, through Foolbox's interface, and compares.

    python -m experiments.foolbox_attack --run-dir RUN
        3 minutes on 2 busy CPU cores.
    Needs the extra "bench". Never compare with L2FMNAttack of Foolbox 3.3.4: its projection divides norms by
    themselves, so that its images are not within the distance it reports.

    Attributes:
        run_dir: folder of a trained run.
        num_images: test images, spread evenly over the test split.
        epsilon: L2 radius for the last column.
    """

    run_dir: Path
    num_images: int = 32
    epsilon: float = 0.5
    inversion: Annotated[InversionConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: NEAREST)

    def check(self) -> None:
        check_run_folder(self.run_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "foolbox_attack")
    from experiments._foolbox import compare
    from experiments._run import use_compilation_cache

    use_compilation_cache()
    compare(args)
    return 0


if __name__ == "__main__":
    run_main(main)
