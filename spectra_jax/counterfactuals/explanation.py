"""Answers with the names of their attributes and classes."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.constraints.rules import Constraints
from spectra_jax.counterfactuals import sentences, tables
from spectra_jax.counterfactuals.calibration import Calibration
from spectra_jax.names import Names
from spectra_jax.types import Head, Status


class AttributeChange(NamedTuple):
    """One attribute of an answer.

    Attributes:
        name: of the attribute.
        before: its value, in the attribute's own unit.
        after: what it would have to be.
        in_spreads: the change in standard deviations over the reference samples; NaN without any.
        probability_before: calibrated; NaN without a calibration.
        probability_after: likewise.
        achieved: its value in the image that was found; NaN if none was searched for.
    """

    name: str
    before: float
    after: float
    in_spreads: float
    probability_before: float
    probability_after: float
    achieved: float


class Answer(NamedTuple):
    """What would have to change for one sample to become one class.

    Attributes:
        sample: row of the attributes.
        predicted: name of its current class.
        target: name of the requested class.
        rank: 0 for the shortest answer, 1 for the next.
        status: whether there is an answer.
        distance: length of the change, by the costs; inf where there is none.
        lower_bound: no change within the rules is shorter.
        proven: whether the answer is proven to be the shortest; False for all but the first.
        changes: the attributes that change, the strongest first.
        reached: whether the image that was found is classified as the target; None if none was searched for.
    """

    sample: int
    predicted: str
    target: str
    rank: int
    status: Status
    distance: float
    lower_bound: float
    proven: bool
    changes: tuple[AttributeChange, ...]
    reached: bool | None

    def __str__(self) -> str:
        return sentences.of_answer(self)


class Realisation(NamedTuple):
    """Images found for the first answer of every pair; see `Explanation.realise`.

    Attributes:
        images: (b, t, h, w, channels) in [0, 1].
        attributes: (b, t, n) the encoder's output for them.
        success: (b, t) whether the classifier predicts the target.
        reason: (b, t) a `Status`, see `InversionResult`.
        l2: (b, t) distance from the original image.
        psnr: (b, t) dB.
    """

    images: Float[Array, "b t h w k"]
    attributes: Float[Array, "b t n"]
    success: Bool[Array, "b t"]
    reason: Int[Array, "b t"]
    l2: Float[Array, "b t"]
    psnr: Float[Array, "b t"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "head", "rules", "attributes", "predicted", "targets", "delta", "norm", "lower_bound", "proven", "status",
        "spread", "calibration", "realised", "margin",
        "without",
    ],
    meta_fields=["names", "solver"],
)  # fmt: skip
@dataclass(frozen=True)
class Explanation:
    """What would have to change, for a batch of samples and targets; made by `explain`.

    Its arrays are ordinary ones, with t targets per sample and a answers per target. `print` shows the answers as
    sentences.

    Attributes:
        attributes: (b, n) of the samples.
        predicted: (b,) class of each.
        targets: (b, t) requested class.
        delta: (b, t, a, n) the attribute change; NaN where there is none.
        norm: (b, t, a) its length, ||costs * delta||; inf where there is none, NaN where none was found.
        lower_bound: (b, t, a) no change within the rules is shorter.
        proven: (b, t, a) whether the first answer is proven to be the shortest (or that there is none); False for
            further ones, which are the shortest found. With targets="nearest" it is about the change to that class.
        status: (b, t, a) a `Status`.
        head: the classifier.
        rules: as arrays.
        margin: requested lead, in logits.
        spread: (n,) standard deviation of each attribute over the reference samples, or None.
        calibration: of the attributes, or None.
        realised: images of the first answers, or None; see `realise`.
        names: of attributes and classes.
        solver: which solver was used, and why.
        without: for each kind of rule that was given, by its name, the rules that remain without it.
    """

    head: Head
    rules: Constraints
    attributes: Float[Any, "b n"]
    predicted: Int[Any, " b"]
    targets: Int[Any, "b t"]
    delta: Float[Any, "b t a n"]
    norm: Float[Any, "b t a"]
    lower_bound: Float[Any, "b t a"]
    proven: Bool[Any, "b t a"]
    status: Int[Any, "b t a"]
    spread: Float[Any, " n"] | None
    calibration: Calibration | None
    realised: Realisation | None
    margin: float
    names: Names
    solver: str
    without: dict[str, Constraints]

    def __len__(self) -> int:
        return len(self.attributes)

    def __iter__(self) -> Iterator[Answer]:
        """Every answer but those of samples towards the class they have already."""
        return (self.answer(*place) for place in np.ndindex(*self.norm.shape) if self._is_asked(*place))

    def __str__(self) -> str:
        return sentences.of_explanation(self)

    def _repr_html_(self) -> str:
        return tables.as_html(self)

    def answers(self) -> list[Answer]:
        """Every answer but those of samples towards the class they have already."""
        return list(self)

    def answer(self, sample: int, place: int = 0, rank: int = 0) -> Answer:
        """One answer.

        Args:
            sample: row of the attributes.
            place: column of `targets`.
            rank: 0 for the shortest.
        """
        where = (sample, place, rank)
        realised = self.realised if rank == 0 else None
        return Answer(
            sample=sample,
            predicted=self.names.classes[int(self.predicted[sample])],
            target=self.names.classes[int(self.targets[sample, place])],
            rank=rank,
            status=Status(int(self.status[where])),
            distance=float(self.norm[where]),
            lower_bound=float(self.lower_bound[where]),
            proven=bool(self.proven[where]),
            changes=self._changes(sample, place, rank),
            reached=None if realised is None else bool(realised.success[sample, place]),
        )

    def reason(self, sample: int, place: int = 0) -> str:
        """Why there is no answer: the rivals and rules in the way, and which single rule would have to be dropped.

        Args:
            sample: row of the attributes.
            place: column of `targets`.
        """
        from spectra_jax.counterfactuals.reasons import reason_of

        return reason_of(self, sample, place)

    def table(self, kind: str = "text") -> Any:
        """All answers, with a row per attribute that changes.

        Args:
            kind: "text" for a terminal, "arrow" for a pyarrow.Table, "pandas" for a DataFrame.

        Raises:
            ValueError: another kind.
            ImportError: pandas is not installed.
        """
        return tables.as_table(self, kind)

    def realise(self, encode_fn: Any, images: Any, *, config: Any = None) -> "Explanation":
        """Searches for an image of the first answer of every pair; see `spectra_jax.invert`.

        Args:
            encode_fn: images -> attributes (b, n).
            images: (b, h, w, channels) in [0, 1], of the samples.
            config: InversionConfig; by default method "nearest", the smallest change of the image that reaches the
                class, by whatever attributes. "gauss_newton" aims at the attributes of the answer.

        Returns:
            The same explanation with `realised`.
        """
        from spectra_jax.counterfactuals.realise import realise

        return realise(self, encode_fn, images, config)

    def to_html(self, path: str | Path, *, images: Any = None, title: str = "What would have to change") -> Path:
        """Writes the answers as one HTML page that needs no network.

        Args:
            path: the file.
            images: (b, h, w, 3) in [0, 1] of the samples, shown beside their answers; the images found come from
                `realise`.
            title: heading of the page.

        Returns:
            The path.
        """
        from spectra_jax.counterfactuals.page import write_page

        return write_page(self, Path(path), images, title)

    def _is_asked(self, sample: int, place: int, rank: int) -> bool:
        if int(self.targets[sample, place]) == int(self.predicted[sample]) and not self.norm[sample, place, 0] > 0:
            return False
        return rank == 0 or bool(np.isfinite(self.norm[sample, place, rank]))

    def _changes(self, sample: int, place: int, rank: int) -> tuple[AttributeChange, ...]:
        delta = np.asarray(self.delta[sample, place, rank], float)
        if not np.isfinite(delta).all():
            return ()
        before = np.asarray(self.attributes[sample], float)
        strength = np.abs(delta) * self.rules.costs
        order = np.argsort(-strength, kind="stable")
        order = order[strength[order] > 1e-9 * max(strength.max(), 1e-300)]
        achieved = np.full(len(delta), np.nan)
        if self.realised is not None and rank == 0:
            achieved = np.asarray(self.realised.attributes[sample, place], float)
        nothing = np.full(len(delta), np.nan)
        spreads = nothing if self.spread is None else delta / np.where(self.spread > 0, self.spread, np.nan)
        first, last = (
            nothing if self.calibration is None else self.calibration.probability(values)
            for values in (before, before + delta)
        )
        columns = (before, before + delta, spreads, first, last, achieved)
        return tuple(
            AttributeChange(self.names.attributes[f], *(float(column[f]) for column in columns)) for f in order
        )
