"""The cheap answers of experiments.sweep_attackability against a NumPy script, both from process start to end."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed

ROOT = Path(__file__).resolve().parents[2]
# What somebody would write who has no library; right where no two rows are nearly equal.
SCRIPT = """
import numpy as np
E, head = np.load("features.npz")["attributes"].astype(np.float32), np.load("head.npz")
W = head["weights"]
logits, gram = E @ W.T + head["bias"], W @ W.T
predicted, sample = logits.argmax(1), np.arange(len(E))
apart = np.sqrt(np.maximum(np.diag(gram)[:, None] + np.diag(gram) - 2 * gram, 1e-12))
distance = (logits[sample, predicted][:, None] - logits) / apart[predicted]
distance[sample, predicted] = np.inf
nearest = distance.argmin(1)
np.savez("numpy.npz", predicted=predicted, nearest=nearest, distance=distance[sample, nearest])
"""


@dataclass(frozen=True)
class Args:
    """Times `python -m experiments.sweep_attackability` without all pairs against ten lines of NumPy.

    python -m experiments.benchmarks.cheap_sweep
        50,000 samples x 768 attributes in float16 x 1,000 classes; a minute or two on 2 CPU cores.

    Each is its own process; they take turns, so that a busy machine slows both alike. Compilation is included in
    the first sweep; the later ones find its programs in the cache. Prints seconds, median (smallest - largest), and
    how far the answers agree.

    Attributes:
        samples: number of samples.
        attributes: number of attributes.
        classes: number of classes.
        repeats: runs of each.
        seed: seed of the features and the head.
        out: also write the figures to this JSON file.
    """

    samples: int = 50_000
    attributes: int = 768
    classes: int = 1_000
    repeats: int = 5
    seed: Seed = 0
    out: Path | None = None


def write_problem(args: Args, folder: Path) -> None:
    """features.npz, half of whose samples lie about their class, and head.npz."""
    rng = np.random.default_rng(args.seed)
    weights = rng.normal(size=(args.classes, args.attributes)).astype(np.float32) / args.attributes**0.5
    labels = rng.integers(0, args.classes, args.samples)
    features = rng.normal(size=(args.samples, args.attributes)).astype(np.float32) + 6 * weights[labels]
    np.savez(folder / "features.npz", attributes=features.astype(np.float16), labels=labels)
    np.savez(folder / "head.npz", weights=weights, bias=rng.normal(size=args.classes).astype(np.float32) / 10)


def seconds(command: list[str], folder: Path, cache: Path) -> float:
    """Of a process from its start to its end."""
    began = time.perf_counter()
    environment = {**os.environ, "SPECTRA_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(args: Args) -> dict[str, Any]:
    """Figures of both."""
    import pyarrow.parquet as pq

    times: dict[str, list[float]] = {"numpy": [], "first": [], "again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problem(args, folder)
        sweep = [sys.executable, "-m", "experiments.sweep_attackability", "--features", "features.npz", "--head",
                 "head.npz"]  # fmt: skip
        for turn in range(args.repeats):
            times["numpy"].append(seconds([sys.executable, "-c", SCRIPT], folder, folder))
            for kind in ("first", "again"):  # an empty cache of programs, then a filled one
                command = [*sweep, "--out", f"{kind}{turn}"]
                times[kind].append(seconds(command, folder, folder / f"cache{turn}"))
        ours, theirs = pq.read_table(folder / "first0" / "nearest.parquet"), np.load(folder / "numpy.npz")
        same = ours["nearest"].to_numpy() == theirs["nearest"]
        error = np.abs(ours["distance"].to_numpy() - theirs["distance"]) / np.median(theirs["distance"])
    figures: dict[str, Any] = {"same_nearest": float(same.mean()), "distance_error": float(error.max())}
    for kind, values in times.items():
        figures |= {
            f"{kind}/median": statistics.median(values),
            f"{kind}/low": min(values),
            f"{kind}/high": max(values),
        }
    for kind, title in (("numpy", "NumPy"), ("first", "sweep, compiling"), ("again", "sweep again")):
        median, low, high = (figures[f"{kind}/{part}"] for part in ("median", "low", "high"))
        print(f"{title}: {median:.2f} ({low:.2f} - {high:.2f}) s, {median / figures['numpy/median']:.2f} times NumPy's")
    print(f"the same nearest class: {figures['same_nearest']:.2%}; distances within {figures['distance_error']:.0e} of "
          "the median")  # fmt: skip
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run("cheap_sweep", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
