"""The six figures of the paper: found, measured, judged by fixed rules, and written as one page."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from experiments.counterfactuals.few_pixels import fewest_pixels
from experiments.counterfactuals.find import measure
from experiments.counterfactuals.parts import PartDiscs, heat, lift, marked, part_discs
from experiments.paper_figures.requests import Case, choose, request
from experiments.reporting.pages import change_metrics
from experiments.runs.loading import LoadedRun
from experiments.runs.part_names import part_names
from experiments.runs.store import Store
from spectra_jax import Adam, InversionConfig, Status, head_logits, invert, psnr, ssim
from spectra_jax.logging import Console
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.reporting import Column, Metric, Picture, Report
from spectra_jax.reporting.images import difference_picture

FIRST_RANKS = 3
AT_THE_PART = 2.0
VISIBLE_LEVELS = 5.0
COARSE = 0.5
FEW_PIXELS = 0.01
OVERSHOOT = 4.0  # logits of lead before pixels are left out: without it there would be nothing to leave out
RANK = "Rank among all attributes by the size of the achieved change in standard deviations; 1 moved most."
LIFT = (
    "Share of the change's energy in discs around the attribute's part over the discs' share of the area; 1 is chance."
)
RULES = (
    f"Each figure has to answer four questions. Moved: is the requested attribute among the {FIRST_RANKS} that moved "
    "most, each in its own standard deviations, and did it move in the requested direction? Placed: does the "
    f"attribute's part hold at least {AT_THE_PART:g} times the share of the change's energy that its area would have "
    "by chance? Visible: does the part (or the whole picture, if there is no part) change by "
    f"{VISIBLE_LEVELS:g} of 255 levels or more on average? "
    f"Coarse: is less than {COARSE:.0%} of the energy in details finer than 8 pixels?\n\n"
    "If all answers are yes, the verdict is “as the paper says”; if at least half are no, “adversarial noise”; "
    "otherwise “partly”. If the attribute alone cannot reach the target, the requested change is not the paper's, and "
    "the verdict says so. A figure that misses its target is called “not reached”. “Few pixels” means at most "
    f"{FEW_PIXELS:.0%} of them."
)


class Figure(NamedTuple):
    """One figure as found; the keys of its file.

    Attributes:
        row: position of the image in the test split.
        source, target: classes.
        attribute: column, -1 for none.
        kind, explanation: of the request.
        image, result: (h, w, 3) uint8 before and after.
        before, after: (n,) attributes of both.
        requested: (n,) change asked for.
        steps: of the inversion.
        reason: a `Status`.
        minimal: few pixels: whether none of them can be left out.
    """

    row: Any
    source: Any
    target: Any
    attribute: Any
    kind: Any
    explanation: Any
    image: Any
    result: Any
    before: Any
    after: Any
    requested: Any
    steps: Any
    reason: Any
    minimal: Any


class Verdict(NamedTuple):
    """What the rules make of a figure: a few words and the reasons."""

    short: str
    reasons: str


def find_figure(
    run: LoadedRun, case: Case, attributes: np.ndarray, labels: np.ndarray, *, margin: float, max_steps: int
) -> Figure:
    """Chooses the image, solves for the change, searches for the picture and rounds it to 8 bits.

    Raises:
        UserError: the run knows no such class or attribute, or classifies no image of the class correctly.
    """
    head, size = run.model.head(run.params), run.config.image_size
    spread = attributes.std(axis=0)
    choice = choose(run, case, attributes, labels, spread, margin)
    picture = run.dataset.images("test", np.array([choice.row]), image_size=size)
    encode = functools.partial(run.model.encode, run.params)
    encoded = jax.jit(run.model.encode)
    images = jnp.asarray(picture, jnp.float32) / 255
    before = np.asarray(encoded(run.params, images))[0]
    wanted = request(run, case, choice, before, spread, margin)
    config = InversionConfig(margin=0.2, max_steps=max_steps, shrink_steps=8)
    if case.few_pixels:
        config = InversionConfig(method=Adam(step_size=0.01), margin=OVERSHOOT, max_steps=max_steps, ssim_weight=0)
    targets, goal = jnp.asarray([choice.target], jnp.int32), jnp.asarray(before + wanted.delta)[None]
    found = invert(encode, head, images, goal, targets, config=config)
    result = np.rint(np.asarray(found.images[0]) * 255) / np.float32(255)
    reason, minimal = int(found.reason[0]), False
    named = int(jnp.argmax(head_logits(head, encoded(run.params, jnp.asarray(result)[None]))[0]))
    if case.few_pixels and named == choice.target:
        pruned = fewest_pixels(encode, head, np.asarray(images[0]), result, choice.target)
        result, minimal, reason = pruned.image, pruned.minimal, int(Status.SOLVED)
    after = np.asarray(encoded(run.params, jnp.asarray(result)[None]))[0]
    return Figure(
        *choice[:4],
        wanted.kind,
        wanted.explanation,
        image=picture[0],
        result=np.rint(result * 255).astype(np.uint8),
        before=before,
        after=after,
        requested=wanted.delta,
        steps=int(found.num_steps[0]),
        reason=reason,
        minimal=minimal,
    )


def find_figures(
    run: LoadedRun, cases: Sequence[Case], attributes: np.ndarray, labels: np.ndarray, store: Store, *, margin: float,
    max_steps: int, console: Console,
) -> list[Figure]:  # fmt: skip
    """All figures; one that is already in `store` is not searched for again."""
    figures = []
    with console.progress("figures", len(cases), unit="figures") as task:
        for number, case in enumerate(cases):

            def compute(case: Case = case) -> dict[str, Any]:
                return find_figure(run, case, attributes, labels, margin=margin, max_steps=max_steps)._asdict()

            figures.append(Figure(**{name: value[()] for name, value in store.get(case.key, compute).items()}))
            task.update(number + 1, case.key)
    return figures


def measurements(run: LoadedRun, figure: Figure, spread: np.ndarray) -> dict[str, Any]:
    """Everything the page says of a figure, as numbers; names as in metrics.jsonl."""
    head = run.model.head(run.params)
    image, result = (array.astype(np.float32) / np.float32(255) for array in (figure.image, figure.result))
    rows = [jnp.asarray(array)[None] for array in (image, result, figure.before, figure.after, figure.requested)]
    measured = measure(head, *rows, jnp.asarray([figure.target], jnp.int32), jnp.asarray(spread))
    numbers = {name: np.asarray(value)[0].item() for name, value in measured.items()}
    numbers |= {"psnr": float(psnr(rows[1], rows[0])[0]), "ssim": float(ssim(rows[1], rows[0])[0])}
    change = (figure.result.astype(np.float32) - figure.image) / 255
    discs, f = discs_of(run, figure), int(figure.attribute)
    inside = np.ones(change.shape[:2], bool) if discs is None else discs.inside
    numbers |= {
        "reached": numbers["class_after"] == int(figure.target),
        "lift": float("nan") if discs is None else lift(np.square(change).sum(axis=-1), discs.inside),
        "levels_in_part": float(255 * np.abs(change[inside]).mean()),
        "colour_in_part": [float(255 * value) for value in change[inside].mean(axis=0)],
    }
    if f >= 0:
        realised = (figure.after - figure.before) / np.maximum(spread, np.finfo(np.float32).tiny)
        numbers |= {
            "requested_delta": float(figure.requested[f]),
            "requested_spreads": float(figure.requested[f] / spread[f]),
            "achieved_delta": float(figure.after[f] - figure.before[f]),
            "achieved_spreads": float(realised[f]),
            "rank": int(1 + (np.abs(realised) > np.abs(realised[f])).sum()),
        }
    return numbers


def discs_of(run: LoadedRun, figure: Figure) -> PartDiscs | None:
    """Where the part of the figure's attribute is; None without an attribute, a part, or where it is not visible."""
    if figure.attribute < 0:
        return None
    example = run.dataset.example("test", int(figure.row))
    return part_discs(run.info, example, run.info.attribute_names[int(figure.attribute)], figure.image.shape[0])


def judge(case: Case, figure: Figure, numbers: dict[str, Any], place: str, num_attributes: int) -> Verdict:
    """The verdict of `RULES`.

    Args:
        case: the figure of the paper.
        figure: what was found.
        numbers: its `measurements`.
        place: words for the part, "" where there is none.
        num_attributes: n.
    """
    if not numbers["reached"]:
        reason = Status(int(figure.reason)).description
        if figure.reason == Status.SOLVED:
            reason = "the flip does not survive rounding the image to 8 bits"
        return Verdict("not reached", f"Not reached: {reason}.")
    if case.few_pixels:
        share = f"{numbers['l0']:,} of {figure.image[..., 0].size:,} pixels ({numbers['pixels_changed']:.2%})"
        small = "; none of them can be omitted" if figure.minimal else ""
        if numbers["pixels_changed"] <= FEW_PIXELS:
            return Verdict("as the paper says", f"As the paper says: {share} are enough{small}.")
        return Verdict("not few", f"Not few pixels: the flip takes {share}{small}.")
    moved = numbers["rank"] <= FIRST_RANKS and numbers["achieved_delta"] * case.direction > 0
    what = f"the attribute moved by {numbers['achieved_spreads']:+.2f} standard deviations"
    answers = [(moved, f"{what}, rank {numbers['rank']} of {num_attributes}")]
    if place:
        at = "is" if numbers["lift"] >= AT_THE_PART else "is not"
        answers.append((numbers["lift"] >= AT_THE_PART, f"the change {at} at the {place} (lift {numbers['lift']:.2f})"))
    where = f"at the {place}" if place else "of the picture"
    seen = numbers["levels_in_part"] >= VISIBLE_LEVELS
    answers.append((seen, f"the mean change {where} is {numbers['levels_in_part']:.1f} of 255 levels"))
    coarse = numbers["high_frequency_share"] < COARSE
    answers.append((coarse, f"{numbers['high_frequency_share']:.0%} of the energy is in details finer than 8 pixels"))
    against = [text for good, text in answers if not good]
    for_it = [text for good, text in answers if good]
    # The paper changes one attribute; "group" and "forced" are other questions, whose answers prove nothing on its own.
    other = "" if figure.kind == "single" else ", other request"
    if not against:
        said = "As the paper says" if not other else "As the paper says, but for a change other than the paper's"
        return Verdict(f"as the paper says{other}", f"{said}: {'; '.join(for_it)}.")
    short = "adversarial noise" if 2 * len(against) >= len(answers) else "partly"
    rest = f" In favour: {'; '.join(for_it)}." if for_it else ""
    return Verdict(f"{short}{other}", f"{short.capitalize()}: {'; '.join(against)}.{rest}")


def write_page(
    run: LoadedRun, cases: Sequence[Case], figures: Sequence[Figure], numbers: Sequence[dict[str, Any]],
    verdicts: Sequence[Verdict], path: Path, *, subtitle: str, seconds: float,
) -> Path:  # fmt: skip
    """Writes the report."""
    report = Report("The figures of the SPECTRA paper, redrawn", subtitle=subtitle)
    for case, figure, found, verdict in zip(cases, figures, numbers, verdicts, strict=True):
        _add_figure(report, run, case, figure, found, verdict)
    wanted = [figure for figure in figures if figure.attribute >= 0]
    report.headline(
        [
            Metric("Targets reached", f"{sum(n['reached'] for n in numbers)} of {len(figures)}", definition="Figures "
                   "whose picture, rounded to 8 bits, is classified as the target."),
            Metric("As the paper says", f"{sum(v.short == 'as the paper says' for v in verdicts)} of {len(figures)}",
                   definition=RULES.replace("\n\n", " ")),
            Metric("One attribute is enough", f"{sum(f.kind == 'single' for f in wanted)} of {len(wanted)}",
                   definition="Figures for which changing the named attribute alone can reach the target at all."),
        ],
        title="All figures",
    )  # fmt: skip
    report.table(
        "The figures as numbers",
        [
            "Figure",
            "Request",
            "Reached",
            Column("asked", "sd", "Requested attribute change in its standard deviations over the test images."),
            Column("achieved", "sd", "Achieved attribute change in its standard deviations over the test images."),
            Column("rank", definition=RANK),
            Column("lift", definition=LIFT),
            Column("levels", definition="Mean absolute change at the part, or of the whole picture if there is no "
                   "part, in levels of 255."),
            Column("PSNR", "dB"),
            Column("SSIM"),
            Column("Pixels changed", "%"),
            "Verdict",
        ],
        [
            (case.key, str(figure.kind), found["reached"], found.get("requested_spreads"),
             found.get("achieved_spreads"), found.get("rank"), found["lift"], found["levels_in_part"], found["psnr"],
             found["ssim"], found["pixels_changed"], verdict.short)
            for case, figure, found, verdict in zip(cases, figures, numbers, verdicts, strict=True)
        ],
    )  # fmt: skip
    report.text(RULES, title="How the verdicts are made")
    report.provenance(seconds=seconds)
    return report.write(path)


def _add_figure(
    report: Report, run: LoadedRun, case: Case, figure: Figure, found: dict[str, Any], verdict: Verdict
) -> None:
    source, target = (readable_class(run.info.class_names[int(k)]) for k in (figure.source, figure.target))
    discs = discs_of(run, figure)
    change = (figure.result.astype(np.float32) - figure.image) / 255
    energy = np.square(change).sum(axis=-1)
    amplification = None
    if case.few_pixels:  # single pixels would be hard to see
        amplification = max(1, int(0.5 / max(float(np.abs(change).max()), 1 / 255)))
        change = maximum_filter(change, (3, 3, 1)) + minimum_filter(change, (3, 3, 1))
    before = figure.image.astype(np.float32) / 255
    difference = difference_picture(before, np.clip(before + change, 0, 1), amplification=amplification)
    where = marked(figure.image, (energy > 0) * 1.0, None) if case.few_pixels else heat(figure.image, energy, discs)
    ring = f"; rings: {', '.join(discs.names)}" if discs is not None else ""
    after = readable_class(run.info.class_names[found["class_after"]])
    pictures = [
        Picture(figure.image, f"Original: {source}, {found['source_probability_before']:.0%}", f"A {source}"),
        Picture(
            figure.result,
            f"Counterfactual: {after}; {target} {found['target_probability_before']:.1%} → "
            f"{found['target_probability_after']:.0%}",
            f"The changed picture, classified as {after}",
        ),
        Picture(
            difference.pixels,
            f"Difference × {difference.amplification}" + ", neighbours drawn too" * case.few_pixels,
            f"Change of each pixel times {difference.amplification}, around grey",
        ),
        Picture(
            where,
            f"The {found['l0']:,} changed pixels" if case.few_pixels else f"Where the change lies{ring}",
            f"Dimmed picture with the changed places in bright colours{ring}",
        ),
    ]
    caption = f"{verdict.reasons} Request for {source} → {target}: {figure.explanation}"
    report.gallery(f"{case.title} ({case.section})", pictures, caption=caption, large=True)
    metrics = []
    if figure.attribute >= 0:
        name = readable_attribute(run.info.attribute_names[int(figure.attribute)])
        metrics = [
            Metric(
                "Requested change", found["requested_spreads"], "sd", note=f"{name}, δ {found['requested_delta']:+.3g}"
            ),
            Metric(
                "Achieved change", found["achieved_spreads"], "sd", note=f"{name}, δ {found['achieved_delta']:+.3g}"
            ),
            Metric("Rank of the attribute", found["rank"], definition=RANK, note=f"of {run.info.num_attributes}"),
        ]
        if discs is not None:
            # + 0.0 turns a rounded -0.0 into 0.0
            levels = [round(value, 1) + 0.0 for value in found["colour_in_part"]]
            colours = ", ".join(f"{c} {v:+.1f}" for c, v in zip("RGB", levels, strict=True))
            metrics += [
                Metric("Lift at the part", found["lift"], definition=LIFT, note=", ".join(discs.names)),
                Metric("Colour at the part", found["levels_in_part"], note=f"mean change: {colours}",
                       definition="Mean absolute change of the channels in the discs, in levels of 255, with the mean "
                       "change of each channel beside it."),
            ]  # fmt: skip
    metrics += [Metric("PSNR", found["psnr"], "dB"), Metric("SSIM", found["ssim"])]
    kept = ("Pixels changed", "L2 distance", "L∞ distance", "High-frequency share", "Attribute selectivity")
    count = f"{found['l0']:,} of {energy.size:,}"
    metrics += [
        replace(metric, note=count, decimals=2) if metric.name == "Pixels changed" else metric
        for metric in change_metrics(found)
        if metric.name in kept
    ]
    report.headline(metrics, title="")


def place_of(run: LoadedRun, figure: Figure) -> str:
    """Words for the part of the figure's attribute, "" where it has none or the part is not visible."""
    discs = discs_of(run, figure)
    if discs is None:
        return ""
    return " and ".join(part_names(run.info.attribute_names[int(figure.attribute)]))
