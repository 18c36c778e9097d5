"""The results of a finished sweep: summary.json, the class-to-class distances and the report, read from its files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from experiments.reporting.tail import mean_note
from experiments.sweep_attackability.inputs import Problem
from experiments.sweep_attackability.medians import class_medians, median
from experiments.sweep_attackability.nearest import Nearest, sample_ids
from experiments.sweep_attackability.nearest_page import add_class_summary
from experiments.sweep_attackability.options import SolveConfig
from experiments.sweep_attackability.ratios import ratios
from experiments.sweep_attackability.solve import Plan
from spectra_jax.names import readable_class
from spectra_jax.reporting import SERIES, Column, Metric, Report, new_figure, plot_style
from spectra_jax.sweep_files import finished, read_pairs, read_samples, write_tables

CLASS_DISTANCES = "class_distances.parquet"
# A heat map with more classes than this is larger than any screen.
_CLASSES_SHOWN = 60
_SAMPLES_SHOWN, _PAIRS_SHOWN = 100, 25
_ATTRIBUTES_SHOWN = 25
_BINS = 60
_SAMPLE_COLUMNS = (
    "sample",
    "label",
    "predicted",
    "nearest",
    "distance",
    "attackability",
    "single_attribute",
    "single_delta",
    "largest_attribute",
    "largest_delta",
)


class Found(NamedTuple):
    """Everything the report shows.

    Attributes:
        summary: the numbers of summary.json, without "seconds".
        counts: (b,) samples in each bin of the relative margin.
        edges: (b + 1,) of the bins.
        beyond: samples beyond the last edge, those that nothing can reach included.
        closest: rows of the samples' files, smallest relative margin first.
        flips: (n, 2) how often an attribute is the one that flips a sample alone, and the one that changes most.
        distances: (c, c) median distance from the samples of a class to another class; NaN where there is none.
        class_counts: (c,) samples of each class.
        method: whose distances these are.
    """

    summary: dict[str, float]
    counts: np.ndarray
    edges: np.ndarray
    beyond: int
    closest: list[tuple[Any, ...]]
    flips: np.ndarray
    distances: np.ndarray
    class_counts: np.ndarray
    method: str


def analyse(problem: Problem, config: SolveConfig, plan: Plan, folder: Path) -> Found:
    """Reads the finished partitions, a column and a partition at a time; every figure is exact."""
    records = [finished(folder, partition, plan.identity) for partition in plan.partitions]
    facts = [record for record in records if record is not None]
    summary: dict[str, float] = {
        "sweep/samples": plan.options["samples"],
        "sweep/classes": plan.options["classes"],
        "sweep/attributes": plan.options["attributes"],
        "sweep/pairs": sum(fact["pairs"] for fact in facts),
        "sweep/residual_max": max(fact["residual_max"] for fact in facts),
    }
    method = next(m for m in ("projection", "boundary", "pinv") if m in config.methods)
    for kind in ("infeasible", "unresolved"):
        summary[f"sweep/{kind}"] = sum(fact[kind][method] for fact in facts)
        for name in config.methods:
            summary[f"sweep/{name}_{kind}"] = sum(fact[kind][name] for fact in facts)
    if problem.labels is not None:
        summary["sweep/class_accuracy"] = sum(fact["correct"] for fact in facts) / plan.options["samples"]
    summary["sweep/seconds_solving"] = sum(fact["seconds"] for fact in facts)
    summary["sweep/pairs_per_second"] = summary["sweep/pairs"] / max(summary["sweep/seconds_solving"], 1e-9)

    if method == "projection":
        for name in config.methods:
            if name != method:
                summary[f"sweep/{name}_over_projection_median"] = _over_projection(config, plan, folder, name)
    summary |= ratios(np.concatenate([part for (part,) in read_samples(folder, plan.partitions, ["attackability"])]))
    largest = summary["sweep/relative_margin_quantile_99"]
    edges = np.linspace(0, largest if np.isfinite(largest) and largest > 0 else 1, _BINS + 1)
    counts, beyond, closest, flips = _samples(folder, plan, edges)
    distances, class_counts = _class_distances(problem, config, plan, folder, method)
    return Found(summary, counts, edges, beyond, closest, flips, distances, class_counts, method)


def _over_projection(config: SolveConfig, plan: Plan, folder: Path, name: str) -> float:
    """Median of another method's distance over the exact one, over the pairs of different classes where both are known.

    Of ratios in float32. What only the other method cannot reach counts as infinite, a tie (both 0) as 1.
    """
    places = [str(method) for method in config.methods]

    def parts() -> Iterator[np.ndarray]:
        exact_rows = read_pairs(
            folder, plan.partitions, place=places.index("projection"), columns=["predicted", "target", "norm"]
        )
        other_rows = read_pairs(folder, plan.partitions, place=places.index(name), columns=["norm"])
        for (predicted, target, exact), (other,) in zip(exact_rows, other_rows, strict=True):
            usable = (predicted != target) & np.isfinite(exact) & ~np.isnan(other)
            exact, other = exact[usable], other[usable]
            ratio = np.divide(other, exact, out=np.where(other > 0, np.inf, 1).astype(exact.dtype), where=exact > 0)
            yield ratio.astype(np.float32)

    return median(parts)


def _samples(folder: Path, plan: Plan, edges: np.ndarray) -> tuple[np.ndarray, int, list[tuple[Any, ...]], np.ndarray]:
    counts, within, unknown = np.zeros(len(edges) - 1, np.int64), 0, 0
    flips = np.zeros((plan.options["attributes"], 2), np.int64)
    closest: list[tuple[Any, ...]] = []
    place = _SAMPLE_COLUMNS.index("attackability")
    for columns in read_samples(folder, plan.partitions, _SAMPLE_COLUMNS):
        row = dict(zip(_SAMPLE_COLUMNS, columns, strict=True))
        known = ~np.isnan(row["attackability"])
        ratios, columns = row["attackability"][known].astype(np.float64), tuple(column[known] for column in columns)
        unknown += len(known) - len(ratios)
        margins = np.divide(1, ratios, out=np.full(len(ratios), np.inf), where=ratios > 0)
        inside = margins <= edges[-1]
        counts += np.histogram(margins[inside], edges)[0]
        within += int(inside.sum())
        for column, name in enumerate(("single_attribute", "largest_attribute")):
            named = row[name][~np.isnan(row[name])].astype(np.int64)
            flips[:, column] += np.bincount(named, minlength=len(flips))
        top = np.argsort(-ratios, kind="stable")[:_SAMPLES_SHOWN]
        closest += [tuple(column[i] for column in columns) for i in top]
        closest = sorted(closest, key=lambda sample: (-sample[place], sample[0]))[:_SAMPLES_SHOWN]
    return counts, plan.options["samples"] - within - unknown, closest, flips


def _class_distances(
    problem: Problem, config: SolveConfig, plan: Plan, folder: Path, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """(c, c) medians over the samples of each class, by label where there are labels, else by prediction; (c,) counts.

    Also written to the folder as a table.
    """
    num_classes = plan.options["classes"]
    of = "label" if problem.labels is not None else "predicted"
    place = [str(name) for name in config.methods].index(method)
    class_counts = np.zeros(num_classes, np.int64)
    for (classes,) in read_samples(folder, plan.partitions, [of]):
        class_counts += np.bincount(classes, minlength=num_classes)
    found, counts = class_medians(
        lambda: read_pairs(folder, plan.partitions, place=place, columns=[of, "target", "norm"]), class_counts
    )
    np.fill_diagonal(found, np.nan)
    names = np.array(problem.class_names)
    source, target = np.divmod(np.arange(num_classes**2), num_classes)
    off = source != target
    table = pa.table(
        {
            "class": pa.array(source[off].astype(np.int32)),
            "class_name": pa.array(names[source[off]]),
            "target": pa.array(target[off].astype(np.int32)),
            "target_name": pa.array(names[target[off]]),
            "median_distance": pa.array(found.reshape(-1)[off], mask=np.isnan(found.reshape(-1)[off])),
            "samples": pa.array(counts.reshape(-1)[off]),
        }
    )
    write_tables(folder / CLASS_DISTANCES, [table], {"identity": plan.identity, "method": method})
    return found, class_counts


def write_report(
    problem: Problem,
    config: SolveConfig,
    plan: Plan,
    found: Found,
    nearest: Nearest,
    folder: Path,
    *,
    seconds: float,
) -> Path:
    """report.html of a finished sweep."""
    problem = problem._replace(class_names=tuple(readable_class(name) for name in problem.class_names))
    summary = found.summary
    count, pairs = plan.options["samples"], int(summary["sweep/pairs"])
    report = Report(
        "SPECTRA sweep", subtitle=f"{problem.title}: {count:,} samples, {plan.options['classes']:,} classes"
    )
    report.define("Infeasible", "Pairs whose target no change can reach with the requested margin; each is certified.")
    report.define("Unresolved", "Pairs that could not be decided; they are counted but omitted from the statistics.")
    report.define(
        "KKT residual",
        "Largest violation of the optimality conditions over all pairs, relative to the attributes: how far the "
        "projections are from being proven optimal.",
        formula="max_k |min(slack_k, multiplier_k ‖w_j − w_k‖)| / (‖e‖ + ‖δ‖)",
    )
    report.define(
        "Pairs solved a second",
        "Number of pairs divided by the time that all methods together took to read, solve and write them, without "
        "start-up.",
    )
    report.headline([*_headline(problem, summary, found.method), *_pairs(summary, pairs)])
    _add_margins(report, found, count)
    _add_methods(report, config, found)
    _add_classes(report, problem, found)
    add_class_summary(report, problem, nearest)
    _add_closest(report, problem, found)
    _add_flips(report, problem, found, count)
    options: dict[str, Any] = {
        "methods": ", ".join(config.methods),
        "margin": config.margin,
        "immutable": ", ".join(config.immutable) or "none",
        "precision": config.precision,
    }
    report.provenance(seconds=seconds, input=problem.title, head=problem.head_title, **options)
    return report.write(folder / "report.html")


def _headline(problem: Problem, summary: dict[str, float], method: str) -> list[Metric]:
    def metric(title: str, name: str, unit: str = "", *, note: str) -> Metric:
        low, high = (summary.get(f"sweep/{name}_{end}", np.nan) for end in ("low", "high"))
        interval = (low, high) if np.isfinite([low, high]).all() else None
        return Metric(title, summary[f"sweep/{name}"], unit, interval=interval, note=note)

    how = "by projection" if method == "projection" else "by boundary"
    metrics = [
        metric("Attackability", "attackability_median", note=f"median, {how}"),
        metric("Model attackability", "attackability_mean", note=mean_note(summary, "sweep")),
        metric("Relative margin", "relative_margin_mean", "%", note="mean over the samples"),
    ]
    if "sweep/class_accuracy" in summary:
        metrics.append(Metric("Class accuracy", summary["sweep/class_accuracy"], "%", note="of the labels given"))
    return metrics


def _pairs(summary: dict[str, float], pairs: int) -> list[Metric]:
    of = f"of {pairs:,} pairs"
    return [
        Metric("Pairs solved a second", round(summary["sweep/pairs_per_second"]), note=of),
        Metric("Infeasible", int(summary["sweep/infeasible"]), note=of),
        Metric("Unresolved", int(summary["sweep/unresolved"]), note=of),
        Metric("KKT residual", summary["sweep/residual_max"], note="largest of all pairs"),
    ]


def _add_margins(report: Report, found: Found, count: int) -> None:
    median = found.summary["sweep/relative_margin_median"]
    with plot_style():
        figure = new_figure(6.4, 2.8)
        axes = figure.add_subplot(xlabel="relative margin ‖δ‖ / ‖e‖", ylabel="samples")
        axes.stairs(found.counts, found.edges, fill=True, color=SERIES[0])
        if np.isfinite(median):
            axes.axvline(median, color=SERIES[1], linestyle="--", label="median")
            axes.legend()
    beyond = f" {found.beyond:,} samples lie beyond the last bar." if found.beyond else ""
    unresolved = int(found.summary["sweep/samples_unresolved"])
    beyond += f" {unresolved:,} samples whose nearest class is unresolved are omitted." if unresolved else ""
    report.figure(
        "How close every sample is to flipping",
        figure,
        alt=f"Histogram of the relative margin of {count:,} samples; median {median:.3g}.",
        caption="Distance in attribute space to the nearest other class, relative to the attributes' length." + beyond,
    )


def _add_methods(report: Report, config: SolveConfig, found: Found) -> None:
    if len(config.methods) < 2:
        return
    rows = [
        (
            name,
            1.0 if name == "projection" else found.summary.get(f"sweep/{name}_over_projection_median"),
            int(found.summary[f"sweep/{name}_infeasible"]),
            int(found.summary[f"sweep/{name}_unresolved"]),
        )
        for name in config.methods
    ]
    report.table(
        "The methods",
        [
            "method",
            Column("over projection", definition="Median ratio of this method's distance to the projection's for the "
                   "same pair; below 1, the target is not reached yet."),
            "infeasible",
            "unresolved",
        ],
        rows,
        caption="Only the projection both wins against every class and is the smallest change that does.",
    )  # fmt: skip


def _add_classes(report: Report, problem: Problem, found: Found) -> None:
    num_classes = len(problem.class_names)
    present = np.flatnonzero(found.class_counts)
    of = "labelled" if problem.labels is not None else "predicted"
    shown, left_out = present, ""
    if len(present) > _CLASSES_SHOWN:
        nearest = np.nanmin(np.where(np.isnan(found.distances), np.inf, found.distances)[present], axis=1)
        shown = np.sort(present[np.argsort(nearest, kind="stable")[:_CLASSES_SHOWN]])
        left_out = f" Of {len(present)} classes, the {_CLASSES_SHOWN} with the nearest neighbours are shown."
    names = [problem.class_names[k] for k in shown]
    caption = (
        f"Median length of the {found.method} change that takes the samples of one class ({of}) to the region of "
        f"another; short means easily confused.{left_out} All {num_classes * (num_classes - 1):,} medians are in "
        f"{CLASS_DISTANCES}."
    )
    if len(shown) > 1:
        report.matrix(
            "Which classes are close to which",
            found.distances[np.ix_(shown, shown)],
            names,
            names,
            row_title=of,
            column_title="target",
            value_name="median distance",
            caption=caption,
        )
    order = np.argsort(np.where(np.isnan(found.distances), np.inf, found.distances), axis=None, kind="stable")
    source, target = np.divmod(order[:_PAIRS_SHOWN], num_classes)
    rows = [
        (problem.class_names[i], problem.class_names[j], float(found.distances[i, j]), int(found.class_counts[i]))
        for i, j in zip(source, target, strict=True)
        if np.isfinite(found.distances[i, j])
    ]
    report.table(
        "The most confusable classes",
        [of, "target", Column("median distance", definition="In units of the attributes."), "samples"],
        rows,
        caption="The shortest medians of all pairs of classes.",
    )


def _add_closest(report: Report, problem: Problem, found: Found) -> None:
    def name(names: Sequence[str], place: float) -> str | None:
        return None if np.isnan(place) else names[int(place)]

    rows, closest = [], np.array([values[0] for values in found.closest], np.int64)
    ids = dict(zip(closest.tolist(), sample_ids(problem, closest).to_pylist(), strict=True))
    for values in found.closest:
        row = dict(zip(_SAMPLE_COLUMNS, values, strict=True))
        label = [] if problem.labels is None else [name(problem.class_names, row["label"])]
        rows.append(
            (
                str(ids[int(row["sample"])]),
                *label,
                problem.class_names[row["predicted"]],
                name(problem.class_names, row["nearest"]),
                float(row["attackability"]),
                float(row["distance"]),
                name(problem.attribute_names, row["single_attribute"]),
                float(row["single_delta"]),
            )
        )
    report.table(
        "The most attackable samples",
        [
            "sample",
            *([] if problem.labels is None else ["labelled"]),
            "predicted",
            Column("nearest class", definition="The other class whose region is nearest in attribute space."),
            "Attackability",
            Column("‖δ‖", definition="Length of the smallest attribute change that reaches the nearest class."),
            Column("one attribute", kind="attribute", definition="The attribute that alone reaches the nearest class "
                   "with the smallest change, in units of its spread over the samples."),
            Column("by", definition="How much that attribute must change, in its own units."),
        ],
        rows,
        caption="" if problem.ids is not None else "Samples are numbered from 0 in the order of the input.",
    )  # fmt: skip


def _add_flips(report: Report, problem: Problem, found: Found, count: int) -> None:
    order = np.argsort(-found.flips.sum(axis=1), kind="stable")[:_ATTRIBUTES_SHOWN]
    rows = [
        (problem.attribute_names[f], *(found.flips[f] / count), *map(int, found.flips[f]))
        for f in order
        if found.flips[f].any()
    ]
    alone = (
        "Share of samples for which this attribute alone reaches the nearest class with the smallest change, in units "
        "of its spread over the samples."
    )
    most = (
        "Share of samples for which this attribute changes most, in its own units, on the shortest way to that class."
    )
    report.table(
        "Attributes that flip most",
        [
            Column("attribute", kind="attribute"),
            Column("flips alone", "%", definition=alone),
            Column("changes most", "%", definition=most),
            "samples, alone",
            "samples, most",
        ],
        rows,
        caption="The attributes that move each sample to its nearest other class.",
    )
