"""The robustness comparison as a table, a summary and a report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.attacks.options import AttackConfig
from experiments.reporting.canary import readings
from experiments.robustness import canary
from experiments.robustness.measure import Attacked
from experiments.runs.folder import METRICS, SUMMARY
from spectra_jax.data import DatasetInfo
from spectra_jax.logging import MetricsFile, write_json
from spectra_jax.reporting import (
    SERIES,
    Column,
    CounterfactualCard,
    Estimate,
    Metric,
    Report,
    new_figure,
    plot_style,
)
from spectra_jax.reporting.page import write_atomically
from spectra_jax.reporting.provenance import now

TABLE = "table.md"
CARDS = 2
Figures = Mapping[str, Mapping[str, Any]]  # name of a run -> its figures
ROBUST = "Share of all chosen images, misclassified ones included, that stay correctly classified under the attack"
CERTIFIED = (
    "Share of all chosen images that are classified correctly and provably stay so for every image within that L2 "
    "distance. The certified distance is the exact distance between attributes divided by the Lipschitz constant of "
    "the encoder. A dash means that nothing is proven."
)
CORRELATION = (
    "Spearman's rank correlation of attackability (Eq. 5) with the smallest L2 change found by DDN or Carlini and "
    "Wagner's attack, over the correctly classified images. -1 means that attackability ranks the images exactly by "
    "how easily they flip, 0 that it says nothing about it."
)
CAVEAT = (
    "A failed attack proves nothing: these are upper bounds on the robust accuracy, from the same attacks for every "
    "run. L2 distances are over all pixels and channels in [0, 1], so they grow with the image: compare only runs with "
    "the same image size. Relative margin and attackability, which the stability loss improves, are based on distances "
    "between attributes, not between images. L2FMNAttack of Foolbox 3.3.4 is not used because its projection divides "
    "norms by themselves."
)


def columns(config: AttackConfig) -> list[tuple[str, Column]]:
    """The keys of the table and what they are."""
    definition = {
        "clean": "Share of the chosen images that are classified correctly before any attack.",
        "l2": f"{ROBUST}: the worst of Foolbox's L2 projected gradient descent ({config.pgd_steps} steps), DDN "
        f"({config.ddn_steps} steps) and Carlini and Wagner's attack within that L2 distance.",
        "linf": f"{ROBUST}: Foolbox's L∞ projected gradient descent ({config.pgd_steps} steps), which changes each "
        "channel by at most that many of 255 grey levels.",
        "median": "Median, over the correctly classified images, of the smallest L2 change that DDN or Carlini and "
        "Wagner's attack found to flip them; infinite if half of them are never flipped.",
    }
    return [
        ("clean_accuracy", Column("Clean accuracy", "%", definition["clean"], 1)),
        *((f"l2_accuracy_at_{r:g}", Column(f"L2 {r:g}", "%", definition["l2"], 1)) for r in config.l2_radii),
        *((f"linf_accuracy_at_{r:g}", Column(f"L∞ {r:g}/255", "%", definition["linf"], 1)) for r in config.linf_levels),
        ("smallest_l2_median", Column("Smallest L2, median", "", definition["median"], 3)),
    ]


def proofs(config: AttackConfig) -> list[tuple[str, Column]]:
    """The columns of what is proven, beside those of what was attacked."""
    return [
        *((f"certified_accuracy_at_{r:g}", Column(f"Proven at {r:g}", "%", CERTIFIED, 1)) for r in config.l2_radii),
        ("certified_l2_median", Column("Certified L2, median", "", CERTIFIED, 3)),
        ("attackability_rank_correlation", Column("Attackability's rank correlation", "", CORRELATION, 2)),
    ]


def write_results(out: Path, found: Figures, differences: Figures, config: AttackConfig, *, seconds: float) -> None:
    """Renews table.md, summary.json and metrics.jsonl."""
    write_atomically(out / TABLE, _markdown(found, differences, config))
    summary = {f"{name}/{key}": value for name, values in found.items() for key, value in values.items()}
    summary |= {f"{name}/{key}": value for name, values in differences.items() for key, value in values.items()}
    write_json(out / SUMMARY, summary | {"seconds": seconds})
    records = MetricsFile(out / METRICS)
    for place, (name, values) in enumerate(found.items()):
        records.append({"step": place, "split": "test", "run": name, **values})
    records.close()


def _number(value: float, column: Column) -> str:
    if math.isinf(value):
        return "∞"
    return "–" if math.isnan(value) else f"{100 * value if column.unit == '%' else value:.{column.decimals}f}"


def _cell(values: Mapping[str, Any], key: str, column: Column) -> str:
    if key not in values:
        return "–"
    value, low, high = (_number(values[key + end], column) for end in ("", "_low", "_high"))
    return f"{value} ({low}–{high})"


def _markdown(found: Figures, differences: Figures, config: AttackConfig) -> str:
    shown = columns(config)
    lines = [
        ["Run", *(column.name + (", %" if column.unit else "") for _, column in shown)],
        ["---"] * (len(shown) + 1),
    ]
    lines += [[name, *(_cell(values, *column) for column in shown)] for name, values in found.items()]
    proven = [["Run", *(column.name + (", %" if column.unit else "") for _, column in proofs(config))]]
    proven += [["---"] * len(proven[0])]
    proven += [[name, *(_cell(values, *column) for column in proofs(config))] for name, values in found.items()]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in rows) for rows in (lines, proven)]
    parts += [crossing_words(found)]
    rows = canary_rows(found)
    if rows:
        lines = [["Run", *(column.name + (", %" if column.unit else "") for _, column in canary.COLUMNS)]]
        lines += [["---"] * len(lines[0])]
        lines += [
            [name, *(_number(values[key], column) for key, column in canary.COLUMNS)] for name, values in rows.items()
        ]
        parts += ["\n".join(f"| {' | '.join(line)} |" for line in lines), canary.NOTE]
    parts += [verdict(name, next(iter(found)), differences[name], config) for name in differences]
    return "\n\n".join([*parts, CAVEAT]) + "\n"


def canary_rows(found: Figures) -> dict[str, dict[str, float]]:
    """CANARY's metrics by run, as defined and as coded; none before all runs are attacked."""
    rows: dict[str, dict[str, float]] = {}
    for name, values in found.items():
        rows |= {name + canary.SUFFIXES[reading]: metrics for reading, metrics in readings(values).items()}
    return rows


def crossing_words(found: Figures) -> str:
    """Whether an attack went below a certificate."""
    certified = [values for values in found.values() if "certified_l2_median" in values]
    if not certified:
        return "Nothing is proven about any of these models."
    crossed, pairs = (sum(int(values[key]) for values in certified)
                      for key in ("certificates_crossed", "certificates_attacked"))  # fmt: skip
    return f"{crossed} of {pairs:,} attacks found an image below its certified distance."


def verdict(name: str, first: str, differences: Mapping[str, float], config: AttackConfig) -> str:
    """One sentence: the radii at which a run holds more or fewer images than the first, or the same within error."""
    judged: dict[str, list[str]] = {"more": [], "fewer": [], "undecided": []}
    for key, column in columns(config)[1:-1]:
        low, high = (differences[f"{key}_difference_{end}"] for end in ("low", "high"))
        judged["more" if low > 0 else "fewer" if high < 0 else "undecided"].append(column.name)
    words = {"more": "more images hold at", "fewer": "fewer hold at", "undecided": "no clear difference at"}
    parts = [f"{words[kind]} {', '.join(radii)}" for kind, radii in judged.items() if radii]
    return f"{name} against {first}: {'; '.join(parts)} (paired 95 % bootstrap intervals)."


def write_report(
    out: Path, attacked: Mapping[str, Attacked], found: Figures, differences: Figures, config: AttackConfig,
    info: DatasetInfo, *, seconds: float,
) -> Path:  # fmt: skip
    """The answer in words, the curves, the pictures, the numbers."""
    count = len(next(iter(attacked.values())).places)
    report = Report("Robustness", subtitle=f"{', '.join(attacked)}: {count} test images")
    shown = columns(config)
    headline = []
    for name, values in found.items():
        for key, column in (shown[0], shown[-1]):
            interval = (values[f"{key}_low"], values[f"{key}_high"])
            headline.append(
                Metric(column.name, values[key], column.unit, column.definition, interval=interval, note=name)
            )
    report.headline(headline)
    if differences:
        sentences = [verdict(name, next(iter(found)), differences[name], config) for name in differences]
        report.text("\n\n".join(sentences), title="In words")
    report.text(crossing_words(found), title="Certificates")
    _add_curves(report, attacked, config)
    cards = [card for name, one in attacked.items() for card in _cards(name, one, attacked, info)]
    if cards:
        report.counterfactuals(
            cards,
            title="The smallest change DDN finds",
            caption="The same images for every run. The harder a model is to flip, the larger the change; only a "
            "large change can look like something.",
        )
    report.table(
        "Robust accuracy",
        ["Run", *(column for _, column in shown)],
        [
            [name, *(Estimate(*(values[key + end] for end in ("", "_low", "_high"))) for key, _ in shown)]
            for name, values in found.items()
        ],
        caption=f"95 % intervals: Wilson for shares, bootstrap for medians. {CAVEAT}",
    )
    report.table(
        "Certificates, and what attackability predicts",
        ["Run", *(column for _, column in proofs(config))],
        [[name, *(_estimate(values, key) for key, _ in proofs(config))] for name, values in found.items()],
        caption="95 % intervals as above. A certificate is a lower bound on the smallest flipping distance, and the "
        "distance that an attack finds is an upper bound: the truth lies between them.",
    )
    report.table(
        "CANARY's metrics of DDN's images",
        ["Run", *(column for _, column in canary.COLUMNS)],
        [[name, *(values[key] for key, _ in canary.COLUMNS)] for name, values in canary_rows(found).items()],
        caption=canary.NOTE,
    )
    report.provenance(seed=config.image_seed, seconds=seconds, data=info.name, date=now())
    return report.write(out / "report.html")


def _estimate(values: Mapping[str, Any], key: str) -> Estimate | None:
    return Estimate(*(values[key + end] for end in ("", "_low", "_high"))) if key in values else None


def _add_curves(report: Report, attacked: Mapping[str, Attacked], config: AttackConfig) -> None:
    """Robust accuracy over the radius: L2 as a curve from each image's smallest change, L-infinity at its radii."""
    words = []
    with plot_style():
        figure = new_figure(8.4, 3.4)
        left, right = figure.subplots(1, 2, sharey=True)
        reach = 1.25 * max(config.l2_radii)
        for place, (name, one) in enumerate(attacked.items()):
            style = {"color": SERIES[place % len(SERIES)], "label": name, "marker": "os^Dv"[place % 5]}
            order = np.sort(one.smallest)
            radii = np.concatenate([[0], order[(order > 0) & (order < reach)], [reach]])
            left.plot(
                radii, [100 * (order > r).mean() for r in radii], color=style["color"], drawstyle="steps-post"
            )  # fmt: skip
            if one.certified.any():
                proven = np.sort(one.certified)
                steps = np.concatenate([[0], proven[(proven > 0) & (proven < reach)], [reach]])
                shares = [100 * (proven > r).mean() for r in steps]
                left.fill_between(steps, shares, step="post", color=style["color"], alpha=0.15, linewidth=0)
            pgd = 100 * (one.correct[:, None] & ~one.l2_flipped).mean(axis=0)
            left.plot(config.l2_radii, pgd, linestyle="none", markersize=5, **style)
            holds = 100 * np.concatenate([[one.correct.mean()], one.holds_linf().mean(axis=0)])
            right.plot([0, *config.linf_levels], holds, markersize=5, **style)
            words.append(f"{name}: L∞ " + ", ".join(f"{h:.0f} %" for h in holds))
        left.set(xlabel="L2 radius", ylabel="classified correctly, %", ylim=(0, 100), xlim=(0, reach))
        right.set(xlabel="L∞ radius, grey levels of 255", xlim=(0, None))
        right.legend()
    report.figure(
        "Accuracy under attack",
        figure,
        alt=f"Share of correctly classified images over the attack radius, one line per run. {'; '.join(words)}.",
        caption="Left, lines: images for which neither DDN nor Carlini and Wagner's attack found a change smaller than "
        "the radius; markers: images that withstand projected gradient descent within it; shaded: certified images, "
        "where there is a proof. Right: L∞ projected gradient descent. Radius 0 is the clean accuracy.",
    )


def _cards(
    name: str, one: Attacked, attacked: Mapping[str, Attacked], info: DatasetInfo
) -> Sequence[CounterfactualCard]:
    """The first images that every run names correctly and DDN flips in every run."""
    usable = np.all([a.correct & np.isfinite(a.ddn) for a in attacked.values()], axis=0)
    return [
        CounterfactualCard(
            original=one.originals[place],
            counterfactual=one.pictures[place],
            source_class=info.class_names[one.labels[place]],
            target_class=info.class_names[one.named_after[place]],
            success=True,
            metrics=[Metric("L2 distance", float(one.ddn[place]))],
            note=name,
        )
        for place in np.flatnonzero(usable)[:CARDS]
    ]
