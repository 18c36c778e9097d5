"""The six figures of the paper as requests to a trained model: which image, which class, which change of attributes."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.command import UserError
from experiments.paper_figures.cases import Case
from experiments.runs.loading import LoadedRun
from experiments.runs.part_names import group_of, part_names
from spectra_jax import (
    Head,
    ProjectionResult,
    all_pairs_norms,
    head_logits,
    projection_perturbation,
    single_attribute_perturbations,
)
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.perturbations import formulas
from spectra_jax.reporting.formatting import format_number

# A change of more spreads than this is one that no test image comes near; the next kind of request is made instead.
FARTHEST = 5.0
FORCED = 3.0


class Choice(NamedTuple):
    """The image and target of a figure.

    Attributes:
        row: position in the test split.
        source, target: classes.
        attribute: column, -1 for none.
        candidates: how many correctly classified images there were to choose from.
        feasible: for how many of them the attribute alone reaches the target.
    """

    row: int
    source: int
    target: int
    attribute: int
    candidates: int
    feasible: int


class Interval(NamedTuple):
    """The changes t of one attribute for which each class wins, and which rivals bound them; (c,) each.

    lower > upper means none: below `lower` the class `lower_rival` is ahead, above `upper` it is `upper_rival`.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_rival: np.ndarray
    upper_rival: np.ndarray

    def nearest(self) -> np.ndarray:
        """The t nearest 0; inf where there is none."""
        return np.where(self.lower <= self.upper, formulas.nearest_to_zero(self.lower, self.upper), np.inf)


class Request(NamedTuple):
    """The change of the attributes that a figure asks for.

    Attributes:
        kind: "single" as in the paper; "group", all attributes of its group; "forced", this attribute by a fixed amount
            and as little of the others as it takes; "projection", the smallest change of all attributes.
        delta: (n,).
        explanation: in words, with the reason why it is not the paper's.
    """

    kind: Literal["single", "group", "forced", "projection"]
    delta: np.ndarray
    explanation: str


def intervals(weights: np.ndarray, logits: np.ndarray, margin: float) -> Interval:
    """Eq. 1-4 for one attribute, one sample and every target, with the rivals that decide.

    Args:
        weights: (c,) of the attribute.
        logits: (c,) of the sample.
        margin: lead that the target shall have, in logits.
    """
    weights, logits = np.asarray(weights, np.float64), np.asarray(logits, np.float64)
    targets = np.arange(len(weights))
    slopes = weights[:, None] - weights[None, :]  # target, rival
    offsets = formulas.offsets(np.broadcast_to(logits, slopes.shape), targets, np.full(len(weights), margin))
    lower, upper = formulas.interval(offsets, slopes)
    return Interval(lower.max(axis=1), upper.min(axis=1), lower.argmax(axis=1), upper.argmin(axis=1))


def choose(
    run: LoadedRun, case: Case, attributes: np.ndarray, labels: np.ndarray, spread: np.ndarray, margin: float
) -> Choice:
    """The image and target that need the smallest change in units of the attribute's spread.

    Images that do not show the attribute's part come last.

    Raises:
        UserError: the data lack the class or attribute, or no image of the class is classified correctly.
    """
    try:
        wanted = {name: None if value is None else run.info.find_class(value) for name, value in
                  (("source", case.source), ("target", case.target))}  # fmt: skip
        f = -1 if case.attribute is None else run.info.find_attribute(case.attribute)
    except ValueError as error:
        raise UserError(f"figure {case.key!r}: {error}. The figures are those of CUB's birds.") from error
    source, target = wanted["source"], wanted["target"]
    head = run.model.head(run.params)
    logits = np.asarray(head_logits(head, jnp.asarray(attributes)), np.float64)
    right = logits.argmax(axis=-1) == labels
    if source is not None:
        rows = np.flatnonzero(right & (labels == source))
    else:  # an attribute that shall fall has to be there first, and the other way round
        there = attributes[:, f] * case.direction < 0
        rows = np.flatnonzero(right & there & ((run.info.class_attributes[labels, f] >= 50) == (case.direction < 0)))
    if not len(rows):
        whose = "fits" if source is None else f"of {run.info.class_names[source]} is classified correctly"
        raise UserError(f"figure {case.key!r}: no test image {whose}; train the model for longer.")
    classes = np.arange(logits.shape[1])
    allowed = (classes != labels[rows, None]) & ((classes == target) | (target is None))
    distance, feasible = np.full(allowed.shape, np.inf), 0
    if f >= 0:
        weights = np.asarray(head.weights)[:, f]
        change = np.stack([intervals(weights, logits[row], margin).nearest() for row in rows])
        distance = np.where((np.sign(change) == case.direction) & allowed, np.abs(change) / spread[f], np.inf)
        feasible = int(np.isfinite(distance).any(axis=-1).sum())
    if not feasible:
        # To the nearest of all classes boundary and projection are equally far, and the boundary is quick.
        method: Literal["boundary", "projection"] = "boundary" if target is None else "projection"
        norms = np.asarray(all_pairs_norms(head, jnp.asarray(attributes[rows]), method=method))
        distance = np.where(allowed & ~np.isnan(norms), norms, np.inf)
    order = np.argsort(distance.min(axis=-1), kind="stable")
    seen = [best for best in order if f < 0 or _part_is_visible(run, int(rows[best]), run.info.attribute_names[f])]
    best = (seen or order)[0]
    return Choice(int(rows[best]), int(labels[rows[best]]), int(distance[best].argmin()), f, len(rows), feasible)


def _part_is_visible(run: LoadedRun, row: int, attribute: str) -> bool:
    """Whether the picture shows the part that the attribute is about; True for attributes of the whole bird."""
    places = run.dataset.source("test")[row]["parts"]
    wanted = [run.info.part_names.index(name) for name in part_names(attribute) if name in run.info.part_names]
    return not wanted or bool(np.any(places[wanted, 2] > 0))


def request(
    run: LoadedRun, case: Case, choice: Choice, before: np.ndarray, spread: np.ndarray, margin: float
) -> Request:
    """The change to ask for: the paper's where it is feasible, else the next kind, with the reason.

    Args:
        run: the model.
        case: the figure.
        choice: its image and target.
        before: (n,) attributes of the image.
        spread: (n,) standard deviation of each attribute over the test split.
        margin: lead that the target shall have, in logits.
    """
    head, f = run.model.head(run.params), choice.attribute
    e = jnp.asarray(before)
    target, name = (
        readable_class(run.info.class_names[choice.target]),
        "" if f < 0 else readable_attribute(run.info.attribute_names[f]),
    )
    if f < 0:
        found = _project(head, e, choice.target, margin, jnp.ones(e.shape, bool))
        text = f"the smallest change of all attributes that makes {target} win, ‖δ‖ = {float(found.norm):.3g}. Of the "
        text += f"{choice.candidates} candidate images, this one is nearest to another class."
        return Request("projection", np.asarray(found.delta), text)
    single = single_attribute_perturbations(head, e, choice.target, margin=margin)
    delta = float(single.delta[f])
    if bool(single.feasible[f]) and np.sign(delta) == case.direction:
        alone = np.zeros_like(before)
        alone[f] = delta
        text = f"{name} alone, by {_signed(delta)}, or {_signed(delta / spread[f])} standard deviations. Feasible "
        text += f"for {choice.feasible} of {choice.candidates} images; this one needs the smallest change."
        return Request("single", alone, text)
    reason = _certificate(run, head, choice, e, spread[f], margin)
    group = np.array([group_of(other) == group_of(run.info.attribute_names[f]) for other in run.info.attribute_names])
    found = _project(head, e, choice.target, margin, jnp.asarray(group))
    largest = float(np.abs(np.asarray(found.delta) / spread).max()) if bool(found.feasible) else np.inf
    if largest <= FARTHEST:
        text = f"{reason} Requested instead: the smallest change of the {group.sum()} attributes of its group, at most "
        return Request("group", np.asarray(found.delta), f"{text}{largest:.1f} standard deviations each.")
    why = (
        "cannot do it either" if np.isinf(largest) else f"would have to move by up to {largest:.0f} standard deviations"
    )
    forced = np.zeros_like(before)
    forced[f] = case.direction * FORCED * spread[f]
    others = jnp.asarray(np.arange(len(before)) != f)
    rest = _project(head, e + forced, choice.target, margin, others)
    text = f"{reason} All {group.sum()} attributes of its group {why}. Requested instead: {name} by "
    text += f"{_signed(case.direction * FORCED)} standard deviations, and the smallest change of the others that makes "
    text += f"{target} win."
    return Request("forced", forced + np.asarray(rest.delta), text)


@jax.jit
def _project(head: Head, e: jax.Array, target: jax.Array, margin: jax.Array, mutable: jax.Array) -> ProjectionResult:
    return projection_perturbation(head, e, target, margin=margin, mutable=mutable)


def _certificate(run: LoadedRun, head: Head, choice: Choice, e: jax.Array, spread: float, margin: float) -> str:
    """Why the attribute alone cannot do it: the two rivals that leave no room between them."""
    names = [readable_class(name) for name in run.info.class_names]
    j, name = choice.target, readable_attribute(run.info.attribute_names[choice.attribute])
    logits = np.asarray(head_logits(head, e), np.float64)
    room = intervals(np.asarray(head.weights)[:, choice.attribute], logits, margin)
    low, high = room.lower[j] / spread, room.upper[j] / spread
    first, second = names[room.lower_rival[j]], names[room.upper_rival[j]]
    text = f"{name} alone cannot make {names[j]} win"
    if low <= high:  # there is an answer, in the direction that the figure does not show
        return f"{text} in the direction of the figure: it would take {_signed(room.nearest()[j] / spread)} sd."
    if low == np.inf:
        return f"{text}: {first} is ahead and gains just as much from the attribute."
    parts = []
    if np.isfinite(low):
        parts.append(f"it takes {_signed(low)} standard deviations to overtake {first}")
    if np.isfinite(high):
        parts.append(f"above {_signed(high)} {second} is ahead")
    where = "" if choice.feasible else f" in any of the {choice.candidates} images"
    return f"{text}{where}; here {', but '.join(parts)}."


def _signed(value: float) -> str:
    return format_number(float(value), signed=True)
