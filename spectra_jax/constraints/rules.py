"""The rules that a counterfactual must obey, as arrays."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.checks import check_count

_ROUNDING = 2.0**-22  # of float32, relative


class Rules(NamedTuple):
    """The rules that an attribute change must obey. Every field is optional.

    Attributes:
        lower: (n,) smallest value of each attribute after the change, -inf for no end.
        upper: (n,) largest value, inf for no end.
        may_stay: (n,) attributes that may keep a value outside their range, which then only bounds how they change.
        may_rise: (n,) attributes that may get larger.
        may_fall: (n,) attributes that may get smaller; one that may neither rise nor fall is immutable.
        costs: (n,) price of a unit of change, > 0: the length of a change is ||costs * delta||.
        switch_values: (n, 2) the off and on values of attributes that have only these two, NaN for all others. Such
            an attribute stays where it is or moves to one of the two; in a one-hot group it moves only if it has to
            change sides.
        groups: (n,) which one-hot group each attribute is a value of, or -1. After the change exactly one value of
            every group is on.
        on_level: a grouped attribute is on at or above this value and off at or below it; for switches it is halfway
            between their two values.
        relations: (r, n) and offsets: (r,): relations @ (e + delta) >= offsets.
        max_changes: how many attributes may change; a one-hot group counts as one. None for any number.
    """

    lower: Float[np.ndarray, " n"] | None = None
    upper: Float[np.ndarray, " n"] | None = None
    may_stay: Bool[np.ndarray, " n"] | None = None
    may_rise: Bool[np.ndarray, " n"] | None = None
    may_fall: Bool[np.ndarray, " n"] | None = None
    costs: Float[np.ndarray, " n"] | None = None
    switch_values: Float[np.ndarray, "n 2"] | None = None
    groups: Int[np.ndarray, " n"] | None = None
    on_level: float = 0.0
    relations: Float[np.ndarray, "r n"] | None = None
    offsets: Float[np.ndarray, " r"] | None = None
    max_changes: int | None = None


class Constraints(NamedTuple):
    """`Rules` with every array in place, in float64 and checked."""

    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    may_stay: Bool[np.ndarray, " n"]
    may_rise: Bool[np.ndarray, " n"]
    may_fall: Bool[np.ndarray, " n"]
    costs: Float[np.ndarray, " n"]
    switch_values: Float[np.ndarray, "n 2"]
    groups: Int[np.ndarray, " n"]
    on_level: float
    relations: Float[np.ndarray, "r n"]
    offsets: Float[np.ndarray, " r"]
    max_changes: int | None

    @property
    def is_switch(self) -> Bool[np.ndarray, " n"]:
        """Attributes that have two values only."""
        return np.isfinite(self.switch_values).all(axis=1)

    @property
    def is_combinatorial(self) -> bool:
        """Whether the rules leave a choice: which attributes change, which value of a group is on."""
        return self.max_changes is not None or bool((self.groups >= 0).any() or self.is_switch.any())

    @property
    def middle(self) -> Float[np.ndarray, " n"]:
        """Where each attribute counts as on and as off."""
        return np.where(self.is_switch, self.switch_values.mean(axis=1), self.on_level)

    def limits(
        self, attributes: Float[np.ndarray, "p n"], locked: Bool[np.ndarray, "p n"] | None = None
    ) -> tuple[Float[np.ndarray, "p n"], Float[np.ndarray, "p n"]]:
        """Smallest and largest change of each attribute by ranges and directions; the former is larger where none fits.

        Args:
            attributes: of each sample.
            locked: attributes that may not change, sample by sample, on top of the rules.
        """
        locked = np.zeros((1, 1), bool) if locked is None else locked
        low, high = self.lower - attributes, self.upper - attributes
        # 0.3 in float32 lies above 0.3: a value within such rounding of an end is at that end.
        low = np.where((low > 0) & (low <= _ROUNDING * np.abs(self.lower)), 0, low)
        high = np.where((high < 0) & (-high <= _ROUNDING * np.abs(self.upper)), 0, high)
        low, high = np.where(self.may_stay, np.minimum(low, 0), low), np.where(self.may_stay, np.maximum(high, 0), high)
        low = np.where(self.may_fall & ~locked, low, np.maximum(low, 0))
        high = np.where(self.may_rise & ~locked, high, np.minimum(high, 0))
        return low, high


def as_constraints(rules: Rules, num_attributes: int) -> Constraints:
    """The rules with defaults filled in.

    Raises:
        ValueError: a shape that does not fit the head, a NaN where none may be, an empty range, a cost that is not
            positive, max_changes below 1.
    """

    def array(name: str, default: float, dtype: type, shape: tuple[int, ...] = (num_attributes,)) -> np.ndarray:
        given = getattr(rules, name)
        value = np.broadcast_to(default, shape) if given is None else np.asarray(given)
        if value.shape != shape:
            raise ValueError(f"rules.{name} has shape {value.shape}; expected {shape}, to match the head")
        return value.astype(dtype)

    lower, upper = array("lower", -np.inf, float), array("upper", np.inf, float)
    wrong = np.flatnonzero(~((lower <= upper) & (lower < np.inf) & (upper > -np.inf)))
    if wrong.size:
        first = wrong[0]
        raise ValueError(f"the range of attribute {first} is [{lower[first]}, {upper[first]}]; expected lower <= upper")
    costs = array("costs", 1.0, float)
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise ValueError(
            "rules.costs has entries that are not positive and finite; expected prices > 0: lock "
            "attributes by may_rise and may_fall, in explain by immutable"
        )
    switch_values = array("switch_values", np.nan, float, (num_attributes, 2))
    off, on = switch_values.T
    if not ((np.isnan(off) & np.isnan(on)) | (np.isfinite(off) & np.isfinite(on) & (off < on))).all():
        raise ValueError(
            "rules.switch_values has an unordered pair; expected an off value below an on value, or NaN for both"
        )
    if not np.isfinite(rules.on_level):
        raise ValueError(f"rules.on_level is {rules.on_level}; expected a finite number, in the attributes' unit")
    relations = np.zeros((0, num_attributes)) if rules.relations is None else np.asarray(rules.relations, float)
    offsets = np.zeros(0) if rules.offsets is None else np.asarray(rules.offsets, float)
    if relations.shape != (len(np.atleast_1d(offsets)), num_attributes):
        raise ValueError(
            f"rules.relations has shape {relations.shape} and offsets {offsets.shape}; "
            f"expected (r, {num_attributes}) and (r,)"
        )
    if not (np.isfinite(relations).all() and np.isfinite(offsets).all()):
        raise ValueError("rules.relations or rules.offsets contains NaN or infinite values; expected finite numbers")
    return Constraints(
        lower=lower,
        upper=upper,
        may_stay=array("may_stay", False, bool),
        may_rise=array("may_rise", True, bool),
        may_fall=array("may_fall", True, bool),
        costs=costs,
        switch_values=switch_values,
        groups=array("groups", -1, int),
        on_level=float(rules.on_level),
        relations=relations,
        offsets=offsets,
        max_changes=None if rules.max_changes is None else check_count("max_changes", rules.max_changes),
    )
