"""Every claim of the paper as comparisons with controls, on the pictures of one run (Sections 5.2 and 5.3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.counterfactuals.find import Counterfactuals
from experiments.paper_claims.images import FlipChecks, Singles
from experiments.paper_claims.regions import Regions
from experiments.paper_claims.statistics import (
    Comparison,
    Verdict,
    agreement,
    cosine,
    judge,
    matched_auroc,
    read_interval,
)
from experiments.runs.loading import LoadedRun
from experiments.runs.part_names import group_of
from spectra_jax import Head, best_single_attributes, head_logits

CLAIMS = {
    "5.2.1": "A counterfactual means what it says",
    "5.2.2": "The change lies on the part that the attribute names",
    "5.2.3": "The change has the colour that the attribute names",
    "5.2.4": "A few pixels are enough",
    "5.2.5": "Lowering an attribute looks like noise",
    "5.3.1": "Size and shape cannot be perturbed, colours can",
    "5.3.3": "The picture follows the request, but not exactly",
}
# Smallest differences that deserve a claim's words; no size was chosen by looking at results.
LEAST_RATE = 0.10  # of pairs, for signs that agree
LEAST_LIFT = 0.5  # times what chance puts there
LEAST_SHARE = 0.10  # of an attribute's change
LEAST_COSINE = 0.10
LEAST_FREQUENCY = 0.05  # of a change's energy
LEAST_AUROC = 0.05
FIRST_RANKS = 3  # as the figures of the paper are judged
INEXACT = 0.10  # of the realised change's length
FEW = 0.01  # of all pixels
CLEAR = 10.0  # percentage points between two classes from which an attribute tells them apart
MOST_ANSWERS = 20_000  # single-attribute answers, drawn at random where there are more
SIMILAR_FREQUENCY = 2.0  # factor
SHAPES = ("has_size", "has_shape", "has_bill_shape", "has_bill_length", "has_tail_shape", "has_wing_shape")


SIGN = {
    "class flips": "Among the attributes that tell source and target class apart by 10 points of the annotators' "
    "percentages, take the one that a flip's request changes most. It moves from the source's value towards the "
    "target's more often than the classes differ in that direction in a random one of these attributes.",
    "single-attribute answers": "The same for the best single attributes of correctly classified test images, for "
    "targets that one attribute can reach, if the attribute tells the classes apart; no pictures are needed.",
}
APART = {
    "class flips": "The attribute that a flip's request changes most tells the two classes apart more often than a "
    "random attribute does.",
    "single-attribute answers": "The same for the best single attributes.",
}


class Material(NamedTuple):
    """What was made for one run.

    Attributes:
        run, regions: the model and the parts of its pictures.
        attributes, labels: of the test split.
        flips, checks: class flips and what was asked about them.
        named: (p,) the attribute of each flip: the largest requested change in standard deviations.
        pixels, pixel_rows: few pixels, and the flips they belong to.
        singles: single-attribute requests.
        columns: (p,) each, from `measure_singles`.
        places: (p,) each, from `place_measures`, of the flips.
        random_lift: (p,) lift of the same request to a network with random weights; NaN where not made.
        witness: (p, n) how another network's attributes moved; None without one.
    """

    run: LoadedRun
    regions: Regions
    attributes: np.ndarray
    labels: np.ndarray
    flips: Counterfactuals
    checks: FlipChecks
    named: np.ndarray
    pixels: dict[str, np.ndarray]
    pixel_rows: np.ndarray
    singles: Singles
    columns: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    random_lift: np.ndarray
    witness: np.ndarray | None


@jax.jit
def _answers(head: Head, attributes: Any, margin: Any, scale: Any, mutable: Any) -> tuple[Any, Any]:
    return best_single_attributes(head, attributes, margin=margin, scale=scale, mutable=mutable)


def meaning(material: Material, spread: np.ndarray, *, margin: float, seed: int) -> list[Comparison]:
    """5.2.1: signs of the requests against what annotators say of the classes, and another network's opinion."""
    run, rng = material.run, np.random.default_rng([seed, 21])
    head, truth = run.model.head(run.params), run.info.class_attributes
    predicted = np.asarray(head_logits(head, jnp.asarray(material.attributes))).argmax(axis=-1)
    right = np.flatnonzero(predicted == material.labels)
    scale = jnp.asarray(np.where(spread > 0, spread, 1), jnp.float32)
    mutable = jnp.asarray(spread > 0)
    delta, best = _answers(head, jnp.asarray(material.attributes[right]), margin, scale, mutable)
    change, f = np.asarray(delta), np.asarray(best)
    row, target = np.nonzero((f >= 0) & (np.arange(f.shape[1])[None] != predicted[right, None]))

    flips = material.flips
    each = np.arange(len(flips.index))

    def pairs(
        kind: str, sources: Any, targets: Any, f: Any, leading: Any, change: Any, cluster: Any, rows: Any
    ) -> list[Comparison]:
        differ = truth[targets] - truth[sources]
        clear = np.abs(differ) >= CLEAR
        places, usable = np.arange(len(f)), clear.any(axis=-1)
        apart, chance = clear[places, f].astype(float), clear.mean(axis=1)
        # A random attribute among those that tell the two classes apart.
        drawn = np.where(clear, rng.random(differ.shape), -1).argmax(axis=-1)
        sign = agreement(change, differ[places, leading])
        own = np.where(usable & clear[places, leading], sign, np.nan)
        other = np.where(usable, agreement(change, differ[places, drawn]), np.nan)
        return [
            Comparison("5.2.1", f"{kind}: sign, random attribute", SIGN[kind], own, other, cluster, LEAST_RATE, "%",
                       rows, "flips"),
            Comparison("5.2.1", f"{kind}: tells apart, random attribute", APART[kind], apart, chance, cluster,
                       LEAST_RATE, "%", rows, "flips"),
        ]  # fmt: skip

    # The largest requested change among the attributes that tell the flip's classes apart.
    clear = np.abs(truth[flips.target] - truth[flips.predicted]) >= CLEAR
    size = np.abs(flips.requested) / np.asarray(scale)
    leading = np.where(clear & np.isfinite(size), size, -1).argmax(axis=-1)
    leading_change = flips.requested[each, leading]
    flipped = material.labels[flips.index]
    answers = rng.permutation(len(row))[:MOST_ANSWERS]
    row, target = row[answers], target[answers]
    best_f, best_change = f[row, target], change[row, target]
    found = [
        *pairs("class flips", flips.predicted, flips.target, material.named, leading, leading_change, flipped, each),
        *pairs("single-attribute answers", predicted[right[row]], target, best_f, best_f, best_change,
               material.labels[right[row]], None),
    ]  # fmt: skip
    singles = material.singles
    value = control = np.full(len(singles.index), np.nan)
    if material.witness is not None:
        each, moved = np.arange(len(singles.index)), material.witness * singles.sign[:, None]
        drawn = rng.integers(0, moved.shape[1], len(each))
        zero = np.zeros(len(each))
        value = agreement(moved[each, singles.attribute], zero + 1)
        control = agreement(moved[each, drawn], zero + 1)
        value = np.where(singles.success, value, np.nan)
    statement = (
        "In a picture made for one attribute, an independently trained network sees that attribute move in the "
        "requested direction more often than a random attribute."
    )
    cluster = material.labels[singles.index]
    found.append(Comparison("5.2.1", "witness: direction, random attribute", statement, value, control, cluster,
                            LEAST_RATE, "%", np.arange(len(value))))  # fmt: skip
    return found


def localisation(material: Material) -> list[Comparison]:
    """5.2.2: lift at the part against three controls, for single attributes and for flips, and the causal split."""
    singles, columns = material.singles, material.columns
    cluster, rows = material.labels[singles.index], np.arange(len(singles.index))
    own = np.where(singles.success, columns["lift"], np.nan)
    text = "The change's energy at the part, relative to chance, exceeds that "
    found = [
        Comparison("5.2.2", f"lift: {name}", text + what, own, control, cluster, LEAST_LIFT, "", rows)
        for name, what, control in (
            ("elsewhere on the bird", "in an equally large region elsewhere on the bird.", columns["lift_elsewhere"]),
            ("swapped parts", "at the part of another attribute.", columns["lift_swapped"]),
            (
                "random weights",
                "of the same request to the same architecture with random weights.",
                material.random_lift,
            ),
        )
    ]
    flips, checks = material.flips, material.checks
    cluster = material.labels[flips.index]
    places, won, rows = material.places, flips.success, np.arange(len(flips.index))
    lift = np.where(won, places["lift"], np.nan)
    found.append(
        Comparison("5.2.2", "class flips, lift: elsewhere on the bird", text + "elsewhere, in class flips.", lift,
                   places["lift_elsewhere"], cluster, LEAST_LIFT, "", rows, "flips")
    )  # fmt: skip
    inside, elsewhere = (np.where(won, part[:, 1], np.nan) for part in (checks.inside, checks.elsewhere))
    found.append(
        Comparison("5.2.2", "class flips, causal: elsewhere on the bird",
                   "The change inside the part alone gives more of the attribute's change than the change inside an "
                   "equally large region elsewhere on the bird.", np.clip(inside, -1, 2), np.clip(elsewhere, -1, 2),
                   cluster, LEAST_SHARE, "%", rows, "flips")
    )  # fmt: skip
    return found


def colour(material: Material) -> list[Comparison]:
    """5.2.3: the direction of the mean Lab shift, rising towards the word and falling towards its complement."""
    singles, columns, found = material.singles, material.columns, []
    cluster, rows = material.labels[singles.index], np.arange(len(singles.index))
    for sign, title, goal in ((1, "rising", "the colour word"), (-1, "falling", "the word's complement")):
        value = np.where((singles.sign == sign) & singles.success, columns["toward"], np.nan)
        for name, what in (("others", "other colour words"), ("rotated", "random hue rotation")):
            statement = f"The mean colour of the part moves towards {goal} (cosine in Lab) more than {what} would."
            control = columns[name]
            found.append(Comparison("5.2.3", f"{title}: {what}", statement, value, control, cluster, LEAST_COSINE, "",
                                    rows))  # fmt: skip
    return found


def pixels(material: Material) -> list[Comparison]:
    """5.2.4: flips that keep at most 1 % of the pixels, against half of the flips and against random pixels."""
    size = material.flips.images.shape[1] * material.flips.images.shape[2]
    kept, chance = (material.pixels[name] for name in ("pruned", "random"))
    known = kept > 0
    few, few_random = (np.where(known, count <= FEW * size, np.nan) for count in (kept, chance))
    cluster = material.labels[material.flips.index[material.pixel_rows]]
    half = np.where(known, 0.5, np.nan)
    text = f"At most {FEW:.0%} of the pixels of the (enlarged) change keep the flip "
    rows = material.pixel_rows
    return [
        Comparison("5.2.4", "one half", text + "in more than half of the pairs.", few, half, cluster, 0.0, "%", rows,
                   "flips"),
        Comparison("5.2.4", "random pixels", text + "more often than equally many random ones.", few, few_random,
                   cluster, LEAST_RATE, "%", rows, "flips"),
    ]  # fmt: skip


def noise(material: Material, *, seed: int) -> list[Comparison]:
    """5.2.5: share of energy in fine detail, the same attribute of the same picture lowered and raised."""
    singles, columns = material.singles, material.columns
    up, down = (np.flatnonzero(singles.sign == sign) for sign in (1, -1))
    both = singles.success[up] & singles.success[down]
    fine_up, fine_down = (np.where(both, columns["fine"][rows], np.nan) for rows in (up, down))
    shuffled = (fine_down - fine_up) * np.random.default_rng([seed, 25]).choice([-1.0, 1.0], len(up))
    cluster, text = material.labels[singles.index[up]], "A larger share of the change is detail finer than 8 pixels "
    return [
        Comparison("5.2.5", "the same attribute raised", text + "when an attribute is lowered than when it is raised.",
                   fine_down, fine_up, cluster, LEAST_FREQUENCY, "%", down),
        Comparison("5.2.5", "shuffled sign", text + "than with the signs of the pairs shuffled.", fine_down - fine_up,
                   shuffled, cluster, LEAST_FREQUENCY, "%", down),
    ]  # fmt: skip


def inexactness(material: Material, spread: np.ndarray) -> list[Comparison]:
    """5.3.3: realised against requested change of flips, beside a gradient step on the class logits as long."""
    flips = material.flips
    won = flips.success & np.isfinite(flips.requested).all(axis=-1)
    cluster, rows = material.labels[flips.index], np.arange(len(flips.index))
    realised = flips.after - flips.before
    unit = np.where(spread > 0, spread, np.inf)
    direction = np.sign(flips.requested[rows, material.named])[:, None]
    # Percentiles would not do: those of both are next to 1, which leaves no room for a difference.
    first = [
        np.where(won, (moved > moved[rows, material.named][:, None]).sum(axis=-1) < FIRST_RANKS, np.nan)
        for moved in ((after - flips.before) / unit * direction for after in (flips.after, material.checks.step))
    ]
    step = material.checks.step - flips.before
    towards = [np.where(won, cosine(moved, flips.requested), np.nan) for moved in (realised, step)]
    # Its part across the request: a search that stops as soon as the class is reached goes less far, not elsewhere.
    aside = np.sqrt(1 - np.square(np.minimum(towards[0], 1)))
    return [
        Comparison("5.3.3", "exact to a tenth", "More than a tenth of the realised attribute change, by length, is "
                   "perpendicular to the requested one.", aside, np.where(won, INEXACT, np.nan), cluster, 0.0, "%",
                   rows, "flips"),
        Comparison("5.3.3", "direction: gradient step", "The cosine of realised and requested change exceeds that of "
                   "an equally long gradient step on the class logits.", towards[0], towards[1], cluster, LEAST_COSINE,
                   "", rows, "flips"),
        Comparison("5.3.3", "first three: gradient step", "The attribute that the request changes most is among the "
                   f"{FIRST_RANKS} that move most in its direction, more often than after an equally long gradient "
                   "step on the class logits.", first[0], first[1], cluster, LEAST_RATE, "%", rows, "flips"),
    ]  # fmt: skip


def perturbability(material: Material, atlas: dict[str, Any]) -> list[Verdict]:
    """5.3.1: whether colour attributes are easier to perturb than attributes of size and shape."""
    names = material.run.info.attribute_names
    groups = np.array([group_of(name) for name in names])
    colours, shapes = np.char.endswith(groups, "_color"), np.isin(groups, SHAPES)
    arrays = (atlas["moved_per_l2"], colours, shapes, atlas["frequency"], groups)
    verdicts = []
    for name, ratio, words in (
        ("label frequency matched", SIMILAR_FREQUENCY, ", of pairs whose label frequencies differ by a factor of at "
         f"most {SIMILAR_FREQUENCY:g}"),
        ("all pairs", None, ""),
    ):  # fmt: skip
        auroc, low, high, pairs = matched_auroc(*arrays, ratio=ratio)
        statement = "A colour attribute moves further per unit of image change than an attribute of size or shape, "
        statement += f"in more than half of the pairs of attributes{words}; groups of attributes are drawn together."
        base = Comparison("5.3.1", f"AUROC: {name}", statement, np.array([auroc]), np.array([0.5]), np.zeros(1),
                          LEAST_AUROC)  # fmt: skip
        empty = judge(base._replace(value=np.array([np.nan])))
        if not pairs:
            verdicts.append(empty)
            continue
        word = read_interval(auroc - 0.5, low - 0.5, high - 0.5, LEAST_AUROC, len(np.unique(groups[shapes])))
        verdicts.append(empty._replace(pairs=pairs, clusters=len(np.unique(groups[colours | shapes])), value=auroc,
                                       control=0.5, difference=auroc - 0.5, low=low - 0.5, high=high - 0.5,
                                       verdict=word))  # fmt: skip
    return verdicts
