"""Whether a change obeys the rules, by their definitions and not by any solver's bookkeeping."""

import numpy as np
from jaxtyping import Bool, Float

from spectra_jax.constraints.rules import Constraints

_TOLERANCE = 1e-6


def keeps_rules(
    rules: Constraints, attributes: Float[np.ndarray, "p n"], delta: Float[np.ndarray, "p n"]
) -> Bool[np.ndarray, " p"]:
    """Whether attributes + delta obey every rule, up to rounding of answers in float32."""
    slack = _TOLERANCE * (1 + np.abs(attributes))
    low, high = rules.limits(attributes)
    fine = ((delta >= low - slack) & (delta <= high + slack)).all(axis=1)
    after = attributes + delta
    moved = np.abs(delta) > slack
    blur = _TOLERANCE * (1 + np.abs(after).max(axis=1, keepdims=True))
    fine &= (after @ rules.relations.T >= rules.offsets - blur).all(axis=1)
    switch = rules.is_switch
    at_value = (np.abs(after[:, :, None] - rules.switch_values[None]) <= slack[:, :, None]).any(axis=2)
    fine &= (~switch | ~moved | at_value).all(axis=1)
    same_side = (attributes > rules.middle) == (after > rules.middle)
    fine &= ~(moved & same_side & switch & (rules.groups >= 0)).any(axis=1)
    units = moved[:, rules.groups < 0].sum(axis=1)
    middle = rules.middle
    for group in np.unique(rules.groups[rules.groups >= 0]):
        members = rules.groups == group
        on, off = after >= middle - slack, after <= middle + slack
        one_on = np.zeros(len(after), bool)
        for member in np.flatnonzero(members):
            others = members.copy()
            others[member] = False
            one_on |= on[:, member] & off[:, others].all(axis=1)
        fine &= one_on
        units = units + moved[:, members].any(axis=1)
    return fine if rules.max_changes is None else fine & (units <= rules.max_changes)
