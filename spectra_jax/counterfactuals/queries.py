"""Solving many (sample, target) pairs under the same rules: the fast path, chunks, nearest targets, several answers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from spectra_jax.constraints.rules import Constraints
from spectra_jax.constraints.solve import ConstrainedResult, solve_constrained
from spectra_jax.perturbations import all_pairs_norms, projection_perturbation
from spectra_jax.types import Head, Status

# Pairs worked on together: bounds the memory, and is what progress is told by. So many projections are worth compiling
# the fast program for.
_PAIRS, _CHOICE_PAIRS = 1024, 64
# Attributes of an answer that other answers do without, one at a time.
_FORBIDDEN = 3
Progress = Callable[[int, int], None]


class Solver(NamedTuple):
    """One head and one set of rules, and everything they need for any pair.

    Attributes:
        head: weights (c, n), optional bias (c,), for JAX.
        exact: the same as given, in float64, for solvers on the host.
        rules: what changes keep to.
        margin: required lead, in logits.
        max_choices: see `constraints.constrained_perturbations`.
        progress: told how many pairs are done, of how many.
    """

    head: Head
    exact: Head
    rules: Constraints
    margin: float
    max_choices: int
    progress: Progress | None

    @property
    def is_plain(self) -> bool:
        """Whether the rules are no more than locked attributes and costs: then it is a projection."""
        rules = self.rules
        free_ends = np.isinf(rules.lower).all() and np.isinf(rules.upper).all()
        same = (rules.may_rise == rules.may_fall).all()
        return bool(free_ends and same and not len(rules.relations)) and not rules.is_combinatorial

    @property
    def description(self) -> str:
        """Which solver is used, and why."""
        rules = self.rules
        if self.is_plain:
            return "projection: the rules are locked attributes and costs at most, so one exact projection answers"
        if not rules.is_combinatorial:
            return "quadratic program: ranges, directions and relations bind together, solved exactly"
        reasons = [
            reason
            for reason, holds in (
                ("which attributes change", rules.max_changes is not None),
                ("which value of each group is on", (rules.groups >= 0).any()),
                ("where binary attributes switch", rules.is_switch.any()),
            )
            if holds
        ]
        return (
            f"search over choices ({', '.join(reasons)}): each choice is a quadratic program solved exactly, and a "
            f"lower bound proves the answer or states how far it can be from the optimum"
        )

    def solve(self, attributes, targets, locked=None) -> ConstrainedResult:
        """The smallest change of each pair."""
        fast = self.is_plain and locked is None and len(targets) >= _PAIRS
        size = _CHOICE_PAIRS if self.rules.is_combinatorial else _PAIRS
        parts = []
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            if fast:
                parts.append(self._project(attributes[part], targets[part]))
            else:
                parts.append(
                    solve_constrained(
                        *(self.exact, attributes[part], targets[part], self.rules),
                        margin=self.margin,
                        locked=None if locked is None else locked[part],
                        max_choices=self.max_choices,
                    )
                )
            if self.progress is not None:
                self.progress(min(begin + size, len(targets)), len(targets))
        return ConstrainedResult(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))

    def _project(self, attributes, targets) -> ConstrainedResult:
        """The fast path: float32 or float64 as the head is, on its device."""
        rules, dtype = self.rules, self.head.weights.dtype
        rows = np.minimum(np.arange(_PAIRS), len(targets) - 1)
        found = _project_pairs(
            self._scaled_head(),
            jnp.asarray(attributes[rows] * rules.costs, dtype),
            jnp.asarray(targets[rows], jnp.int32),
            jnp.asarray(self.margin, dtype),
            jnp.asarray(rules.may_rise),
        )
        delta, norm, multipliers, status = (np.asarray(leaf)[: len(targets)] for leaf in found)
        delta, norm, multipliers = (leaf.astype(float) for leaf in (delta, norm, multipliers))
        return ConstrainedResult(
            delta=np.where(np.isfinite(norm)[:, None], delta / rules.costs, np.nan),
            norm=norm,
            lower_bound=np.nan_to_num(norm, nan=0, posinf=np.inf),
            proven=~np.isnan(norm),
            multipliers=multipliers,
            status=status,
        )

    def _scaled_head(self) -> Head:
        """The head on attributes times costs, in which the length of a change is Euclidean."""
        costs = jnp.asarray(self.rules.costs, self.head.weights.dtype)
        return Head(self.head.weights / costs[None, :], self.head.bias)

    def nearest(self, attributes: Float[np.ndarray, "b n"], predicted: Int[np.ndarray, " b"]):
        """The nearest class other than the predicted one, under the rules, and the change that reaches it.

        Classes are tried in the order of the distance to their boundary with the predicted class, which no rule and no
        other class can make shorter, until that exceeds the best change found.

        Returns:
            (b,) targets and their ConstrainedResult.
        """
        dtype, rules = self.head.weights.dtype, self.rules
        mutable = jnp.asarray(rules.may_rise | rules.may_fall)
        least = []
        for begin in range(0, len(attributes), _PAIRS):
            scaled = jnp.asarray(attributes[begin : begin + _PAIRS] * rules.costs, dtype)
            table = all_pairs_norms(self._scaled_head(), scaled, method="boundary", margin=self.margin, mutable=mutable)
            least.append(np.asarray(table, float))
        bounds = np.concatenate(least) * (1 - 1e-5)  # of boundary distances in float32
        samples = np.arange(len(attributes))
        bounds[samples, predicted] = np.nan  # sorts behind every other class, also those out of reach
        order = np.argsort(bounds, axis=1, kind="stable")
        ranked = np.take_along_axis(bounds, order, axis=1)
        target = order[:, 0].copy()
        best = self.solve(attributes, target)
        place, step = 1, 1
        while place < order.shape[1] - 1:
            open_ = np.flatnonzero(~(ranked[:, place] >= np.where(np.isnan(best.norm), np.inf, best.norm)))
            open_ = open_[ranked[open_, place] < np.inf]
            if not open_.size:
                break
            tried = order[open_, place : min(place + step, order.shape[1] - 1)]
            rows = np.repeat(open_, tried.shape[1])
            found = self.solve(attributes[rows], tried.reshape(-1))
            for number, row in enumerate(rows):
                if found.norm[number] < (np.inf if np.isnan(best.norm[row]) else best.norm[row]):
                    target[row] = tried.reshape(-1)[number]
                    for ours, theirs in zip(best, found, strict=True):
                        ours[row] = theirs[number]
            place, step = place + tried.shape[1], min(2 * step, 64)
        return target, best

    def several(self, attributes, targets, first: ConstrainedResult, count: int) -> list[ConstrainedResult]:
        """`count` answers of each pair, shortest first, no two of which change the same attributes.

        An answer is followed by those found with one of its three strongest attributes locked, after Lawler (1972); of
        all these the shortest that differs in its attributes from the answers before comes next. Only the first is
        proven to be the shortest of its kind; its lower bound holds for the others as well.
        """
        answers = [first]
        pairs, num_attributes = len(targets), attributes.shape[1]
        pool: list[list[tuple[float, np.ndarray, ConstrainedResult]]] = [[] for _ in range(pairs)]
        locks = [np.zeros((pairs, num_attributes), bool)]
        for _ in range(count - 1):
            last, last_locks = answers[-1], locks[-1]
            strength = np.nan_to_num(np.abs(last.delta) * self.rules.costs)
            strongest = np.argsort(-strength, axis=1)[:, :_FORBIDDEN]
            rows = np.repeat(np.arange(pairs), strongest.shape[1])
            useful = np.take_along_axis(strength, strongest, axis=1).reshape(-1) > 0
            rows, forbidden = rows[useful], strongest.reshape(-1)[useful]
            if rows.size:
                locked = last_locks[rows].copy()
                locked[np.arange(len(rows)), forbidden] = True
                found = self.solve(attributes[rows], targets[rows], locked)
                for number, row in enumerate(rows):
                    one = ConstrainedResult(*(leaf[number] for leaf in found))
                    pool[row].append((float(one.norm), locked[number], one))
            answers.append(self._next_of(pool, answers, locks))
        return answers

    def _next_of(self, pool, answers, locks) -> ConstrainedResult:
        """Takes the shortest candidate of each pair whose attributes are new; nothing where there is none."""
        result = ConstrainedResult(*(leaf.copy() for leaf in answers[0]))
        locked = np.zeros_like(locks[0])
        for row, candidates in enumerate(pool):
            used = [_support(answer.delta[row], self.rules.costs) for answer in answers]
            candidates.sort(key=lambda each: np.inf if np.isnan(each[0]) else each[0])
            result.delta[row], result.norm[row], result.proven[row] = np.nan, np.nan, False
            result.status[row] = Status.BUDGET  # that none was found does not say that there is none
            while candidates:
                norm, lock, one = candidates.pop(0)
                if not np.isfinite(norm):
                    continue
                support = _support(one.delta, self.rules.costs)
                if any((support == before).all() for before in used):
                    continue
                for name in ("delta", "norm", "multipliers", "status"):
                    getattr(result, name)[row] = getattr(one, name)
                locked[row] = lock
                break
        locks.append(locked)
        return result


@jax.jit
def _project_pairs(head, attributes, targets, margin, mutable):
    def one(attributes, target):
        found = projection_perturbation(head, attributes, target, margin=margin, mutable=mutable)
        return found.delta, found.norm, found.multipliers, found.status

    return jax.vmap(one)(attributes, targets)


def _support(delta: Float[np.ndarray, " n"], costs: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    size = np.abs(np.nan_to_num(delta)) * costs
    return size > 1e-9 * max(size.max(), 1e-300)
