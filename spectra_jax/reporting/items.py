"""What a report can show: plain records, filled in by scripts and drawn by `spectra_jax.reporting.report`.

Everywhere a number may be a Python or NumPy scalar or a 0-d array. None and NaN are shown as "not defined" and
infinities as "∞ (infinite)". A number whose unit is "%" is given as a fraction: 0.91 is shown as 91.0 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Opens:
    """What a click shows: a section of cards or a listing, filtered.

    Attributes:
        section: title of the section.
        where: for a listing, names of columns and the value wanted; for cards "outcome" ("reached", "just reached",
            "not reached"), "class", "attribute", and "sort" (the name of a metric of the cards, or "distance").
    """

    section: str
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """One number of the report, with everything a reader needs to judge it.

    Attributes:
        name: what is measured, e.g. "Class accuracy". A name of `spectra_jax.reporting.GLOSSARY` brings its definition.
        value: the number; a fraction when the unit is "%".
        unit: e.g. "%", "dB", "s"; "" for a pure number.
        definition: one or two sentences; "" looks the name up in the glossary.
        interval: (low, high) in the same unit as value, or None.
        interval_name: what the interval is.
        decimals: digits after the point; None chooses three significant digits (one decimal for "%").
        note: a short remark shown under the number, e.g. "of 3,033 test images".
        opens: the cards or rows that the number counts, one click away.
    """

    name: str
    value: Any
    unit: str = ""
    definition: str = ""
    interval: tuple[Any, Any] | None = None
    interval_name: str = "95 % interval"
    decimals: int | None = None
    note: str = ""
    opens: Opens | None = None


class Estimate(NamedTuple):
    """A table cell with an interval; sorted by its value."""

    value: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class Column:
    """A table column.

    Attributes:
        name: the heading.
        unit: shown beside the heading; numbers are fractions when it is "%".
        definition: explained in the glossary, one click away from the heading; "" looks the name up there.
        decimals: digits after the point; None chooses them from the column's typical magnitude.
        kind: "class" or "attribute" where the cells are names of those: shown in words, as they are in the CSV.
    """

    name: str
    unit: str = ""
    definition: str = ""
    decimals: int | None = None
    kind: Literal["", "class", "attribute"] = ""


class AttributeChange(NamedTuple):
    """How one attribute moved, in units of the unnormalised attribute, whose sigmoid is the attribute's probability.

    Attributes:
        name: e.g. "has_nape_color::purple".
        before: value e_f for the original image.
        requested: the change delta_f that the solver asked for.
        achieved: the change phi(x')_f - e_f of the counterfactual image; None where there is no image.
    """

    name: str
    before: Any
    requested: Any
    achieved: Any = None


@dataclass(frozen=True)
class CounterfactualCard:
    """One counterfactual, reached or not.

    Attributes:
        original: (h, w, 3), floats in [0, 1] or uint8.
        counterfactual: same shape; None when no picture was made (say why in `reason`).
        source_class: class predicted for the original.
        target_class: class that was asked for.
        success: whether the classifier says the target for the counterfactual.
        reason: why it failed, or how it ended; required when success is False.
        steps: inversion steps taken, if any.
        distance: length of the requested change of the attributes; cards are sorted and filtered by it.
        attributes: the changes worth showing; those that move little are a click away.
        probabilities_before: (class, probability) pairs for the original.
        probabilities_after: the same for the counterfactual.
        metrics: further numbers for this picture (PSNR, norms, ...).
        note: a remark, e.g. the image's name and true class.
    """

    original: ArrayLike
    counterfactual: ArrayLike | None
    source_class: str
    target_class: str
    success: bool
    reason: str = ""
    steps: int | None = None
    distance: float | None = None
    attributes: Sequence[AttributeChange] = ()
    probabilities_before: Sequence[tuple[str, Any]] = ()
    probabilities_after: Sequence[tuple[str, Any]] = ()
    metrics: Sequence[Metric] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.success and not self.reason:
            raise ValueError(f"{self.source_class} to {self.target_class} failed: its `reason` must say why")


class Example(NamedTuple):
    """A card worth a picture on the first screen, and why: "smallest change"."""

    title: str
    card: CounterfactualCard


@dataclass(frozen=True)
class Picture:
    """A captioned image of a gallery.

    Attributes:
        image: (h, w, 3), (h, w) or (h, w, 1), floats in [0, 1] or uint8.
        caption: shown below it.
        alt: what it shows, in words, for readers who cannot see it.
    """

    image: ArrayLike
    caption: str
    alt: str
