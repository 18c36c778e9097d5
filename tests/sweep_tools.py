"""A small sweep that several test files share: its input, how it is run, and what it leaves."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.inputs import InputConfig
from experiments.sweep_attackability.solve import SolveConfig

NUM_SAMPLES, NUM_CLASSES, NUM_ATTRIBUTES = 43, 5, 4
BOUNDARY = SolveConfig(methods=("boundary",), samples_per_partition=10)


def arrays():
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(NUM_SAMPLES, NUM_ATTRIBUTES)).astype(np.float32)
    weights = rng.normal(size=(NUM_CLASSES, NUM_ATTRIBUTES)).astype(np.float32)
    return attributes, rng.integers(0, NUM_CLASSES, NUM_SAMPLES), weights


def write_source(folder: Path) -> InputConfig:
    attributes, labels, weights = arrays()
    np.savez(folder / "features.npz", attributes=attributes, labels=labels)
    np.savez(folder / "head.npz", weights=weights)
    return InputConfig(features=folder / "features.npz", head=folder / "head.npz")


def run(out: Path, source: InputConfig, config: SolveConfig = BOUNDARY) -> int:
    return sweep(Args(out, source, config, quiet=True))


def pairs(out: Path) -> pa.Table:
    return pyarrow.dataset.dataset(out / "pairs", format="parquet").to_table()


def tables(out: Path) -> dict[str, pa.Table]:
    return {str(path.relative_to(out)): pq.read_table(path) for path in sorted(out.glob("**/*.parquet"))}


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())
