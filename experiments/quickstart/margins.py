"""How close every test image is to another class: histogram, list, class-to-class distances and a CSV of all pairs."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv

from experiments.reporting.pages import TEST_IMAGES, median, relative_margins
from experiments.runs.loading import LoadedRun
from spectra_jax import nearest_target
from spectra_jax.reporting import Column, Opens, Report
from spectra_jax.reporting.page import write_atomically

PAIRS = "pairs.csv"
_THUMBNAILS = 20
_BINS = 30


def write_pairs(
    folder: Path, run: LoadedRun, norms: dict[str, np.ndarray], labels: np.ndarray, predicted: np.ndarray
) -> None:
    """pairs.csv: for every test image and every other class, the length of each method's attribute change.

    Args:
        folder: where to write it.
        run: for the class names.
        norms: method -> (N, c).
        labels, predicted: (N,) classes.
    """
    classes = np.array(run.info.class_names)
    image, target = np.nonzero(np.arange(len(classes)) != predicted[:, None])
    columns = {"image": image, "labelled": classes[labels[image]], "predicted": classes[predicted[image]]}
    columns |= {"target": classes[target]} | {name: values[image, target] for name, values in norms.items()}
    file = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns), file)
    write_atomically(folder / PAIRS, file.getvalue().decode())


def add_margins(
    report: Report, run: LoadedRun, norms: np.ndarray, lengths: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """The relative margin of the test images, the most fragile of them, and how far the classes are from each other.

    Args:
        report: to add to; written into the folder of `write_pairs`.
        run: for the class names and the images.
        norms: (N, c) exact distances of the test samples to every class; NaN where the solver did not resolve it.
        lengths: (N,) ||e||.
        labels: (N,) classes of the samples.
        predicted: (N,) classes that the classifier names.
    """
    margins = relative_margins(norms, lengths, predicted).astype(np.float64)
    unresolved = int(np.isnan(norms).sum())
    left_out = f" {unresolved:,} of {norms.size:,} distances are unresolved and omitted." if unresolved else ""
    finite = margins[np.isfinite(margins)]
    if finite.size:
        counts, edges = np.histogram(finite, _BINS)
        report.histogram(
            "How close to flipping",
            counts,
            edges,
            value_name="relative margin",
            counted="test images",
            unit="%",
            marks={"median": median(finite)},
            opens=Opens(TEST_IMAGES),
            caption="How much the attributes of an image must change, relative to their own length, before the "
            f"classifier predicts another class. Click a bar to list its images.{left_out}",
        )
    _add_images(report, run, norms, margins, labels, predicted)
    report.fold_rest()
    classes = np.unique(labels)
    medians = np.array([[median(norms[labels == c, k]) for k in classes] for c in classes])
    np.fill_diagonal(medians, np.nan)
    names = [run.info.class_names[c] for c in classes]
    report.matrix(
        "Close classes",
        medians,
        names,
        names,
        row_title="labelled",
        column_title="target",
        value_name="median exact distance",
        opens=Opens(TEST_IMAGES),
        caption="Median length of the smallest attribute change that turns images of one class into another; dark "
        f"means easily confused.{left_out}",
    )


def _add_images(
    report: Report, run: LoadedRun, norms: np.ndarray, margins: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> None:
    classes = run.info.class_names
    others = np.arange(norms.shape[1]) != predicted[:, None]
    nearest = np.asarray(nearest_target(jnp.asarray(norms), allowed=jnp.asarray(others)).target)
    distances = np.where(nearest >= 0, norms[np.arange(len(norms)), nearest], np.nan)
    order = np.argsort(margins, kind="stable")
    rows = [
        (
            int(i),
            classes[labels[i]],
            classes[predicted[i]],
            bool(predicted[i] == labels[i]),
            classes[nearest[i]] if nearest[i] >= 0 else None,
            float(distances[i]),
            float(margins[i]),
        )
        for i in order
    ]
    pictures = run.dataset.images("test", order[:_THUMBNAILS], image_size=run.config.image_size)
    report.listing(
        TEST_IMAGES,
        [
            Column("number", definition="Position in the test split, counted from 0."),
            Column("labelled", kind="class"),
            Column("predicted", kind="class"),
            "correct",
            Column(
                "nearest class",
                kind="class",
                definition="The class that the smallest attribute change reaches.",
            ),
            Column("distance", definition="Length of that change, in units of the attributes."),
            Column("relative margin", "%", decimals=2),
        ],
        rows,
        thumbnails=dict(enumerate(pictures)),
        shown=_THUMBNAILS,
        files={PAIRS: f"All {others.sum():,} pairs of image and class, as CSV (the file {PAIRS} beside this page)"},
        caption="The most fragile images come first: those that need the smallest attribute change, relative to their "
        "attributes' length, to reach another class.",
    )
