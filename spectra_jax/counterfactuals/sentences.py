"""Answers in words."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from spectra_jax.names import readable_attribute, readable_class
from spectra_jax.types import Status

if TYPE_CHECKING:
    from spectra_jax.counterfactuals.explanation import Answer, AttributeChange, Explanation

_NAMED, _PRINTED = 4, 20


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def percent(probability: float) -> str:
    """A probability as people read it."""
    if probability < 0.0005 or probability > 0.9995:
        return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
    return f"{100 * probability:.1f} %"


def of_change(change: "AttributeChange") -> str:
    """For example "crown colour: orange rises from 0.12 to 1.5 (53.0 % to 81.8 %)"."""
    verb = "rises" if change.after > change.before else "falls"
    text = f"{readable_attribute(change.name)} {verb} from {number(change.before)} to {number(change.after)}"
    if not np.isnan(change.probability_after):
        text += f" ({percent(change.probability_before)} to {percent(change.probability_after)})"
    return text


def of_answer(answer: "Answer") -> str:
    """One sentence."""
    subject, target = f"Sample {answer.sample} ({readable_class(answer.predicted)})", readable_class(answer.target)
    if answer.status == Status.INFEASIBLE:
        return f"{subject} cannot become {target}: no change within the rules reaches it."
    if answer.status != Status.SOLVED:
        return f"{subject}: it is not known whether it can become {target}: {answer.status.description}."
    if not answer.changes:
        return f"{subject} is {target} without any change."
    named = [of_change(change) for change in answer.changes[:_NAMED]]
    rest = len(answer.changes) - len(named)
    if rest:
        named.append(f"{rest} more {'change' if rest == 1 else 'change by less'}")
    changes = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    if answer.rank:
        evidence = f"alternative {answer.rank}"
    elif answer.proven:
        evidence = "the smallest change there is"
    else:
        evidence = f"no change is smaller than {number(answer.lower_bound)}"
    verb = "is within the rules and ahead by the margin as" if answer.predicted == answer.target else "becomes"
    text = f"{subject} {verb} {target} if {changes} (distance {number(answer.distance)}, {evidence})."
    if answer.reached is not None:
        text += f" The image found for it {'is' if answer.reached else 'is not'} classified as such."
    return text


def of_explanation(explanation: "Explanation") -> str:
    """A sentence for each answer, the first ones if there are many."""
    lines = [str(answer) for answer in itertools.islice(explanation, _PRINTED + 1)]
    if len(lines) > _PRINTED:
        lines[-1] = "... and more: iterate over the answers, or see .table() and .to_html(path)."
    return "\n".join(lines) if lines else "Nothing was asked."
