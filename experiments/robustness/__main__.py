"""How much of a model's accuracy survives attacks written by others: the check on every claim of robustness."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.attacks.options import AttackConfig
from experiments.cli.command import UserError, command, run_main
from experiments.cli.options import OwnModel, check_subject
from spectra_jax.logging import Console, duration

if TYPE_CHECKING:
    from experiments.robustness.measure import Attacked


@dataclass(frozen=True)
class Args:
    """Attacks the test images of trained runs with Foolbox and compares how many the models still classify correctly.

    python -m experiments.train --model cnn --run-dir runs/plain
    python -m experiments.train --model cnn --run-dir runs/stability --lambda-stability 1 --stability-form hinge
    python -m experiments.train --model cnn --run-dir runs/robust --adversarial-radius 1
    python -m experiments.train --model lipschitz_cnn --run-dir runs/lipschitz
    python -m experiments.robustness --run-dirs runs/plain runs/stability runs/robust runs/lipschitz --out DIR
    python -m experiments.robustness --encoder my_model:encode --head head.safetensors --images x.npz --out DIR

    Needs the extra "bench". Every run is attacked on the same images with L2 and L-infinity projected gradient
    descent, DDN, Carlini and Wagner's attack, and this library's own search. The other runs are compared with the
    first one, and also evaluated on the images that DDN found for it. Certified distances appear beside the attacks
    where the model has a proof; CANARY's metrics of DDN's images have their own table. Writes table.md, summary.json,
    metrics.jsonl and report.html. An interrupted command continues where it stopped when it is repeated.

    Attributes:
        run_dirs: folders of finished trainings on the same data set.
        names: what to call the runs; by default the names of their folders.
        out: the folder to write to.
        quiet: show only errors.
    """

    run_dirs: tuple[Path, ...] = ()
    own: Annotated[OwnModel, tyro.conf.arg(name="")] = field(default_factory=OwnModel)
    attack: Annotated[AttackConfig, tyro.conf.arg(name="")] = field(default_factory=AttackConfig)
    names: tuple[str, ...] = ()
    out: Path = Path("runs/robustness")
    quiet: bool = False

    def check(self) -> None:
        for run_dir in self.run_dirs or (None,):
            check_subject(run_dir, self.own, option="--run-dirs")

    def __post_init__(self) -> None:
        count = len(self.run_dirs) or 1
        if self.names and len(self.names) != count:
            raise UserError(f"--names: {len(self.names)} given; expected {count}, one per model.")
        if len(set(self.run_names)) < count:
            names = ", ".join(self.run_names)
            raise UserError(f"The run names {names} are not distinct; give each run its own name with --names.")

    @property
    def run_names(self) -> tuple[str, ...]:
        if self.names or not self.run_dirs:
            return self.names or (str(self.own.encoder),)
        return tuple(Path(os.path.abspath(path)).name for path in self.run_dirs)


def robustness(args: Args) -> Path:
    """Attacks every run and writes the results; returns the out folder."""
    from experiments.robustness.canary import add_scores, canary_figures
    from experiments.robustness.measure import attack_run, compare, figures, transferred
    from experiments.robustness.page import TABLE, write_report, write_results
    from experiments.runs.folder import owned_folder
    from experiments.runs.loading import load_run
    from experiments.runs.own_model import open_own

    began, console = time.monotonic(), Console(quiet=args.quiet)
    loaded = [load_run(path) for path in args.run_dirs] or [open_own(args.own)[0]]
    runs = dict(zip(args.run_names, loaded, strict=True))
    first = next(iter(runs.values()))
    for name, run in runs.items():
        if run.dataset.path.name != first.dataset.path.name:
            raise UserError(f"{name} and {args.run_names[0]} were trained on different data; compare them separately.")
    with owned_folder(args.out, "experiments.robustness", {}) as out:
        attacked: dict[str, Attacked] = {}
        found: dict[str, dict[str, float]] = {}
        differences: dict[str, dict[str, float]] = {}
        for name, run in runs.items():
            attacked[name] = attack_run(run, args.attack, out, name=name, console=console)
            found[name] = figures(attacked[name], args.attack)
            if run is not first:
                found[name] |= transferred(attacked[args.run_names[0]], run, args.attack)
                differences[name] = compare(attacked[args.run_names[0]], attacked[name], args.attack)
            seconds = time.monotonic() - began
            write_results(out, found, differences, args.attack, seconds=seconds)
        for name, one in attacked.items():  # last, as each run's images are shown to all the others
            found[name] |= canary_figures(name, one, runs, args.attack)
        add_scores(found)
        seconds = time.monotonic() - began
        write_results(out, found, differences, args.attack, seconds=seconds)
        write_report(out, attacked, found, differences, args.attack, first.info, seconds=seconds)
    console.say((args.out / TABLE).read_text(encoding="utf-8"))
    console.say(f"done in {duration(seconds)}; open {(args.out / 'report.html').resolve().as_uri()}")
    return args.out


main = command(Args, "robustness", robustness)

if __name__ == "__main__":
    run_main(main)
