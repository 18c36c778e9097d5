"""Other methods for the nearest point of a decision region: general quadratic programming solvers and others."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls


class Pair(NamedTuple):
    """min ||delta|| subject to normals @ delta >= heights, in float64.

    Attributes:
        normals: (c - 1, n) rows w_target - w_k.
        heights: (c - 1,) logit gaps.
    """

    normals: np.ndarray
    heights: np.ndarray


def pair(weights: np.ndarray, sample: np.ndarray, target: int) -> Pair:
    """The problem of one sample and target, margin 0."""
    logits = weights @ sample
    return Pair(np.delete(weights[target] - weights, target, 0), np.delete(logits - logits[target], target))


Solver = Callable[[list[Pair]], Callable[[], np.ndarray]]


def peers() -> dict[str, Solver]:
    """Every solver at hand: pairs -> a call that solves them all, one after another, and returns their norms.

    What can be prepared is prepared outside the call, so that it times nothing but solving. "reused" means that all
    pairs share a target: the solver keeps its factorisation and workspace and is only given other heights.
    """
    found: dict[str, Solver] = {"SciPy NNLS": _nnls}
    for name, solver, package in (
        ("DAQP", _daqp, "daqp"),
        ("DAQP, reused", _daqp_reused, "daqp"),
        ("quadprog", _quadprog, "quadprog"),
        ("ProxQP, reused", _proxqp, "proxsuite"),
        ("qpax, vmapped", _qpax, "qpax"),
        ("MPAX, vmapped", _mpax, "mpax"),
        ("Moreau, batched", _moreau, "moreau"),
    ):
        try:
            __import__(package)
        except ImportError:
            print(f"{package} is not installed: left out (pip install 'spectra-jax[bench]')")
        else:
            found[name] = solver
    return found


def _norms(solve: Callable[[Any], np.ndarray], prepared: list[Any]) -> Callable[[], np.ndarray]:
    return lambda: np.array([np.linalg.norm(solve(each)) for each in prepared])


def _nnls(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    """Lawson and Hanson's least-distance reduction."""

    def prepare(normals: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.vstack([normals.T, heights[None]]), np.append(np.zeros(normals.shape[1]), 1.0)

    def solve(prepared: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        system, goal = prepared
        rest = system @ nnls(system, goal, maxiter=10_000)[0] - goal
        return rest[:-1] / rest[-1]

    return _norms(solve, [prepare(*each) for each in pairs])


def _daqp(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    import daqp

    rivals, size = pairs[0].normals.shape
    cost, start = np.eye(size), np.zeros(size)
    upper, sense = np.full(rivals, 1e30), np.zeros(rivals, np.int32)
    return _norms(lambda each: daqp.solve(cost, start, each.normals, upper, each.heights, sense)[0], pairs)


def _daqp_reused(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    import daqp

    rivals, size = pairs[0].normals.shape
    model = daqp.Model()
    upper, sense = np.full(rivals, 1e30), np.zeros(rivals, np.int32)
    model.setup(np.eye(size), np.zeros(size), pairs[0].normals, upper, pairs[0].heights, sense)

    def solve(each: Pair) -> np.ndarray:
        model.update(blower=each.heights)
        return model.solve()[0]

    return _norms(solve, pairs)


def _quadprog(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    import quadprog

    size = pairs[0].normals.shape[1]
    # "factorized" takes the inverse of the Cholesky factor: the identity's own.
    cost, start = np.eye(size), np.zeros(size)
    prepared = [(np.ascontiguousarray(each.normals.T), each.heights) for each in pairs]
    return _norms(lambda each: quadprog.solve_qp(cost, start, each[0], each[1], 0, True)[0], prepared)


def _proxqp(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    from proxsuite import proxqp

    rivals, size = pairs[0].normals.shape
    problem = proxqp.dense.QP(size, 0, rivals)
    problem.settings.eps_abs = 1e-9
    problem.init(np.eye(size), np.zeros(size), None, None, pairs[0].normals, pairs[0].heights, np.full(rivals, 1e20))

    def solve(each: Pair) -> np.ndarray:
        problem.update(l=each.heights)
        problem.solve()
        return problem.results.x

    return _norms(solve, pairs)


def _qpax(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    import qpax

    size = pairs[0].normals.shape[1]
    nothing = jnp.zeros((0, size)), jnp.zeros(0)

    @jax.jit
    @jax.vmap
    def solve(normals, heights):
        return qpax.solve_qp(jnp.eye(size), jnp.zeros(size), *nothing, -normals, -heights)[0]

    normals, heights = (jnp.stack([jnp.asarray(part) for part in column]) for column in zip(*pairs, strict=True))
    return lambda: np.linalg.norm(np.asarray(solve(normals, heights)), axis=-1)


def _mpax(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    """First-order, to a relative accuracy of 1e-6: at 1e-9 it takes many times as long. All pairs share a target."""
    import mpax

    size = pairs[0].normals.shape[1]
    nothing, free = (jnp.zeros((0, size)), jnp.zeros(0)), jnp.full(size, jnp.inf)
    solver = mpax.raPDHG(eps_abs=1e-6, eps_rel=1e-6, verbose=False)

    problem = mpax.create_qp(
        jnp.eye(size), jnp.zeros(size), *nothing, jnp.asarray(pairs[0].normals), jnp.asarray(pairs[0].heights),
        -free, free, use_sparse_matrix=False,
    )  # fmt: skip

    @jax.jit
    @jax.vmap
    def solve(heights):
        return solver.optimize(dataclasses.replace(problem, right_hand_side=heights)).primal_solution

    heights = jnp.stack([jnp.asarray(each.heights) for each in pairs])
    return lambda: np.linalg.norm(np.asarray(solve(heights)), axis=-1)


def _moreau(pairs: list[Pair]) -> Callable[[], np.ndarray]:
    import moreau

    rivals, size = pairs[0].normals.shape
    solver = moreau.CompiledSolver(
        n=size, m=rivals,
        P_row_offsets=np.arange(size + 1), P_col_indices=np.arange(size),
        A_row_offsets=size * np.arange(rivals + 1), A_col_indices=np.tile(np.arange(size), rivals),
        cones=moreau.Cones(num_nonneg_cones=rivals),
        settings=moreau.Settings(device="cpu", batch_size=len(pairs)),
    )  # fmt: skip
    solver.setup(np.ones((len(pairs), size)), np.stack([-each.normals.ravel() for each in pairs]))
    start, heights = np.zeros((len(pairs), size)), np.stack([-each.heights for each in pairs])
    return lambda: np.linalg.norm(np.asarray(solver.solve(start, heights).x), axis=-1)


def coordinate_ascent(gram: jax.Array, logits: jax.Array, targets: jax.Array, *, tolerance: float = 1e-5) -> jax.Array:
    """Norms by greedy ascent on the dual, one multiplier a step: cheap steps, but many of them.

    Args:
        gram: (c, c).
        logits: (p, c), one row per pair.
        targets: (p,).
        tolerance: stops where no rival is violated by more than this share of the largest gap, as a distance.
    """
    lane = jnp.arange(len(targets))
    squares = jnp.diagonal(gram)[targets][:, None] - 2 * gram[targets] + jnp.diagonal(gram)[None]
    own = jnp.arange(gram.shape[0])[None] == targets[:, None]
    lengths = jnp.sqrt(jnp.where(own, 1, squares))
    gaps = jnp.where(own, 0, logits - logits[lane, targets][:, None])
    enough = tolerance * jnp.max(gaps / lengths, axis=1, keepdims=True)

    def improvement(multipliers, slack):
        step = jnp.maximum(-slack / jnp.square(lengths), -multipliers)
        return jnp.where(own | (jnp.abs(step * lengths) <= enough), 0, step)

    def ascend(state):
        multipliers, slack, steps = state
        step = improvement(multipliers, slack)
        rival = jnp.argmax(jnp.abs(step) * lengths, axis=1)
        step = step[lane, rival][:, None]
        across = gram[targets, targets][:, None] - gram[targets] - gram[targets, rival][:, None] + gram[rival]
        return multipliers.at[lane, rival].add(step[:, 0]), slack + step * across, steps + 1

    def unfinished(state):
        multipliers, slack, steps = state
        return jnp.any(improvement(multipliers, slack) != 0) & (steps < 5_000)

    multipliers, slack, _ = jax.lax.while_loop(unfinished, ascend, (jnp.zeros_like(gaps), -gaps, 0))
    return jnp.sqrt(jnp.maximum(jnp.sum(multipliers * (gaps - slack), axis=1), 0))


def block_pivoting(gram: jax.Array, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Norms by block principal pivoting (Portugal, Judice and Vicente 1994): few steps, a c x c system in each.

    All rivals with a negative multiplier leave and all violated ones enter at once; when that stops making progress,
    only the last of them changes sides, which must end.
    """
    num_classes = gram.shape[0]
    classes = jnp.arange(num_classes)

    def one(logits, target):
        own = gram[target]
        product = gram[target, target] - own[:, None] - own[None] + gram
        gaps = jnp.where(classes == target, 0, logits - logits[target])
        noise = 1e-5 * jnp.max(jnp.abs(gaps))

        def step(state):
            active, fewest, patience, _, steps = state
            both = active[:, None] & active[None]
            system = jnp.where(both, product, jnp.eye(num_classes, dtype=gram.dtype))
            multipliers = jnp.linalg.solve(system, jnp.where(active, gaps, 0))
            slack = product @ multipliers - gaps
            wrong = jnp.where(active, multipliers < 0, slack < -noise) & (classes != target)
            count = jnp.sum(wrong)
            patience = jnp.where(count < fewest, 3, patience - 1)
            last = jnp.max(jnp.where(wrong, classes, -1))
            change = jnp.where(patience >= 0, wrong, wrong & (classes == last))
            norm = jnp.sqrt(jnp.maximum(multipliers @ product @ multipliers, 0))
            return active ^ change, jnp.minimum(fewest, count), patience, norm, steps + 1

        start = (jnp.zeros(num_classes, bool), num_classes, 3, jnp.zeros((), gram.dtype), 0)
        state = step(start)
        # The last state's `active` equals the one before it exactly when nothing was wrong any more.
        return jax.lax.while_loop(lambda state: (state[1] > 0) & (state[4] < 100), step, state)[3]

    return jax.vmap(one)(logits, targets)
