"""The reports of the scripts: the figures, tables and cards that present what a run found."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals.find import SOLVERS, Counterfactuals
from experiments.reporting import canary
from experiments.reporting.finding import add_training_finding
from experiments.reporting.tail import mean_note
from experiments.runs.loading import LoadedRun
from experiments.runs.stored import read_records, read_summary
from spectra_jax import Head, Status, head_logits, nearest_target
from spectra_jax.data import DatasetInfo
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.perturbations import formulas
from spectra_jax.reporting import AttributeChange, Column, CounterfactualCard, Metric, Opens, Report
from spectra_jax.reporting.formatting import format_number

SHOWN_ATTRIBUTES = 6
SHOWN_CLASSES = 2
TINY = np.finfo(np.float32).tiny
CURVES = {
    "loss": "loss",
    "class_loss": "class loss",
    "attribute_loss": "attribute loss",
    "class_accuracy": "class accuracy",
    "attribute_balanced_accuracy": "balanced attribute accuracy",
    "attribute_f1": "attribute F1",
    "attribute_map": "attribute mAP",
}
# Titles of the sections that numbers and pictures open.
COUNTERFACTUALS, TEST_IMAGES = "Counterfactuals", "Test images"
# Names of `pair_metrics`: title in the reports ("" where probabilities or the headline show it already) and unit.
MEASURED = {
    "l0": ("", ""),
    "pixels_changed": ("Pixels changed", "%"),
    "l1": ("L1 distance", ""),
    "l2": ("L2 distance", ""),
    "certified_l2": ("Certified: no image nearer", ""),
    "linf": ("L∞ distance", "%"),
    "low_frequency_l2": ("", ""),
    "high_frequency_l2": ("", ""),
    "high_frequency_share": ("High-frequency share", "%"),
    "source_probability_before": ("", ""),
    "source_probability_after": ("", ""),
    "target_probability_before": ("", ""),
    "target_probability_after": ("", ""),
    "attribute_share": ("Attribute selectivity", "%"),
    "attribute_cosine": ("Attribute cosine", ""),
    "noise_ratio_realised": ("", ""),
    "noise_ratio_requested": ("", ""),
}
NAMES = {"boundary": "Boundary", "pinv": "Pseudo-inverse", "projection": "Projection"}


def quality(summary: dict[str, Any]) -> list[Metric]:
    """How good the classifier is, from summary.json: class accuracy first."""
    names = {
        "class_accuracy": "Class accuracy",
        "attribute_balanced_accuracy": "Balanced attribute accuracy",
        "attribute_map": "Attribute mAP",
        "attribute_f1": "Attribute F1",
    }
    return [Metric(title, summary[f"test/{name}"], "%", note="test split") for name, title in names.items()]


def margins(summary: dict[str, Any]) -> list[Metric]:
    """How close the samples are to flipping, from summary.json."""
    return [
        Metric("Model attackability", summary["test/attackability_mean"], note=mean_note(summary, "test")),
        _margin(summary, "Attackability", "attackability_median", note="median"),
        _margin(summary, "Relative margin", "relative_margin_mean", "%", note="mean over the test split"),
    ]


def _margin(summary: dict[str, Any], title: str, name: str, unit: str = "", *, note: str) -> Metric:
    low, high = (summary.get(f"test/{name}_{end}") for end in ("low", "high"))
    interval = None if low is None or high is None else (low, high)  # JSON holds no NaN and no infinity
    return Metric(title, summary[f"test/{name}"], unit, interval=interval, note=note)


def median(values: np.ndarray) -> float:
    """The median of all values but NaN; NaN where nothing is left."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def ratio_median(norms: np.ndarray, exact: np.ndarray, predicted: np.ndarray) -> float:
    """Median of norms / exact over the classes other than the predicted one that can be reached.

    A target that only `norms` cannot reach counts as infinite, a tie (both 0) as 1; unresolved pairs are left out.

    Args:
        norms, exact: (N, c).
        predicted: (N,).
    """
    usable = (np.arange(exact.shape[1]) != predicted[:, None]) & np.isfinite(exact)
    norms, exact = norms[usable], exact[usable]
    ratio = np.where(norms > 0, np.inf, 1.0).astype(exact.dtype)
    return median(np.divide(norms, exact, out=np.where(np.isnan(norms), norms, ratio), where=exact > 0))


def inversion_figures(found: Counterfactuals, measured: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures on the images found, for summary.json.

    Rates are over all pairs, failures included. Medians (PSNR, SSIM, norms, ratios, steps) are over the successes
    alone: a failed search leaves an image that nobody would show. NaN where there is no success.

    Args:
        found: the pairs.
        measured: what `pair_metrics` says of them.
    """
    won = found.success
    return {
        "invert/num_pairs": len(found.index),
        "invert/num_success": int(won.sum()),
        "invert/success_rate": float(won.mean()),
        "invert/survives_rounding_rate": float(found.survives_rounding.mean()),
        "invert/psnr_median": median(found.psnr[won]),
        "invert/ssim_median": median(found.ssim[won]),
        "invert/steps_median": median(found.num_steps[won]),
        "invert/class_changed_rate": float(measured["class_changed"].mean()),
        **{f"invert/{name}_median": median(measured[name][won]) for name in MEASURED if name in measured},
    }


def inversion_metrics(figures: dict[str, float]) -> list[Metric]:
    """The same figures for a report; a click shows the cards they come from."""
    ratio, note = "Perturbation noise ratio", "median of the successes"

    def middle(title: str, name: str, unit: str = "", *, note: str = note, sort: str = "") -> Metric:
        opens = Opens(COUNTERFACTUALS, {"sort": sort}) if sort else None
        return Metric(title, figures[f"invert/{name}_median"], unit, note=note, opens=opens)

    return [
        Metric(
            "Attack success rate",
            figures["invert/success_rate"],
            "%",
            note=f"{figures['invert/num_success']} of {figures['invert/num_pairs']} pairs",
            opens=Opens(COUNTERFACTUALS, {"outcome": "reached"}),
        ),
        middle("PSNR", "psnr", "dB", sort="PSNR"),
        middle("SSIM", "ssim", sort="SSIM"),
        Metric("Success after 8 bits", figures["invert/survives_rounding_rate"], "%", note="of all pairs"),
        middle(ratio, "noise_ratio_realised", note=f"realised, {note}"),
        middle(ratio, "noise_ratio_requested", note=f"requested, {note}"),
    ]


def data_words(info: DatasetInfo) -> str:
    """One line about a data set: its name, its size, and what its attributes are labels of."""
    images = sum(info.num_images.values())
    counts = f"{images:,} images of {info.num_classes} classes, {info.num_attributes} attributes"
    return f"{info.name}: {counts}, labelled per {info.attribute_source}"


def headline(figures: dict[str, float], summary: dict[str, Any]) -> list[Metric]:
    """Every number of the top of a whole run's page, the four that are always in view first."""
    reached, psnr, *images = inversion_metrics(figures)
    accuracy, *attributes = quality(summary)
    mean, middle, margin = margins(summary)
    accuracy = dataclasses.replace(accuracy, note="open to see the errors", opens=Opens(TEST_IMAGES, {"correct": "no"}))
    margin = dataclasses.replace(margin, opens=Opens(TEST_IMAGES, {"sort": "relative margin"}))
    return [reached, psnr, accuracy, margin, *images, *attributes, mean, middle]


def change_metrics(measured: dict[str, float], *, note: str = "") -> list[Metric]:
    """What changed, for a report: a pair's row of `pair_metrics`, or medians under the same names."""
    return [Metric(title, measured[name], unit, note=note) for name, (title, unit) in MEASURED.items()
            if title and name in measured]  # fmt: skip


def add_changes(report: Report, figures: dict[str, float]) -> None:
    """The medians of how far the images, classes and attributes of the successes moved."""
    medians = {name: figures[key] for name in MEASURED if (key := f"invert/{name}_median") in figures}
    report.headline(
        change_metrics(medians),
        title="What changed",
        caption=f"Medians over the {figures['invert/num_success']} of {figures['invert/num_pairs']} pairs that reached "
        "their target.",
    )


def canary_figures(head: Head, found: Counterfactuals) -> dict[str, float]:
    """CANARY's metrics of the images found, by both readings; see `change_figures`."""
    before, after = (head_logits(head, jnp.asarray(e)) for e in (found.before, found.after))
    labels, targets = (jnp.asarray(each, jnp.int32) for each in (found.label, found.target))
    return canary.change_figures(before, after, labels, targets, found.results, found.images / np.float32(255))


def add_canary(report: Report, figures: dict[str, float]) -> None:
    """The same as a table."""
    columns = (*canary.EFFECT, canary.TARGETED, *canary.VISIBILITY)
    report.table(
        "CANARY's metrics",
        ["Reading", *(column for _, column in columns)],
        [[name, *(values[key] for key, _ in columns)] for name, values in canary.readings(figures).items()],
        caption=canary.NOTE,
    )


def counterfactual_cards(
    run: LoadedRun, found: Counterfactuals, spread: np.ndarray, measured: dict[str, np.ndarray]
) -> list[CounterfactualCard]:
    """A card for each pair.

    Args:
        run: the model the pairs belong to.
        found: the pairs.
        spread: (n,) standard deviation of each attribute over the test split, the unit of "large".
        measured: what `pair_metrics` says of the pairs.
    """
    head = run.model.head(run.params)
    probabilities = [
        np.asarray(jax.nn.softmax(head_logits(head, jnp.asarray(e)), axis=-1)) for e in (found.before, found.after)
    ]
    return [_card(run, found, row, probabilities, spread, measured) for row in range(len(found.index))]


def add_counterfactuals(report: Report, cards: Sequence[CounterfactualCard]) -> None:
    """The cards of the pairs."""
    report.counterfactuals(
        cards,
        title=COUNTERFACTUALS,
        caption="Each row shows a test image, the image found and their amplified difference; open it for its "
        "attributes, class probabilities and measurements. The distance is the length of the requested attribute "
        "change. (The search “nearest” aims at the class, not at requested attributes.)",
    )


def add_answers(report: Report, found: Counterfactuals) -> None:
    """What the four attribute-space answers cost and reach."""
    feasible = np.isfinite(found.norms).all(axis=-1)
    rows = []
    for k, name in enumerate(SOLVERS):
        ratio = found.norms[feasible, k] / np.maximum(found.norms[feasible, SOLVERS.index("projection")], TINY)
        rows.append((NAMES[name], median(found.norms[feasible, k]), median(ratio), found.reached[:, k].mean()))
    has_single = found.single_attribute >= 0
    single = np.abs(found.single_delta[has_single])
    best = found.norms[has_single, SOLVERS.index("projection")]
    rows.append(("Single attribute", median(single), median(single / np.maximum(best, TINY)), has_single.mean()))
    report.table(
        "Four answers",
        [
            "Perturbation",
            Column("median ‖δ‖", definition="Median length of the attribute change over these pairs."),
            Column("over projection", definition="Median ratio of ‖δ‖ to the projection's ‖δ‖ for the same pair."),
            Column("reaches target", "%", definition="Share of pairs where e + δ is classified as the target."),
        ],
        rows,
        caption="The attribute change that is meant to turn each image into its target class. Only the projection "
        "both wins against every class and is the smallest change that does.",
    )


def _card(
    run: LoadedRun,
    found: Counterfactuals,
    row: int,
    probabilities: list[np.ndarray],
    spread: np.ndarray,
    measured: dict[str, np.ndarray],
) -> CounterfactualCard:
    classes, names = run.info.class_names, run.info.attribute_names
    single, requested = found.single_attribute[row], finite_request(found, row)
    # In units in which every model's attributes are logits.
    given = np.stack([found.before[row], found.before[row] + requested, found.after[row]])
    before, wanted, after = np.asarray(run.model.attribute_logits(run.params, jnp.asarray(given)))
    present = [1 / (1 + np.exp(-np.clip(e, -80, 80))) for e in (before, after)]
    ranks = np.abs(requested) / np.maximum(spread, 1e-6), np.abs(present[1] - present[0])
    largest = dict.fromkeys(int(f) for rank in ranks for f in np.argsort(-rank)[:SHOWN_ATTRIBUTES])
    changes = [
        AttributeChange(names[f], float(before[f]), float(wanted[f] - before[f]), float(after[f] - before[f]))
        for f in largest
    ]
    note = f"Test image {found.index[row]}, labelled {readable_class(classes[found.label[row]])}."
    if single >= 0:
        size = abs(found.single_delta[row]) / max(spread[single], 1e-6)
        name = readable_attribute(names[single])
        moved = format_number(float(found.single_delta[row]), signed=True)
        note += f" One attribute alone would suffice: {name} by {moved} ({size:.1f} standard deviations)."
    else:
        note += " No single attribute can reach this target."
    if found.success[row] and not found.survives_rounding[row]:
        note += " The flip does not survive rounding the image to 8 bits."
    chosen = {int(found.target[row]), *(int(k) for p in probabilities for k in np.argsort(-p[row])[:SHOWN_CLASSES])}
    shown = sorted(chosen, key=lambda k: -float(probabilities[0][row, k]))
    return pair_card(
        found,
        row,
        classes,
        attributes=changes,
        probabilities_before=[(classes[k], float(probabilities[0][row, k])) for k in shown],
        probabilities_after=[(classes[k], float(probabilities[1][row, k])) for k in shown],
        metrics=[
            Metric("PSNR", float(found.psnr[row]), "dB"),
            Metric("SSIM", float(found.ssim[row])),
            *change_metrics({name: values[row] for name, values in measured.items()}),
        ],
        note=note,
    )


def finite_request(found: Counterfactuals, row: int) -> np.ndarray:
    """(n,) the change that was asked for; 0 where the target cannot be reached."""
    return np.where(np.isfinite(found.requested[row]), found.requested[row], 0)


def pair_card(found: Counterfactuals, row: int, classes: Sequence[str], **details: Any) -> CounterfactualCard:
    """The card of one pair; `details` are further fields of it."""
    length = np.linalg.norm(found.requested[row])
    return CounterfactualCard(
        original=found.images[row] / np.float32(255),
        counterfactual=found.results[row],
        source_class=classes[found.predicted[row]],
        target_class=classes[found.target[row]],
        success=bool(found.success[row]),
        reason="" if found.success[row] else Status(int(found.reason[row])).description,
        steps=int(found.num_steps[row]),
        distance=float(length) if np.isfinite(length) else None,
        **details,
    )


def relative_margins(norms: np.ndarray, lengths: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N,) distance to the nearest other class over the length of the attributes; a tie with another class gives 0.

    Unresolved distances (NaN) are passed over; inf where no class can be reached, NaN where nothing is resolved.
    """
    others = np.arange(norms.shape[1]) != predicted[:, None]
    found = nearest_target(jnp.asarray(norms), allowed=jnp.asarray(others))
    return formulas.relative_margin(np.asarray(found.distance), lengths)


def add_training(report: Report, run_dir: Path) -> None:
    """Training curves from metrics.jsonl."""
    names = CURVES | {"epoch": "epoch", "split": "split"}
    rows = [{names[name]: value for name, value in row.items() if name in names} for row in read_records(run_dir)]
    report.curves("Training", rows, x="epoch")


def training_report(run_dir: Path, *, subtitle: str) -> Path:
    """What training alone can show: quality, attackability and curves."""
    summary = read_summary(run_dir)
    report = Report("SPECTRA training", subtitle=subtitle)
    add_training_finding(report, summary)
    report.headline([*quality(summary), *margins(summary)])
    add_training(report, run_dir)
    report.provenance(seconds=summary.get("seconds"))
    return report.write(run_dir / "report.html")
