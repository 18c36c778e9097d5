"""The cheap answers of a sweep from files, against NumPy reading the same file and one matrix product."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.benchmarks.tools.command import run
from experiments.cli.command import run_main
from experiments.cli.options import Seed

ROOT = Path(__file__).resolve().parents[2]
_ROWS_AT_ONCE = 1 << 15
# Reads blocks of rows and multiplies each with the head: the least that any answer costs.
SCRIPT = {
    "npy": """
import numpy as np
W = np.load("head.npz")["weights"].T.copy()
with open("features.npy", "rb") as file:
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    for start in range(0, shape[0], 32768):
        rows = np.fromfile(file, dtype, min(32768, shape[0] - start) * shape[1])
        rows.reshape(-1, shape[1]).astype(np.float32) @ W
""",
    "parquet": """
import numpy as np, pyarrow.parquet as pq
W = np.load("head.npz")["weights"].T.copy()
for batch in pq.ParquetFile("features.parquet").iter_batches(8192):
    rows = batch.column(0).flatten().to_numpy(zero_copy_only=False)
    rows.reshape(batch.num_rows, -1).astype(np.float32) @ W
""",
}


@dataclass(frozen=True)
class Args:
    """Times a sweep of float16 features in .npy and Parquet, whole processes, against NumPy reading and one product.

    python -m experiments.benchmarks.storage_sweep
        100,000 and 1,000,000 samples x 512 attributes x 100 classes, 1 GB per file; about 5 minutes on 2 CPU cores.

    Each is its own process; they take turns. Prints seconds, median (smallest - largest), and the peak memory of
    each process, which must not grow with the samples except for the answers.

    Attributes:
        samples: numbers of samples, one row of the table each.
        attributes: number of attributes.
        classes: number of classes.
        kinds: kinds of files.
        repeats: runs of each.
        seed: seed of the features and the head.
        out: also write the figures to this JSON file.
    """

    samples: tuple[int, ...] = (100_000, 1_000_000)
    attributes: int = 512
    classes: int = 100
    kinds: tuple[Literal["npy", "parquet"], ...] = ("npy", "parquet")
    repeats: int = 3
    seed: Seed = 0
    out: Path | None = None


def write_problem(args: Args, samples: int, folder: Path) -> None:
    """features.npy, features.parquet and head.npz; a block of rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(args.seed)
    np.savez(folder / "head.npz", weights=rng.normal(size=(args.classes, args.attributes)).astype(np.float32))
    kind = pa.list_(pa.float16(), args.attributes)
    array = np.lib.format.open_memmap(
        folder / "features.npy", "w+", np.float16, (samples, args.attributes), version=(1, 0)
    )
    with pq.ParquetWriter(folder / "features.parquet", pa.schema({"features": kind}), use_dictionary=False) as writer:
        for start in range(0, samples, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, samples - start)
            rows = rng.normal(size=(count, args.attributes)).astype(np.float16)
            array[start : start + count] = rows
            writer.write_table(pa.table({"features": pa.FixedSizeListArray.from_arrays(rows.reshape(-1), type=kind)}))
    array.flush()


def process(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a process from its start to its end, and its peak memory in GiB."""
    environment = {**os.environ, "SPECTRA_JAX_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    began, peak = time.perf_counter(), 0.0
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        peak = max(peak, _peak(child.pid))
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with {child.returncode}")
    return time.perf_counter() - began, peak


def _peak(number: int) -> float:
    """GiB that a running process has held at most; rusage would count what this one holds when it starts another."""
    with contextlib.suppress(OSError):  # it ended
        for line in Path(f"/proc/{number}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return 0.0


def measure(args: Args) -> dict[str, Any]:
    """Figures of each file."""
    figures: dict[str, Any] = {}
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_problem(args, samples, folder)
            for kind in args.kinds:
                sweep = [sys.executable, "-m", "experiments.sweep_attackability", "--features", f"features.{kind}",
                         "--head", "head.npz", "--shard", "0/1", "--out"]  # fmt: skip
                process([*sweep, f"{kind}-warm"], folder)  # compiled, and the file in memory where it fits
                runs: dict[str, list[tuple[float, float]]] = {"numpy": [], "sweep": []}
                for turn in range(args.repeats):
                    runs["numpy"].append(process([sys.executable, "-c", SCRIPT[kind]], folder))
                    runs["sweep"].append(process([*sweep, f"{kind}-{turn}"], folder))
                for who, found in runs.items():
                    seconds = [each[0] for each in found]
                    label = f"{samples}/{kind}/{who}"
                    figures |= {label: seconds, f"{label}/gib": max(each[1] for each in found)}
                    print(f"{samples:,} in .{kind}, {who}: {statistics.median(seconds):.2f} ({min(seconds):.2f} - "
                          f"{max(seconds):.2f}) s, {figures[f'{label}/gib']:.2f} GiB", flush=True)  # fmt: skip
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run("storage_sweep", Args, measure, arguments)


if __name__ == "__main__":
    run_main(main)
