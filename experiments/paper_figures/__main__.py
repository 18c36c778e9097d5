"""The six figures of the paper, redrawn on real birds with the request, the result and a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cli.command import UserError, check_file, check_run_folder, command, run_main
from experiments.cli.options import DataConfig
from experiments.paper_figures.cases import CASES, Case
from experiments.training.train import TrainArgs, train
from spectra_jax.logging import Console, MetricsFile, duration, write_json
from spectra_jax.training import PRESETS

MODEL = "efficientnet_lite0"


@dataclass(frozen=True)
class Args:
    """Redraws the figures of the paper with a trained run.

    python -m experiments.paper_figures --data-dir ../shared/cub --out runs/paper_figures
        trains efficientnet_lite0 first (6 minutes, features computed once), then about 3 minutes on 2 CPU cores. All
        six targets are reached; the few-pixels figure (11 of 50,176) holds, the other five turn out to be adversarial
        noise.

    python -m experiments.paper_figures --run-dir runs/efficientnet_lite0-cub-seed0 --out runs/paper_figures

    Each figure requests exactly the change of the paper: one attribute, on the correctly classified test image of the
    source class that needs the smallest change of it. If no change of that attribute alone reaches the target, the page
    names the classes that stand in the way and requests the next best change. Every verdict follows from the numbers by
    the rules at the end of the page. Writes metrics.jsonl (one record per figure), summary.json and report.html.
    Repeating the command keeps the figures already found.

    Attributes:
        out: the folder to write to.
        run_dir: a run folder of experiments.train; without it, a model is trained on --data-dir.
        data_dir: a CUB-200-2011 folder or archive to train on; only used without --run-dir.
        figures: names of the figures; all if not given.
        margin: requested lead of the target, in logits.
        max_steps: steps of each search for a picture.
        quiet: show only errors.
    """

    out: Path
    run_dir: Path | None = None
    data_dir: Path | None = None
    figures: tuple[str, ...] = ()
    margin: float = 1.0
    max_steps: int = 300
    quiet: bool = False

    def check(self) -> None:
        check_file("data-dir", self.data_dir)
        if self.run_dir is not None:
            check_run_folder(self.run_dir)

    def __post_init__(self) -> None:
        known = [case.key for case in CASES]
        for name in self.figures:
            if name not in known:
                raise UserError(f"--figures {name}: expected some of {', '.join(known)}")
        if self.run_dir is None and self.data_dir is None:
            raise UserError("Give --run-dir, a trained run, or --data-dir, a CUB-200-2011 folder to train on.")
        if self.run_dir is not None and self.data_dir is not None:
            raise UserError("Give either --run-dir or --data-dir: a trained run knows its data.")
        if not 0 <= self.margin < float("inf"):
            raise UserError(f"--margin {self.margin:g}: expected a number of logits, 0 or more")
        if self.max_steps < 1:
            raise UserError(f"--max-steps {self.max_steps}: expected 1 or more")


def paper_figures(args: Args, cases: Sequence[Case] = CASES) -> tuple[Path, int]:
    """Draws the figures and writes the out folder; returns the report and the exit code."""
    from experiments.paper_figures.measure import find_figures, judge, measurements, place_of, write_page
    from experiments.runs.folder import METRICS, SUMMARY, owned_folder
    from experiments.runs.loading import checksum, load_run, load_test_split
    from experiments.runs.store import Store

    began = time.monotonic()
    console = Console(quiet=args.quiet)
    run_dir = args.run_dir
    if run_dir is None:
        run_dir, code = train(TrainArgs(PRESETS[MODEL], data=DataConfig(args.data_dir), quiet=args.quiet))
        if code:
            return run_dir, code
    run = load_run(run_dir)
    attributes, labels, _ = load_test_split(run_dir)
    spread = attributes.std(axis=0)
    chosen = [case for case in cases if not args.figures or case.key in args.figures]
    # Which figures are drawn is no option: those already there stay when others are added.
    options = {"margin": args.margin, "max_steps": args.max_steps, "model": checksum(run, attributes, labels)}
    with owned_folder(args.out, "experiments.paper_figures", options) as out:
        figures = find_figures(
            run,
            chosen,
            attributes,
            labels,
            Store(out / "figures", options),
            margin=args.margin,
            max_steps=args.max_steps,
            console=console,
        )
        numbers = [measurements(run, figure, spread) for figure in figures]
        verdicts = [
            judge(case, figure, found, place_of(run, figure), run.info.num_attributes)
            for case, figure, found in zip(chosen, figures, numbers, strict=True)
        ]
        records = MetricsFile(out / METRICS)
        summary: dict[str, float | str] = {}
        for step, (case, figure, found, verdict) in enumerate(zip(chosen, figures, numbers, verdicts, strict=True)):
            row = {"index": int(figure.row), "request": str(figure.kind), "explanation": str(figure.explanation)}
            records.append({"step": step, "split": "test", "figure": case.key, **row, **found, "verdict": verdict.short,
                            "reasons": verdict.reasons})  # fmt: skip
            summary |= {f"{case.key}/{name}": value for name, value in found.items() if not isinstance(value, list)}
            summary |= {f"{case.key}/request": str(figure.kind), f"{case.key}/verdict": verdict.short}
            console.say(f"{case.key}: {verdict.reasons}")
        records.close()
        seconds = time.monotonic() - began
        reached = sum(found["reached"] for found in numbers)
        write_json(out / SUMMARY, summary | {"figures/reached": reached, "seconds": seconds})
        console.say(f"{reached} of {len(figures)} figures reached their target, {duration(seconds)}")
        subtitle = f"{run.config.model} on {run.info.name}, {run.info.num_classes} classes, attributes per "
        subtitle += run.info.attribute_source
        report = out / "report.html"
        return write_page(run, chosen, figures, numbers, verdicts, report, subtitle=subtitle, seconds=seconds), 0


main = command(Args, "paper_figures", paper_figures)

if __name__ == "__main__":
    run_main(main)
