"""The table that the paper never printed: five architectures, plain and stability-trained, measured the same way."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes

from experiments.cli.command import UserError, command, run_main
from experiments.cli.options import DataConfig, Seed
from experiments.counterfactuals.options import PairConfig
from experiments.paper_table.plans import PLANS, VARIANTS, Variant, default_pairs
from experiments.training.train import TrainArgs, train
from spectra_jax.logging import Console, duration


@dataclass(frozen=True)
class Args:
    """Trains every model plain and with the stability loss, attacks all in the same way, and writes one table.

    python -m experiments.paper_table --data-dir ../shared/cub --out runs/paper_table
        18 trainings, 10 of them attacked with 200 (image, target) pairs each; about an hour on 2 free CPU cores.
        The class accuracy is 0.90 for efficientnet_lite0, 0.43 for cnn, 0.37 for deep_cnn, 0.29 for
        resnet and 0.23 for linear.

    python -m experiments.paper_table --out runs/table --models linear cnn --seeds 1 --num-pairs 24
        synthetic birds, a part of the table; about 4 minutes on 2 free CPU cores.

    Writes table.md, table.csv, summary.json ("cnn/stability/class_accuracy"), metrics.jsonl (one record per row) and
    report.html, and the folder of every training. The tables and summaries are updated after each row. An interrupted
    command, when repeated, continues from the last checkpoint or the last batch of pairs.

    Attributes:
        out: the folder to write to.
        models: rows of the table.
        variants: plain, stability or both.
        seeds: number of training seeds for the cheap models (linear, efficientnet_lite0); the others have one.
        epochs_scale: factor on the epochs of every model.
        lambda_stability: weight of the stability loss; by default each model's own.
        foolbox_images: number of test images that Foolbox attacks (extra "bench"); 0 for none.
        pair_seed: seed of the choice of images and targets, the same for all rows.
        quiet: show only errors.
    """

    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    pairs: Annotated[PairConfig, tyro.conf.arg(name="")] = field(default_factory=default_pairs)
    out: Path = Path("runs/paper_table")
    models: tuple[str, ...] = tuple(PLANS)
    variants: tuple[Variant, ...] = VARIANTS
    seeds: int = 3
    epochs_scale: float = 1.0
    lambda_stability: float | None = None
    foolbox_images: int = 64
    pair_seed: Seed = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in PLANS]
        if unknown or not self.models or not self.variants:
            raise UserError(f"--models {' '.join(unknown)}: choose among {', '.join(PLANS)}; --variants: at least one")
        if self.seeds < 1 or self.foolbox_images < 0 or not 0 < self.epochs_scale < float("inf"):
            raise UserError("expected --seeds 1 or more, --foolbox-images 0 or more and --epochs-scale positive")


def paper_table(args: Args) -> tuple[Path, int]:
    """Makes all rows that are missing; returns the out folder and the exit code."""
    from experiments.paper_table.measure import (
        Budget,
        Pace,
        has_foolbox,
        is_trained,
        list_rows,
        measure_row,
        row_config,
        row_identity,
        save_row,
        stored_row,
    )
    from experiments.paper_table.page import write_report, write_results
    from experiments.runs.folder import owned_folder
    from experiments.runs.loading import prepare_data

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    dataset = prepare_data(args.data, console=console)
    budget = Budget(args.pairs, args.pair_seed, args.foolbox_images, args.epochs_scale, args.lambda_stability)
    rows = list_rows(args.models, args.variants, args.seeds)
    if args.foolbox_images and not has_foolbox():
        console.say("Foolbox is not installed (pip install '.[bench]'); its columns stay empty")
    options = {
        "rows": [row.folder for row in rows],
        "data": dataset.path.name,
        "budget": dataclasses.asdict(args.pairs),
    }
    options |= {name: getattr(args, name) for name in ("epochs_scale", "lambda_stability", "foolbox_images")}
    with owned_folder(args.out, "experiments.paper_table", options | {"pair_seed": args.pair_seed}) as out:
        pace, figures = Pace(rows, console), {}
        for place, row in enumerate(rows):
            folder, config = out / row.folder, row_config(row, budget, dataset)
            identity = row_identity(row, config, budget, dataset)
            stored = stored_row(folder, identity)
            if stored is None:
                pace.starts(place)
                if not is_trained(folder / "run", config, dataset):
                    run = TrainArgs(config, data=args.data, run_dir=folder / "run", evaluate_every=5, quiet=args.quiet)
                    _, code = train(run)
                    if code:
                        return out, code
                stored = measure_row(row, folder, folder / "run", budget, console=console)
                save_row(folder, identity, stored)
                pace.ends(place)
            figures[row] = stored
            write_results(out, figures, args.data, args.pairs)
        write_report(out, figures, dataset, args.data, args.pairs)
    console.say(f"done in {duration(time.monotonic() - began)}; open {(args.out / 'report.html').resolve().as_uri()}")
    return args.out, 0


main = command(Args, "paper_table", paper_table)

if __name__ == "__main__":
    run_main(main)
