"""The numbers and the report of activation maps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.counterfactuals.parts import RADIUS, PartDiscs, marked
from experiments.reporting.pages import median
from experiments.runs.loading import LoadedRun
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.reporting import Column, Metric, Picture, Report

MOST_SHOWN = 24
LIFT = (
    "Share of the strongest pixels that lie in discs around the attribute's part, over the share of the picture that "
    f"the discs cover. Pixels scattered at random give 1. A disc's radius is {RADIUS:g} of the object's size."
)
NO_PARTS = (
    "This data set has no part points, so whether the maps lie on the part that an attribute names is not measured."
)


class Map(NamedTuple):
    """One activation map.

    Attributes:
        row: position of the image in the test split.
        label: its class.
        attribute: whose map it is.
        contribution: weight of the attribute for the predicted class times its value, in logits.
        image: (h, w, 3) uint8.
        kept: (h, w) the map at its strongest pixels, 0 elsewhere.
        discs: where the part is; None where the attribute has none or it is not visible.
        lift: of the kept pixels at the part; NaN without one.
        control: an attribute of another part; None without discs.
        control_lift: of its map at the same discs.
    """

    row: int
    label: int
    attribute: int
    contribution: float
    image: np.ndarray
    kept: np.ndarray
    discs: PartDiscs | None
    lift: float
    control: int | None
    control_lift: float


def figures(maps: list[Map]) -> dict[str, float]:
    """The figures for summary.json; NaN where no map has a part to compare with."""
    pairs = np.array([(m.lift, m.control_lift) for m in maps if m.control is not None]).reshape(-1, 2)
    above = pairs[:, 0] > pairs[:, 1]
    return {
        "saliency/num_maps": len(maps),
        "saliency/num_with_part": len(pairs),
        "saliency/lift_median": median(pairs[:, 0]),
        "saliency/control_lift_median": median(pairs[:, 1]),
        "saliency/above_control_rate": float(above.mean()) if len(pairs) else float("nan"),
    }


def verdict(summary: dict[str, float]) -> str:
    """What the figures say, in words, by fixed rules."""
    count = summary["saliency/num_with_part"]
    if not count:
        return "No map belongs to a part with a known location, so nothing can be said about where the maps lie."
    own, control = summary["saliency/lift_median"], summary["saliency/control_lift_median"]
    rate = summary["saliency/above_control_rate"]
    # Two standard errors of a share around one half: what a fair coin would do.
    chance = 1 / np.sqrt(count)
    numbers = (
        f"median lift {own:.2f}, against {control:.2f} for attributes of other parts at the same place; the named "
        f"attribute is ahead in {rate:.0%} of {count} maps"
    )
    if rate - 0.5 > chance and own > control:
        return f"The maps lie on the part that the attribute names more than the maps of other attributes: {numbers}."
    if own > 1.5:
        return (
            f"The maps prefer these places, but not demonstrably because of the attribute's name: {numbers}. They show "
            "where the network looks rather than where it sees this attribute."
        )
    return f"The maps do not single out the named part: {numbers}."


def records(run: LoadedRun, maps: list[Map]) -> Iterator[dict[str, Any]]:
    """One record a map, for metrics.jsonl."""
    names = run.info.attribute_names
    for m in maps:
        yield {
            "index": m.row,
            "label": m.label,
            "attribute": names[m.attribute],
            "contribution": m.contribution,
            "parts": [] if m.discs is None else list(m.discs.names),
            "lift": m.lift,
            "control_attribute": None if m.control is None else names[m.control],
            "control_lift": m.control_lift,
        }


def write(run: LoadedRun, maps: list[Map], summary: dict[str, float], path: Path, *, top_k: int, seed: int) -> Path:
    """Writes the report."""
    report = Report("SPECTRA activation maps", subtitle=f"{run.config.model} on {run.info.name}")
    size = maps[0].kept.size
    wide = "; each mark also covers the neighbouring pixels, to be visible" if max(maps[0].kept.shape) > 100 else ""
    rings = "White rings: the part that the attribute names." if run.info.part_names else NO_PARTS
    shown = maps[:MOST_SHOWN]
    report.gallery(
        "Where each attribute looks",
        [_picture(run, m) for m in shown],
        caption=f"The {min(top_k, size):,} of {size:,} pixels to which the attribute is most sensitive; brighter means "
        f"more sensitive{wide}. {rings} {len(shown)} of {len(maps)} maps are shown; the table lists all of them.",
    )
    if run.info.part_names:
        _add_lift(report, summary)
    _add_table(report, run, maps)
    report.provenance(seed=seed, seconds=summary["seconds"])
    return report.write(path)


def _add_lift(report: Report, summary: dict[str, float]) -> None:
    """How often the maps lie on the named part, beside other attributes at the same place."""
    pairs = f"{summary['saliency/num_with_part']} maps with a known part"
    report.headline(
        [
            Metric("Lift at the part", summary["saliency/lift_median"], definition=LIFT, note=f"median of {pairs}"),
            Metric(
                "Lift of other attributes",
                summary["saliency/control_lift_median"],
                definition="Lift at the same discs of the map of a random attribute of another part: what the place "
                "itself attracts.",
                note=f"median of {pairs}",
            ),
            Metric(
                "Ahead of the other",
                summary["saliency/above_control_rate"],
                "%",
                definition="Share of maps whose lift is larger than that of the other attribute at the same place; "
                "50 % is chance.",
                note=f"of {pairs}",
            ),
        ],
        title="Do the maps lie on the named part?",
        caption=verdict(summary),
    )


def _add_table(report: Report, run: LoadedRun, maps: list[Map]) -> None:
    """A row a map; without part points no columns on parts."""
    classes, names = run.info.class_names, run.info.attribute_names
    columns: list[Column | str] = [
        Column("image", definition="Position of the image in the test split."),
        Column("class", kind="class"),
        Column("attribute", kind="attribute"),
        Column("counts", definition="Weight of the attribute for the predicted class times its value, in logits."),
    ]
    rows: list[tuple[Any, ...]] = [(str(m.row), classes[m.label], names[m.attribute], m.contribution) for m in maps]
    if run.info.part_names:
        columns += ["parts", Column("lift", definition=LIFT), Column("other attribute", kind="attribute"), "its lift"]
        rows = [
            (
                *row,
                "none" if m.discs is None else ", ".join(m.discs.names),
                None if m.discs is None else m.lift,
                "none" if m.control is None else names[m.control],
                None if m.control is None else m.control_lift,
            )
            for row, m in zip(rows, maps, strict=True)
        ]
    report.table("All maps", columns, rows)


def _picture(run: LoadedRun, m: Map) -> Picture:
    name, label = run.info.attribute_names[m.attribute], readable_class(run.info.class_names[m.label])
    where = "; no part to compare" if run.info.part_names else ""
    if m.discs is not None:
        where = f"; lift {m.lift:.2f} at the {', '.join(m.discs.names)}"
    name = readable_attribute(name)
    text = f"{label}: {name}, counts {m.contribution:+.2f} logits{where}".replace(
        "-", "−", 1 if m.contribution < 0 else 0
    )
    return Picture(
        marked(m.image, m.kept, m.discs), text, f"Pixels of a {label} to which {name} is most sensitive{where}"
    )
