"""The paper's pseudoinverse for all (sample, target) pairs: one factorisation against one per pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Args:
    """Times the norms of pinv_perturbation for all pairs against factorising each pair's own matrix.

    python -m experiments.benchmarks.pinv
        random head, 5,794 samples x 200 classes, 312 attributes; half a minute on 2 CPU cores.

    Prints microseconds per pair, median (smallest - largest), and how far the norms are apart.

    Attributes:
        samples: number of samples.
        pairs: number of pairs for the slow methods; their time is per pair.
        margin: required lead, in logits.
        repeats: timed calls of each.
        seed: seed of the random head and samples, and of the choice of pairs.
        out: also write the figures to this JSON file.
    """

    samples: int = 5794
    pairs: int = 16
    margin: float = 0.0
    repeats: int = 3
    seed: Seed = 0
    out: Path | None = None


def system(weights: np.ndarray, sample: np.ndarray, target: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """W_global and l_global of one pair, with a zero row for the target itself."""

    gaps = weights @ sample
    gaps = gaps - gaps[target] + margin
    gaps[target] = 0
    return weights[target] - weights, gaps


def measure(args: Args) -> dict[str, Any]:
    """Runs the comparison; times are microseconds per pair."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj
    from experiments.benchmarks.tools.timing import interleaved

    rng = np.random.default_rng(args.seed)
    weights = rng.normal(size=(200, 312)).astype(np.float32)
    samples = rng.normal(size=(args.samples, 312)).astype(np.float32)
    rows, targets = rng.integers(args.samples, size=args.pairs), rng.integers(200, size=args.pairs)
    systems = [system(weights, samples[row], target, args.margin) for row, target in zip(rows, targets, strict=True)]
    matrices, gaps = (np.stack(part) for part in zip(*systems, strict=True))

    head, batch = sj.Head(jnp.asarray(weights)), jnp.asarray(samples)
    together = jax.jit(lambda head, batch: sj.all_pairs_norms(head, batch, method="pinv", margin=args.margin))
    naive = jax.jit(jax.vmap(lambda matrix, gap: jnp.linalg.norm(jnp.linalg.pinv(matrix, rtol=1e-5) @ gap)))

    @jax.jit
    def decomposed(matrices: jax.Array, gaps: jax.Array) -> jax.Array:
        left, values, _ = jnp.linalg.svd(matrices, full_matrices=False)
        seen = jnp.einsum("pck,pc->pk", left, gaps)
        kept = values > 1e-5 * values[:, :1]
        return jnp.linalg.norm(jnp.where(kept, seen / jnp.where(kept, values, 1), 0), axis=-1)

    calls = {
        "spectra_jax, all pairs": lambda: together(head, batch),
        "numpy.linalg.pinv, pair by pair": lambda: np.array(
            [
                np.linalg.norm(np.linalg.pinv(matrix, rcond=1e-5) @ gap)
                for matrix, gap in zip(matrices, gaps, strict=True)
            ]
        ),
        "jnp.linalg.pinv, vmapped over pairs": lambda: naive(matrices, gaps),
        "jnp.linalg.svd, batch of pairs": lambda: decomposed(matrices, gaps),
    }
    count = dict.fromkeys(calls, args.pairs) | {"spectra_jax, all pairs": args.samples * 200}
    times = {name: t.per(count[name]) for name, t in interleaved(calls, repeats=args.repeats).items()}
    norms = {name: np.asarray(call()) for name, call in calls.items()}
    norms["spectra_jax, all pairs"] = norms["spectra_jax, all pairs"][rows, targets]
    doubles = [system(weights.astype(np.float64), samples[r].astype(np.float64), t, args.margin)
               for r, t in zip(rows, targets, strict=True)]  # fmt: skip
    exact = np.array([np.linalg.norm(np.linalg.pinv(matrix) @ gap) for matrix, gap in doubles])
    other = (samples[rows] @ weights.T).argmax(axis=1) != targets  # the predicted class has norm 0 by definition
    errors = {name: float(np.max(np.abs(each - exact)[other] / exact[other])) for name, each in norms.items()}
    print(f"{args.samples:,} samples x 200 classes, 312 attributes, margin {args.margin:g}")
    for name, timing in times.items():
        print(f"{name:36s} {timing.text():>34s} us per pair   norm within {errors[name]:.1e} of float64")
    factor = times["numpy.linalg.pinv, pair by pair"].median / times["spectra_jax, all pairs"].median
    print(f"{factor:,.0f} times numpy.linalg.pinv pair by pair")
    figures = {f"{name}/{part}_us": 1e6 * value for name, t in times.items() for part, value in t._asdict().items()}
    return figures | {f"{name}/norm_error": error for name, error in errors.items()} | {"speed_up": factor}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("pinv", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
