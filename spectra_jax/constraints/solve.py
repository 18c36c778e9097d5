"""The smallest change within rules, for a batch of samples and targets."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.checks import as_problem, check_margin, check_targets
from spectra_jax.constraints.nearest import nearest_points
from spectra_jax.constraints.options import make_options
from spectra_jax.constraints.programs import is_masked, make_programs
from spectra_jax.constraints.rules import Constraints, Rules, as_constraints
from spectra_jax.constraints.search import shortest_choice
from spectra_jax.types import Head, Status

MAX_CHOICES = 1000


class ConstrainedResult(NamedTuple):
    """The smallest changes within the rules, in float64.

    Attributes:
        delta: (p, n) the change; NaN where there is none or none was found.
        norm: (p,) ||costs * delta||; inf where there provably is none, NaN where none was found.
        lower_bound: (p,) no change within the rules is shorter.
        proven: (p,) whether norm is proven to be the smallest, or proven not to exist.
        multipliers: (p, c + r) of the rivals, then of the relations, per unit of cost; positive only for those that
            bind, or that make up the certificate of a problem without an answer.
        status: (p,) a `Status`: SOLVED, INFEASIBLE, BUDGET if none of the choices tried has an answer, and
            UNRESOLVED where there is nothing to choose and rounding hides the answer.
    """

    delta: Float[np.ndarray, "p n"]
    norm: Float[np.ndarray, " p"]
    lower_bound: Float[np.ndarray, " p"]
    proven: Bool[np.ndarray, " p"]
    multipliers: Float[np.ndarray, "p m"]
    status: Int[np.ndarray, " p"]


def constrained_perturbations(
    head: Head,
    attributes: Float[np.ndarray, "p n"],
    targets: Int[np.ndarray, " p"],
    rules: Rules,
    *,
    margin: float = 0.0,
    locked: Bool[np.ndarray, "p n"] | None = None,
    max_choices: int = MAX_CHOICES,
) -> ConstrainedResult:
    """Smallest change of each sample after which its target wins by `margin` and all rules hold together.

    Without a choice (`max_changes`, groups, switches) it is a quadratic program, solved exactly. With one, a choice
    is searched for, and then every choice that a Lagrangian bound does not exclude is solved as well, up to
    `max_choices`. The result says whether that proved the answer and, if not, how far it can be from the optimum. Not
    for jit or grad: the search runs on the host, in float64, and calls compiled programs. `projection_perturbation`,
    `box_perturbation`, `sparse_perturbation` and `one_hot_perturbation` are differentiable and take one kind of rule
    each.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (p, n) of each sample, in any floating type.
        targets: (p,) class index for each.
        rules: the rules that the change must obey.
        margin: required lead over every other class, in logits.
        locked: (p, n) attributes that may not change, per sample, in addition to the rules.
        max_choices: how many choices to solve for the proof; 0 skips the proof and takes half the time.

    Returns:
        ConstrainedResult.

    Raises:
        ValueError: shapes do not match, or a rule is invalid; see `Rules`.
    """
    as_problem(head, attributes, ndim=2)
    check_margin(margin)
    check_targets(head, targets)
    check_max_choices(max_choices)
    shape = np.shape(attributes)
    if np.shape(targets) != shape[:1] or not shape[0]:
        raise ValueError(
            f"targets has shape {np.shape(targets)}; expected ({shape[0]},), one per sample, for at least one"
        )
    if locked is not None and (np.shape(locked) != shape or np.asarray(locked).dtype != bool):
        raise ValueError(f"locked has shape {np.shape(locked)}; expected {shape} booleans, to match attributes")
    constraints = as_constraints(rules, head.weights.shape[1])
    return solve_constrained(
        *(in_float64(head), np.asarray(attributes, float), np.asarray(targets), constraints),
        margin=float(margin),
        locked=locked,
        max_choices=max_choices,
    )


def in_float64(head: Head) -> Head:
    """The head as NumPy arrays of float64, whatever JAX's precision is."""
    weights: Any = np.asarray(head.weights, float)
    bias: Any = None if head.bias is None else np.asarray(head.bias, float)
    return Head(weights, bias)


def check_max_choices(value: int) -> None:
    """Raises ValueError unless it is a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"max_choices is {value!r}; expected a whole number, 0 or more")


def solve_constrained(
    head: Head,
    attributes: Float[np.ndarray, "p n"],
    targets: Int[np.ndarray, " p"],
    rules: Constraints,
    *,
    margin: float,
    locked: Bool[np.ndarray, "p n"] | None = None,
    max_choices: int = MAX_CHOICES,
) -> ConstrainedResult:
    """`constrained_perturbations` of what has been checked."""
    programs = make_programs(head, attributes, targets, margin, rules)
    if rules.is_combinatorial:
        found = shortest_choice(programs, make_options(rules, attributes, locked), max_choices=max_choices)
        point, lower, proven = found.point, found.lower_bound, found.proven
    else:
        low, high = rules.limits(attributes, locked)
        fits = low <= high
        point = nearest_points(programs, np.where(fits, low, 0) * rules.costs, np.where(fits, high, 0) * rules.costs)
        contradictory = ~np.all(fits, axis=1)
        norm = np.where(contradictory, np.inf, point.norm)
        point = point._replace(norm=norm, delta=np.where(contradictory[:, None], np.nan, point.delta))
        lower, proven = np.nan_to_num(norm, nan=0, posinf=np.inf), ~np.isnan(norm)
    masked = is_masked(head, targets)
    norm = np.where(masked, np.inf, point.norm)
    return ConstrainedResult(
        delta=np.where(masked[:, None], np.nan, point.delta / rules.costs),
        norm=norm,
        lower_bound=np.where(masked, np.inf, lower),
        proven=proven | masked,
        multipliers=np.where(masked[:, None], 0, point.multipliers),
        status=status_of(norm, rules),
    )


def status_of(norm: Float[np.ndarray, " p"], rules: Constraints) -> Int[np.ndarray, " p"]:
    """The `Status` of each answer under the rules."""
    unknown = Status.BUDGET if rules.is_combinatorial else Status.UNRESOLVED
    known = np.where(norm == np.inf, Status.INFEASIBLE, unknown)
    return np.where(np.isfinite(norm), Status.SOLVED, known).astype(np.int32)
