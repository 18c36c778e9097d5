"""How the tests of formulas see that a user rests on a function: they negate its values and compare."""

import re
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
import pytest


class Formula(NamedTuple):
    """What it is, its one function, and its users."""

    words: str
    home: ModuleType
    function: str
    users: list[str]


def with_every_user(table: list[Formula]) -> pytest.MarkDecorator:
    """Runs a test for each formula and user of a table."""
    cases = [pytest.param(each, user, id=f"{each.function}-{user}") for each in table for user in each.users]
    return pytest.mark.parametrize(("formula", "user"), cases)


def program(function, *args) -> str:
    """The traced program without the addresses of Python objects in it."""
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*args)))


def negate(formula: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the formula's function return the opposite of its values."""
    function = getattr(formula.home, formula.function)

    def opposite(*args, **kwargs):
        return jax.tree.map(lambda leaf: ~leaf if leaf.dtype == bool else -leaf, function(*args, **kwargs))

    monkeypatch.setattr(formula.home, formula.function, opposite)


def same(one, other) -> bool:
    """Whether two answers are equal: programs or messages as text, values leaf by leaf, NaN like NaN."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return len(one) == len(other) and all(
        np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.inexact)) for a, b in zip(one, other, strict=True)
    )
