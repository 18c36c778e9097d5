"""The first screen of the reports: what a run found, in sentences built from its own numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals.find import Counterfactuals
from experiments.runs.loading import LoadedRun
from spectra_jax.reporting import CounterfactualCard, Example, Report
from spectra_jax.reporting.formatting import format_number, format_probability

# White noise has 95 % of its energy in details finer than 8 pixels; from half on a change is called noise here.
_NOISE_SHARE = 0.5
# Below this structural similarity a picture is not called unchanged, whatever the change is made of.
_SIMILAR = 0.9


def add_finding(
    report: Report,
    run: LoadedRun,
    found: Counterfactuals,
    figures: Mapping[str, float],
    cards: Sequence[CounterfactualCard],
) -> None:
    """Adds one sentence, what it shows, what it means and does not mean, and the two extreme examples.

    Args:
        report: to add to.
        run: the model the pairs belong to.
        found: the pairs.
        figures: `inversion_figures` of the pairs.
        cards: of the pairs, in their order.
    """
    pairs, won = len(found.index), int(figures["invert/num_success"])
    if not won:
        report.finding(
            f"None of the {pairs} images could be turned into an image of its target class.",
            [
                ("What you see", "The best image that each search found; every card says why its search ended."),
                (
                    "What it means",
                    "Changes of the attributes that reach the class exist, but no image that reaches it was found.",
                ),
                ("What it does not mean", "That there are no such images: another search may find them."),
            ],
            [Example("Not reached", cards[0])],
        )
        return
    noise, similar = (figures[f"invert/{name}_median"] for name in ("high_frequency_share", "ssim"))
    share, before, after = (
        format_probability(value)
        for value in (noise, *(figures[f"invert/target_probability_{when}_median"] for when in ("before", "after")))
    )
    present_before, present_after = (
        np.asarray(run.model.attribute_logits(run.params, jnp.asarray(e))) > 0 for e in (found.before, found.after)
    )
    crossing = (present_before != present_after)[found.success].sum(axis=1)
    typical = np.quantile(crossing, 0.5, method="higher")
    crossed = f"{typical} of {found.before.shape[1]}"
    shown = "the smallest and the largest change of all" if won == pairs else "the smallest change and a failed search"
    flipped = f"{won} of {pairs} images were changed so that the classifier predicts another class"
    likeness = f"structural similarity {format_number(similar)}"
    if noise >= _NOISE_SHARE and similar >= _SIMILAR:
        sentence = f"{flipped}. To the eye the changes are noise: {share} of a typical one is finer than 8 pixels."
        meaning = (
            "The classifier flips long before the picture looks different: the original and the changed picture "
            f"still have a {likeness} (1 means identical), while the probability of the target rises from {before} to "
            f"{after}."
        )
    else:
        sentence = f"{flipped}; {share} of a typical change is detail finer than 8 pixels, with a {likeness}."
        meaning = (
            f"The classifier holds until the picture itself has changed ({likeness}; 1 means identical). The "
            f"probability of the target rises from {before} to {after}. The difference images show what had to change."
        )
    report.finding(
        sentence,
        [
            (
                "What you see",
                "Test images, the same images changed until the classifier predicts the target class, and the "
                f"amplified difference; here {shown}.",
            ),
            ("What it means", meaning),
            (
                "What it does not mean",
                f"That the picture now shows the other class: typically, {crossed} attributes switch between absent "
                "and present, as the classifier sees them. Nor that the same picture flips another classifier: the "
                "search used this one.",
            ),
        ],
        _examples(found, cards),
    )


def _examples(found: Counterfactuals, cards: Sequence[CounterfactualCard]) -> list[Example]:
    """The success whose picture changed least, and a failure or else the success that changed most."""
    won = found.success
    order = sorted(np.flatnonzero(won).tolist(), key=lambda row: -float(found.psnr[row]))
    examples = [Example(f"Smallest change (PSNR {format_number(found.psnr[order[0]], unit='dB')})", cards[order[0]])]
    if not won.all():
        examples.append(Example("Not reached", cards[int(np.argmin(won))]))
    elif len(order) > 1:
        psnr = format_number(found.psnr[order[-1]], unit="dB")
        examples.append(Example(f"Largest change (PSNR {psnr})", cards[order[-1]]))
    return examples


def add_training_finding(report: Report, summary: Mapping[str, Any]) -> None:
    """How good a trained classifier is and how close its test images are to another class."""
    accuracy, margin = (
        format_number(summary[f"test/{name}"], unit="%") for name in ("class_accuracy", "relative_margin_mean")
    )
    report.finding(
        f"The classifier is right on {accuracy} of the test images; on average, the nearest other class is {margin} of "
        "the attributes’ length away.",
        [
            ("What you see", "How good the classifier is on images it was not trained on, and how training went."),
            (
                "What it means",
                "The smaller that distance, the smaller the attribute change that makes the classifier predict "
                "another class.",
            ),
            (
                "What it does not mean",
                "How easily a picture can be changed that far: the distance is between attributes, not pixels.",
            ),
        ],
    )
