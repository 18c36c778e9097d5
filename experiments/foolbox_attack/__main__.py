"""Attacks test images of a run with SPECTRA and with DDN, side by side through Foolbox's interface."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.attacks.options import NEAREST
from experiments.cli.command import check_run_folder, command, run_main
from experiments.counterfactuals.options import InversionOptions


@dataclass(frozen=True)
class Args:
    """Attacks test images of a run with SPECTRA and with Foolbox's DDN, through Foolbox's interface, and compares them.

    python -m experiments.foolbox_attack --run-dir RUN
        3 minutes on 2 busy CPU cores.
    Needs the extra "bench". Never compare with L2FMNAttack of Foolbox 3.3.4: its projection divides norms by
    themselves, so that its images are not within the distance it reports.

    Attributes:
        run_dir: folder of a trained run.
        num_images: number of test images, spread evenly over the test split.
        epsilon: L2 radius for the last column.
    """

    run_dir: Path
    num_images: int = 32
    epsilon: float = 0.5
    inversion: Annotated[InversionOptions, tyro.conf.arg(name="")] = NEAREST

    def check(self) -> None:
        check_run_folder(self.run_dir)


def attack(args: Args) -> None:
    """Runs both attacks and prints how far each went."""
    from experiments.foolbox_attack.measure import compare

    compare(args.run_dir, args.num_images, args.epsilon, args.inversion)


main = command(Args, "foolbox_attack", attack)

if __name__ == "__main__":
    run_main(main)
