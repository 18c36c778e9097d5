"""The cost of counterfactuals under constraints: ranges, few changes, one-hot groups; one (sample, target) per call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import check_run_folder, run_main
from experiments.cli.options import Seed


@dataclass(frozen=True)
class Args:
    """Times box_perturbation, sparse_perturbation and one_hot_perturbation, compiled, one pair after another.

    python -m experiments.benchmarks.constraints --run-dir runs/efficientnet_lite0-cub-seed0
        the head of a trained run, with its attributes within their range on the test split and in CUB's 28 groups; a
        minute on 2 CPU cores.

    Prints seconds per call, median (smallest - largest) over the pairs, how much longer the change is than the
    projection without constraints, and how far it can be from the best one by its own lower bound.

    Attributes:
        run_dir: a run folder of experiments.train; a random head of 106 classes and 312 attributes if not given.
        pairs: number of random pairs.
        max_changes: number of attributes that sparse_perturbation may change.
        margin: required lead, in logits.
        seed: seed of the choice of pairs and of the random head.
        out: also write the figures to this JSON file.
    """

    run_dir: Path | None = None
    pairs: int = 8
    max_changes: int = 3
    margin: float = 0.1
    seed: Seed = 0
    out: Path | None = None

    def check(self) -> None:
        if self.run_dir is not None:
            check_run_folder(self.run_dir)


def problem(args: Args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, samples, and the group of each attribute."""
    from experiments.runs.part_names import group_of
    from experiments.runs.stored import open_prepared, read_run_config, read_test_split

    if args.run_dir is None:
        rng = np.random.default_rng(args.seed)
        weights, samples = rng.normal(size=(106, 312)), rng.normal(size=(1024, 312))
        return weights.astype(np.float32), samples.astype(np.float32), np.arange(312, dtype=np.int32) // 12
    names = open_prepared(read_run_config(args.run_dir).prepared).info.attribute_names
    groups = np.unique([group_of(name) for name in names], return_inverse=True)[1]
    samples, _, head = read_test_split(args.run_dir)
    return np.asarray(head.weights), samples, groups.astype(np.int32)


def measure(args: Args) -> dict[str, Any]:
    """Runs all pairs; times are seconds per call."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj
    from experiments.benchmarks.tools.timing import interleaved

    weights, samples, groups = problem(args)
    head, rng = sj.Head(jnp.asarray(weights)), np.random.default_rng(args.seed)
    rows = rng.choice(len(samples), args.pairs, replace=False)
    predicted = (samples[rows] @ weights.T).argmax(axis=1)
    targets = ((predicted + rng.integers(1, len(weights), args.pairs)) % len(weights)).astype(np.int32)
    low, high = jnp.asarray(samples.min(axis=0)), jnp.asarray(samples.max(axis=0))
    few = f"at most {args.max_changes} changes"
    kinds: dict[str, Callable[..., Any]] = {
        "no constraint": sj.projection_perturbation,
        "ranges": functools.partial(sj.box_perturbation, lower=low, upper=high),
        few: functools.partial(sj.sparse_perturbation, max_changes=args.max_changes),
        f"{groups.max() + 1} one-hot groups": functools.partial(sj.one_hot_perturbation, groups=jnp.asarray(groups)),
    }
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    for name, kind in kinds.items():
        solve = jax.jit(functools.partial(kind, margin=args.margin))
        for pair, (row, target) in enumerate(zip(rows, targets, strict=True)):
            calls[name, pair] = functools.partial(solve, head, jnp.asarray(samples[row]), jnp.asarray(target))
    times = interleaved(calls, repeats=1)
    found = {key: jax.device_get(call()) for key, call in calls.items()}
    print(f"{args.pairs} pairs, {len(weights)} classes, {weights.shape[1]} attributes, margin {args.margin:g}")
    figures: dict[str, Any] = {"pairs": args.pairs, "names": list(kinds)}
    for name in kinds:
        answers = [found[name, pair] for pair in range(args.pairs)]
        seconds = [times[name, pair].median for pair in range(args.pairs)]
        solved = [pair for pair, answer in enumerate(answers) if answer.feasible]
        longer = [float(answers[p].norm / found["no constraint", p].norm) for p in solved]
        gaps = [float(a.norm / a.lower_bound) - 1 for a in answers if a.feasible and hasattr(a, "lower_bound")]
        figures |= {
            f"{name}/median_s": float(np.median(seconds)),
            f"{name}/low_s": min(seconds),
            f"{name}/high_s": max(seconds),
            f"{name}/solved": len(solved),
            f"{name}/impossible": sum(bool(np.isinf(answer.norm)) for answer in answers),
            f"{name}/residual": max((float(answers[p].kkt_residual) for p in solved), default=float("nan")),
            f"{name}/over_projection_median": float(np.median(longer)) if longer else float("nan"),
            f"{name}/gap_max": max(gaps) if gaps else None,
        }
        impossible, longer_by = (figures[f"{name}/{part}"] for part in ("impossible", "over_projection_median"))
        gap = f", at most {max(gaps):.2g} of that above the best" if gaps else ""
        spread = f"{np.median(seconds):.3g} ({min(seconds):.3g} - {max(seconds):.3g})"
        print(f"{name:20s} {spread:>25s} s a call; {len(solved)} solved, {impossible} proven impossible; "
              f"{longer_by:.2f} times the projection{gap}")  # fmt: skip
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("constraints", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
