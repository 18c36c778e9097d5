"""A sweep killed at random moments must give, once repeated, the same tables as an uninterrupted one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.cli.command import parse, run_main
from experiments.cli.options import Seed
from spectra_jax.logging import read_metrics

if TYPE_CHECKING:
    import pyarrow as pa


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Args:
    """Kills a sweep (SIGKILL) again and again, finishes it, and compares every Parquet table with an uninterrupted one.

    python -m experiments.benchmarks.sweep_kills
        20 kills of a sweep of 3,000 samples and 30 classes in 60 files; about 3 minutes on 2 CPU cores. Prints
        "identical" with exit code 0, or the tables that differ with exit code 1.

    Attributes:
        kills: number of kills.
        samples: number of random samples.
        classes: number of classes of the random head.
        attributes: number of attributes of the samples.
        files: number of partitions that the samples are cut into.
        methods: see experiments.sweep_attackability.
        seed: seed of the samples, the head and the moments of the kills.
    """

    kills: int = 20
    samples: int = 3_000
    classes: int = 30
    attributes: int = 64
    files: int = 60
    methods: tuple[str, ...] = ("projection", "boundary")
    seed: Seed = 0


def command(args: Args, folder: Path, out: Path) -> list[str]:
    """The sweep, as a user would type it."""

    size = -(-args.samples // args.files)
    features = ["--features", str(folder / "features.npz"), "--head", str(folder / "head.npz")]
    options = ["--samples-per-partition", str(size), "--methods", *args.methods, "--quiet"]
    return [sys.executable, "-m", "experiments.sweep_attackability", *features, "--out", str(out), *options]


def tables(out: Path) -> dict[str, pa.Table]:
    """Every Parquet table of a sweep."""
    import pyarrow.parquet as pq

    return {str(path.relative_to(out)): pq.read_table(path) for path in sorted(out.glob("**/*.parquet"))}


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished sweeps, apart from times."""
    from experiments.runs.folder import METRICS, SUMMARY, read_json

    first, second = tables(one), tables(other)
    found = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    figures = [
        {name: value for name, value in read_json(out / SUMMARY).items() if "second" not in name}
        for out in (one, other)
    ]
    records = [
        sorted(
            ({name: v for name, v in record.items() if name != "seconds"} for record in read_metrics(out / METRICS)),
            key=lambda record: record["partition"],
        )
        for out in (one, other)
    ]
    return found + [SUMMARY] * (figures[0] != figures[1]) + [METRICS] * (records[0] != records[1])


def kills(args: Args, folder: Path) -> tuple[list[str], int]:
    """Runs the whole comparison in `folder`; returns what differs, and how many files killed sweeps had finished."""
    from experiments.runs.folder import SUMMARY, read_json

    rng = np.random.default_rng(args.seed)
    attributes = rng.normal(size=(args.samples, args.attributes)).astype(np.float32)
    np.savez(folder / "features.npz", attributes=attributes, labels=rng.integers(0, args.classes, args.samples))
    np.savez(folder / "head.npz", weights=rng.normal(size=(args.classes, args.attributes)).astype(np.float32))
    whole = folder / "whole"
    subprocess.run(command(args, folder, whole), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    began = time.monotonic()  # of a sweep that finds everything finished: the time a process needs to get going
    subprocess.run(command(args, folder, whole), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    idle = time.monotonic() - began
    solving = read_json(whole / SUMMARY)["sweep/seconds_solving"]

    done, turn, wrong, progress = 0, 0, [], 0
    while done < args.kills:
        out, finished = folder / f"killed-{turn}", False
        while done < args.kills and not finished:
            there = len(list(out.glob("pairs/*.parquet")))
            goal = there + int(rng.integers(0, 1 + -(-2 * args.files // args.kills)))
            process = subprocess.Popen(command(args, folder, out), cwd=ROOT, stdout=subprocess.DEVNULL)
            finished = not killed(process, out, goal, rng.uniform(0, idle if goal == there else solving / args.files))
            if not finished:
                done += 1
                after = len(list(out.glob("pairs/*.parquet")))
                progress += after - there
                print(f"kill {done}: {after} of {args.files} files finished, {there} before", flush=True)
        subprocess.run(command(args, folder, out), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        wrong += differences(whole, out)
        turn += 1
    return wrong, progress


def killed(process: subprocess.Popen, out: Path, goal: int, delay: float) -> bool:
    """Kills a sweep `delay` seconds after `goal` files are finished; False if it came to its end before."""

    while len(list(out.glob("pairs/*.parquet"))) < goal and process.poll() is None:
        time.sleep(0.003)
    try:
        if process.wait(delay):
            raise SystemExit(f"the sweep failed with {process.returncode}")
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait() < 0


def measure(args: Args) -> dict[str, Any]:
    """Kills, repeats and compares."""

    with tempfile.TemporaryDirectory() as folder:
        wrong, finished = kills(args, Path(folder))
    print(f"{args.kills} kills: " + (f"these differ: {', '.join(wrong)}" if wrong else "identical"))
    return {"kills": args.kills, "differing": wrong, "finished_by_killed": finished}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(Args, arguments, "benchmarks.sweep_kills")
    return 1 if measure(args)["differing"] else 0


if __name__ == "__main__":
    run_main(main)
