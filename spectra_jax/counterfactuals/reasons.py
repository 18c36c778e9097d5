"""Why no change within the rules reaches a class."""

from typing import TYPE_CHECKING

import numpy as np

from spectra_jax.constraints.options import make_options
from spectra_jax.constraints.programs import is_masked, make_programs
from spectra_jax.constraints.rules import Constraints
from spectra_jax.constraints.solve import ConstrainedResult, in_float64, solve_constrained
from spectra_jax.counterfactuals.sentences import number
from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.types import Status

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.explanation import Explanation

_NAMED = 3


def reason_of(explanation: "Explanation", sample: int, place: int) -> str:
    """Sentences for one pair: the classes in the way, the attributes that are held, and what would help."""
    status = Status(int(explanation.status[sample, place, 0]))
    if status == Status.SOLVED:
        return "There is an answer."
    names, rules = explanation.names, explanation.rules
    values = np.asarray(explanation.attributes[sample : sample + 1], float)
    target = np.asarray(explanation.targets[sample, place : place + 1])
    word = readable_class(names.classes[int(target[0])])

    head = in_float64(explanation.head)
    if is_masked(head, target)[0]:
        return f"A bias of -inf masks {word}: no change of the attributes makes it win."

    def solve(changed: Constraints) -> ConstrainedResult:
        return solve_constrained(head, values, target, changed, margin=explanation.margin)

    sentences = []
    if status != Status.INFEASIBLE:
        sentences.append(f"It is not known whether {word} can be reached: {status.description}.")
    alone = _contradiction(rules, values, names.attributes)
    if alone:
        sentences.append(alone)
    elif status == Status.INFEASIBLE:
        sentences.append(_rivals(explanation, solve(_relaxed(rules)), solve(rules), values, target, word))
    ways, all_empty = [], True
    for rule, left in explanation.without.items():
        distance = float(solve(left).norm[0])
        all_empty &= distance == np.inf
        if np.isfinite(distance):
            ways.append(f"without {rule} (distance {number(distance)})")
    if rules.max_changes is not None:
        more = _next_number(solve, rules, rules.max_changes, len(names.attributes))
        if more:
            ways.append(more)
    if ways:
        sentences.append(f"It would work {', or '.join(ways)}.")
    elif len(explanation.without) > 1 and all_empty:
        sentences.append("No single rule is the cause: with any one of them dropped there is still no answer.")
    elif not explanation.without and status == Status.INFEASIBLE:
        sentences.append("There are no rules to loosen: this head gives that class to no attributes at all.")
    return " ".join(sentences)


def _contradiction(rules: Constraints, values: np.ndarray, attribute_names: tuple[str, ...]) -> str:
    """What the rules by themselves make impossible for this sample, whatever the class; "" if nothing."""
    low, high = rules.limits(values)
    stuck = np.flatnonzero((low > high)[0])
    if stuck.size:
        first = stuck[0]
        where = "below" if values[0, first] < rules.lower[first] else "above"
        return (
            f"The rules contradict each other: {readable_attribute(attribute_names[first])} is "
            f"{number(float(values[0, first]))}, {where} its range, and may not move into it."
        )
    if not rules.is_combinatorial or make_options(rules, values).possible()[0]:
        return ""
    if rules.max_changes is not None and make_options(rules._replace(max_changes=None), values).possible()[0]:
        return (
            f"The rules contradict each other: more than {rules.max_changes} attributes must change for this sample to "
            "keep to its ranges, groups and binary values."
        )
    return (
        "The rules contradict each other: with what may change, some binary attribute cannot take either of its "
        "values, or some one-hot group can have no value on or must have two."
    )


def _next_number(solve, rules: Constraints, at_most: int, num_attributes: int) -> str:
    """The next number of changes that is enough, by doubling and then one by one below."""
    most = min(num_attributes, 16 * at_most)
    enough = min(2 * at_most, most)
    while not np.isfinite(solve(rules._replace(max_changes=enough)).norm[0]):
        if enough == most:
            return ""
        enough = min(2 * enough, most)
    for count in range(at_most + 1, enough + 1):
        found = solve(rules._replace(max_changes=count))
        if np.isfinite(found.norm[0]):
            return f"with at_most={count} (distance {number(float(found.norm[0]))})"
    return ""


def _relaxed(rules: Constraints) -> Constraints:
    """The rules without their choices, of which a certificate can be had."""
    return rules._replace(
        max_changes=None, groups=np.full_like(rules.groups, -1), switch_values=np.full_like(rules.switch_values, np.nan)
    )


def _rivals(explanation: "Explanation", relaxed: ConstrainedResult, whole: ConstrainedResult, values, target, word):
    """The rivals of a certificate and the attributes that would have to move further."""
    names, rules = explanation.names, explanation.rules
    certificate = relaxed if relaxed.norm[0] == np.inf else whole
    weights = certificate.multipliers[0]
    if not (np.isfinite(weights).all() and (weights > 0).any()):
        return f"No choice that the rules allow makes it {word}."
    programs = make_programs(in_float64(explanation.head), values, target, explanation.margin, rules)
    strength = weights * programs.lengths()[0]
    count = len(names.classes)
    strongest = [k for k in np.argsort(-strength)[:_NAMED] if strength[k] > 1e-3 * strength.max()]
    rivals = [readable_class(names.classes[k]) for k in strongest if k < count]
    related = len(rivals) < len(strongest)
    pull = programs.pull(certificate.multipliers)[0]
    held = [readable_attribute(names.attributes[f]) for f in np.argsort(-np.abs(pull))[:_NAMED] if abs(pull[f]) > 0]
    text = f"Within the rules {word} cannot get ahead of {_listed(rivals)}" if rivals else f"{word} is out of reach"
    text += " while the relations hold" if related else ""
    if held and np.abs(pull).max() > 1e-9 * np.abs(weights).max():
        text += f"; the main obstacles are {_listed(held)}"
    return text + "."


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
