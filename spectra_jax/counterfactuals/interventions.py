"""Interventions: what the classifier predicts once attributes are set by hand (Koh et al. 2020)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spectra_jax.checks import as_problem, check_array, check_count
from spectra_jax.counterfactuals.calibration import on_and_off, present_mask
from spectra_jax.counterfactuals.sentences import number
from spectra_jax.names import Names, make_names, readable_attribute, readable_class
from spectra_jax.perturbations import formulas, head_logits, nearest_class
from spectra_jax.types import Head


class Decision(NamedTuple):
    """The classifier's decision on each sample.

    Attributes:
        predicted: (b,) class.
        lead: (b,) lead of its logit over the best rival's.
        nearest: (b,) class that the smallest change of the attributes reaches; -1 if none can be reached.
        distance: (b,) length of that change.
    """

    predicted: Int[np.ndarray, " b"]
    lead: Float[np.ndarray, " b"]
    nearest: Int[np.ndarray, " b"]
    distance: Float[np.ndarray, " b"]


class Intervention(NamedTuple):
    """Attributes set by hand, and the effect on the decision. `print` describes it in words.

    Attributes:
        attributes: (b, n) after the intervention.
        before: the classifier's decision before it.
        after: the classifier's decision after it.
        changes: name and value of every attribute that was set.
        names: of attributes and classes.
    """

    attributes: Float[np.ndarray, "b n"]
    before: Decision
    after: Decision
    changes: tuple[tuple[str, float], ...]
    names: Names

    def __str__(self) -> str:
        settings = ", ".join(f"{readable_attribute(name)} = {number(value)}" for name, value in self.changes)
        return "\n".join([f"With {settings}:", *(self._line(row) for row in range(min(len(self.attributes), 20)))])

    def _line(self, row: int) -> str:
        def words(decision: Decision) -> str:
            name = readable_class(self.names.classes[int(decision.predicted[row])])
            nearest = int(decision.nearest[row])
            text = f"{name}, {number(float(decision.lead[row]))} logits ahead"
            if nearest >= 0:
                rival = readable_class(self.names.classes[nearest])
                text += f" and {number(float(decision.distance[row]))} away from {rival}"
            return text

        same = self.before.predicted[row] == self.after.predicted[row]
        verb = "stays" if same else "becomes"
        return f"  sample {row} {verb} {words(self.after)} (before: {words(self.before)})"


def intervene(
    head: Head,
    attributes: Float[Any, "b n"],
    settings: Mapping[str, bool | float],
    *,
    attribute_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    reference: Float[Any, "N n"] | None = None,
    levels: tuple[float, float] | None = None,
) -> Intervention:
    """Sets attributes by name and reports how class, lead and distance to the nearest other class change.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (b, n) of the samples.
        settings: a value for each name or pattern: a number, or True or False for the attribute's value when it is on
            or off.
        attribute_names: n names; "attribute 0" onwards by default.
        class_names: c names; "class 0" onwards by default.
        reference: (N, n) attributes of real samples, whose 5th and 95th percentiles stand for False and True.
        levels: (off, on) values in place of those.

    Returns:
        Intervention.

    Raises:
        ValueError: shapes do not match, a name does not exist, or True or False have no values.
    """
    head, checked = as_problem(head, attributes, ndim=2)
    num_classes, num_attributes = head.weights.shape
    names = make_names(attribute_names, class_names, num_attributes, num_classes)
    if not settings:
        raise ValueError('settings is empty; expected values by name, such as {"crown::orange": True}')
    values = np.array(checked, float)
    changes: dict[str, float] = {}
    for pattern, value in settings.items():
        chosen = np.flatnonzero(names.mask("settings", pattern))
        if isinstance(value, bool | np.bool_):
            off, on = on_and_off(None if reference is None else np.asarray(reference), levels, num_attributes)
            wanted = (on if value else off)[chosen]
        else:
            wanted = np.full(len(chosen), float(value))
            if not np.isfinite(wanted).all():
                raise ValueError(f"settings of {pattern!r} is {value}; expected a finite number, True or False")
        values[:, chosen] = wanted
        changes |= {names.attributes[f]: float(v) for f, v in zip(chosen, wanted, strict=True)}
    after = jnp.asarray(values, head.weights.dtype)
    return Intervention(values, decide(head, checked), decide(head, after), tuple(changes.items()), names)


def decide(head: Head, attributes: Float[Array, "b n"]) -> Decision:
    """Class, lead and nearest other class of each sample."""
    logits = np.asarray(head_logits(head, attributes), float)
    predicted = logits.argmax(axis=1)
    nearest = nearest_class(head, attributes)
    return Decision(
        predicted=predicted,
        lead=formulas.lead(logits, predicted),
        nearest=np.asarray(nearest.target),
        distance=np.asarray(nearest.distance, float),
    )


class Corrections(NamedTuple):
    """Attributes whose correction helps most, the most helpful first.

    Attributes:
        corrected: names of the attributes, or of whole groups, in the order in which they are corrected.
        accuracy: (k + 1,) class accuracy before and after each correction.
    """

    corrected: tuple[str, ...]
    accuracy: Float[np.ndarray, " k+1"]

    def __str__(self) -> str:
        start = f"{self.accuracy[0]:.1%} of the classes are right without corrections"
        if not self.corrected:
            return f"{start}, and correcting an attribute does not help."
        lines = [f"{start}; corrected one after another:"]
        for name, value, before in zip(self.corrected, self.accuracy[1:], self.accuracy[:-1], strict=True):
            lines.append(f"  {readable_attribute(name)}: {value:.1%} ({value - before:+.1%})")
        return "\n".join(lines)


def helpful_corrections(
    head: Head,
    attributes: Float[Any, "N n"],
    present: Any,
    labels: Int[Any, " N"],
    *,
    count: int = 10,
    attribute_names: Sequence[str] | None = None,
    whole_groups: bool = False,
    reference: Float[Any, "N n"] | None = None,
    levels: tuple[float, float] | None = None,
) -> Corrections:
    """The attributes whose correction by hand makes most labelled samples right, chosen greedily one after another.

    Correcting an attribute sets it to its "on" value in samples that have it, and to its "off" value in the others.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (N, n) as the encoder sees the samples.
        present: (N, n) whether each sample has each attribute.
        labels: (N,) their true classes.
        count: how many to return at most; fewer if no further correction helps.
        attribute_names: n names; "attribute 0" onwards by default.
        whole_groups: correct all values of a `group::value` group together.
        reference: (M, n) attributes whose 5th and 95th percentiles stand for off and on; by default those given.
        levels: (off, on) values in place of those.

    Returns:
        Corrections.

    Raises:
        ValueError: shapes do not match, or labels are not classes of the head.
    """
    head, checked = as_problem(head, attributes, ndim=2)
    num_classes, num_attributes = head.weights.shape
    names = make_names(attribute_names, None, num_attributes, num_classes)
    mask = present_mask(present, checked.shape)
    check_array("labels", labels)
    truth = np.asarray(labels)
    if truth.shape != (len(checked),) or not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels has shape {truth.shape} and type {truth.dtype}; expected ({len(checked)},) integers")
    if truth.size and not (truth.min() >= 0 and truth.max() < num_classes):
        raise ValueError(f"labels reach from {truth.min()} to {truth.max()}; expected 0 to {num_classes - 1}")
    off, on = on_and_off(np.asarray(checked if reference is None else reference), levels, num_attributes)
    units = {name: [index] for index, name in enumerate(names.attributes)}
    if whole_groups:
        groups = {group: members.tolist() for group, members in names.groups().items()}
        grouped = {index for members in groups.values() for index in members}
        units = groups | {name: unit for name, unit in units.items() if unit[0] not in grouped}
    membership = np.zeros((len(units), num_attributes), bool)
    for row, members in enumerate(units.values()):
        membership[row, members] = True
    dtype = head.weights.dtype
    fixes = jnp.asarray(np.where(mask, on, off), dtype) - checked
    logits = head_logits(head, checked)
    corrected: list[str] = []
    accuracy = [float(jnp.mean(jnp.argmax(logits, axis=1) == jnp.asarray(truth)))]
    left = list(range(len(units)))
    for _ in range(min(check_count("count", count), len(units))):
        scores = _accuracies(head.weights, logits, fixes, jnp.asarray(truth), jnp.asarray(membership[left]))
        best = int(jnp.argmax(scores))
        if not scores[best] > accuracy[-1]:
            break
        chosen = left.pop(best)
        moved = jnp.where(jnp.asarray(membership[chosen])[None, :], fixes, 0)
        logits = logits + jnp.matmul(moved, head.weights.T, precision=jax.lax.Precision.HIGHEST)
        corrected.append(list(units)[chosen])
        accuracy.append(float(scores[best]))
    return Corrections(tuple(corrected), np.array(accuracy))


@jax.jit
def _accuracies(weights, logits, fixes, labels, membership) -> Float[Array, " u"]:
    """Accuracy after each unit's correction; one unit at a time keeps the memory at one table of logits."""

    def one(members):
        moved = jnp.where(members[None, :], fixes, 0)
        changed = logits + jnp.matmul(moved, weights.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.mean(jnp.argmax(changed, axis=1) == labels)

    return jax.lax.map(one, membership)
