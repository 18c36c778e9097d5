"""The page's questions, read from JSON; every mistake is reported in a sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_CHANGES = 16  # larger limits are no live answers: each doubling is another compiled program


@dataclass(frozen=True)
class Question:
    """A picture, a class to reach, and the rules of the change.

    Attributes:
        picture: its number.
        target: class number, or None for the class that the smallest change reaches.
        locked: names of attributes that may not change, or patterns such as "has_size::*".
        held: (name, value) of attributes set by hand. They stay as they were set; the answer changes the others.
        ranges: (name, lowest, highest) value after the change; None for no end.
        at_most: how many attributes may change besides those set by hand.
        observed: whether all attributes stay within what the pictures of the run show.
        lead: how far the class must be ahead of every other, in logits.
    """

    picture: int
    target: int | None = None
    locked: tuple[str, ...] = ()
    held: tuple[tuple[str, float], ...] = ()
    ranges: tuple[tuple[str, float | None, float | None], ...] = ()
    at_most: int | None = None
    observed: bool = False
    lead: float = 0.5


def read_question(given: Any, *, num_pictures: int, num_classes: int) -> Question:
    """The question in a JSON object with the fields of `Question`; held is {name: value}, ranges {name: [low, high]}.

    Raises:
        ValueError: a field is missing, unknown, or not what it should be.
    """
    if not isinstance(given, dict):
        raise ValueError(f"The question is {_kind(given)}; expected an object with the field picture.")
    unknown = sorted(given.keys() - Question.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"The question has the unknown field {unknown[0]!r}.")
    if "picture" not in given:
        raise ValueError("The question has no field picture; expected the number of a picture.")
    ranges = {name: _ends(name, ends) for name, ends in _object(given, "ranges").items()}
    locked = given.get("locked", [])
    if not isinstance(locked, list) or not all(isinstance(name, str) for name in locked):
        raise ValueError(f"locked is {_kind(locked)}; expected a list of names of attributes.")
    observed = given.get("observed", False)
    if not isinstance(observed, bool):
        raise ValueError(f"observed is {_kind(observed)}; expected true or false.")
    target, at_most = given.get("target"), given.get("at_most")
    lead = _number("lead", given.get("lead", Question.lead))
    if lead < 0:
        raise ValueError(f"lead is {lead:g}; expected 0 logits or more.")
    return Question(
        picture=_count("picture", given["picture"], 0, num_pictures - 1),
        target=None if target is None else _count("target", target, 0, num_classes - 1),
        locked=tuple(sorted(set(locked))),
        held=tuple(
            sorted((name, _number(f"held of {name!r}", value)) for name, value in _object(given, "held").items())
        ),
        ranges=tuple((name, *ranges[name]) for name in sorted(ranges)),
        at_most=None if at_most is None else _count("at_most", at_most, 1, MOST_CHANGES),
        observed=observed,
        lead=lead,
    )


def _object(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_kind(value)}; expected an object with names of attributes.")
    return value


def _ends(name: str, ends: Any) -> tuple[float | None, float | None]:
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"The range of {name!r} is {_kind(ends)}; expected [lowest, highest], null for no end.")
    low, high = (None if end is None else _number(f"an end of the range of {name!r}", end) for end in ends)
    if low is not None and high is not None and low > high:
        raise ValueError(f"The range of {name!r} goes from {low:g} to {high:g}; expected the lower end first.")
    return low, high


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {_kind(value)}; expected a finite number.")
    return float(value)


def _count(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_kind(value)}; expected a whole number from {low} to {high}.")
    return value


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
