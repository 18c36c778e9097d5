"""Counterfactual images of a trained run: chosen pairs, the images found, and a report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from experiments.cli.command import command, run_main
from experiments.cli.options import OwnModel, Seed, check_subject
from experiments.counterfactuals.options import PairConfig
from spectra_jax.logging import Console, MetricsFile, duration, write_json

if TYPE_CHECKING:
    from experiments.counterfactuals.find import Counterfactuals


@dataclass(frozen=True)
class Args:
    """Finds images that realise counterfactuals of a trained run's test images.

    python -m experiments.invert --run-dir runs/quickstart-synthetic-cnn-seed0 --out runs/invert
        24 pairs at 64 pixels; takes a minute on 2 CPU cores, and nearly all reach their target.

    python -m experiments.invert --run-dir RUN --out DIR --source CLASS --targets CLASS
        images of one class towards another.

    Writes counterfactuals.npz, summary.json, metrics.jsonl (one record per pair) and report.html. Repeating the command
    keeps the pairs already found; other options start afresh.

    Attributes:
        out: the folder to write to.
        run_dir: the run folder of experiments.train or experiments.quickstart.
        seed: seed of the choice of images and of random targets.
        quiet: show only errors.
    """

    out: Path
    run_dir: Path | None = None
    own: Annotated[OwnModel, tyro.conf.arg(name="")] = field(default_factory=OwnModel)
    pairs: Annotated[PairConfig, tyro.conf.arg(name="")] = field(default_factory=PairConfig)
    seed: Seed = 0
    quiet: bool = False

    def check(self) -> None:
        check_subject(self.run_dir, self.own)


def invert_run(args: Args) -> Path:
    """Finds the images and writes the out folder; returns the report."""
    from experiments.counterfactuals.find import choose_pairs, find_counterfactuals, pair_metrics, pair_options
    from experiments.reporting.finding import add_finding
    from experiments.reporting.pages import (
        add_answers,
        add_canary,
        add_changes,
        add_counterfactuals,
        canary_figures,
        counterfactual_cards,
        inversion_figures,
        inversion_metrics,
    )
    from experiments.runs.folder import METRICS, SUMMARY, owned_folder
    from experiments.runs.own_model import open_subject
    from experiments.runs.store import Store, write_arrays
    from spectra_jax.reporting import Report

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    run, attributes, labels = open_subject(args.run_dir, args.own)
    pairs = args.pairs.fitting(run.config.image_size, console=console)
    if args.run_dir is None and len(labels) < pairs.num_pairs:  # somebody's handful of images
        console.say(f"There are only {len(labels)} images; {len(labels)} pairs are searched, not {pairs.num_pairs}.")
        pairs = dataclasses.replace(pairs, num_pairs=len(labels))
    index, target = choose_pairs(run, attributes, labels, pairs, seed=args.seed)
    options = pair_options(run, pairs, args.seed, attributes, labels)
    with owned_folder(args.out, "experiments.invert", options) as out:
        found = find_counterfactuals(run, labels, index, target, pairs, Store(out / "pairs", options), console=console)
        write_arrays(out / "counterfactuals.npz", **found.arrays())
        spread = attributes.std(axis=0)
        measured = pair_metrics(run.model.head(run.params), found, spread)
        write_records(out / METRICS, found, measured)
        figures = inversion_figures(found, measured) | canary_figures(run.model.head(run.params), found)
        seconds = time.monotonic() - began
        write_json(out / SUMMARY, figures | {"seconds": seconds})

        report = Report(
            "SPECTRA counterfactual images",
            subtitle=f"{run.config.model} on {run.info.name}, search: {pairs.inversion.method}",
        )
        cards = counterfactual_cards(run, found, spread, measured)
        add_finding(report, run, found, figures, cards)
        report.headline(inversion_metrics(figures))
        add_counterfactuals(report, cards)
        report.fold_rest()
        add_answers(report, found)
        add_changes(report, figures)
        add_canary(report, figures)
        report.provenance(seed=args.seed, seconds=seconds, run=str(args.run_dir or args.own.encoder))
        console.say(f"{figures['invert/num_success']} of {len(found.index)} reached their target, {duration(seconds)}")
        return report.write(out / "report.html")


def write_records(path: Path, found: Counterfactuals, measured: dict[str, np.ndarray]) -> None:
    """One JSON line per pair, with the names of `Counterfactuals` and `pair_metrics`."""

    names = (
        "index",
        "label",
        "predicted",
        "target",
        "success",
        "survives_rounding",
        "num_steps",
        "reason",
        "psnr",
        "ssim",
    )
    records = MetricsFile(path)
    for row in range(len(found.index)):
        values = {name: getattr(found, name)[row] for name in names} | {k: v[row] for k, v in measured.items()}
        records.append({"step": row, "split": "test", **values})
    records.close()


main = command(Args, "invert", invert_run)

if __name__ == "__main__":
    run_main(main)
