"""The nearest class of every sample among tens of thousands, against one product of the features with the head."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed


@dataclass(frozen=True)
class Args:
    """Times `attackability` against `jnp.matmul` of the same features and head, in turns, and its peak memory.

    python -m experiments.benchmarks.many_classes
        2,000 samples x 256 attributes x 21,841 classes; half a minute on 2 CPU cores.

    Features are random, or random around the row of a class times --confidence: far within their class, all rivals are
    about equally near, so the cheap bound separates only a few of them and a second product is needed.

    Attributes:
        samples: number of samples.
        attributes: number of attributes.
        classes: number of classes.
        confidences: confidences of the features, one row of the table each.
        repeats: timed calls of each.
        seed: seed of the features and the head.
        out: also write the figures to this JSON file.
    """

    samples: int = 2_000
    attributes: int = 256
    classes: int = 21_841
    confidences: tuple[float, ...] = (0.0, 6.0, 30.0)
    repeats: int = 7
    seed: Seed = 0
    out: Path | None = None


def measure(args: Args) -> dict[str, Any]:
    """Figures of each kind of features."""
    import jax
    import jax.numpy as jnp

    from spectra_jax import Head, attackability

    rng = np.random.default_rng(args.seed)
    weights = rng.normal(size=(args.classes, args.attributes)).astype(np.float32) / args.attributes**0.5
    bias = rng.normal(size=args.classes).astype(np.float32) / 10
    noise = rng.normal(size=(args.samples, args.attributes))
    own = weights[rng.integers(0, args.classes, args.samples)]
    head = Head(jnp.asarray(weights), jnp.asarray(bias))
    product = jax.jit(lambda rows: jnp.matmul(rows, head.weights.T, precision=jax.lax.Precision.HIGHEST))
    figures: dict[str, Any] = {}
    for confidence in args.confidences:
        features = jnp.asarray(noise + confidence * own, jnp.float32)
        calls: dict[str, Callable] = {
            "product": lambda features=features: product(features),
            "attackability": lambda features=features: attackability(head, features),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            jax.block_until_ready(call())
        for _ in range(args.repeats):
            for name, call in calls.items():
                began = time.perf_counter()
                jax.block_until_ready(call())
                times[name].append(time.perf_counter() - began)
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures |= {f"{confidence:g}/{name}": values for name, values in times.items()}
        figures |= {f"{confidence:g}/products": ratio, f"{confidence:g}/peak_gib": peak}
        shown = ", ".join(
            f"{name} {statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f}) s"
            for name, values in times.items()
        )
        print(f"confidence {confidence:g}: {shown}; {ratio:.2f} products, peak memory {peak:.2f} GiB", flush=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run("many_classes", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
