"""Sweeps on two devices, and batched sparse searches, while every core is busy: they must all finish."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.command import parse, run_main
from experiments.cli.options import Seed

ROOT = Path(__file__).resolve().parents[2]
_SPARSE = """
import jax, numpy as np, spectra_jax as sj
rng = np.random.default_rng({seed})
head = sj.Head(jax.numpy.asarray(rng.normal(size=(12, 40)), jax.numpy.float32))
samples = jax.numpy.asarray(rng.normal(size=(50, 40)), jax.numpy.float32)
targets = jax.numpy.arange(12, dtype=jax.numpy.int32)
one = lambda e, j: sj.sparse_perturbation(head, e, j, max_changes=3, margin=0.1).norm
norms = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(samples, targets)
assert not np.isnan(np.asarray(norms)).any()
"""


@dataclass(frozen=True)
class Args:
    """Runs sweeps and vmap(vmap(sparse_perturbation)), each in its own process with a time limit.

    python -m experiments.benchmarks.stress
        30 of each on a machine whose cores are all busy with other work; about half an hour on 2 CPU cores. Prints how
        many finished; the exit code is 1 unless all did.

    Attributes:
        runs: number of runs of each.
        samples: number of samples of a sweep, with 24 attributes, 20 classes and margin .5.
        limit: seconds after which a process counts as hanging.
        seed: seed of the data.
    """

    runs: int = 30
    samples: int = 8_000
    limit: float = 300.0
    seed: Seed = 0


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keeps every core busy with another process."""

    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def ends(command: list[str], limit: float) -> bool:
    """Whether the command ends well, and in time."""

    try:
        return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=limit).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def measure(args: Args) -> dict[str, Any]:
    """Counts what ends."""

    rng = np.random.default_rng(args.seed)
    figures: dict[str, Any] = {"runs": args.runs, "sweeps_ended": 0, "sparse_ended": 0}
    with tempfile.TemporaryDirectory() as name, busy_cores():
        folder = Path(name)
        np.savez(folder / "features.npz", attributes=rng.normal(size=(args.samples, 24)).astype(np.float32))
        np.savez(folder / "head.npz", weights=rng.normal(size=(20, 24)).astype(np.float32))
        files = ["--features", str(folder / "features.npz"), "--head", str(folder / "head.npz")]
        options = ["--samples-per-partition", "250", "--margin", "0.5", "--quiet"]
        for run in range(args.runs):
            began = time.monotonic()
            out = ["--out", str(folder / f"sweep-{run}")]
            sweep = [sys.executable, "-m", "experiments.sweep_attackability", *files, *out, *options]
            figures["sweeps_ended"] += ends(sweep, args.limit)
            figures["sparse_ended"] += ends([sys.executable, "-c", _SPARSE.format(seed=run)], args.limit)
            ended = f"{figures['sweeps_ended']} sweeps and {figures['sparse_ended']} batched searches ended"
            print(f"run {run + 1}: {ended}, {time.monotonic() - began:.0f} s", flush=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.stress")
    figures = measure(args)
    return 0 if figures["sweeps_ended"] == figures["sparse_ended"] == args.runs else 1


if __name__ == "__main__":
    run_main(main)
