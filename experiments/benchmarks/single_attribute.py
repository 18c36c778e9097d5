"""Best single attribute of all (sample, target) pairs: the envelope walk against other ways of finding it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import check_run_folder, run_main
from experiments.cli.options import Seed

if TYPE_CHECKING:
    import jax

    import spectra_jax as sj


@dataclass(frozen=True)
class Args:
    """Times best_single_attributes and checks its choices.

    python -m experiments.benchmarks.single_attribute
        random head, 5,794 samples x 200 classes x 312 attributes; 1 minute on 2 CPU cores.

    python -m experiments.benchmarks.single_attribute --run-dir runs/efficientnet_lite0-cub-seed0
        the head and the test samples of a trained run.

    Prints microseconds per sample, median (smallest - largest), and how many choices of the slice are the same.

    Attributes:
        run_dir: a run folder of experiments.train; a random head if not given.
        samples: number of random samples.
        slice: number of samples for the slow methods; their time is per sample.
        margin: required lead, in logits.
        repeats: timed calls of each.
        seed: seed of the random head and samples.
        out: also write the figures to this JSON file.
    """

    run_dir: Path | None = None
    samples: int = 5794
    slice: int = 8
    margin: float = 0.0
    repeats: int = 3
    seed: Seed = 0
    out: Path | None = None

    def check(self) -> None:
        if self.run_dir is not None:
            check_run_folder(self.run_dir)


def brute_force(weights: np.ndarray, logits: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """All c^2 n crossings of every sample, vectorised over rivals and attributes, in NumPy."""

    delta = np.full(logits.shape, np.inf, weights.dtype)
    attribute = np.full(logits.shape, -1, np.int32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for target in range(len(weights)):
            gain = weights[target] - weights
            rising, falling = gain > 0, gain < 0
            parallel = ~(rising | falling)
            parallel[target] = False
            some_parallel = parallel.any()
            for sample, row in enumerate(logits):
                ahead = (row - row[target] + weights.dtype.type(margin))[:, None]
                crossing = ahead / gain
                lower = np.where(rising, crossing, -np.inf).max(axis=0)
                upper = np.where(falling, crossing, np.inf).min(axis=0)
                feasible = lower <= upper
                if some_parallel:
                    feasible &= ~(parallel & (ahead > 0)).any(axis=0)
                nearest = np.where(feasible, np.minimum(np.maximum(lower, 0), upper), np.inf)
                best = np.abs(nearest).argmin()
                if feasible[best]:
                    delta[sample, target], attribute[sample, target] = nearest[best], best
    return delta, attribute


def all_intervals(head: sj.Head, attributes: jax.Array, margin: float) -> tuple[jax.Array, jax.Array]:
    """The same crossings through single_attribute_perturbations, one sample after another, compiled."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj

    classes = jnp.arange(head.weights.shape[0], dtype=jnp.int32)

    def one_pair(sample, target):
        delta = sj.single_attribute_perturbations(head, sample, target, margin=margin).delta
        best = jnp.argmin(jnp.abs(delta))
        return delta[best], jnp.where(jnp.isfinite(delta[best]), best, -1)

    return jax.lax.map(lambda sample: jax.vmap(one_pair, (None, 0))(sample, classes), attributes)


def walk_by_reduction(head: sj.Head, attributes: jax.Array) -> jax.Array:
    """The corners of the envelope to the right of 0, each by one argmin over an axis of classes; returns their t.

    Half of the walk, without ties and without a margin: enough to compare the cost of a corner.
    """
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj

    weights = head.weights

    def one_block(attributes):
        logits = sj.head_logits(head, attributes)
        start = jnp.broadcast_to(jnp.argmax(logits, axis=1)[:, None], attributes.shape)

        def step(state):
            name, total, _ = state
            slope, height = jnp.take_along_axis(weights, name, 0), jnp.take_along_axis(logits, name, 1)
            rise = weights[None] - slope[:, None]
            t = jnp.where(rise > 0, (height[:, None] - logits[:, :, None]) / jnp.where(rise > 0, rise, 1), jnp.inf)
            following = jnp.argmin(t, axis=1)
            first = jnp.take_along_axis(t, following[:, None], 1)[:, 0]
            more = first < jnp.inf
            return jnp.where(more, following, name), total + jnp.where(more, first, 0), jnp.any(more)

        return jax.lax.while_loop(lambda state: state[2], step, (start, jnp.zeros_like(attributes), jnp.asarray(True)))[
            1
        ]

    usable = len(attributes) // 16 * 16
    return jax.lax.map(one_block, attributes[:usable].reshape(-1, 16, attributes.shape[1]))


def measure(args: Args) -> dict[str, float | int]:
    """Runs the comparison; names say their units."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj
    from experiments.benchmarks.tools.timing import interleaved
    from experiments.runs.stored import read_test_split
    from spectra_jax.perturbations.geometry import relative_logits

    if args.run_dir is None:
        rng = np.random.default_rng(args.seed)
        weights = rng.normal(size=(200, 312)).astype(np.float32)
        attributes = rng.normal(size=(args.samples, 312)).astype(np.float32)
    else:
        attributes, _, head = read_test_split(args.run_dir)
        weights = np.asarray(head.weights)
    head, samples = sj.Head(jnp.asarray(weights)), jnp.asarray(attributes)
    few, some = samples[: args.slice], samples[: max(64, args.slice)]
    logits = np.asarray(relative_logits(head, few))
    walk = jax.jit(lambda head, e: sj.best_single_attributes(head, e, margin=args.margin))
    slow = jax.jit(lambda head, e: all_intervals(head, e, args.margin))
    reduction = jax.jit(walk_by_reduction)
    counts = {"walk": len(samples), "reduction": len(some) // 16 * 16, "all_intervals": len(few), "numpy": len(few)}
    times = interleaved(
        {
            "walk": lambda: walk(head, samples),
            "reduction": lambda: reduction(head, some),
            "all_intervals": lambda: slow(head, few),
            "numpy": lambda: brute_force(weights, logits, args.margin),
        },
        repeats=args.repeats,
    )
    per_sample = {name: timing.per(counts[name]) for name, timing in times.items()}
    delta, attribute = (np.asarray(part) for part in walk(head, samples))
    expected, chosen = brute_force(weights, logits, args.margin)
    same = (attribute[: args.slice] == chosen) & (delta[: args.slice] == expected)
    print(f"{len(samples):,} samples x {len(weights)} classes x {weights.shape[1]} attributes, margin {args.margin:g}")
    labels = {
        "walk": "envelope walk, loop over classes (the library's)",
        "reduction": "right half of the walk, argmin over classes",
        "all_intervals": "all intervals, compiled",
        "numpy": "all intervals, NumPy",
    }
    for name, timing in per_sample.items():
        print(f"{labels[name]:50s} {timing.text():>34s} us per sample")
    factor = per_sample["numpy"].median / per_sample["walk"].median
    print(f"{factor:,.0f} times faster than NumPy; {same.sum()} of {same.size} answers the same to the last bit")
    print(f"a single attribute reaches the target for {np.isfinite(delta).mean():.1%} of all pairs")
    figures = {
        f"{name}/{part}_us": 1e6 * value for name, t in per_sample.items() for part, value in t._asdict().items()
    }
    return figures | {"speed_up": factor, "same": int(same.sum()), "compared": int(same.size), "samples": len(samples)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("single_attribute", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
