"""Names of attributes and classes: patterns that select them, groups, and how people read them."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

SEPARATOR = "::"


def readable_class(name: str) -> str:
    """A class name in words: "001.Black_footed_Albatross" -> "Black footed Albatross"."""
    return re.sub(r"^\d+\.(?=\D)", "", str(name)).replace("_", " ").strip() or str(name)


def readable_attribute(name: str) -> str:
    """An attribute's name in words: "has_nape_color::purple" -> "nape color: purple"."""
    return str(name).removeprefix("has_").replace(SEPARATOR, ": ").replace("_", " ")


@dataclass(frozen=True)
class Names:
    """What the attributes and classes of a head are called.

    Attributes:
        attributes: n names, no two alike. `group::value` makes an attribute a value of a group.
        classes: c names, no two alike.
    """

    attributes: tuple[str, ...]
    classes: tuple[str, ...]

    def mask(self, rule: str, patterns: str | Iterable[str]) -> Bool[np.ndarray, " n"]:
        """The attributes that any of the patterns names.

        Args:
            rule: what the patterns are for, in an error.
            patterns: names, in their own spelling or in words, or shell patterns such as "has_size::*". A name is taken
                as it is even if it contains brackets or stars.

        Raises:
            ValueError: a pattern names no attribute.
        """
        chosen = np.zeros(len(self.attributes), bool)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = np.array([name == pattern for name in self.attributes])
            if not hits.any():
                hits = np.array([fnmatch.fnmatchcase(name, pattern) for name in self.attributes])
            if not hits.any():
                hits = np.array([readable_attribute(name) == pattern for name in self.attributes])
            if not hits.any():
                close = difflib.get_close_matches(pattern, [*self.attributes, *self.groups()], n=3, cutoff=0.5)
                hint = (
                    f"did you mean {', '.join(map(repr, close))}?" if close else "names are compared letter by letter"
                )
                raise ValueError(f"{rule} names {pattern!r}; expected a name or pattern of an attribute: {hint}")
            chosen |= hits
        return chosen

    def index(self, rule: str, name: str) -> int:
        """The attribute of this name, by `mask`.

        Raises:
            ValueError: none, or more than one.
        """
        found = np.flatnonzero(self.mask(rule, name))
        if len(found) != 1:
            raise ValueError(f"{rule} names {name!r}, which are {len(found)} attributes; expected one")
        return int(found[0])

    def groups(self) -> dict[str, Int[np.ndarray, " k"]]:
        """The groups that have two values or more, and the attributes that are their values."""
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.attributes):
            group, separator, _ = name.partition(SEPARATOR)
            if separator:
                members.setdefault(group, []).append(index)
        return {group: np.array(indices) for group, indices in members.items() if len(indices) > 1}

    def class_index(self, given: str | int) -> int:
        """The class of a name, in its own spelling or in words, or of a number.

        Raises:
            ValueError: there is no such class.
        """
        if isinstance(given, str):
            if given in self.classes:
                return self.classes.index(given)
            wanted = readable_class(given).casefold()
            hits = [index for index, name in enumerate(self.classes) if readable_class(name).casefold() == wanted]
            if len(hits) == 1:
                return hits[0]
            words = {readable_class(name).casefold(): readable_class(name) for name in self.classes}
            close = [words[word] for word in difflib.get_close_matches(wanted, words, n=3, cutoff=0.5)]
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"there are {len(self.classes)} classes"
            raise ValueError(f"targets names {given!r}; expected the name of a class: {hint}")
        if not 0 <= int(given) < len(self.classes):
            raise ValueError(f"targets has {given}; expected a class from 0 to {len(self.classes) - 1}")
        return int(given)


def make_names(
    attributes: Sequence[str] | None, classes: Sequence[str] | None, num_attributes: int, num_classes: int
) -> Names:
    """The names given, or "attribute 0" and "class 0" onwards.

    Raises:
        ValueError: another number of names than the head has, or two alike.
    """

    def checked(kind: str, names: Sequence[str] | None, count: int, default: str) -> tuple[str, ...]:
        if names is None:
            return tuple(f"{default} {number}" for number in range(count))
        if isinstance(names, str):
            raise ValueError(f"{kind} is one string; expected a list of {count} names")
        names = tuple(str(name) for name in names)
        if len(names) != count:
            raise ValueError(f"{kind} has {len(names)} names; expected {count}, to match the head")
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < count else ()
        if twice:
            raise ValueError(f"{kind} has {sorted(twice)[0]!r} more than once; expected {count} different names")
        return names

    return Names(
        checked("attribute_names", attributes, num_attributes, "attribute"),
        checked("class_names", classes, num_classes, "class"),
    )
