"""Rules given by attribute names, turned into arrays."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from spectra_jax.checks import check_count
from spectra_jax.constraints.rules import Rules
from spectra_jax.names import Names

Patterns = str | Iterable[str]
Range = tuple[float | None, float | None] | Literal["observed"]


def compile_rules(
    names: Names,
    reference: Float[np.ndarray, "N n"] | None,
    *,
    immutable: Patterns = (),
    only_rise: Patterns = (),
    only_fall: Patterns = (),
    ranges: Range | Mapping[str, Range] | None = None,
    binary: Patterns | Mapping[str, tuple[float, float]] = (),
    one_hot: Patterns = (),
    relations: Patterns = (),
    at_most: int | None = None,
    on_level: float,
    costs: Literal["spread"] | Mapping[str, float] | Float[Any, " n"] | None,
) -> Rules:
    """The arrays of the rules of `explain`.

    Raises:
        ValueError: a name that is not there, a rule that means nothing, two rules about one thing, or a rule that needs
            reference attributes where none were given.
    """
    locked, rising, falling = (
        names.mask(rule, patterns)
        for rule, patterns in (("immutable", immutable), ("only_rise", only_rise), ("only_fall", only_fall))
    )
    both = np.flatnonzero(rising & falling)
    if both.size:
        raise ValueError(f"{names.attributes[both[0]]!r} is in only_rise and in only_fall; lock it by immutable")
    lower, upper, may_stay = _ranges(names, reference, ranges)
    matrix, offsets = _relations(names, relations)
    return Rules(
        lower=lower,
        upper=upper,
        may_stay=may_stay,
        may_rise=~(locked | falling),
        may_fall=~(locked | rising),
        costs=_costs(names, reference, costs),
        switch_values=_switches(names, binary),
        groups=_groups(names, one_hot),
        on_level=float(on_level),
        relations=matrix,
        offsets=offsets,
        max_changes=None if at_most is None else check_count("at_most", at_most),
    )


def _needed(reference, rule: str) -> Float[np.ndarray, "N n"]:
    if reference is None:
        raise ValueError(f"{rule} needs real samples to be taken from; give reference=attributes of the training data")
    return reference


def _ranges(names: Names, reference, ranges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends, and where they are the observed ones: samples outside of what was observed need not move into it."""
    may_stay = np.zeros(len(names.attributes), bool)
    lower, upper = np.full(len(names.attributes), -np.inf), np.full(len(names.attributes), np.inf)
    if ranges is None:
        return lower, upper, may_stay
    for pattern, ends in (ranges if isinstance(ranges, Mapping) else {"*": ranges}).items():
        chosen = names.mask("ranges", pattern)
        if isinstance(ends, str):
            if ends != "observed":
                raise ValueError(f'ranges of {pattern!r} is {ends!r}; expected (lowest, highest) or "observed"')
            seen = _needed(reference, 'ranges="observed"')
            low, high = seen.min(axis=0)[chosen], seen.max(axis=0)[chosen]
        else:
            try:
                low, high = (np.nan if end is None else float(end) for end in ends)
            except (TypeError, ValueError):
                raise ValueError(
                    f'ranges of {pattern!r} is {ends!r}; expected (lowest, highest) with None for no end, or "observed"'
                ) from None
            low, high = -np.inf if np.isnan(low) else low, np.inf if np.isnan(high) else high
            if not low <= high:
                raise ValueError(f"ranges of {pattern!r} is ({low}, {high}); expected lowest <= highest")
        lower[chosen], upper[chosen], may_stay[chosen] = low, high, isinstance(ends, str)
    return lower, upper, may_stay


def _switches(names: Names, binary) -> np.ndarray:
    values = np.full((len(names.attributes), 2), np.nan)
    if not isinstance(binary, Mapping):
        patterns = [binary] if isinstance(binary, str) else binary
        binary = dict.fromkeys(patterns, (0.0, 1.0))
    for pattern, (off, on) in binary.items():
        if not (np.isfinite([off, on]).all() and off < on):
            raise ValueError(f"binary of {pattern!r} is ({off}, {on}); expected an off value below an on value")
        values[names.mask("binary", pattern)] = off, on
    return values


def _groups(names: Names, one_hot: Patterns) -> np.ndarray:
    result, groups = np.full(len(names.attributes), -1), names.groups()
    wanted = [one_hot] if isinstance(one_hot, str) else list(one_hot)
    if wanted and not groups:
        raise ValueError('one_hot needs groups; expected attribute names such as "colour::red" and "colour::blue"')
    group_names = Names(tuple(groups), ())
    chosen = group_names.mask("one_hot", wanted) if wanted else ()
    for number in np.flatnonzero(chosen):
        result[groups[group_names.attributes[number]]] = number
    return result


def _relations(names: Names, relations: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """Rows of relations such as "a <= b"."""
    rows = []
    for text in [relations] if isinstance(relations, str) else relations:
        for symbol in (" <= ", " >= "):
            left, found, right = text.partition(symbol)
            if found:
                break
        else:
            raise ValueError(f'relations has {text!r}; expected "NAME <= NAME" or "NAME >= NAME", with spaces')
        smaller, larger = (names.index("relations", side.strip()) for side in (left, right))
        if symbol == " >= ":
            smaller, larger = larger, smaller
        row = np.zeros(len(names.attributes))
        row[larger], row[smaller] = 1, -1
        if smaller == larger:
            raise ValueError(f"relations has {text!r}; expected two different attributes")
        rows.append(row)
    return np.array(rows).reshape(len(rows), len(names.attributes)), np.zeros(len(rows))


def _costs(names: Names, reference, costs) -> np.ndarray | None:
    if costs is None:
        return None
    if isinstance(costs, str):
        if costs != "spread":
            raise ValueError(f'costs is {costs!r}; expected "spread", costs by name, or an array of one cost each')
        spread = _needed(reference, 'costs="spread"').std(axis=0)
        constant = np.flatnonzero(~(spread > 0))
        if constant.size:
            raise ValueError(
                f"costs by spread: {names.attributes[constant[0]]!r} is the same in all reference samples "
                f"({len(constant)} such attributes); lock it by immutable and give costs by name or as an array"
            )
        return 1 / spread
    if isinstance(costs, Mapping):
        result = np.ones(len(names.attributes))
        for pattern, cost in costs.items():
            result[names.mask("costs", pattern)] = cost
        return result
    return np.asarray(costs, float)
