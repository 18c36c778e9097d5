"""Distances between attributes that are proven: what certificates are made of.

On the host, in float64, because a proof is about numbers and has to count every rounding.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spectra_jax.checks import at_least_float32
from spectra_jax.perturbations.projection import projection_perturbation
from spectra_jax.types import Head

UNIT_ROUNDOFF = 2.0**-53  # of float64
_PAIRS = 4096  # whose multipliers are on the host at a time


class ProvenDistances:
    """Lower bounds on the distances of attributes to what is named otherwise, rounding of every kind taken off.

    All bounds have one form. A class j is not named where sum_k lambda_k (l_k - l_j) > 0 for any lambda >= 0, of logits
    as they are computed. At a distance r that sum has fallen by at most r ||sum_k lambda_k (w_k - w_j)||, and what
    rounding may do has grown by a multiple of r, as attributes have: a condition linear in r, which is solved for it.

    Args:
        head: classifier.
        attributes: (b, n), finite.
        dtype: in which the classifier computes.

    Attributes:
        predicted: (b,) classes.
    """

    def __init__(self, head: Head, attributes: Float[np.ndarray, "b n"], dtype: Any):
        self.head, self.attributes, self.limits = head, attributes, np.finfo(dtype)
        self.weights = np.asarray(head.weights, np.float64)
        self.bias = np.zeros(len(self.weights)) if head.bias is None else np.asarray(head.bias, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is certified for nothing
            self.logits = attributes @ self.weights.T + self.bias
        self.predicted = np.argmax(self.logits, axis=1).astype(np.int32)
        self.lengths, self.sizes = _lengths(self.weights), _lengths(attributes)
        self.heights = np.where(np.isfinite(self.bias), np.abs(self.bias), 0)
        # A sum of n products, a bias and a comparison: of the classifier in its own type, and of this class in float64.
        self.terms, unit_roundoff = self.weights.shape[1] + 4, float(self.limits.eps) / 2
        self.relative = self.terms * unit_roundoff / (1 - self.terms * unit_roundoff) + 2 * self.terms * UNIT_ROUNDOFF
        # How far the attributes may go before a logit of the classifier overflows.
        with np.errstate(divide="ignore", over="ignore"):
            farthest = (float(self.limits.max) / 4 - self.heights.max()) / self.lengths.max()
        self.room = np.maximum(farthest - self.sizes, 0)

    def _rounding(
        self, sizes: Float[np.ndarray, " r"], target: int
    ) -> tuple[Float[np.ndarray, "r c"], Float[np.ndarray, " c"]]:
        """Of l_k - l_target for all k: with attributes of these lengths, and what each unit of length adds."""
        pairs, heights = self.lengths + self.lengths[target], self.heights + self.heights[target]
        # Numbers below the smallest normal one may count as 0, among weights, attributes, products and sums.
        lost = 4 * self.terms * float(self.limits.tiny)
        at = self.relative * (pairs * sizes[:, None] + heights) + lost * (1 + pairs + sizes[:, None])
        return at, self.relative * pairs + lost

    def to_any_other(self) -> Float[np.ndarray, " b"]:
        """(b,) no attributes nearer than this have another class than the predicted one."""
        distance = np.zeros(len(self.attributes))
        masked = np.isneginf(self.bias)[None, :]
        for own in np.unique(self.predicted):
            rows = np.flatnonzero(self.predicted == own)
            with np.errstate(over="ignore", invalid="ignore"):
                apart = _lengths(self.weights[own] - self.weights) * (1 + 4 * self.relative)
                at, per_unit = self._rounding(self.sizes[rows], own)
                reach = (self.logits[rows, own, None] - self.logits[rows] - at) / (apart + per_unit)
            reach = np.where(masked, np.inf, np.minimum(np.where(reach > 0, reach, 0), self.room[rows, None]))
            reach[:, own] = np.inf
            distance[rows] = np.where(self.room[rows] > 0, reach.min(axis=1), 0)
        return distance

    def to_targets(self, targets: Int[np.ndarray, "b t"]) -> Float[np.ndarray, "b t"]:
        """(b, t) no attributes nearer than this have that target."""
        distance = np.zeros(targets.shape)
        samples, columns = np.divmod(np.arange(targets.size), max(targets.shape[1], 1))
        for start in range(0, targets.size, _PAIRS):
            chosen = slice(start, start + _PAIRS)
            rows, goals = samples[chosen], targets[samples[chosen], columns[chosen]]
            distance[rows, columns[chosen]] = self._proven(rows, goals)
        return distance

    def _proven(self, rows: Int[np.ndarray, " p"], goals: Int[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        solve = jax.vmap(partial(projection_perturbation, self.head))
        with np.errstate(over="ignore"):  # of weights that float32 does not hold there are no multipliers
            dtype = at_least_float32(jnp.asarray(self.head.weights)).dtype
            found = solve(jnp.asarray(self.attributes[rows], dtype), jnp.asarray(goals, jnp.int32)).multipliers
        multipliers = np.maximum(np.nan_to_num(np.asarray(found, np.float64), nan=0.0, posinf=0.0), 0)
        proven = np.zeros(len(rows))
        for place, (row, goal) in enumerate(zip(rows, goals, strict=True)):
            if self.bias[goal] == -np.inf:
                proven[place] = np.inf
                continue
            # The predicted class alone is a proof as well, should rounding have spoilt the other.
            alone = np.where(np.arange(len(self.bias)) == self.predicted[row], 1.0, 0.0)
            proven[place] = max(self._dual(row, goal, weighting) for weighting in (multipliers[place], alone))
        return proven

    def _dual(self, row: int, goal: int, multipliers: Float[np.ndarray, " c"]) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            offsets = self.logits[row] - self.logits[row, goal]
            used = np.flatnonzero((multipliers > 0) & np.isfinite(offsets))
            if not used.size:
                return 0.0
            at, per_unit = (part[..., used] for part in self._rounding(self.sizes[[row]], goal))
            weights, heights = multipliers[used] / multipliers[used].max(), offsets[used]
            combined = weights.sum() * self.weights[goal] - weights @ self.weights[used]
            # float64 sums of the used rows, each term bounded by its own size.
            sums = 4 * (len(used) + 4) * UNIT_ROUNDOFF
            error = sums * (weights @ (self.lengths[used] + self.lengths[goal]))
            length = _lengths(combined[None])[0] * (1 + 4 * self.terms * UNIT_ROUNDOFF) + error + weights @ per_unit
            sure = weights @ (heights - at[0]) - sums * (weights @ np.abs(heights))
            reach = min(sure / length, self.room[row])
        return float(reach) if reach > 0 else 0.0


def _lengths(rows: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Euclidean, however small or large the numbers are: the square of 1e-170 is 0 in float64."""
    largest = np.abs(rows).max(axis=1)
    unit = np.where(largest > 0, largest, 1)
    return unit * np.linalg.norm(rows / unit[:, None], axis=1)
