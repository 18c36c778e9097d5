"""Answers as one HTML page."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.types import Status

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.explanation import Answer, Explanation

# Answers with pictures, and pairs whose infeasibility is explained: each explanation solves some problems anew.
_CARDS, _REASONS, _ROWS = 60, 20, 2000


def write_page(explanation: "Explanation", path: Path, images: Any, title: str) -> Path:
    """See `Explanation.to_html`."""
    from spectra_jax.reporting import Column, Metric, Report

    if images is not None and len(images) != len(explanation):
        raise ValueError(f"images has {len(images)} rows; expected {len(explanation)}, the images of the samples")
    answers = list(itertools.islice(explanation, _ROWS))
    report = Report(title, subtitle=f"{len(explanation)} samples, {len(explanation.names.attributes)} attributes")
    solved = [answer for answer in answers if answer.status == Status.SOLVED]
    first = [answer for answer in solved if answer.rank == 0]
    asked = sum(answer.rank == 0 for answer in answers)
    metrics = [
        Metric("Answers", len(solved), definition="Changes that reach their target within all rules."),
        Metric("Pairs with an answer", len(first) / max(asked, 1), "%", definition="Of all requested pairs."),
        Metric(
            "Proven to be the smallest",
            np.mean([answer.proven for answer in first]) if first else None,
            "%",
            definition="No smaller change within the rules exists; for the others a lower bound is given.",
        ),
        Metric(
            "Distance, median",
            float(np.median([answer.distance for answer in first])) if first else None,
            definition="Length of the attribute change, weighted by the costs.",
        ),
    ]
    report.headline(metrics, title="What was found")
    rules = ", ".join(explanation.without) or "none"
    report.text(f"Rules: {rules}. Requested lead: {explanation.margin:g} logits. Solver: {explanation.solver}.")
    if images is not None:
        shown = [answer for answer in answers if answer.rank == 0][:_CARDS]
        searched = "The image search aims at the class: it need not change the attributes that the answer names."
        report.counterfactuals(
            [_card(explanation, answer, np.asarray(images[answer.sample])) for answer in shown],
            caption="" if explanation.realised is None else searched,
        )
    rows = [
        (f"{a.sample}", readable_class(a.predicted), readable_class(a.target), a.rank + 1,
         a.distance if a.status == Status.SOLVED else None, a.proven, str(a))
        for a in answers
    ]  # fmt: skip
    columns: list[str | Column] = [
        "Sample",
        "Class",
        "Target",
        "Answer",
        Column("Distance", decimals=3),
        "Proven",
        "In words",
    ]
    report.table("Every answer", columns, rows)
    changes = [
        (f"{a.sample}", readable_class(a.target), a.rank + 1, readable_attribute(c.name), c.before, c.after,
         c.probability_before, c.probability_after, c.in_spreads, c.achieved)
        for a in solved for c in a.changes
    ][:_ROWS]  # fmt: skip
    names = ["Sample", "Target", "Answer", "Attribute", "From", "To", "Probability from", "Probability to",
             "Change in spreads", "Achieved in the image"]  # fmt: skip
    kept = [
        k for k in range(len(names)) if any(not (isinstance(row[k], float) and np.isnan(row[k])) for row in changes)
    ]
    report.table("Every change", [names[k] for k in kept], [[row[k] for k in kept] for row in changes])
    open_ = [place for place in np.ndindex(*explanation.targets.shape) if _is_open(explanation, *place)]
    if open_:
        words = [
            (f"{sample}", readable_class(explanation.names.classes[int(explanation.targets[sample, place])]),
             explanation.reason(sample, place))
            for sample, place in open_[:_REASONS]
        ]  # fmt: skip
        more = f"The first {_REASONS} of {len(open_)}." if len(open_) > _REASONS else ""
        report.table("Why there is no answer", ["Sample", "Target", "Reason"], words, caption=more)
    report.provenance()
    return report.write(path)


def _is_open(explanation: "Explanation", sample: int, place: int) -> bool:
    asked = int(explanation.targets[sample, place]) != int(explanation.predicted[sample])
    return asked and explanation.status[sample, place, 0] != Status.SOLVED


def _card(explanation: "Explanation", answer: "Answer", image: np.ndarray) -> Any:
    from spectra_jax.reporting import CounterfactualCard, Metric

    place = int(np.flatnonzero(explanation.targets[answer.sample] == explanation.names.classes.index(answer.target))[0])
    realised = explanation.realised
    found = answer.status == Status.SOLVED
    if realised is None:
        reason = "No image was searched." if found else str(answer)
        return CounterfactualCard(image, None, answer.predicted, answer.target, success=False, reason=reason,
                                  note=str(answer))  # fmt: skip
    reached = bool(realised.success[answer.sample, place])
    metrics = [
        Metric("PSNR", float(realised.psnr[answer.sample, place]), "dB"),
        Metric("L2 distance of the images", float(realised.l2[answer.sample, place])),
    ]
    return CounterfactualCard(
        image,
        np.asarray(realised.images[answer.sample, place]) if found else None,
        answer.predicted,
        answer.target,
        success=reached,
        reason="" if reached else (str(answer) if not found else "The search for the image did not reach the target."),
        metrics=metrics if found else (),
        note=str(answer),
    )
