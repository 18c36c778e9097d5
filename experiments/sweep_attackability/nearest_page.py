"""The cheap answers of a sweep, presented on the terminal, in summary.json and in the report."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.bar import Bar
from rich.console import Console as Terminal
from rich.table import Column as TerminalColumn
from rich.table import Table

from experiments.reporting.tail import mean_note
from experiments.runs.folder import METRICS, SUMMARY
from experiments.sweep_attackability.inputs import Problem
from experiments.sweep_attackability.nearest import NEAREST, Cost, Nearest, class_rows, sample_ids, write_nearest
from experiments.sweep_attackability.ratios import ratios
from spectra_jax.logging import Console, MetricsFile, duration, write_json
from spectra_jax.names import readable_class
from spectra_jax.reporting import SERIES, Column, Metric, Report, new_figure, plot_style
from spectra_jax.reporting.formatting import format_number

_SHOWN, _SHOWN_ON_A_TERMINAL = 100, 10
_BINS, _BARS, _WIDTH = 60, 12, 32


def nearest_summary(problem: Problem, found: Nearest) -> dict[str, float]:
    """The numbers of summary.json, without "seconds"."""
    classes, attributes = problem.head.weights.shape
    summary = {
        "sweep/samples": len(found.predicted),
        "sweep/classes": classes,
        "sweep/attributes": attributes,
        "sweep/pairs": 0,
        "sweep/seconds_solving": found.seconds,
    }
    if missing := problem.features.shape[0] - len(found.samples):
        summary["sweep/samples_missing"] = missing
    if found.labels is not None:
        summary["sweep/class_accuracy"] = float((found.labels == found.predicted).mean())
    return summary | ratios(found.attackability)


def cost_sentence(cost: Cost) -> str:
    """What all pairs would take."""
    return (
        f"Solving all {cost.pairs:,} (sample, target) pairs would take about {duration(cost.seconds)} here, judging by "
        f"one product with the head, and {format_number(cost.gigabytes)} GB. Use --all-pairs to solve them."
    )


def fragile_rows(problem: Problem, found: Nearest, number: int) -> list[tuple[Any, ...]]:
    """The most attackable samples: id, label if there are any, prediction, nearest class, attackability, distance."""
    names, rows = [readable_class(name) for name in problem.class_names], []
    order = np.argsort(-found.attackability, kind="stable")[:number]
    for i, called in zip(order, sample_ids(problem, found.samples[order]).to_pylist(), strict=True):
        label = [] if found.labels is None else [names[found.labels[i]]]
        nearest = names[found.target[i]] if found.target[i] >= 0 else None
        rows.append((called, *label, names[found.predicted[i]], nearest, float(found.attackability[i]),
                     float(found.distance[i])))  # fmt: skip
    return rows


def show_nearest(problem: Problem, found: Nearest, console: Console) -> None:
    """Prints the answers: the most fragile samples, the distances of all and the classes."""
    if console.quiet:
        return
    terminal = Terminal(file=sys.stderr, highlight=False)
    labelled = [] if found.labels is None else ["labelled"]
    samples = Table(*_columns(["sample", *labelled, "predicted", "nearest class"], ["attackability", "distance"]),
                    title="The most fragile samples")  # fmt: skip
    for row in fragile_rows(problem, found, _SHOWN_ON_A_TERMINAL):
        samples.add_row(*map(format_number, row))
    terminal.print(samples)
    finite = found.distance[np.isfinite(found.distance)]
    if finite.size:
        bars = Table("distance to the nearest class", "", title="How far the samples are")
        bars.add_column("samples", justify="right")
        counts, edges = np.histogram(finite, _BARS)
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            bar = Bar(int(counts.max()), 0, int(count), width=_WIDTH)
            bars.add_row(f"{format_number(low)} – {format_number(high)}", bar, f"{count:,}")
        terminal.print(bars)
    rows = class_rows(problem, found)
    table = Table(*_columns(["class"], ["samples", "attackability", "distance"]), "nearest class",
                  *_columns([], ["share"]), title="The most fragile classes, medians")  # fmt: skip
    for one in rows[:_SHOWN_ON_A_TERMINAL]:
        table.add_row(one.name, f"{one.samples:,}", format_number(one.attackability), format_number(one.distance),
                      one.nearest, format_number(one.share, unit="%"))  # fmt: skip
    terminal.print(table)


def _columns(left: list[str], right: list[str]) -> list[Any]:
    texts = [TerminalColumn(name, overflow="fold") for name in left]
    return [*texts, *(TerminalColumn(name, justify="right", overflow="fold") for name in right)]


def add_class_summary(report: Report, problem: Problem, found: Nearest) -> None:
    """A row per class."""
    own = "predicted" if found.labels is None else "labelled"
    report.table(
        "Class by class",
        [
            Column(own, definition="The class of the samples."),
            "samples",
            Column("Attackability", definition="Median over the samples of the class."),
            Column("distance", definition="Median length of the smallest change that makes another class win."),
            Column("nearest class", definition="The other class that is nearest to most of these samples."),
            Column("share", "%", definition="Share of the samples of the class for which that class is nearest."),
        ],
        [tuple(row) for row in class_rows(problem, found)],
        caption="The most attackable classes come first.",
    )


def write_all(
    problem: Problem, found: Nearest, cost: Cost, folder: Path, *, seconds: float, missing: Sequence[str] = ()
) -> Path:
    """nearest.parquet, metrics.jsonl, summary.json and report.html of a sweep without pairs.

    Args:
        problem: what was asked about.
        found: the answers.
        cost: of all pairs.
        folder: to write to.
        seconds: that it took.
        missing: in words, which samples are not among the answers.
    """
    write_nearest(problem, found, folder)
    summary = nearest_summary(problem, found)
    with contextlib.closing(MetricsFile(folder / METRICS)) as metrics:
        metrics.append({"step": 0, "split": "test", **summary})
    path = write_nearest_report(problem, found, summary, cost, folder, seconds=seconds, missing=missing)
    write_json(folder / SUMMARY, {**summary, "seconds": seconds})
    return path


def write_nearest_report(
    problem: Problem,
    found: Nearest,
    summary: dict[str, float],
    cost: Cost,
    folder: Path,
    *,
    seconds: float,
    missing: Sequence[str],
) -> Path:
    """report.html of a sweep without pairs."""
    count, finite = len(found.predicted), found.distance[np.isfinite(found.distance)]
    report = Report(
        "SPECTRA sweep",
        subtitle=f"{problem.title}: {count:,} samples, {len(problem.class_names):,} classes, nearest classes",
    )
    metrics = [
        Metric("Attackability", summary["sweep/attackability_median"], note="median, exact by boundary"),
        Metric("Model attackability", summary["sweep/attackability_mean"], note=mean_note(summary, "sweep")),
        Metric("Relative margin", summary["sweep/relative_margin_mean"], "%", note="mean over the samples"),
    ]
    if found.labels is not None:
        metrics.append(Metric("Class accuracy", summary["sweep/class_accuracy"], "%", note="of the labels given"))
    report.headline(metrics)
    absent = f"Not answered yet: {'; '.join(missing)}. " if missing else ""
    report.text(absent + cost_sentence(cost), title="Not included")
    with plot_style():
        figure = new_figure(6.4, 2.8)
        axes = figure.add_subplot(xlabel="distance to the nearest other class", ylabel="samples")
        axes.hist(finite, _BINS, color=SERIES[0])
    unreached = f" {count - finite.size:,} samples cannot reach any other class." if count > finite.size else ""
    report.figure(
        "How far the samples are from another class",
        figure,
        alt=f"Histogram of the distance of {count:,} samples to their nearest other class.",
        caption="Length of the smallest attribute change after which another class wins, in units of the attributes."
        + unreached,
    )
    labelled = [] if found.labels is None else ["labelled"]
    report.table(
        "The most fragile samples",
        [
            "sample",
            *labelled,
            "predicted",
            Column("nearest class", definition="The other class whose region is nearest in attribute space."),
            "Attackability",
            Column("‖δ‖", definition="Length of the smallest attribute change that reaches the nearest class."),
        ],
        fragile_rows(problem, found, _SHOWN),
        caption=f"All samples are in {NEAREST}.",
    )
    add_class_summary(report, problem, found)
    report.provenance(seconds=seconds, input=problem.title, head=problem.head_title)
    return report.write(folder / "report.html")
