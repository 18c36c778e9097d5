"""The quadratic programs behind a batch of counterfactuals, on the host in float64.

    min 1/2 ||costs * delta||^2   s.t.   g_k . delta >= h_k for every rival k,
                                         relations @ delta >= what is missing,   low <= delta <= high

with the constraint normals and offsets of `perturbations.problem`, solved in the variables costs * delta, in which the
length is Euclidean.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.constraints.rules import Constraints
from spectra_jax.perturbations.exact import offsets_and_rounding
from spectra_jax.types import Head

_EPSILON = 2.0**-52


class Programs(NamedTuple):
    """Pairs of a sample and a target class that share a head and rules.

    Attributes:
        weights: (c, n) of the head over the costs, the largest between 1/2 and 1.
        relations: (r, n) over the costs.
        targets: (p,).
        offsets: (p, c + r) what the constraint normals must reach, those of rivals first, then the relations; -inf for
            the target itself.
        rounding: (p, c + r) error to expect in the offsets.
    """

    weights: Float[np.ndarray, "c n"]
    relations: Float[np.ndarray, "r n"]
    targets: Int[np.ndarray, " p"]
    offsets: Float[np.ndarray, "p m"]
    rounding: Float[np.ndarray, "p m"]

    def of(self, rows: Int[np.ndarray, " q"]) -> "Programs":
        """The programs of these pairs."""
        return self._replace(targets=self.targets[rows], offsets=self.offsets[rows], rounding=self.rounding[rows])

    @property
    def asked(self) -> Float[np.ndarray, "p m"]:
        """The offsets, 0 where nothing is asked."""
        return np.where(self.offsets > -np.inf, self.offsets, 0)

    def lengths(self) -> Float[np.ndarray, "p m"]:
        """Lengths of all constraint normals, 1 for those that need reach nothing."""
        rivals = [np.linalg.norm(self.weights[target] - self.weights, axis=1) for target in self.targets]
        others = np.linalg.norm(self.relations, axis=1)
        lengths = np.concatenate([np.stack(rivals), np.broadcast_to(others, (len(rivals), len(others)))], axis=1)
        return np.where((lengths > 0) & (self.offsets > -np.inf), lengths, 1)

    def pull(self, multipliers: Float[np.ndarray, "p m"]) -> Float[np.ndarray, "p n"]:
        """Sum of the constraint normals times their multipliers."""
        rivals, others = np.split(multipliers, [len(self.weights)], axis=1)
        return (
            rivals.sum(axis=1)[:, None] * self.weights[self.targets] - rivals @ self.weights + others @ self.relations
        )

    def products(self, delta: Float[np.ndarray, "p n"]) -> Float[np.ndarray, "p m"]:
        """What each constraint normal reaches."""
        reached = delta @ self.weights.T
        own = np.take_along_axis(reached, self.targets[:, None], axis=1)
        return np.concatenate([own - reached, delta @ self.relations.T], axis=1)


def is_masked(head: Head, targets: Int[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
    """Targets with a bias of -inf, which no finite change makes win."""
    return np.zeros(len(targets), bool) if head.bias is None else np.asarray(head.bias, float)[targets] == -np.inf


def make_programs(
    head: Head, attributes: Float[np.ndarray, "p n"], targets: Int[np.ndarray, " p"], margin: float, rules: Constraints
) -> Programs:
    """The programs of these samples (p, n), each towards its target (p,)."""
    weights = np.asarray(head.weights, float)
    bias = None if head.bias is None else np.asarray(head.bias, float)
    attributes = np.asarray(attributes, float)
    logits = attributes @ weights.T + (0 if bias is None else bias)
    distinct, place = np.unique(targets, return_inverse=True)
    same = np.stack([(weights == weights[target]).all(axis=1) for target in distinct])[place]
    with np.errstate(invalid="ignore"):  # -inf - -inf, of masked classes
        offsets, rounding = offsets_and_rounding(logits, targets, np.full(len(targets), margin), same, bias)
    # Nothing lifts a masked class (see `is_masked`): such a pair asks for nothing here.
    offsets = np.where(is_masked(head, targets)[:, None], -np.inf, offsets)
    missing = rules.offsets - attributes @ rules.relations.T
    blur = _EPSILON * (np.abs(rules.offsets) + np.abs(attributes) @ np.abs(rules.relations).T)

    scaled = weights / rules.costs
    factor = 2.0 ** -np.frexp(np.abs(scaled).max() or 1.0)[1]
    return Programs(
        weights=scaled * factor,
        relations=rules.relations / rules.costs,
        targets=np.asarray(targets, np.int32),
        offsets=np.concatenate([offsets * factor, missing], axis=1),
        rounding=np.concatenate([rounding * factor, blur], axis=1),
    )
