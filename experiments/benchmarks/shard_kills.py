"""Shards of a sweep killed at random moments must give, once repeated and merged, the same tables as one command."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed

ROOT = Path(__file__).resolve().parents[2]
# Seconds between two kills of workers of Ray, at most.
_PAUSE = 8.0


@dataclass(frozen=True)
class Args:
    """Kills shards (SIGKILL) at random moments, repeats and merges them, and compares with one uninterrupted command.

    python -m experiments.benchmarks.shard_kills
        20 kills over 8 shards of 60,000 samples x 1,000 classes, two shards at a time; about 5 minutes on 2 CPU cores.

    python -m experiments.benchmarks.shard_kills --ray
        the workers of a local Ray cluster instead, which restarts their shards (extra "ray").
        Prints "identical", or the columns in which a merged table differs.

    Attributes:
        kills: number of kills, or one more if two processes are killed at once.
        ray: kill workers of Ray.
        shards: number of shards of the samples.
        samples: number of random samples.
        classes: number of classes of the random head.
        attributes: number of attributes of the samples.
        seed: seed of the samples, the head and the moments of the kills.
        out: also write the figures to this JSON file.
    """

    kills: int = 20
    ray: bool = False
    shards: int = 8
    samples: int = 60_000
    classes: int = 1_000
    attributes: int = 64
    seed: Seed = 0
    out: Path | None = None


def start(folder: Path, out: str, *options: str) -> subprocess.Popen:
    """A command of the sweep."""
    given = ["--features", str(folder / "features.npy"), "--head", str(folder / "head.npz"), "--out", str(folder / out)]
    fixed = ["--nearest-only", "--quiet"]
    command = [sys.executable, "-m", "experiments.sweep_attackability", *given, *fixed, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def in_processes(args: Args, folder: Path, longest: float, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """Kills processes that answer a shard each, repeats and merges them: the folder of the tables, and the kills."""
    done, waiting = 0, list(range(args.shards))
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
            for process in processes:
                process.wait()
            waiting = waiting[2:]
    if start(folder, "out", "--merge").wait():
        raise SystemExit("the merge found shards missing")
    yield "out", done


def on_ray(args: Args, folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """Kills workers of Ray while commands answer all shards: the folder of each command and its kills."""
    left = args.kills
    for number in range(args.kills):  # a command that lost no worker counts as a try
        process, killed = start(folder, f"ray-{number}", "--ray", str(args.shards)), 0
        while process.poll() is None:
            time.sleep(rng.uniform(0, _PAUSE))
            for worker in rng.permutation(_ray_workers(process.pid))[: killed < left]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    killed += 1
        if process.returncode:
            raise SystemExit("the sweep on Ray failed")
        left -= killed
        yield f"ray-{number}", killed
        if not left:
            return
    raise SystemExit(f"{left} kills found no worker: the shards are too short, or not answered on this machine")


def _ray_workers(command: int) -> list[int]:
    """Processes that answer a shard now, of a cluster that this command has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    parents = {int(row[0]): int(row[1]) for row in rows}

    def is_ours(process: int) -> bool:
        while process in parents and process != command:
            process = parents[process]
        return process == command

    return [int(row[0]) for row in rows if "ray::_solve" in row[-1] and is_ours(int(row[0]))]


def measure(args: Args) -> dict[str, Any]:
    """Kills, repeats, merges and compares."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(args.seed)
    done, tables, differing = 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "features.npy", rng.normal(size=(args.samples, args.attributes)).astype(np.float32))
        np.savez(folder / "head.npz", weights=rng.normal(size=(args.classes, args.attributes)).astype(np.float32))
        began = time.monotonic()
        if start(folder, "whole").wait():
            raise SystemExit("the sweep failed")
        longest = time.monotonic() - began
        whole = pq.read_table(folder / "whole" / "nearest.parquet")
        for out, kills in on_ray(args, folder, rng) if args.ray else in_processes(args, folder, longest, rng):
            merged = pq.read_table(folder / out / "nearest.parquet")
            differing |= {column for column in whole.column_names if whole[column] != merged[column]}
            done, tables = done + kills, tables + 1
    print(f"{done} kills, {tables} tables: " + (f"{sorted(differing)} differ" if differing else "identical"))
    return {"kills": done, "tables": tables, "differing": sorted(differing)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run("shard_kills", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
