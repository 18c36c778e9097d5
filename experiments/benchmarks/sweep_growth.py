"""How the memory and time of a sweep grow with the number of samples and of classes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed

ROOT = Path(__file__).resolve().parents[2]
_WRITTEN_AT_ONCE = 10_000


@dataclass(frozen=True)
class Args:
    """Sweeps random features in separate processes and prints peak memory, time and how both grow.

    python -m experiments.benchmarks.sweep_growth
        20,000 and 200,000 samples x 64 attributes x 20 classes, then 20,000 x 40 and x 80 classes; about 5 minutes on
        2 free CPU cores. Expected: the same peak memory, ten times the time, an exponent in classes below 3.

    Attributes:
        samples: the smaller number of samples; the larger one is ten times that.
        attributes: number of attributes.
        classes: the smallest number of classes; the others are two and four times that.
        methods: see experiments.sweep_attackability.
        seed: seed of samples and heads.
        out: also write the figures to this JSON file.
    """

    samples: int = 20_000
    attributes: int = 64
    classes: int = 20
    methods: tuple[str, ...] = ("projection", "boundary")
    seed: Seed = 0
    out: Path | None = None


class Growth(NamedTuple):
    """One sweep.

    Attributes:
        samples, classes: its size.
        seconds: solving and writing, without start-up and compilation.
        megabytes: largest resident memory of the process.
    """

    samples: int
    classes: int
    seconds: float
    megabytes: float


def write_features(path: Path, samples: int, attributes: int, seed: int) -> None:
    """Random features as an .npy file, written a piece at a time."""

    rng = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (samples, attributes))
    for start in range(0, samples, _WRITTEN_AT_ONCE):
        rows = min(_WRITTEN_AT_ONCE, samples - start)
        array[start : start + rows] = rng.standard_normal((rows, attributes), np.float32)
    array.flush()


def grow(args: Args, folder: Path, samples: int, classes: int) -> Growth:
    """Sweeps in a process of its own."""
    from experiments.runs.folder import SUMMARY, read_json

    features, head, out = folder / f"{samples}.npy", folder / f"{classes}.npz", folder / f"{samples}-{classes}"
    if not features.exists():
        write_features(features, samples, args.attributes, args.seed)
    weights = np.random.default_rng(args.seed).standard_normal((classes, args.attributes), np.float32)
    np.savez(head, weights=weights / np.sqrt(args.attributes, dtype=np.float32))
    command = [sys.executable, "-m", "experiments.sweep_attackability", "--features", str(features), "--head"]
    command += [str(head), "--out", str(out), "--methods", *args.methods, "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the sweep failed with {process.returncode}")
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    seconds = read_json(out / SUMMARY)["sweep/seconds_solving"]
    return Growth(samples, classes, seconds, usage.ru_maxrss / scale)


def measure(args: Args) -> dict[str, Any]:
    """Runs all sizes; seconds, megabytes, and how they grow."""

    print(f"{'samples':>9} {'classes':>8} {'seconds':>9} {'us per pair':>10} {'peak MB':>8}")
    found: list[Growth] = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [(args.samples, args.classes), (10 * args.samples, args.classes)]
        sizes += [(args.samples, factor * args.classes) for factor in (2, 4)]
        for samples, classes in sizes:
            # Twice, the first time to compile: a process that compiles needs more memory than one that does not.
            if classes != args.classes or not found:
                grow(args, Path(folder), min(samples, 1000), classes)
            row = grow(args, Path(folder), samples, classes)
            found.append(row)
            each = 1e6 * row.seconds / (samples * classes)
            print(f"{samples:>9,} {classes:>8} {row.seconds:>9.1f} {each:>10.1f} {row.megabytes:>8.0f}", flush=True)
    small, large, double, quadruple = found
    times, memory = large.seconds / small.seconds, large.megabytes / small.megabytes
    print(f"10 times the samples: {times:.2f} times the time, {memory:.2f} times the memory")
    exponents = [float(np.log2(b.seconds / a.seconds)) for a, b in ((small, double), (double, quadruple))]
    print(f"time of all pairs grows with classes to the power {exponents[0]:.2f}, then {exponents[1]:.2f}")
    rows = [row._asdict() for row in found]
    return {"rows": rows, "time_of_ten_times": times, "memory_of_ten_times": memory, "exponents": exponents}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""

    return run("sweep_growth", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
