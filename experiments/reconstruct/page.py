"""The report on a reconstruction: its figures, held-out images and their reconstructions, and attribute sweeps."""

import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.reconstruct.solve import Examples, decode_all
from experiments.runs.loading import LoadedRun
from spectra_jax import psnr
from spectra_jax.models import Decoder, Params
from spectra_jax.reporting import Column, Metric, Picture, Report

# Standard deviations by which an attribute is moved.
SWEEP = (-4, -2, 0, 2, 4)


def choose_attributes(
    run: LoadedRun, decoder: Decoder, params: Params, test: Examples, names: tuple[str, ...], count: int = 4
) -> list[int]:
    """The columns of `names`; without names, the ones whose change moves the decoded pictures most, a group each.

    Raises:
        UserError: there is no such attribute.
    """
    if names:
        try:
            return [run.info.find_attribute(name) for name in names]
        except ValueError as error:
            raise UserError(f"--attributes: {error}") from error
    rows = test.attributes[np.linspace(0, len(test.labels) - 1, 4).astype(int)]
    step = SWEEP[-1] * test.attributes.std(axis=0)
    # (n, 4, n): one attribute changed in each of the four.
    changed = rows[None] + np.diag(step)[:, None, :].astype(rows.dtype)
    images = decode_all(decoder, params, changed.reshape(-1, rows.shape[1]))
    plain = decode_all(decoder, params, rows)
    moved = np.square(images.reshape(len(step), *plain.shape) - plain[None]).mean(axis=(1, 2, 3, 4))
    found: dict[str, int] = {}
    for column in np.argsort(moved)[::-1]:
        found.setdefault(run.info.attribute_names[column].partition("::")[0], int(column))
    return list(found.values())[:count]


def add_figures(report: Report, figures: dict[str, float]) -> None:
    """The figures of `reconstruction_figures` and what they mean."""
    report.define(
        "Reconstruction PSNR",
        "Mean over the held-out images of 10 log10(1 / MSE) between the image, shrunk to the decoder's size, and "
        "the picture that the decoder draws from the attributes predicted for it.",
        equation="Section 3.3",
    )
    report.define(
        "Ridge regression PSNR",
        "The same for the best linear map from the attributes to the pixels, its penalty chosen on the validation "
        "split. A decoder trained by this script starts there and learns a correction.",
    )
    report.define(
        "Mean image PSNR", "The same for the mean of all training images, which needs no knowledge of the image."
    )
    report.define(
        "Class mean PSNR",
        "The same for the mean training image of the predicted class, which needs to know only that class.",
    )
    report.define(
        "Recognised reconstructions",
        "Class accuracy of the run's own model on the decoded pictures; for comparison, its accuracy on the images "
        "shrunk to the same size and enlarged again.",
    )
    rows = (
        ("Reconstruction PSNR", "reconstruction_psnr", "dB", "test split"),
        ("Ridge regression PSNR", "reconstruction_psnr_linear", "dB", "for comparison"),
        ("Class mean PSNR", "reconstruction_psnr_class_mean", "dB", "for comparison"),
        ("Mean image PSNR", "reconstruction_psnr_baseline", "dB", "for comparison"),
        ("Recognised reconstructions", "reconstruction_class_accuracy", "%", "class accuracy on decoded pictures"),
        ("Class accuracy", "shrunk_class_accuracy", "%", "on the images at the same size"),
    )
    report.headline([Metric(title, figures[f"test/{name}"], unit, note=note) for title, name, unit, note in rows])
    titles = {
        "": "reconstruction",
        "_linear": "ridge regression",
        "_class_mean": "mean image of the class",
        "_baseline": "mean image",
    }
    shown = [name for name in titles if f"test/reconstruction_ssim{name}" in figures]
    report.table(
        "What the attributes know beyond the class",
        ["picture", Column("PSNR", unit="dB"), "SSIM"],
        [
            (titles[name], *(figures[f"test/reconstruction_{figure}{name}"] for figure in ("psnr", "ssim")))
            for name in shown
        ],
        caption=f"On training images the reconstructions reach {figures['train/reconstruction_psnr']:.2f} dB.",
    )


def add_pictures(
    report: Report, run: LoadedRun, decoder: Decoder, params: Params, test: Examples, columns: list[int]
) -> None:
    """Held-out images beside their reconstructions, and what the decoder draws when one attribute is changed.

    Args:
        report: to add to.
        run: for names.
        decoder: with `params`.
        params: of the decoder.
        test: the held-out examples.
        columns: attributes to sweep.
    """
    names, classes = run.info.attribute_names, run.info.class_names
    rows = np.unique(np.linspace(0, len(test.labels) - 1, 16).astype(int))
    decoded = decode_all(decoder, params, test.attributes[rows])
    quality = np.asarray(psnr(jnp.asarray(decoded), jnp.asarray(test.images[rows])))
    pictures = [
        Picture(
            np.concatenate([test.images[row], image], axis=1),
            f"{classes[test.labels[row]]}: original, reconstruction; {value:.1f} dB",
            f"An image of {classes[test.labels[row]]} and, next to it, the picture decoded from its attributes",
        )
        for row, image, value in zip(rows, decoded, quality, strict=True)
    ]
    caption = "Images spaced evenly over the test split, not a selection of good ones. PSNR is that of the image shown."
    report.gallery("Held-out images and their reconstructions", pictures, caption=caption)

    spread = test.attributes.std(axis=0)
    strips = []
    for column in columns:
        for row in rows[[2, len(rows) // 2, -3]]:
            changed = np.repeat(test.attributes[row][None], len(SWEEP), axis=0)
            changed[:, column] += np.asarray(SWEEP, np.float32) * spread[column]
            images = decode_all(decoder, params, changed)
            strips.append(
                Picture(
                    np.concatenate(list(images), axis=1),
                    f"{names[column]} of a {classes[test.labels[row]]}",
                    f"Five decoded pictures of a {classes[test.labels[row]]}, with {names[column]} from low to high",
                )
            )
    steps = ", ".join(f"{step:+d}" if step else "unchanged" for step in SWEEP)
    report.gallery(
        "One attribute changed, then decoded",
        strips,
        caption=f"From left to right, the attribute is moved by {steps} standard deviations on the test split; the "
        "other attributes stay the same. The decoder has seen few such combinations: changes beyond the named part "
        "show what the attribute is entangled with.",
        large=True,
    )
