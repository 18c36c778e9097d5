"""Shards of a sweep killed at random moments must leave, once repeated and merged, what one command leaves."""

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


@dataclass(frozen=True)
class Args:
    """Kills shards (SIGKILL) at random moments, repeats and merges them, and compares with one uninterrupted command.

    python -m experiments.benchmarks.shard_kills
        20 kills over 8 shards of 60,000 samples x 1,000 classes, two shards at a time; about 5 minutes on 2 CPU cores.
        Prints "identical", or in which columns the merged table differs.

    Attributes:
        kills: how many.
        shards: of the samples.
        samples: random samples.
        classes: of the random head.
        attributes: of the samples.
        seed: of the samples, the head and the moments.
        out: also write the figures to this JSON file.
    """

    kills: int = 20
    shards: int = 8
    samples: int = 60_000
    classes: int = 1_000
    attributes: int = 64
    seed: Seed = 0
    out: Path | None = None


def start(folder: Path, out: str, *options: str) -> subprocess.Popen:
    """A command of the sweep."""
    given = ["--features", str(folder / "features.npy"), "--head", str(folder / "head.npz"), "--out", str(folder / out)]
    command = [sys.executable, "-m", "experiments.sweep_attackability", *given, "--quiet", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def measure(args: Args) -> dict[str, Any]:
    """Kills, repeats, merges and compares."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "features.npy", rng.normal(size=(args.samples, args.attributes)).astype(np.float32))
        np.savez(folder / "head.npz", weights=rng.normal(size=(args.classes, args.attributes)).astype(np.float32))
        began = time.monotonic()
        if start(folder, "whole").wait():
            raise SystemExit("the sweep failed")
        longest = time.monotonic() - began
        done, waiting, in_time = 0, list(range(args.shards)), 0
        while waiting:
            pair = waiting[:2]
            processes = [start(folder, "out", "--shard", f"{number}/{args.shards}") for number in pair]
            if done < args.kills:
                time.sleep(rng.uniform(0, longest))
                for process in processes:
                    process.kill()
                    done += process.wait() < 0
                waiting = [*waiting[2:], *pair]  # whether they were finished or not
            else:
                in_time += sum(process.wait() == 0 for process in processes)
                waiting = waiting[2:]
        if start(folder, "out", "--merge").wait():
            raise SystemExit("the merge found shards missing")
        whole, merged = (pq.read_table(folder / each / "nearest.parquet") for each in ("whole", "out"))
    differing = [name for name in whole.column_names if whole[name] != merged[name]]
    print(f"{done} kills, {in_time} shards repeated: " + (f"{differing} differ" if differing else "identical"))
    return {"kills": done, "differing": differing}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run("shard_kills", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
