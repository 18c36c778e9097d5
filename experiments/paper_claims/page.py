"""The report and the tables of the claims: verdicts, intervals, and the pictures behind each number."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image
from scipy.ndimage import binary_erosion, maximum_filter

from experiments.counterfactuals.parts import heat
from experiments.paper_claims.comparisons import CLAIMS, FEW, SHAPES
from experiments.paper_claims.images import pictures_of, rounded
from experiments.paper_claims.options import ClaimConfig
from experiments.paper_claims.solve import RunClaims
from experiments.paper_claims.statistics import RULE, Comparison, Verdict, Word, overall
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.reporting import SERIES, Column, Estimate, Metric, Picture, Report, new_figure, plot_style
from spectra_jax.reporting.formatting import format_number
from spectra_jax.reporting.images import difference_picture

PANEL = 192
EXAMPLES = (("best", 0.0), ("best", 0.0), ("middle", 0.5), ("middle", 0.5), ("worst", 1.0), ("worst", 1.0))
CHOICE = (
    "Pictures are chosen by rule, not by eye. All pairs are sorted by the first comparison that has pictures (value "
    "minus control; ties in the order of the pairs), and the two at the top, in the middle and at the bottom are "
    "shown. Each shows the original, the changed picture, their amplified difference, and where the change is "
    "concentrated, with the part outlined in white."
)
ATLAS = {
    "frequency": Column("in images", "%", "Share of test images that have the attribute."),
    "reached": Column("reached", "%", "Share of its requests that moved the attribute as far as requested."),
    "achieved_over_requested": Column("achieved", "", "Mean ratio of the achieved to the requested attribute change."),
    "moved_per_l2": Column("per L2", "sd", "Standard deviations that the attribute moves for an image change of length "
                           "1: its perturbability."),
    "lift": Column("lift", "", "Share of the change's energy in the part over the part's share of the area; 1 is "
                   "chance."),
    "lift_elsewhere": Column("lift elsewhere", "", "The same for an equally large region elsewhere on the bird."),
    "percentile": Column("ahead of", "%", "Share of the other attributes that moved less in the requested direction, "
                         "in standard deviations."),
    "fine_detail_share": Column("fine detail", "%", "Share of the change's energy in details finer than 8 pixels."),
    "sign_agreement": Column("sign", "%", "Among the class pairs that the attribute tells apart (by 10 points or more "
                             "of the annotators' percentages), share in which the head's weights have the right sign."),
    "witness_agreement": Column("witness", "%", "Share of the pictures in which an independent network sees the "
                                "attribute move as requested."),
}  # fmt: skip


def claim_words(run: RunClaims) -> dict[str, Word]:
    """Claim -> overall verdict."""
    return {claim: overall([v.verdict for v in run.verdicts if v.claim == claim]) for claim in CLAIMS}


def write_tables(runs: Sequence[RunClaims], out: Path) -> None:
    """claims.csv, atlas.csv and atlas.parquet; each appears whole."""
    rows = [
        {"run": run.name, "model": run.material.run.config.model, "data": run.material.run.info.name,
         **{name: value for name, value in verdict._asdict().items() if name != "unit"}}
        for run in runs for verdict in run.verdicts
    ]  # fmt: skip
    _replace(out / "claims.csv", lambda path: pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path))
    names = dict.fromkeys(name for run in runs for name in run.atlas)
    parts = []
    for run in runs:
        count = len(run.atlas["attribute"])
        absent = np.full(count, np.nan)
        parts.append(pa.table({"run": [run.name] * count, **{n: pa.array(run.atlas.get(n, absent)) for n in names}}))
    atlas = pa.concat_tables(parts)
    _replace(out / "atlas.csv", lambda path: pyarrow.csv.write_csv(atlas, path))
    _replace(out / "atlas.parquet", lambda path: pyarrow.parquet.write_table(atlas, path))


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_page(runs: Sequence[RunClaims], path: Path, *, config: ClaimConfig, seed: int, seconds: float) -> Path:
    """Writes the report."""
    title = ", ".join(f"{run.name} ({run.material.run.config.model} on {run.material.run.info.name})" for run in runs)
    report = Report("The claims of the SPECTRA paper as numbers", subtitle=title)
    words = [claim_words(run) for run in runs]
    report.table(
        "Verdicts",
        ["Claim", *(run.name for run in runs)],
        [(f"{claim} {text}", *(word[claim] for word in words)) for claim, text in CLAIMS.items()],
        caption="Every claim as the paper makes it; “fails” is a result like any other. The sections below show the "
        "numbers and pictures behind each verdict; the last one states the rule.",
    )
    _add_basis(report, runs, config)
    for claim, text in CLAIMS.items():
        _add_claim(report, runs, claim, text)
    for run in runs:
        _add_atlas(report, run)
    report.text(f"{RULE}\n\n{CHOICE}", title="How the verdicts are made and the pictures chosen")
    report.provenance(seed=seed, seconds=seconds, flips=str(config.inversion), singles=str(config.single))
    return report.write(path)


def _add_basis(report: Report, runs: Sequence[RunClaims], config: ClaimConfig) -> None:
    report.table(
        "What the verdicts rest on",
        [
            "Run",
            "Parts",
            "Witness",
            Column("flips", "", "Number of requested class flips."),
            Column("reached", "%", "Share of flips that reached their target."),
            Column("8 bits", "%", "Share of flips that survive rounding the picture to 8 bits."),
            Column("L2 of flips", "", "Median length of the image change of the flips that were reached."),
            Column("singles", "", "Number of pictures in which one attribute was meant to move."),
            Column("moved", "%", "Share of single-attribute pictures whose attribute moved as far as requested."),
            Column("L2 of singles", "", "Median length of the image change in these pictures."),
            Column("pixels", "%", "Median share of pixels that keep a flip after pruning."),
            Column("random pixels", "%", "The same with pixels in random order."),
        ],
        [
            (run.name, run.material.regions.kind, run.witness or "missing", run.figures["flips"],
             run.figures["flips_reached"], run.figures["flips_survive_rounding"], run.figures["flips_l2_median"],
             run.figures["singles"], run.figures["singles_reached"], run.figures["singles_l2_median"],
             run.figures["few_pixels_median"], run.figures["few_pixels_random_median"])
            for run in runs
        ],
        caption=f"A flip requests the smallest attribute change that makes the target win by {config.margin:g} logits; "
        "its attribute is the one that changes most, in standard deviations. A single-attribute picture moves one "
        f"attribute up or down by {config.step:g} standard deviations with the smallest possible change of the "
        "picture; all other attributes are free.",
    )  # fmt: skip


def _add_claim(report: Report, runs: Sequence[RunClaims], claim: str, text: str) -> None:
    rows, statements = [], {}
    for run in runs:
        for verdict in run.verdicts:
            if verdict.claim == claim:
                statements[verdict.name] = verdict.statement
                rows.append(_row(run, verdict))
    definition = "Value minus control, with a 95 % bootstrap interval that draws whole classes."
    report.table(
        f"{claim} {text}",
        ["Run", "Compared with", "Pairs", "Classes", "Value", "Control", Column("difference", "", definition),
         Column("at least", "", "Smallest difference that justifies the claim's wording."), "Verdict"],
        rows,
        caption=" ".join(f"{name[0].upper()}{name[1:]}: {words}" for name, words in statements.items()),
    )  # fmt: skip
    for run in runs:
        pictures = _pictures_of_attributes(run) if claim == "5.3.1" else _pictures_of_pairs(run, claim)
        if pictures:
            report.gallery(f"{claim}, {run.name}", pictures, format="jpeg")


def _row(run: RunClaims, verdict: Verdict) -> tuple[Any, ...]:
    missing = verdict.verdict == "missing"
    difference = None if missing else Estimate(verdict.difference, verdict.low, verdict.high)
    numbers = (None, None) if missing else (verdict.value, verdict.control)
    return (run.name, verdict.name, verdict.pairs, verdict.clusters, *numbers, difference, verdict.least,
            verdict.verdict)  # fmt: skip


def examples(comparison: Comparison) -> list[tuple[str, int]]:
    """("best", "middle" or "worst", position in the comparison) of the pairs to show, by the rule of `CHOICE`."""
    difference = comparison.value - comparison.control
    known = np.flatnonzero(np.isfinite(difference))
    order = known[np.argsort(-difference[known], kind="stable")]
    chosen: dict[int, str] = {}
    for number, (name, place) in enumerate(EXAMPLES):
        offset = number % 2 * (-1 if place == 1 else 1)
        position = int(np.clip(round(place * (len(order) - 1)) + offset, 0, max(len(order) - 1, 0)))
        if len(order):
            chosen.setdefault(int(order[position]), name)
    return [(name, position) for position, name in chosen.items()]


def _pictures_of_pairs(run: RunClaims, claim: str) -> list[Picture]:
    shown = [c for c in run.comparisons if c.claim == claim and c.rows is not None and np.isfinite(c.value).any()]
    shown = [c for c in shown if np.isfinite(c.value - c.control).any()]
    if not shown:
        return []
    pictures = []
    for name, position in examples(shown[0]):
        assert shown[0].rows is not None
        row = int(shown[0].rows[position])
        numbers = f"{format_number(float(shown[0].value[position]))} against "
        numbers += format_number(float(shown[0].control[position]))
        draw = _flip if shown[0].source == "flips" else _single
        pictures.append(draw(run, row, f"{name.capitalize()}, {numbers}: ", pruned=claim == "5.2.4"))
    return pictures


def _pictures_of_attributes(run: RunClaims) -> list[Picture]:
    """The attributes of the best, middle and worst perturbability among colours, sizes and shapes."""
    groups, score = np.array(run.atlas["group"]), np.asarray(run.atlas["moved_per_l2"])
    meant = (np.char.endswith(groups, "_color") | np.isin(groups, SHAPES)) & np.isfinite(score)
    score = np.where(meant, score, np.nan)
    nothing = np.where(meant, 0.0, np.nan)
    comparison = Comparison("5.3.1", "", "", score, nothing, groups, 0)
    pictures = []
    for name, f in examples(comparison):
        row = int(np.flatnonzero(run.material.singles.attribute == f)[0])
        pictures.append(_single(run, row, f"{name.capitalize()}, {format_number(float(score[f]))} sd per L2: "))
    return pictures


def _single(run: RunClaims, row: int, prefix: str, *, pruned: bool = False) -> Picture:
    material, singles = run.material, run.material.singles
    name = material.run.info.attribute_names[int(singles.attribute[row])]
    index = int(singles.index[row])
    original, result = (np.asarray(picture[0]) for picture in pictures_of(material.run, singles, np.array([row])))
    verb = "raised" if singles.sign[row] > 0 else "lowered"
    achieved = format_number(float(material.columns["achieved"][row] * singles.sign[row]), signed=True)
    caption = f"{prefix}{readable_attribute(name)} {verb}, moved {achieved} sd, image {index}"
    region = material.regions.own(index, name)
    return Picture(_panels(original, result, region, None), caption, f"Four pictures: {caption}")


def _flip(run: RunClaims, row: int, prefix: str, *, pruned: bool) -> Picture:
    material, flips = run.material, run.material.flips
    info = material.run.info
    name = info.attribute_names[int(material.named[row])]
    classes = [readable_class(info.class_names[int(k)]) for k in (flips.predicted[row], flips.target[row])]
    change = format_number(float(flips.requested[row, material.named[row]]), signed=True)
    result = np.asarray(rounded(flips.results[row]))
    caption = f"{prefix}{classes[0]} → {classes[1]}; {readable_attribute(name)} {change}"
    mask = None
    if pruned:
        place = int(np.flatnonzero(material.pixel_rows == row)[0])
        mask = material.pixels["masks"][place]
        caption = f"{prefix}{classes[0]} → {classes[1]}; {mask.sum():,} of {mask.size:,} pixels (limit {FEW:.0%})"
    region = None if pruned else material.regions.own(int(flips.index[row]), name)
    return Picture(
        _panels(flips.images[row] / np.float32(255), result, region, mask), caption, f"Four pictures: {caption}"
    )


def _panels(original: np.ndarray, result: np.ndarray, region: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    """Original and result above, difference and place of the change below; (side, side, 3) uint8 from [0, 1]."""
    difference = difference_picture(original, result).pixels
    energy = np.square(result - original).sum(axis=-1)
    original, result = (np.rint(255 * picture).astype(np.uint8) for picture in (original, result))
    if mask is None:
        where = heat(original, energy, None)
    else:
        dots = maximum_filter(mask, 3) if max(mask.shape) > 100 else mask
        where = np.where(dots[..., None], np.array([255, 160, 0], np.uint8), original // 2).astype(np.uint8)
    views = [_enlarged(view) for view in (original, result, difference, where)]
    if region is not None:
        side = Image.fromarray(region.astype(np.uint8)).resize((PANEL, PANEL), Image.Resampling.NEAREST)
        shape = np.asarray(side) > 0
        views[3][shape & ~binary_erosion(shape)] = 255
    gap = np.full((PANEL, 4, 3), 255, np.uint8)
    rows = [np.concatenate([views[k], gap, views[k + 1]], axis=1) for k in (0, 2)]
    return np.concatenate([rows[0], np.full((4, rows[0].shape[1], 3), 255, np.uint8), rows[1]])


def _enlarged(view: np.ndarray) -> np.ndarray:
    sharp = Image.Resampling.NEAREST if max(view.shape) < PANEL else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(view).resize((PANEL, PANEL), sharp))


def _add_atlas(report: Report, run: RunClaims) -> None:
    atlas = run.atlas
    groups, score = np.array(atlas["group"]), np.asarray(atlas["moved_per_l2"])
    kinds = {"colour": np.char.endswith(groups, "_color"), "size and shape": np.isin(groups, SHAPES)}
    kinds["pattern"] = ~(kinds["colour"] | kinds["size and shape"])
    medians = []
    with plot_style():
        figure = new_figure(6.4, 3.0)
        axes = figure.add_subplot(xlabel="share of test images that have the attribute", ylabel="sd moved per L2")
        for (kind, members), colour, marker in zip(kinds.items(), SERIES, "os^", strict=False):
            known = members & np.isfinite(score)
            axes.scatter(atlas["frequency"][known], score[known], s=14, color=colour, marker=marker, label=kind)
            middle = float(np.median(score[known])) if known.any() else float("nan")
            note = f"{known.sum()} attributes, median"
            medians.append(Metric(f"{kind[0].upper()}{kind[1:]}", middle, "sd", note=note,
                                  definition="Standard deviations that an attribute of this kind moves for an image "
                                  "change of length 1; median over the attributes."))  # fmt: skip
        axes.legend()
    report.headline(medians, title=f"Perturbability atlas, {run.name}")
    alt = "Scatter plot of perturbability over label frequency: " + ", ".join(
        f"median {format_number(metric.value)} for {metric.name.lower()}" for metric in medians
    )
    report.figure(f"Perturbability and label frequency, {run.name}", figure, alt=alt)
    shown = [name for name in ATLAS if name in atlas]
    rows = [(readable_attribute(attribute), atlas["part"][f] or "whole bird", *(float(atlas[key][f]) for key in shown))
            for f, attribute in enumerate(atlas["attribute"])]  # fmt: skip
    report.table(f"All attributes, {run.name}", ["Attribute", "Part", *(ATLAS[name] for name in shown)], rows,
                 caption="Means over an attribute's pictures; also in atlas.csv and atlas.parquet.")  # fmt: skip
