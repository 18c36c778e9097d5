"""The claims of the paper as numbers: each with its controls, intervals and a verdict, for several runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli.command import UserError, check_run_folder, command, run_main
from experiments.cli.options import Seed
from experiments.paper_claims.options import ClaimConfig
from spectra_jax.logging import Console, duration, write_json


@dataclass(frozen=True)
class Args:
    """Measures the claims of Sections 5.2 and 5.3 on trained runs, for example a standard and a robust one.

    python -m experiments.paper_claims --run-dirs STANDARD ROBUST --witness-dirs OTHER_SEED --out runs/claims
        for each run, 500 class flips and, for each of the 312 attributes, 2 images in which it is raised and lowered.

    Every run gets class flips towards the nearest and towards random classes, and pictures in which a single attribute
    is meant to move. Each claim is compared with its controls; the page states the rule by which it holds, fails or is
    undecided. Writes claims.csv, atlas.csv and atlas.parquet (one row per run and attribute), summary.json and
    report.html, and the pictures under runs/. Repeating the command, even with more runs, computes nothing twice.

    Attributes:
        run_dirs: run folders of experiments.train, to be compared side by side.
        out: the folder to write to.
        witness_dirs: independently trained runs on the same data (another seed), which judge whether an attribute
            moves; without one, this control of 5.2.1 is reported as missing.
        masks: folder of data_prep.synthetic_birds that the runs' pictures come from, with their exact parts; by default
            the cached folder if it fits, else discs around CUB's part points.
        seed: seed of all choices.
        quiet: show only errors.
    """

    run_dirs: tuple[Path, ...]
    out: Path
    claims: Annotated[ClaimConfig, tyro.conf.arg(name="")] = field(default_factory=ClaimConfig)
    witness_dirs: tuple[Path, ...] = ()
    masks: Path | None = None
    seed: Seed = 0
    quiet: bool = False

    def check(self) -> None:
        for run_dir in (*self.run_dirs, *self.witness_dirs):
            check_run_folder(run_dir)

    def __post_init__(self) -> None:
        if not self.run_dirs:
            raise UserError("--run-dirs: name at least one run folder")


def paper_claims(args: Args) -> Path:
    """Measures all runs and writes the out folder; returns the report."""
    from experiments.paper_claims.page import claim_words, write_page, write_tables
    from experiments.paper_claims.solve import claims_of, run_names
    from experiments.runs.folder import SUMMARY, owned_folder

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    names = run_names(args.run_dirs)
    with owned_folder(args.out, "experiments.paper_claims", {}) as out:  # other runs may be added later
        runs = []
        for name, run_dir in zip(names, args.run_dirs, strict=True):
            witnesses = list(args.witness_dirs)
            found = claims_of(name, run_dir, out, args.claims, witnesses, masks=args.masks, seed=args.seed,
                              console=console)  # fmt: skip
            runs.append(found)
            for claim, word in claim_words(found).items():
                console.say(f"{name}, {claim}: {word}")
        write_tables(runs, out)
        seconds = time.monotonic() - began
        summary: dict[str, float | str] = {}
        for run in runs:
            summary |= {f"{run.name}/{key}": value for key, value in run.figures.items()}
            summary |= {f"{run.name}/{claim}/verdict": word for claim, word in claim_words(run).items()}
            for verdict in run.verdicts:
                key = f"{run.name}/{verdict.claim}/{verdict.name}"
                summary |= {f"{key}/{part}": getattr(verdict, part) for part in
                            ("pairs", "value", "control", "difference", "low", "high", "verdict")}  # fmt: skip
        write_json(out / SUMMARY, summary | {"seconds": seconds})
        console.say(f"{len(runs)} runs in {duration(seconds)}")
        return write_page(runs, out / "report.html", config=args.claims, seed=args.seed, seconds=seconds)


main = command(Args, "paper_claims", paper_claims)

if __name__ == "__main__":
    run_main(main)
