"""The comparison as a table, a summary and one page of pictures."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cited_systems.concept_space import SEEN, TITLES
from experiments.cited_systems.measure import Places
from experiments.cited_systems.solve import DELETED
from experiments.cited_systems.subject import Pairs
from experiments.runs.folder import SUMMARY
from spectra_jax.data import DatasetInfo
from spectra_jax.logging import write_json
from spectra_jax.names import readable_class
from spectra_jax.reporting import Column, Estimate, Report, new_figure, plot_style
from spectra_jax.reporting.page import write_atomically

TABLE = "table.md"
SHOWN = 8  # pairs
COLUMNS = (
    ("valid", Column("Valid", "%", "Share of all pairs whose 8-bit answer the classifier assigns to the target.", 0)),
    ("realised", Column("Realised / asked", "", "Length of the realised over the requested attribute change.", 2)),
    ("cosine", Column("Cosine to the request", "", "Cosine of the realised and the requested attribute change.", 2)),
    ("selectivity", Column("Selectivity", "%", "Share of the realised change, in standard deviations, that falls on "
                           "the ten attributes with the largest requested change.", 0)),
    ("l2", Column("L2", "", "Length of the image change; pixel values are in [0, 1].", 2)),
    ("ssim", Column("SSIM", "", "SSIM to the original.", 3)),
    ("on_manifold", Column("To the nearest real image", "", "Distance to the nearest training image of the target "
                           "class, in features of the witness, another network.", 2)),
    ("witness_agrees", Column("Witness agrees", "%", "Share of all pairs that the witness assigns to the target.", 0)),
    ("lift", Column("At the named part", "", "Share of the change's energy on the part of the attribute with the "
                    "largest requested change, over the part's share of the area; 1 is chance.", 2)),
    ("seconds", Column("Seconds", "", "Seconds per image of a batch; the first batch includes compilation.", 3)),
)  # fmt: skip
CONCEPT_COLUMNS = (
    ("valid", Column("Valid", "%", "Share of the pairs for which the task predictor predicts the target.", 0)),
    ("inside", Column("Inside 0 to 1", "%", "Share of the pairs whose concepts are all probabilities.", 0)),
    ("length", Column("L2", "", "Length of the change of the concepts, as probabilities.", 2)),
    ("changed", Column("Changed", "", f"Number of concepts that move by more than {SEEN:g}.", 0)),
    ("flipped", Column("Flipped", "", "Number of concepts that cross one half.", 0)),
    ("off_manifold", Column("From real ones", "", "Number of concepts in which the rounded answer differs from the "
                            "nearest training example of the target.", 0)),
)  # fmt: skip
CONCEPT_NOTE = (
    "Concepts without images: all systems start from the concepts that CF-CBM (Dominici et al.) sees and are judged by "
    "its linear task predictor. Pairs that it already assigns to the target are omitted. Shares have Wilson intervals; "
    "medians are over the valid answers, with bootstrap intervals (95 % each)."
)
NOTE = (
    "Shares are over all pairs, with Wilson intervals. The other numbers are medians over the valid answers (over all "
    "answers for the two controls), with bootstrap intervals (95 % each). A system that redraws the whole image also "
    "pays, in L2 and SSIM, for what the auto-encoder cannot draw: compare it with the reconstruction. A real image of "
    "the target shows what the last columns can reach."
)
Figures = Mapping[str, Mapping[str, float]]


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        title: of the system or control.
        images: (p, h, w, 3) its 8-bit answers.
        figures: from `measure.figures`.
    """

    title: str
    images: np.ndarray
    figures: Mapping[str, float]


def write_results(
    out: Path, rows: Mapping[str, Row], concept_rows: Figures, extra: Mapping[str, float], *, seconds: float
) -> None:
    """Writes table.md and summary.json."""
    images = _markdown(COLUMNS, {row.title: row.figures for row in rows.values()})
    concepts = _markdown(CONCEPT_COLUMNS, {TITLES[name]: values for name, values in concept_rows.items()})
    write_atomically(out / TABLE, f"{images}\n\n{NOTE}\n\n{concepts}\n\n{CONCEPT_NOTE}\n")
    everything = {name: row.figures for name, row in rows.items()} | {
        f"concepts/{name}": values for name, values in concept_rows.items()
    }
    summary = {f"{name}/{key}": value for name, values in everything.items() for key, value in values.items()}
    write_json(out / SUMMARY, summary | dict(extra) | {"seconds": seconds})


def _markdown(columns: tuple[tuple[str, Column], ...], rows: Figures) -> str:
    lines = [["System", *(column.name + (", %" if column.unit else "") for _, column in columns)]]
    lines += [["---"] * len(lines[0])]
    lines += [[title, *(_cell(values, *column) for column in columns)] for title, values in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_page(
    path: Path, rows: Mapping[str, Row], concept_rows: Figures, pairs: Pairs, places: Places, info: DatasetInfo,
    deletion: Mapping[str, np.ndarray], extra: Mapping[str, float], *, subtitle: str, seed: int, seconds: float,
) -> Path:  # fmt: skip
    """The page: numbers, pictures side by side, and the curve of Apicella et al."""
    report = Report("The systems the paper cites", subtitle=subtitle)
    report.table(
        "All systems, the same questions",
        ["System", *(column for _, column in COLUMNS)],
        [[row.title, *(_estimate(row.figures, key) for key, _ in COLUMNS)] for row in rows.values()],
        caption=NOTE,
    )
    _add_pictures(report, rows, pairs, places, info)
    report.table(
        "Concepts alone, beside CF-CBM",
        ["System", *(column for _, column in CONCEPT_COLUMNS)],
        [[TITLES[name], *(_estimate(values, key) for key, _ in CONCEPT_COLUMNS)]
         for name, values in concept_rows.items()],
        caption=CONCEPT_NOTE,
    )  # fmt: skip
    report.text(
        f"The auto-encoder reaches {extra['autoencoder/psnr']:.1f} dB and SSIM {extra['autoencoder/ssim']:.2f} on "
        f"held-out images. The classifier on the concepts of [2] agrees with the classifier itself on "
        f"{100 * extra['sarkar/fidelity']:.0f} % of the originals with the losses as defined and on "
        f"{100 * extra['sarkar/fidelity_as_coded']:.0f} % with the losses as coded. CF-CBM is right on "
        f"{100 * extra['cf_cbm/class_accuracy']:.0f} % of the test images' classes and "
        f"{100 * extra['cf_cbm/concept_accuracy']:.0f} % of their concepts.",
        title="What the systems rest on",
    )
    _add_deletion(report, deletion)
    report.provenance(seed=seed, seconds=seconds)
    return report.write(path)


def _add_pictures(report: Report, rows: Mapping[str, Row], pairs: Pairs, places: Places, info: DatasetInfo) -> None:
    """A row for each of a few pairs, a column for each system."""
    shown = {"Original": pairs.images} | {row.title: row.images for row in rows.values()}
    chosen = np.unique(np.linspace(0, len(pairs.rows) - 1, SHOWN).astype(int))
    with plot_style():
        figure = new_figure(1.25 * len(shown), 1.35 * len(chosen) + 0.6)
        grid = figure.subplots(len(chosen), len(shown), squeeze=False)
        for line, place in zip(grid, chosen, strict=True):
            for axes, (title, images) in zip(line, shown.items(), strict=True):
                axes.imshow(images[place], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                if place == chosen[0]:
                    axes.set_title("\n".join(textwrap.wrap(title, 16)), fontsize=8)
            asked = f"to {readable_class(info.class_names[pairs.target[place]])}\n{places.attribute[place]}"
            line[0].set_ylabel("\n".join(textwrap.wrap(asked, 18)), fontsize=7)
    report.figure(
        "Side by side",
        figure,
        alt=f"{len(chosen)} birds, each beside its answers: {', '.join(shown)}.",
        caption="A row per pair. On the left: the target class and, among the attributes with the largest requested "
        "change, the first whose part is visible.",
        format="png",
    )


def _add_deletion(report: Report, deletion: Mapping[str, np.ndarray]) -> None:
    means = {name: 100 * curves.mean(axis=0) for name, curves in deletion.items()}
    with plot_style():
        figure = new_figure(5.2, 3.2)
        axes = figure.subplots()
        for marker, (name, mean) in zip("os", means.items(), strict=True):
            axes.plot([100 * share for share in DELETED], mean, marker=marker, label=f"by {name}")
        axes.set(xlabel="latents removed, %", ylabel="probability of the class, %", ylim=(0, None))
        axes.legend()
    words = "; ".join(f"by {name} {', '.join(f'{value:.0f} %' for value in mean)}" for name, mean in means.items())
    report.figure(
        "[1] Are the relevant latents the ones that matter?",
        figure,
        alt=f"Mean probability of the class over the share of latents removed: {words}.",
        caption="Mean probability of the class that the classifier predicts for the reconstruction, as latents are set "
        "to their mean, either in order of decreasing z df/dz or in a random order.",
    )


def _number(value: float, column: Column) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value if column.unit == '%' else value:.{column.decimals}f}"


def _cell(values: Mapping[str, float], key: str, column: Column) -> str:
    if key not in values:
        return "–"
    interval = [_number(values[key + end], column) for end in ("_low", "_high") if key + end in values]
    return _number(values[key], column) + (f" ({'–'.join(interval)})" if interval and "–" not in interval else "")


def _estimate(values: Mapping[str, float], key: str) -> Any:
    if key not in values or f"{key}_low" not in values:
        return values.get(key)
    return Estimate(*(values[key + end] for end in ("", "_low", "_high")))
