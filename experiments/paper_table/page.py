"""The paper's table as text, CSV, summary and report."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli.options import DataConfig
from experiments.counterfactuals.find import Counterfactuals
from experiments.counterfactuals.options import PairConfig
from experiments.paper_table.measure import ATTACK_STEPS, CARD, EPSILON, Row
from experiments.reporting.pages import SHOWN_ATTRIBUTES, finite_request, pair_card
from experiments.runs.folder import METRICS, SUMMARY
from spectra_jax.data import Dataset
from spectra_jax.logging import MetricsFile, duration, write_json
from spectra_jax.reporting import (
    SERIES,
    AttributeChange,
    Column,
    CounterfactualCard,
    Estimate,
    Metric,
    Report,
    new_figure,
    plot_style,
)
from spectra_jax.reporting.page import write_atomically
from spectra_jax.reporting.provenance import command_line, device, now, versions

TABLE, TABLE_CSV = "table.md", "table.csv"
Results = Mapping[Row, dict[str, Any]]


class Figure(NamedTuple):
    """A column of the table.

    Attributes:
        key: in summary.json; KEY_low and KEY_high are its interval.
        title, unit, definition: for readers; "" looks the definition up in the glossary.
        decimals: digits after the point, of a percentage where the unit is "%".
    """

    key: str
    title: str
    unit: str
    decimals: int
    definition: str = ""


QUALITY = (
    Figure("class_accuracy", "Class accuracy", "%", 1),
    Figure("attribute_balanced_accuracy", "Balanced attribute accuracy", "%", 1),
    Figure("attribute_map", "Attribute mAP", "%", 1),
    Figure("attackability_mean", "Model attackability", "", 1),
    Figure(
        "attackability_median", "Attackability, median", "", 1, "Median over the test images of max ‖e‖ / ‖δ‖ (Eq. 5)."
    ),
    Figure("relative_margin_mean", "Relative margin", "%", 2),
    Figure(
        "pinv_over_projection_median", "Pinv over exact", "", 2,
        "Length of the paper's pseudo-inverse change over that of the exact projection, without a margin; median over "
        "the chosen images and all classes that they are not assigned to.",
    ),
)  # fmt: skip
IMAGES = (
    Figure("success_rate", "Attack success rate", "%", 1),
    Figure("survives_rounding_rate", "Success after 8 bits", "%", 1),
    Figure("psnr_median", "PSNR", "dB", 1),
    Figure(
        "psnr_lower_quartile", "PSNR, lower quartile", "dB", 1,
        "PSNR that three quarters of the successes exceed. Many images flip after one step: every pixel then moves by "
        "about one grey level (48 dB) or two (42 dB), and the median alone hides how much the others need.",
    ),
    Figure(
        "noise_ratio_realised_median", "Noise ratio, realised", "", 3,
        "Perturbation noise ratio ‖x′ − x‖ / ‖φ(x′) − φ(x)‖: image change over the attribute change that it caused. "
        "Median of the successes.",
    ),
    Figure(
        "noise_ratio_requested_median", "Noise ratio, requested", "", 3,
        "Perturbation noise ratio ‖x′ − x‖ / ‖δ‖: image change over the requested attribute change. Median of the "
        "successes.",
    ),
    Figure(
        "foolbox_flip_rate", "Flipped by Foolbox", "%", 1,
        "Share of test images whose predicted class Foolbox's L∞ projected gradient descent changes, with at most "
        f"{EPSILON * 255:g} of 255 grey levels per pixel and {ATTACK_STEPS} steps.",
    ),
    Figure(
        "foolbox_robust_accuracy", "Robust accuracy", "%", 1,
        "Share of the same images that are classified correctly both before and after Foolbox's attack.",
    ),
)  # fmt: skip
WARNING = (
    "Attackability, relative margin and the length ratio are measured in attribute space: they say how far the "
    "attributes of an image are from another class, not how easily the encoder moves them. They do not show that a "
    "model is robust on images. The check is the Foolbox columns, an attack on the image itself that was written by "
    "others: only if they improve is a model harder to flip, and only for that attack at that size. Model "
    "attackability, the paper's mean, has no interval: a few images next to a boundary dominate it, and the population "
    "mean is infinite if the tail index is 1 or less."
)


def _cell(figure: Figure, figures: Mapping[str, Any], ends: tuple[str, str] = ("_low", "_high")) -> str:
    """A number with its interval, as Markdown shows it."""
    value, low, high = (figures.get(figure.key + end) for end in ("", *ends))

    def text(number: Any) -> str:
        if number is None or math.isnan(number):
            return "–"
        return f"{100 * number if figure.unit == '%' else number:,.{figure.decimals}f}"

    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return text(value)
    return f"{text(value)} ({text(low)}–{text(high)})"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(figure: Figure) -> str:
    return figure.title + (f", {figure.unit}" if figure.unit else "")


def over_seeds(results: Results) -> dict[Row, dict[str, float]]:
    """Mean, lowest and highest over the seeds of each attacked row that has several: KEY, KEY_lowest, KEY_highest."""
    spread: dict[Row, dict[str, float]] = {}
    for first in (row for row in results if row.attacked):
        same = [f for row, f in results.items() if (row.model, row.variant) == (first.model, first.variant)]
        if len(same) < 2:
            continue
        spread[first] = {"num_seeds": len(same)}
        for key in (figure.key for figure in QUALITY[:-1]):
            values = [figures[key] for figures in same if figures[key] is not None]
            if len(values) == len(same):
                spread[first] |= {key: float(np.mean(values))}
                spread[first] |= {f"{key}_lowest": min(values), f"{key}_highest": max(values)}
    return spread


def towards(pairs: PairConfig) -> str:
    """The targets of the images, in words."""
    known = {
        "mixed": "half towards the nearest and half towards a random class",
        "nearest": "each towards the nearest class",
        "random": "each towards a random class",
    }
    said = known.get(pairs.targets, f"all towards the class {pairs.targets}")
    return said if pairs.source is None else f"{said}, all of images of the class {pairs.source}"


def table_markdown(results: Results, data: DataConfig, pairs: PairConfig) -> str:
    """The whole table with what a reader needs to judge it: made to be put into a README as it is."""
    attacked = {row: figures for row, figures in results.items() if row.attacked}
    one = next(iter(attacked.values()))
    seconds = sum(figures["seconds"] for figures in results.values())
    head = ["Model", "Training"]
    names = [[row.model, row.variant] for row in attacked]
    parts = [
        f"`{command_line()}`: {len(results)} trainings, {duration(seconds)} in all, {device()}, {os.cpu_count()} "
        f"cores, {versions()}. Data: {data.name}, {one['num_test']:,} test images. Seed 0, 95 % intervals in brackets "
        "(Wilson for shares, bootstrap over images or pairs for the others; none for the mean attackability, which a "
        "few images dominate).",
        _markdown(
            [*head, *map(_heading, QUALITY)],
            [
                [*name, *(_cell(f, figures) for f in QUALITY)]
                for name, figures in zip(names, attacked.values(), strict=True)
            ],
        ),
        f"Counterfactual images of {one['num_pairs']} pairs, {towards(pairs)}; "
        "rates include failures, medians are over the successes. Foolbox: L∞ projected gradient descent at "
        f"{EPSILON * 255:g}/255, {ATTACK_STEPS} steps, {one.get('foolbox_num_images', 0)} images.",
        _markdown(
            [*head, *map(_heading, IMAGES)],
            [
                [*name, *(_cell(f, figures) for f in IMAGES)]
                for name, figures in zip(names, attacked.values(), strict=True)
            ],
        ),
    ]
    spread = over_seeds(results)
    if spread:
        ends = ("_lowest", "_highest")
        parts += [
            f"Mean over {max(int(s['num_seeds']) for s in spread.values())} seeds; lowest and highest in brackets:",
            _markdown(
                [*head, *map(_heading, QUALITY[:-1])],
                [[row.model, row.variant, *(_cell(f, s, ends) for f in QUALITY[:-1])] for row, s in spread.items()],
            ),
        ]
    return "\n\n".join([*parts, WARNING]) + "\n"


def write_results(out: Path, results: Results, data: DataConfig, pairs: PairConfig) -> None:
    """Renews table.md, table.csv, summary.json and metrics.jsonl for the rows made so far."""
    write_atomically(out / TABLE, table_markdown(results, data, pairs))
    keys = list(dict.fromkeys(key for figures in results.values() for key in figures))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "variant", "seed", *keys])
    for row, figures in results.items():
        writer.writerow(
            [row.model, row.variant, row.seed, *("" if figures.get(k) is None else figures[k] for k in keys)]
        )
    write_atomically(out / TABLE_CSV, file.getvalue())
    summary = {f"{row.name}/{key}": value for row, figures in results.items() for key, value in figures.items()}
    for row, spread in over_seeds(results).items():
        for key, value in spread.items():
            name = key if key.endswith(("_lowest", "_highest", "num_seeds")) else f"{key}_mean_over_seeds"
            summary[f"{row.name}/{name}"] = value
    write_json(out / SUMMARY, summary | {"seconds": sum(f["seconds"] for f in results.values())})
    records = MetricsFile(out / METRICS)
    for place, (row, figures) in enumerate(results.items()):
        names = {"model": row.model, "variant": row.variant, "seed": row.seed}
        records.append({"step": place, "split": "test", **names, **figures})
    records.close()


def write_report(out: Path, results: Results, dataset: Dataset, data: DataConfig, pairs: PairConfig) -> Path:
    """Pictures first, then what the stability loss changed, then every number."""
    attacked = {row: figures for row, figures in results.items() if row.attacked}
    report = Report(
        "The paper's table", subtitle=f"{len(attacked)} rows on {data.name}: each model plain and stability-trained"
    )
    report.counterfactuals(
        [_card(row, out / row.folder / CARD, dataset) for row in attacked],
        title="One image, every model",
        caption="The same photograph for each row of the table, with the same target class where the model allows it: "
        "original, image found and their amplified difference.",
    )
    _add_comparison(report, attacked)
    _add_table(report, "Classifiers and their attribute space", attacked, QUALITY, f"Seed 0. {WARNING}")
    one = next(iter(attacked.values()))
    _add_table(
        report,
        "Attacks on images",
        attacked,
        IMAGES,
        f"{one['num_pairs']} pairs per row, {towards(pairs)}; rates include "
        f"failures. Foolbox attacks {one.get('foolbox_num_images', 0)} images. Seed 0, 95 % intervals.",
    )
    spread = over_seeds(results)
    if spread:
        _add_table(
            report, "Spread over seeds", spread, QUALITY[:-1], "Mean over the seeds, with the lowest and the highest.",
            ("_lowest", "_highest"),
        )  # fmt: skip
    counts = f"{sum(dataset.info.num_images.values()):,} images, labelled per {dataset.info.attribute_source}"
    report.provenance(
        seed=0, seconds=sum(f["seconds"] for f in results.values()), data=f"{dataset.info.name}: {counts}", date=now()
    )
    return report.write(out / "report.html")


def _add_table(
    report: Report, title: str, results: Results, figures: Sequence[Figure], caption: str,
    ends: tuple[str, str] = ("_low", "_high"),
) -> None:  # fmt: skip
    def cell(figure: Figure, found: Mapping[str, Any]) -> Any:
        value, low, high = (found.get(figure.key + end) for end in ("", *ends))
        return value if low is None or high is None else Estimate(value, low, high)

    report.table(
        title,
        ["Model", "Training", *(Column(f.title, f.unit, f.definition, f.decimals) for f in figures)],
        [(row.model, row.variant, *(cell(f, found) for f in figures)) for row, found in results.items()],
        caption=caption,
    )


def _add_comparison(report: Report, attacked: Results) -> None:
    """Plain against stability-trained, one panel per figure."""
    shown = [
        f
        for f in (QUALITY[0], QUALITY[5], IMAGES[2], IMAGES[6])
        if any(r.get(f.key) is not None for r in attacked.values())
    ]
    models = list(dict.fromkeys(row.model for row in attacked))
    styles = {"plain": ("o", "none", SERIES[0]), "stability": ("s", SERIES[1], SERIES[1])}
    with plot_style():
        figure = new_figure(8.4, 1.2 + 0.45 * len(models))
        panels = np.ravel(figure.subplots(1, len(shown), sharey=True, squeeze=False))
        for axes, what in zip(panels, shown, strict=True):
            scale = 100 if what.unit == "%" else 1
            for row, found in attacked.items():
                value = found.get(what.key)
                if value is None or not math.isfinite(value):
                    continue
                marker, face, colour = styles[row.variant]
                low, high = (found.get(what.key + end) for end in ("_low", "_high"))
                width = None if low is None or high is None else [[scale * (value - low)], [scale * (high - value)]]
                axes.errorbar(
                    scale * value, models.index(row.model) + (0.14 if row.variant == "stability" else -0.14),
                    xerr=width, fmt=marker, color=colour, markerfacecolor=face, markersize=5, capsize=2,
                    label=row.variant if row.model == models[0] else None,
                )  # fmt: skip
            axes.set(xlabel=_heading(what))
        panels[0].set_yticks(range(len(models)), models)
        panels[0].invert_yaxis()
        panels[0].legend()
    words = [
        f"{what.title}: "
        + ", ".join(f"{row.model} {row.variant} {_cell(what, found)}" for row, found in attacked.items())
        for what in shown
    ]
    report.figure(
        "What the stability loss changed",
        figure,
        alt="One panel per measure, one line per model, plain and stability-trained side by side. "
        + "; ".join(words)
        + ".",
        caption="Open circles: plain; filled squares: stability-trained; bars: 95 % intervals. Left to right: how good "
        "the classifier is, its margin in attribute space, how visible the counterfactual images are, and how often an "
        "attack by others flips the prediction. A wider margin does not mean robustness unless that last rate falls.",
    )


def _card(row: Row, path: Path, dataset: Dataset) -> CounterfactualCard:
    with np.load(path) as stored:
        found = Counterfactuals(**stored)
    classes, names = dataset.info.class_names, dataset.info.attribute_names
    before, after, requested = found.before[0], found.after[0], finite_request(found, 0)
    largest = np.argsort(-np.abs(requested))[:SHOWN_ATTRIBUTES]
    return pair_card(
        found,
        0,
        classes,
        attributes=[
            AttributeChange(names[f], float(before[f]), float(requested[f]), float(after[f] - before[f]))
            for f in largest
            if requested[f] != 0
        ],
        metrics=[Metric("PSNR", float(found.psnr[0]), "dB"), Metric("SSIM", float(found.ssim[0]))],
        note=f"{row.model}, {row.variant} training. Labelled {classes[found.label[0]]}.",
    )
