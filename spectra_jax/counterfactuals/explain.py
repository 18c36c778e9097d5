"""Counterfactuals with names: what would have to change for these samples to be of another class."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectra_jax.checks import as_problem, check_array, check_count, check_margin
from spectra_jax.constraints.rules import Constraints, as_constraints
from spectra_jax.constraints.solve import MAX_CHOICES, ConstrainedResult, check_max_choices, in_float64
from spectra_jax.constraints.verify import keeps_rules
from spectra_jax.counterfactuals.calibration import Calibration
from spectra_jax.counterfactuals.explanation import Explanation
from spectra_jax.counterfactuals.named_rules import Patterns, Range, compile_rules
from spectra_jax.counterfactuals.queries import Solver
from spectra_jax.names import Names, make_names
from spectra_jax.perturbations import formulas
from spectra_jax.types import Head, Status

_ENCODED = 64  # images put through an encoder at once


def explain(
    head: Head,
    inputs: Float[Any, "b ..."],
    *,
    encoder: Callable[[Float[Array, "b h w k"]], Float[Array, "b n"]] | None = None,
    attribute_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    targets: str | int | Sequence[str | int] | np.ndarray | Array = "nearest",
    margin: float = 0.0,
    immutable: Patterns = (),
    only_rise: Patterns = (),
    only_fall: Patterns = (),
    ranges: Range | Mapping[str, Range] | None = None,
    binary: Patterns | Mapping[str, tuple[float, float]] = (),
    one_hot: Patterns = (),
    on_level: float = 0.0,
    relations: Patterns = (),
    costs: Literal["spread"] | Mapping[str, float] | Float[Any, " n"] | None = None,
    at_most: int | None = None,
    num_answers: int = 1,
    reference: Float[Any, "N n"] | None = None,
    calibration: Calibration | None = None,
    max_choices: int = MAX_CHOICES,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """What would have to change for each sample to be of a target class, under rules given by name.

    All rules hold together. The solver depends on the rules, and `Explanation.solver` says which one was used:
    an exact projection, an exact quadratic program, or a search over choices with a proof or a bound. Every answer is
    checked against the rules and the classifier before it is returned. Not for jit or grad; the functions underneath,
    such as `projection_perturbation`, support both.

    Attributes are named by patterns: a name as it is, or shell wildcards such as "has_size::*".

    Args:
        head: weights (c, n), optional bias (c,).
        inputs: (b, n) attributes, or images (b, h, w, channels) if there is an encoder.
        encoder: images -> attributes (b, n).
        attribute_names: n names; "attribute 0" onwards by default. `group::value` makes groups.
        class_names: c names; "class 0" onwards by default.
        targets: "nearest" for the class that the smallest change within the rules reaches, "all" for every class, a
            class by name or number, several of them for every sample, or an array (b, t) of numbers.
        margin: required lead over every other class, in logits.
        immutable: attributes that may not change.
        only_rise: attributes that may only get larger.
        only_fall: attributes that may only get smaller.
        ranges: (lowest, highest) value of all attributes, or by pattern; None for no end, "observed" for the range of
            the reference samples, into which a sample from outside need not move.
        binary: attributes that have two values only, 0 and 1, or {pattern: (off, on)}; they stay or switch.
        one_hot: groups of which exactly one value must be on; "*" for all groups.
        on_level: level from which an attribute of a group counts as on: 0 for logits, 0.5 for probabilities.
        relations: "NAME <= NAME" or "NAME >= NAME", which hold after the change.
        costs: price of a unit of change: "spread" measures in standard deviations of the reference samples; by
            pattern; or an array. The distance is ||costs * delta||.
        at_most: how many attributes may change; a one-hot group counts as one.
        num_answers: number of different answers per pair, the shortest first. No two change the same attributes; the
            first is the shortest, the others are the shortest found by locking what the previous ones change most.
        reference: (N, n) attributes of real samples, for "observed" and "spread" and for changes in spreads.
        calibration: turns attributes into probabilities, for tables and pages.
        max_choices: how many choices to solve to prove an answer, where the rules leave a choice; 0 skips the proof and
            takes half the time.
        progress: called with the number of finished pairs and the number of all pairs.

    Returns:
        Explanation.

    Raises:
        ValueError: shapes do not match, a name does not exist, or a rule is invalid or needs what was not given.
    """
    check_array("inputs", inputs)
    if not len(inputs):
        raise ValueError(f"inputs has shape {np.shape(inputs)}; expected at least one sample")
    if encoder is None and np.ndim(inputs) == 4:
        raise ValueError(f"inputs has shape {np.shape(inputs)}, of images; expected attributes (b, n), or encoder=...")
    check_max_choices(max_choices)
    attributes = inputs if encoder is None else _encode(encoder, inputs)
    exact, values = head, attributes
    head, attributes = as_problem(head, attributes, ndim=2)
    exact, values = in_float64(exact), np.asarray(values, float)
    check_margin(margin)
    num_answers = check_count("num_answers", num_answers)
    num_classes, num_attributes = head.weights.shape
    names = make_names(attribute_names, class_names, num_attributes, num_classes)
    if reference is not None:
        reference = _as_reference(reference, num_attributes)
    given: dict[str, Any] = {
        "immutable": immutable, "only_rise": only_rise, "only_fall": only_fall, "ranges": ranges, "binary": binary,
        "one_hot": one_hot, "relations": relations, "at_most": at_most,
    }  # fmt: skip
    given = {name: _settled(rule) for name, rule in given.items()}
    given = {name: rule for name, rule in given.items() if not _is_nothing(rule)}

    def compiled(given: dict[str, Any]) -> Constraints:
        return as_constraints(compile_rules(names, reference, **given, on_level=on_level, costs=costs), num_attributes)

    rules = compiled(given)
    solver = Solver(head, exact, rules, float(margin), max_choices, progress)
    predicted = (values @ exact.weights.T + (0 if exact.bias is None else exact.bias)).argmax(axis=1)
    if isinstance(targets, str) and targets == "nearest" and "nearest" not in names.classes:
        asked, first = solver.nearest(values, predicted)
        asked = asked[:, None]
    else:
        asked = _targets(names, targets, len(values))
        first = solver.solve(np.repeat(values, asked.shape[1], axis=0), asked.reshape(-1))
    pairs = np.repeat(values, asked.shape[1], axis=0)
    if isinstance(targets, str) and targets == "all" and "all" not in names.classes:
        first = _unmoved(first, (asked == predicted[:, None]).reshape(-1))
    answers = [first] if num_answers == 1 else solver.several(pairs, asked.reshape(-1), first, num_answers)
    shape = (*asked.shape, len(answers))
    delta, norm, lower_bound, proven, _, status = (
        np.stack(leaves, axis=1).reshape(*shape, *leaves[0].shape[1:]) for leaves in zip(*answers, strict=True)
    )
    status = _checked(solver, values, asked, delta, status)
    return Explanation(
        head=head,
        rules=rules,
        attributes=values,
        predicted=predicted,
        targets=asked,
        delta=delta,
        norm=norm,
        lower_bound=lower_bound,
        proven=proven,
        status=status,
        spread=None if reference is None else reference.std(axis=0),
        calibration=calibration,
        realised=None,
        margin=float(margin),
        names=names,
        solver=solver.description,
        without={name: compiled({other: given[other] for other in given if other != name}) for name in given},
    )


def _settled(rule: Any) -> Any:
    """The rule as something that can be read more than once."""
    return tuple(rule) if isinstance(rule, Iterable) and not isinstance(rule, Sized) else rule


def _is_nothing(rule: Any) -> bool:
    return rule is None or (isinstance(rule, Sized) and len(rule) == 0)


def _encode(encoder, images) -> np.ndarray:
    """Attributes of all images, so many at a time, the last ones padded so that one program does."""
    encode, parts = jax.jit(encoder), []
    size = min(_ENCODED, len(images))
    for begin in range(0, len(images), size):
        some = jnp.asarray(images[np.minimum(np.arange(begin, begin + size), len(images) - 1)])
        # Looked at here: a compiled encoder can lose a NaN, as a maximum with 0 does, and then answers about nothing.
        if not bool(jnp.isfinite(some).all()):
            raise ValueError("inputs contains NaN or infinite values; remove or repair these images")
        parts.append(np.asarray(encode(some)))
    return np.concatenate(parts)[: len(images)]


def _as_reference(reference, num_attributes: int) -> np.ndarray:
    check_array("reference", reference)
    values = np.asarray(reference, float)
    if values.ndim != 2 or values.shape[1] != num_attributes or len(values) < 2:
        raise ValueError(f"reference has shape {values.shape}; expected (N >= 2, {num_attributes}), a row per sample")
    if not np.isfinite(values).all():
        raise ValueError("reference contains NaN or infinite values; remove those samples")
    return values


def _targets(names: Names, targets, size: int) -> np.ndarray:
    """(b, t) class numbers."""
    count = len(names.classes)
    if isinstance(targets, str) and targets == "all" and "all" not in names.classes:
        return np.broadcast_to(np.arange(count), (size, count)).copy()
    if isinstance(targets, str | int | np.integer):
        targets = [targets]
    if isinstance(targets, list | tuple) and all(isinstance(each, str | int | np.integer) for each in targets):
        numbers = np.array([names.class_index(each) for each in targets], int)
        if not len(numbers):
            raise ValueError('targets is empty; expected "nearest", "all", or at least one class')
        return np.broadcast_to(numbers, (size, len(numbers))).copy()
    array = np.asarray(targets)
    if array.ndim != 2 or len(array) != size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"targets has shape {array.shape} and type {array.dtype}; expected class names or numbers for every sample "
            f"alike, or integers of shape ({size}, t), a row for a sample: targets[:, None] for one each"
        )
    if not array.shape[1]:
        raise ValueError(f"targets has shape {array.shape}; expected at least one class for each sample")
    if not (array.min() >= 0 and array.max() < count):
        raise ValueError(f"targets reaches from {array.min()} to {array.max()}; expected classes from 0 to {count - 1}")
    return array.astype(int)


def _unmoved(result: ConstrainedResult, own: np.ndarray) -> ConstrainedResult:
    """The class that a sample has already is no counterfactual: no change, as in `all_pairs_norms`."""
    return result._replace(
        delta=np.where(own[:, None], 0, result.delta),
        norm=np.where(own, 0, result.norm),
        lower_bound=np.where(own, 0, result.lower_bound),
        proven=result.proven | own,
        status=np.where(own, Status.SOLVED, result.status),
    )


def _checked(solver: Solver, values, asked, delta, status) -> np.ndarray:
    """Status with every answer put to the test: it keeps to the rules, and the target leads up to rounding."""
    flat = delta.reshape(-1, delta.shape[-1])
    rows, targets = (
        np.repeat(np.repeat(each, count, axis=0), delta.shape[2], axis=0)
        for each, count in ((values, asked.shape[1]), (asked.reshape(-1), 1))
    )
    solved = np.isfinite(flat).all(axis=1)
    rows, targets, flat = rows[solved], targets[solved], flat[solved]
    weights = solver.exact.weights
    logits = (rows + flat) @ weights.T + (0 if solver.exact.bias is None else solver.exact.bias)
    size = 1 + np.abs(rows + flat) @ np.abs(weights).max(axis=0)
    moved = np.abs(flat).max(axis=1, initial=0) > 0
    leads = formulas.lead(logits, targets) >= np.where(moved, solver.margin, 0) - 1e-5 * size
    fine = leads & (keeps_rules(solver.rules, rows, flat) | ~moved)
    flat_status = status.reshape(-1).copy()
    flat_status[np.flatnonzero(solved)[~fine]] = Status.UNRESOLVED
    return flat_status.reshape(status.shape)
