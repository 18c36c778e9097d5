"""The attackability of many samples, compared with one matrix product of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed


@dataclass(frozen=True)
class Args:
    """Times attackability against the bare product of samples and weights, which any prediction needs.

    python -m experiments.benchmarks.attackability
        50,000 samples x 1,000 classes x 2,048 features, 1 GB of memory; half a minute on 2 CPU cores.

    Prints seconds, median (smallest - largest), timed in turns in the same process, on the same arrays.

    Attributes:
        samples: number of samples.
        classes: number of classes of the head.
        features: width of the head.
        repeats: timed calls of each.
        seed: seed of the random head and samples.
        out: also write the figures to this JSON file.
    """

    samples: int = 50_000
    classes: int = 1_000
    features: int = 2_048
    repeats: int = 5
    seed: Seed = 0
    out: Path | None = None


def measure(args: Args) -> dict[str, float]:
    """Runs the comparison; times are seconds."""
    import jax
    import jax.numpy as jnp

    import spectra_jax as sj
    from experiments.benchmarks.tools.timing import interleaved
    from spectra_jax.perturbations.geometry import squared_distances

    rng = np.random.default_rng(args.seed)
    weights = jnp.asarray(rng.standard_normal((args.classes, args.features), dtype=np.float32))
    samples = jnp.asarray(rng.standard_normal((args.samples, args.features), dtype=np.float32))
    product = jax.jit(lambda weights, samples: jnp.matmul(samples, weights.T, precision="highest"))
    fused = jax.jit(lambda weights, samples: sj.attackability(sj.Head(weights), samples))
    table = jax.jit(squared_distances)
    times = interleaved(
        {
            "product": lambda: product(weights, samples),
            "attackability": lambda: fused(weights, samples),
            "distances_by_differences": lambda: table(weights),
        },
        repeats=args.repeats,
    )
    print(f"{args.samples:,} samples x {args.classes:,} classes x {args.features:,} features")
    labels = {
        "product": "one matrix product",
        "attackability": "attackability, product included",
        "distances_by_differences": "all row distances by differences (not used)",
    }
    for name, timing in times.items():
        print(f"{labels[name]:45s} {timing.text(1):>28s} s")
    ratio = times["attackability"].median / times["product"].median
    print(f"attackability costs {ratio:.2f} products")

    rows = np.asarray(weights, np.float64)
    logits = np.asarray(samples[:64], np.float64) @ rows.T
    best = logits.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = (logits.max(axis=1)[:, None] - logits) / np.stack(
            [np.linalg.norm(rows[i] - rows, axis=1) for i in best]
        )
    expected = np.linalg.norm(np.asarray(samples[:64], np.float64), axis=1) / np.nanmin(distances, axis=1)
    # Compared as ||delta|| / ||e||: its reciprocal multiplies the rounding of the logits next to a boundary.
    found = np.asarray(fused(weights, samples)[:64], np.float64)
    error = float(np.max(np.abs(1 / found - 1 / expected)))
    print(f"largest error of ||delta|| / ||e|| against NumPy in float64, 64 samples: {error:.1e}")
    figures = {f"{name}/{part}_s": seconds for name, t in times.items() for part, seconds in t._asdict().items()}
    return figures | {"products": ratio, "largest_margin_error": error}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("attackability", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
