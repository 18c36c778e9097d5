"""The exact nearest points of a batch of problems with ranges, by the dual path; see `perturbations.dual_path`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spectra_jax.constraints.programs import Programs
from spectra_jax.perturbations.answers import Answers
from spectra_jax.perturbations.dual_path import solve_exactly
from spectra_jax.perturbations.exact import make_queue
from spectra_jax.perturbations.lanes import pick
from spectra_jax.types import Status

_USUAL_ACTIVE = 32
# Problems in one call of the compiled program: a few sizes, so that few programs are compiled.
_SIZES = (64, 1024)
_MEMORY = 2**28


class Nearest(NamedTuple):
    """The nearest point of each problem.

    Attributes:
        delta: (q, n) in units of attributes times costs; NaN where there is none.
        norm: (q,) inf where there is none, NaN where the search cannot tell.
        multipliers: (q, c + r) of the constraint normals. Where there is no point they are the certificate of that: no
            change within the ranges meets all constraints, so weighted.
        shortfall: (q,) how far the certificate proves the constraints so weighted, as one of length 1 at most, to be
            out of reach; 0 where there is a point, NaN where the search cannot tell.
    """

    delta: Float[np.ndarray, "q n"]
    norm: Float[np.ndarray, " q"]
    multipliers: Float[np.ndarray, "q m"]
    shortfall: Float[np.ndarray, " q"]


def nearest_points(
    programs: Programs, low: Float[np.ndarray, "q n"], high: Float[np.ndarray, "q n"], *, most_free: int | None = None
) -> Nearest:
    """Solves every problem within its own ranges, given in units of attributes times costs.

    Args:
        programs: q of them.
        low: (q, n) smallest change.
        high: (q, n) largest change, at least low.
        most_free: bound on the attributes whose range is more than {0}: if small, only their columns are worked on.

    Returns:
        Nearest.
    """
    (size, num_attributes), num_rows = low.shape, programs.offsets.shape[1]
    width = None if most_free is None else max(4, 1 << (most_free - 1).bit_length())
    if width is not None and 2 * width > num_attributes:
        width = None
    found = Nearest(np.full(low.shape, np.nan), np.full(size, np.nan), np.zeros((size, num_rows)), np.zeros(size))
    largest = max(_SIZES[0], _MEMORY // (8 * num_rows * 8))
    begin = 0
    while begin < size:
        limit = next((each for each in _SIZES if each >= min(size - begin, largest)), _SIZES[-1])
        rows = np.arange(begin, min(begin + limit, size))
        begin = rows[-1] + 1
        padded = np.append(rows, np.full(limit - len(rows), rows[0]))
        waiting = np.arange(limit) < len(rows)
        support = None
        columns = np.arange(num_attributes)[None]
        if width is not None:
            immobile = (low[padded] == 0) & (high[padded] == 0)
            columns = np.argsort(immobile, axis=1, kind="stable")[:, :width].astype(np.int32)
            support = columns
        lowest, highest = (np.take_along_axis(ends[padded], columns, axis=1) for ends in (low, high))
        part = programs.of(padded)
        with jax.enable_x64(True), jax.debug_nans(False), jax.debug_infs(False):
            answers = jax.device_get(_solve(*part, lowest, highest, waiting, support))
        answers = _first(answers, len(rows))
        solved, empty = answers.status == Status.SOLVED, answers.status == Status.INFEASIBLE
        delta = np.where(solved[:, None], answers.proof.whole.delta, np.nan)
        if support is None:
            found.delta[rows] = delta
        else:
            found.delta[rows] = np.where(solved, 0.0, np.nan)[:, None]
            found.delta[rows[:, None], columns[: len(rows)]] = delta
        found.norm[rows] = np.where(solved, answers.norm, np.where(empty, np.inf, np.nan))
        np.add.at(found.multipliers, (rows[:, None], answers.proof.slots), answers.proof.multipliers)
    found.shortfall[:] = _shortfall(programs, low, high, found)
    return found


def _first(tree: Answers, count: int) -> Answers:
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _shortfall(programs: Programs, low, high, found: Nearest) -> Float[np.ndarray, " q"]:
    shortfall = np.where(np.isnan(found.norm), np.nan, 0.0)
    (empty,) = np.nonzero(found.norm == np.inf)
    if not empty.size:
        return shortfall
    ours, multipliers = programs.of(empty), found.multipliers[empty]
    pull = ours.pull(multipliers)
    ends = np.where(pull > 0, high[empty], low[empty])
    most = np.where(np.isfinite(ends), pull * np.where(np.isfinite(ends), ends, 0), 0).sum(axis=1)
    asked = (multipliers * np.where(multipliers > 0, ours.offsets, 0)).sum(axis=1)
    size = (multipliers * ours.lengths()).sum(axis=1)
    shortfall[empty] = np.maximum(asked - most, 0) / np.where(size > 0, size, 1)
    return shortfall


@jax.jit
def _solve(weights, relations, targets, offsets, rounding, low, high, waiting, support) -> Answers:
    """All arrays in float64, indices in int32; `support` (q, k) names the columns that low and high are about."""
    others = jnp.sqrt(jnp.sum(jnp.square(relations), axis=1))

    def of_target(target):
        return jnp.concatenate([jnp.sqrt(jnp.sum(jnp.square(weights[target][None, :] - weights), axis=1)), others])

    queue = make_queue(
        weights,
        targets,
        lengths=functools.partial(pick, jax.lax.map(of_target, targets)) if support is None else None,
        offsets=lambda index: (pick(offsets, index), pick(rounding, index)),
        ranges=lambda index: (pick(low, index), pick(high, index)),
        supports=support,
        relations=relations,
    )
    rank = min(low.shape[1], offsets.shape[1] - 1)
    return solve_exactly(
        *(queue, waiting),
        num_attributes=low.shape[1],
        rank=rank,
        usual=_USUAL_ACTIVE,
        num_slots=min(rank, 64) + 1,
    )
