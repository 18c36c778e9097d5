"""The choices that rules leave: an attribute keeps its value or changes, one value of a one-hot group is on.

Attributes fall into units: the values of one group together, every other attribute by itself. A unit has options, each
a box of changes for its attributes. For given multipliers the best option of every unit is known at once, as the
Lagrangian is a sum over units: that gives lower bounds, and says which choices to try.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.constraints.rules import Constraints

_KEEP, _RANGE, _ON, _OFF, _TO_ON, _TO_OFF = range(6)


class Options(NamedTuple):
    """The options of every unit, for a batch of samples.

    Entries are the single ranges that make up the boxes: one for every option and attribute of its unit. Options are
    ordered by unit, entries by option.

    Attributes:
        entry_attribute: (e,).
        entry_option: (e,).
        option_unit: (o,).
        keeps: (o,) options that leave their unit as it is.
        attribute_unit: (n,).
        low: (p, e) smallest change, in attributes times costs.
        high: (p, e) largest change.
        allowed: (p, o) options whose box is not empty.
        max_changes: how many units may change; None for any number.
    """

    entry_attribute: Int[np.ndarray, " e"]
    entry_option: Int[np.ndarray, " e"]
    option_unit: Int[np.ndarray, " o"]
    keeps: Bool[np.ndarray, " o"]
    attribute_unit: Int[np.ndarray, " n"]
    low: Float[np.ndarray, "p e"]
    high: Float[np.ndarray, "p e"]
    allowed: Bool[np.ndarray, "p o"]
    max_changes: int | None

    @property
    def num_units(self) -> int:
        return int(self.option_unit[-1]) + 1

    def of(self, rows: Int[np.ndarray, " q"]) -> "Options":
        """The options of these samples."""
        return self._replace(low=self.low[rows], high=self.high[rows], allowed=self.allowed[rows])

    def boxes(self, chosen: Int[np.ndarray, "p u"]) -> tuple[np.ndarray, np.ndarray]:
        """(p, n) ends of the changes that the chosen options allow."""
        return self._of_chosen(chosen, self.low), self._of_chosen(chosen, self.high)

    def hull(self) -> tuple[np.ndarray, np.ndarray]:
        """(p, n) ends of what any allowed option allows."""
        allowed = self.allowed[:, self.entry_option]
        low = np.full((len(self.low), len(self.attribute_unit)), np.inf)
        high = -low
        pairs = np.arange(len(low))[:, None]
        np.minimum.at(low, (pairs, self.entry_attribute), np.where(allowed, self.low, np.inf))
        np.maximum.at(high, (pairs, self.entry_attribute), np.where(allowed, self.high, -np.inf))
        return low, high

    def most_free(self) -> int:
        """How many attributes a choice can move at most."""
        if self.max_changes is None:
            return len(self.attribute_unit)
        sizes = np.sort(np.bincount(self.attribute_unit))[::-1]
        return int(sizes[: self.max_changes].sum())

    def values(self, pull: Float[np.ndarray, "p n"]) -> Float[np.ndarray, "p o"]:
        """min over each option's box of 1/2 ||delta||^2 - pull . delta; inf for options that are not allowed."""
        pulls = pull[:, self.entry_attribute]
        delta = np.clip(pulls, self.low, self.high)
        starts = np.flatnonzero(np.diff(self.entry_option, prepend=-1))
        return np.where(self.allowed, np.add.reduceat(delta * (delta / 2 - pulls), starts, axis=1), np.inf)

    def longest(self) -> Float[np.ndarray, " p"]:
        """Bound on 1/2 ||delta||^2 over all choices; inf where some attribute has no end."""
        farthest = np.maximum(np.abs(self.low), np.abs(self.high))
        starts = np.flatnonzero(np.diff(self.entry_option, prepend=-1))
        square = np.add.reduceat(np.square(np.minimum(farthest, 1e100)) / 2, starts, axis=1)
        values = np.where(self.allowed, -square, np.inf)
        longest = -self.of_units(values, self.choose(values)).sum(axis=1)
        return np.where(longest < 1e150, longest, np.inf)

    def choose(self, values: Float[np.ndarray, "p o"]) -> Int[np.ndarray, "p u"]:
        """The option of each unit with the least total value, among choices that change no more units than may."""
        changed, best = self.best_change(values)
        if self.max_changes is None:
            return best
        kept, keeping = self._kept(values)
        with np.errstate(invalid="ignore"):
            saving = np.where(np.isinf(kept), np.inf, kept - changed)
        order = np.argsort(-saving, axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        return np.where((rank < self.max_changes) & (saving > 0), best, keeping)

    def best_change(self, values: Float[np.ndarray, "p o"]) -> tuple[np.ndarray, np.ndarray]:
        """(p, u) the least value of each unit's options, and which option that is; keeping left out where it counts."""
        if self.max_changes is not None:
            values = np.where(self.keeps, np.inf, values)
        starts = np.flatnonzero(np.diff(self.option_unit, prepend=-1))
        least = np.minimum.reduceat(values, starts, axis=1)
        # Among equals the first; a unit without an allowed option takes its last.
        numbers = np.where(values <= least[:, self.option_unit], np.arange(values.shape[1]), values.shape[1])
        return least, np.minimum(np.minimum.reduceat(numbers, starts, axis=1), values.shape[1] - 1)

    def of_units(self, values: Float[np.ndarray, "p o"], chosen: Int[np.ndarray, "p u"]) -> Float[np.ndarray, "p u"]:
        """The value of each unit's chosen option."""
        return np.take_along_axis(values, chosen, axis=1)

    def possible(self) -> Bool[np.ndarray, " p"]:
        """Whether the rules by themselves leave any choice."""
        starts = np.flatnonzero(np.diff(self.option_unit, prepend=-1))
        some = np.all(np.logical_or.reduceat(self.allowed, starts, axis=1), axis=1)
        if self.max_changes is None:
            return some
        kept, _ = self._kept(np.where(self.allowed, 0.0, np.inf))
        return some & (np.isinf(kept).sum(axis=1) <= self.max_changes)

    def _kept(self, values):
        """(p, u) the value of keeping, and the option that keeps."""
        (keeping,) = np.nonzero(self.keeps)
        return values[:, keeping], np.broadcast_to(keeping, (len(values), len(keeping)))

    def _of_chosen(self, chosen, entries):
        is_chosen = np.zeros((len(chosen), len(self.option_unit)), bool)
        np.put_along_axis(is_chosen, chosen, True, axis=1)
        pairs, places = np.nonzero(is_chosen[:, self.entry_option])
        result = np.zeros((len(chosen), len(self.attribute_unit)))
        result[pairs, self.entry_attribute[places]] = entries[pairs, places]
        return result


def make_options(
    rules: Constraints, attributes: Float[np.ndarray, "p n"], locked: Bool[np.ndarray, "p n"] | None = None
) -> Options:
    """The options that the rules leave to each sample; see `Constraints.limits`."""
    num_attributes = attributes.shape[1]
    is_switch = rules.is_switch
    limited = rules.max_changes is not None
    units: list[list[int]] = [[f] for f in np.flatnonzero(rules.groups < 0).tolist()]
    units += [np.flatnonzero(rules.groups == group).tolist() for group in np.unique(rules.groups[rules.groups >= 0])]
    entries: list[tuple[int, int, int]] = []  # attribute, kind, option
    options: list[tuple[int, bool]] = []  # unit, keeps
    attribute_unit = np.zeros(num_attributes, int)
    for unit, members in enumerate(units):
        attribute_unit[members] = unit
        grouped, switch = rules.groups[members[0]] >= 0, is_switch[members[0]]
        if limited or (switch and not grouped):
            entries += [(f, _KEEP, len(options)) for f in members]
            options.append((unit, True))
        if grouped:
            for on in members:
                entries += [(f, _ON if f == on else _OFF, len(options)) for f in members]
                options.append((unit, False))
        elif switch:
            for kind in (_TO_ON, _TO_OFF):
                entries.append((members[0], kind, len(options)))
                options.append((unit, False))
        else:
            entries.append((members[0], _RANGE, len(options)))
            options.append((unit, False))
    attribute, kind, of_option = np.array(entries).T
    option_unit, keeps = np.array([unit for unit, _ in options]), np.array([keep for _, keep in options])
    low, high = _entry_limits(rules, attributes, locked, attribute, kind)
    starts = np.flatnonzero(np.diff(of_option, prepend=-1))

    def of_options(entries: Bool[np.ndarray, "p e"]) -> Int[np.ndarray, "p o"]:
        """How many entries of each option it holds for."""
        return np.add.reduceat(entries.astype(int), starts, axis=1)

    # A group may be kept as it is only if exactly one of its values is on: one that is on, and all the others off.
    value, middle = attributes[:, attribute], rules.middle[attribute]
    kept = (rules.groups[attribute] >= 0) & (kind == _KEEP)
    size = of_options(np.broadcast_to(kept, value.shape))
    consistent = (size == 0) | (
        (of_options(kept & (value >= middle)) >= 1) & (of_options(kept & (value <= middle)) >= size - 1)
    )
    allowed = (of_options(low > high) == 0) & consistent
    costs = rules.costs[attribute]
    return Options(
        entry_attribute=attribute,
        entry_option=of_option,
        option_unit=option_unit,
        keeps=keeps,
        attribute_unit=attribute_unit,
        low=np.where(low <= high, low * costs, 0),
        high=np.where(low <= high, high * costs, 0),
        allowed=allowed,
        max_changes=rules.max_changes,
    )


def _entry_limits(rules: Constraints, attributes, locked, attribute, kind):
    """(p, e) the range of every entry, in units of the attributes; low > high where nothing is left."""
    value = attributes[:, attribute]
    low, high = (ends[:, attribute] for ends in rules.limits(attributes, locked))
    middle = rules.middle[attribute]
    off_value, on_value = rules.switch_values[attribute].T
    switch = rules.is_switch[attribute]

    def within(first, last):
        return np.maximum(low, first), np.minimum(high, last)

    zero = np.zeros_like(value)
    to_on, to_off = on_value - value, off_value - value
    stays_on, stays_off = value >= middle, value <= middle
    per_kind = {
        _KEEP: within(zero, zero),
        _RANGE: (low, high),
        _TO_ON: within(to_on, to_on),
        _TO_OFF: within(to_off, to_off),
        _ON: within(
            np.where(switch, np.where(stays_on, 0, to_on), middle - value),
            np.where(switch, np.where(stays_on, 0, to_on), np.inf),
        ),
        _OFF: within(
            np.where(switch, np.where(stays_off, 0, to_off), -np.inf),
            np.where(switch, np.where(stays_off, 0, to_off), middle - value),
        ),
    }
    lows, highs = np.empty_like(value), np.empty_like(value)
    for each, (first, last) in per_kind.items():
        lows[:, kind == each], highs[:, kind == each] = first[:, kind == each], last[:, kind == each]
    return lows, highs
