"""The quadratic programs behind a batch of counterfactuals: rows, gaps and their rounding, in float64.

    min 1/2 ||costs * delta||^2   s.t.   (w_t - w_k) . delta >= gap_k  for every rival k,
                                         relations @ delta >= what is missing,   low <= delta <= high

solved in the variables costs * delta, in which the length is Euclidean.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.constraints.rules import Constraints
from spectra_jax.types import Head

_EPSILON = 2.0**-52


class Problem(NamedTuple):
    """Pairs of a sample and a target class that share a head and rules.

    Attributes:
        weights: (c, n) of the head over the costs, the largest between 1/2 and 1.
        relations: (r, n) over the costs.
        targets: (p,).
        gaps: (p, c + r) what the rows must reach: rivals first, then relations; -inf for the target itself.
        rounding: (p, c + r) error to expect in the gaps.
    """

    weights: Float[np.ndarray, "c n"]
    relations: Float[np.ndarray, "r n"]
    targets: Int[np.ndarray, "p"]
    gaps: Float[np.ndarray, "p m"]
    rounding: Float[np.ndarray, "p m"]

    def of(self, rows: Int[np.ndarray, "q"]) -> "Problem":
        """The problems of these rows."""
        return self._replace(targets=self.targets[rows], gaps=self.gaps[rows], rounding=self.rounding[rows])

    def lengths(self) -> Float[np.ndarray, "p m"]:
        """Lengths of all rows, 1 for those that ask for nothing."""
        rivals = [np.linalg.norm(self.weights[target] - self.weights, axis=1) for target in self.targets]
        others = np.linalg.norm(self.relations, axis=1)
        lengths = np.concatenate([np.stack(rivals), np.broadcast_to(others, (len(rivals), len(others)))], axis=1)
        return np.where((lengths > 0) & (self.gaps > -np.inf), lengths, 1)

    def pull(self, multipliers: Float[np.ndarray, "p m"]) -> Float[np.ndarray, "p n"]:
        """Sum of the rows, so weighted."""
        rivals, others = np.split(multipliers, [len(self.weights)], axis=1)
        return (
            rivals.sum(axis=1)[:, None] * self.weights[self.targets] - rivals @ self.weights + others @ self.relations
        )

    def lead(self, delta: Float[np.ndarray, "p n"]) -> Float[np.ndarray, "p m"]:
        """What each row reaches."""
        reached = delta @ self.weights.T
        own = np.take_along_axis(reached, self.targets[:, None], axis=1)
        return np.concatenate([own - reached, delta @ self.relations.T], axis=1)


def is_masked(head: Head, targets: Int[np.ndarray, "p"]) -> Bool[np.ndarray, "p"]:
    """Targets with a bias of -inf, which no finite change makes win."""
    return np.zeros(len(targets), bool) if head.bias is None else np.asarray(head.bias, float)[targets] == -np.inf


def make_problem(
    head: Head, attributes: Float[np.ndarray, "p n"], targets: Int[np.ndarray, "p"], margin: float, rules: Constraints
) -> Problem:
    """The problems of these samples (p, n), each towards its target (p,)."""
    weights = np.asarray(head.weights, float)
    bias = np.zeros(len(weights)) if head.bias is None else np.asarray(head.bias, float)
    attributes = np.asarray(attributes, float)
    logits = attributes @ weights.T + bias
    pairs = np.arange(len(targets))
    # Nothing lifts a class masked by a bias of -inf (see `is_masked`): such a pair asks for nothing here.
    masked = is_masked(head, targets)
    own = np.where(masked, np.inf, logits[pairs, targets])[:, None]
    gaps = logits - own + margin
    # Equal rows differ by their bias alone; two sums of the same products need not round alike.
    for target in np.unique(targets[~masked]):
        equal = (weights == weights[target]).all(axis=1)
        gaps[np.ix_(targets == target, equal)] = bias[equal] - bias[target] + margin
    sizes = np.abs(logits) + np.abs(own) + margin
    rounding = np.where(np.isfinite(sizes), _EPSILON * sizes, 0)
    gaps[pairs, targets] = -np.inf
    missing = rules.offsets - attributes @ rules.relations.T
    blur = _EPSILON * (np.abs(rules.offsets) + np.abs(attributes) @ np.abs(rules.relations).T)

    scaled = weights / rules.costs
    factor = 2.0 ** -np.frexp(np.abs(scaled).max() or 1.0)[1]
    return Problem(
        weights=scaled * factor,
        relations=rules.relations / rules.costs,
        targets=np.asarray(targets, np.int32),
        gaps=np.concatenate([gaps * factor, missing], axis=1),
        rounding=np.concatenate([rounding * factor, blur], axis=1),
    )
