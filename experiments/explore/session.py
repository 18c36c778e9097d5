"""One model, its pictures and the questions about them: plain Python, without HTTP."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from experiments.explore.images import Pictures
from experiments.explore.questions import Question
from experiments.explore.turns import Turns
from spectra_jax import Explanation, Head, Status, all_pairs_norms, explain, head_logits
from spectra_jax.names import Names, make_names

Effort = Literal["quick", "full"]
# Choices solved in proof of an answer that limits the number of changes: while somebody drags, and afterwards.
_CHOICES = {"quick": 0, "full": 128}
_ENCODED = 16  # pictures encoded together
_KEPT = 64
_LISTED = 5


class Real(NamedTuple):
    """A real picture of the training data.

    Attributes:
        number: among the training pictures.
        distance: of its attributes from those of the answer.
    """

    number: int
    distance: float


@dataclass(frozen=True, eq=False)
class Session:
    """A model, its pictures, and their attributes.

    Attributes:
        name: how the page calls the model.
        encode: images (b, h, w, 3) in [0, 1] -> attributes (b, n).
        head: weights (c, n), optional bias (c,).
        pictures: those to choose from.
        attributes: (N, n) what `encode` makes of them; also the reference for what is observed and for spreads.
        attribute_names: n names; `group::value` makes groups.
        class_names: c names.
        training: the pictures it was trained on, for the nearest real one of a class.
        turns: shared by all sessions of a server.
    """

    name: str
    encode: Callable[[Float[Array, "b h w 3"]], Float[Array, "b n"]]
    head: Head
    pictures: Pictures
    attributes: Float[np.ndarray, "N n"]
    attribute_names: tuple[str, ...]
    class_names: tuple[str, ...]
    training: Pictures
    turns: Turns

    @functools.cached_property
    def predicted(self) -> Int[np.ndarray, " N"]:
        """(N,) class that the model gives each picture."""
        return np.asarray(jnp.argmax(head_logits(self.head, jnp.asarray(self.attributes)), axis=1))

    @functools.cached_property
    def _names(self) -> Names:
        return make_names(self.attribute_names, self.class_names, *reversed(self.head.weights.shape))

    @functools.cached_property
    def explained(self) -> Callable[[Question, Effort], Explanation]:
        """`explain` for a question; the last answers are kept, so undo costs nothing."""
        return functools.lru_cache(_KEPT)(self._explain)

    def start(self, question: Question) -> Float[np.ndarray, " n"]:
        """Attributes of the picture, with what was set by hand.

        Raises:
            ValueError: there is no attribute of that name.
        """
        values = self.attributes[question.picture].copy()
        for name, value in question.held:
            values[self._names.index("held", name)] = value
        return values

    def _explain(self, question: Question, effort: Effort) -> Explanation:
        ranges: dict[str, Any] = {"*": "observed"} if question.observed else {}
        ranges |= {name: (low, high) for name, low, high in question.ranges}
        ask = functools.partial(
            explain,
            self.head,
            self.start(question)[None],
            attribute_names=self.attribute_names,
            class_names=self.class_names,
            margin=question.lead,
            immutable=(*question.locked, *(name for name, _ in question.held)),
            ranges=ranges,
            reference=self.attributes,
            max_choices=_CHOICES[effort],
        )
        target: str | int = "nearest" if question.target is None else question.target
        if target == "nearest" and question.at_most is not None and effort == "quick":
            # Trying many classes takes seconds where each is a search: while somebody drags, the class that is nearest
            # without the limit stands in.
            target = int(ask(targets="nearest").targets[0, 0])
        return ask(targets=target, at_most=question.at_most)

    def answer(self, question: Question, effort: Effort = "full") -> dict[str, Any]:
        """The answer and what stands around it, as JSON.

        Args:
            question: what is asked.
            effort: "quick" does without the proof that a choice is the best, and with at_most takes the nearest class
                from the question without it; "full" tries to prove it, and compares classes under the limit.

        Raises:
            ValueError: the question names what is not there.
        """
        if effort == "full":
            with self.turns.thorough:
                self.explained(question, effort)
        with self.turns.turn():
            explanation = self.explained(question, effort)
            answer = explanation.answer(0)
            start, delta = self.start(question), np.asarray(explanation.delta[0, 0, 0])
            solved = answer.status == Status.SOLVED
            settled = effort == "full" or question.at_most is None or (answer.proven and question.target is not None)
            return {
                "model": self.name,
                "target": int(explanation.targets[0, 0]),
                "status": answer.status.name,
                "sentence": str(answer._replace(sample=question.picture)).replace("Sample", "Picture", 1),
                "distance": _json(answer.distance),
                "lower_bound": _json(answer.lower_bound),
                "proven": answer.proven,
                "settled": settled,
                "solver": explanation.solver,
                "changes": [
                    {"name": change.name, "before": change.before, "after": change.after,
                     "spreads": _json(change.in_spreads)}
                    for change in answer.changes
                ],
                "picture": self._classes(self.attributes[question.picture]),
                "start": self._classes(start),
                "end": self._classes(start + delta) if solved else None,
                "near": self._near(question, start),
                "values": [round(float(value), 5) for value in self.attributes[question.picture]],
            }  # fmt: skip

    def reason(self, question: Question) -> str:
        """Why there is no answer, in sentences; where the rules leave a choice it takes seconds."""
        with self.turns.turn():
            explanation = self.explained(question, "quick")
        with self.turns.thorough:
            return explanation.reason(0)

    def end(self, question: Question) -> Float[np.ndarray, " n"]:
        """Attributes after the change.

        Raises:
            ValueError: there is no answer.
        """
        with self.turns.turn():
            explanation = self.explained(question, "quick")
            answer = explanation.answer(0)
            if answer.status != Status.SOLVED:
                raise ValueError(f"There is no answer to make a picture of: {answer.status.description}.")
            return self.start(question) + np.asarray(explanation.delta[0, 0, 0])

    def target(self, question: Question) -> int:
        """The class asked for; for the nearest one, its number."""
        with self.turns.turn():
            return int(self.explained(question, "quick").targets[0, 0])

    def nearest_real(self, question: Question) -> Real | None:
        """The training picture of the target class whose attributes are nearest to the answer's; None without any."""
        end, wanted = self.end(question), self.target(question)
        numbers, attributes = self._class_attributes(wanted)
        if not len(numbers):
            return None
        distances = np.linalg.norm(attributes - end, axis=1)
        return Real(int(numbers[np.argmin(distances)]), float(distances.min()))

    @functools.cached_property
    def _class_attributes(self) -> Callable[[int], tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k n"]]]:
        """Training pictures of a class and their attributes, encoded when they are first needed."""
        return functools.lru_cache(None)(self._encode_class)

    def _encode_class(self, wanted: int) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k n"]]:
        numbers, parts = np.flatnonzero(self.training.labels == wanted), []
        for begin in range(0, len(numbers), _ENCODED):
            images = self.training.read(numbers[begin : begin + _ENCODED])
            with self.turns.turn():
                parts.append(self.encode_images(images))
        return numbers, np.concatenate(parts) if parts else np.zeros((0, len(self.attribute_names)))

    def encode_images(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b n"]:
        """Attributes of some pictures, filled up to one size so that one program does. Within a turn."""
        rows = np.minimum(np.arange(_ENCODED), len(images) - 1)
        return np.asarray(self._encode(jnp.asarray(images[rows], jnp.float32) / 255))[: len(images)]

    @functools.cached_property
    def _encode(self):
        return jax.jit(self.encode)

    def _classes(self, attributes: Float[np.ndarray, " n"]) -> dict[str, Any]:
        """The most probable classes and the lead of the first."""
        logits = np.asarray(head_logits(self.head, jnp.asarray(attributes, self.head.weights.dtype)), float)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-logits, kind="stable")[:_LISTED]
        return {
            "lead": _json(logits[order[0]] - logits[order[1]]) if len(order) > 1 else None,
            "top": [
                {"class": int(k), "probability": float(probabilities[k]), "logit": _json(logits[k])} for k in order
            ],
        }

    def _near(self, question: Question, start: Float[np.ndarray, " n"]) -> list[dict[str, Any]]:
        """The classes that the smallest changes reach, where locked attributes are the only rule."""
        fixed = self._names.mask("locked", (*question.locked, *(name for name, _ in question.held)))
        norms = all_pairs_norms(
            *(self.head, jnp.asarray(start[None], self.head.weights.dtype)),
            margin=question.lead,
            mutable=jnp.asarray(~fixed),
        )
        distances = np.nan_to_num(np.asarray(norms, float)[0], nan=np.inf)
        distances[distances == 0] = np.inf  # its own class
        order = np.argsort(distances, kind="stable")[:_LISTED]
        return [{"class": int(k), "distance": float(distances[k])} for k in order if np.isfinite(distances[k])]

    def without_strangers(self, question: Question) -> tuple[Question, tuple[str, ...]]:
        """The question without attributes that this model does not have, and their names: another one may have them."""

        def is_known(name: str) -> bool:
            try:
                return bool(self._names.mask("rules", name).any())
            except ValueError:
                return False

        named = {*question.locked, *(each[0] for each in question.held), *(each[0] for each in question.ranges)}
        strangers = {name for name in named if not is_known(name)}
        kept = dataclasses.replace(
            question,
            locked=tuple(name for name in question.locked if name not in strangers),
            held=tuple(each for each in question.held if each[0] not in strangers),
            ranges=tuple(each for each in question.ranges if each[0] not in strangers),
        )
        return kept, tuple(sorted(strangers))


def _json(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
