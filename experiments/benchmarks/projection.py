"""Exact projection of all (sample, target) pairs against quadratic programming solvers and other algorithms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import check_run_folder, run_main
from experiments.cli.options import Seed

if TYPE_CHECKING:
    import jax

    import spectra_jax as sj

ONE, ALL = "spectra_jax, one device", "spectra_jax, all devices"


@dataclass(frozen=True)
class Args:
    """Times all_pairs_projection against other solvers and checks its norms against theirs.

    python -m experiments.benchmarks.projection
        random head, 1,024 samples x 200 classes, 312 attributes; 2 minutes on 2 CPU cores.

    python -m experiments.benchmarks.projection --run-dir runs/efficientnet_lite0-cub-seed0
        the head and all test samples of a trained run.

    Prints microseconds per pair, median (smallest - largest): of one program on one device, and of jax.shard_map over
    all devices, which on a CPU are its cores. The other solvers run in one process, as they come, on `pairs` pairs of
    one target; building their matrices is not timed.

    Attributes:
        run_dir: a run folder of experiments.train; a random head if not given.
        samples: number of random samples.
        pairs: number of pairs for the other solvers.
        repeats: timed calls of each.
        seed: seed of the random head and samples, and of the choice of pairs.
        out: also write the figures to this JSON file.
    """

    run_dir: Path | None = None
    samples: int = 1024
    pairs: int = 48
    repeats: int = 3
    seed: Seed = 0
    out: Path | None = None

    def check(self) -> None:
        if self.run_dir is not None:
            check_run_folder(self.run_dir)


def lockstep(head: sj.Head, samples: jax.Array, targets: jax.Array) -> jax.Array:
    """The library's own steps without its queue: every pair of the batch waits for the slowest."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj
    from spectra_jax.perturbations import active_set
    from spectra_jax.perturbations.geometry import gram_matrix, squared_distances
    from spectra_jax.perturbations.lanes import RUNNING

    regions = active_set.make_regions(
        gram_matrix(head.weights),
        squared_distances(head.weights),
        sj.head_logits(head, samples),
        jnp.zeros(len(samples), samples.dtype),
    )
    lanes = active_set.empty_lanes(regions, len(samples), 32)
    lanes = active_set.load(lanes, jnp.ones(len(samples), bool), jnp.arange(len(samples), dtype=jnp.int32), targets)
    step = functools.partial(active_set.advance, regions, complete=False, max_steps=1000)
    lanes = jax.lax.while_loop(lambda lanes: jnp.any(lanes.status == RUNNING), step, lanes)
    return active_set.conclude(regions, lanes, 1e-5)[1].norm


def problem(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Weights and samples."""
    from experiments.runs.stored import read_test_split

    if args.run_dir is not None:
        samples, _, head = read_test_split(args.run_dir)
        return np.asarray(head.weights), samples
    rng = np.random.default_rng(args.seed)
    weights, samples = rng.normal(size=(200, 312)), rng.normal(size=(args.samples, 312))
    return weights.astype(np.float32), samples.astype(np.float32)


def measure(args: Args) -> dict[str, Any]:
    """Runs the comparison; times are microseconds per pair."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    import spectra_jax as sj
    from experiments.benchmarks.tools.solvers import block_pivoting, coordinate_ascent, pair, peers
    from experiments.benchmarks.tools.timing import interleaved
    from spectra_jax.perturbations import all_pairs_projection
    from spectra_jax.perturbations.geometry import gram_matrix
    from spectra_jax.sharding import BATCH_AXIS, data_mesh, replicated, row_sharded

    weights, samples = problem(args)
    mesh = data_mesh(jax.local_devices())
    samples = samples[: len(samples) // mesh.size * mesh.size]
    rng = np.random.default_rng(args.seed)
    target = int(rng.integers(len(weights)))
    away = np.flatnonzero((samples @ weights.T).argmax(axis=1) != target)
    rows = rng.choice(away, size=min(args.pairs, len(away)), replace=False)
    exact = [weights.astype(np.float64), samples.astype(np.float64)]
    pairs = [pair(exact[0], exact[1][row], target) for row in rows]

    head, batch = sj.Head(jnp.asarray(weights)), jnp.asarray(samples)
    solve = jax.jit(all_pairs_projection)
    by_rows = PartitionSpec(BATCH_AXIS)
    spread = jax.shard_map(all_pairs_projection, mesh=mesh, in_specs=(PartitionSpec(), by_rows), out_specs=by_rows)
    solve_spread = jax.jit(spread)
    everywhere = jax.device_put(head, replicated(mesh)), jax.device_put(samples, row_sharded(mesh))
    some, targets = batch[rows], jnp.full(len(rows), target, jnp.int32)
    gram, logits = gram_matrix(head.weights), sj.head_logits(head, some)
    ours: dict[str, Callable[[], Any]] = {
        ONE: lambda: solve(head, batch),
        ALL: lambda: solve_spread(*everywhere),
        "same steps without the queue": functools.partial(jax.jit(lockstep), head, some, targets),
        "coordinate ascent to 1e-5": functools.partial(jax.jit(coordinate_ascent), gram, logits, targets),
        "block pivoting": functools.partial(jax.jit(block_pivoting), gram, logits, targets),
    }
    with jax.enable_x64(True):  # the peers' precision; qpax is traced under it
        others = {name: solver(pairs) for name, solver in peers().items()}
        norms = {name: call() for name, call in others.items()}
    times = interleaved({**ours, **{name: _in_x64(call) for name, call in others.items()}}, repeats=args.repeats)
    count = dict.fromkeys(times, len(rows)) | dict.fromkeys((ONE, ALL), len(samples) * len(weights))
    times = {name: timing.per(count[name]) for name, timing in times.items()}

    found, found_spread = solve(head, batch), solve_spread(*everywhere)
    with jax.enable_x64(True):
        double = jax.jit(all_pairs_projection)(sj.Head(jnp.asarray(exact[0])), jnp.asarray(exact[1][rows]))
    norms = {
        ONE: np.asarray(found.norms)[rows, target],
        ALL: np.asarray(found_spread.norms)[rows, target],
        "spectra_jax, float64": np.asarray(double.norms)[:, target],
        **{name: np.asarray(call()) for name, call in list(ours.items())[2:]},
        **norms,
    }
    oracle = norms["DAQP"]  # exact to rounding, as quadprog confirms below
    errors = {name: float(np.max(np.abs(each - oracle) / oracle)) for name, each in norms.items()}
    print(f"{len(samples):,} samples x {len(weights)} classes, {weights.shape[1]} attributes")
    for name, error in errors.items():
        took = f"{times[name].text():>30s} us per pair" if name in times else " " * 40
        print(f"{name:30s} {took}   norm within {error:.1e} of DAQP's")
    best = min((name for name in others if name in times), key=lambda name: times[name].median)
    factors = {name: times[best].median / times[name].median for name in (ONE, ALL)}
    active, infeasible = np.asarray(found.num_active), int(np.isinf(np.asarray(found.norms)).sum())
    residual = float(np.nanmax(np.asarray(found.kkt_residual)))
    unresolved = int(np.isnan(np.asarray(found.norms)).sum())
    print(f"{factors[ALL]:.1f} times the best peer, {best}, on {mesh.size} devices, {factors[ONE]:.1f} times on one")
    print(f"{active.mean():.2f} active rivals, {active.max()} at most")
    print(f"largest KKT residual {residual:.1e}; {infeasible} infeasible, {unresolved} unresolved pairs")
    figures = {f"{name}/{part}_us": 1e6 * value for name, t in times.items() for part, value in t._asdict().items()}
    figures |= {f"{name}/norm_error": error for name, error in errors.items()}
    return figures | {
        "devices": mesh.size,
        "speed_up": factors[ALL],
        "speed_up_one_device": factors[ONE],
        "best_peer": best,
        "residual": residual,
        "infeasible": infeasible,
        "unresolved": unresolved,
    }


def _in_x64(call: Callable[[], Any]) -> Callable[[], Any]:
    import jax

    def run() -> Any:
        with jax.enable_x64(True):
            return call()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("projection", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
