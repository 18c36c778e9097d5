"""A sweep on a local Ray cluster whose workers are killed leaves the tables of one command."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.cli.command import UserError
from experiments.sweep_attackability.__main__ import Args, sweep
from experiments.sweep_attackability.options import InputConfig, ShardConfig

ROOT = Path(__file__).resolve().parents[1]
NUM_SAMPLES, NUM_CLASSES, NUM_ATTRIBUTES = 40_000, 400, 32
SHARDS = 6


def test_one_way_to_ask_for_shards():
    with pytest.raises(UserError, match="omit --shard and --merge"):
        ShardConfig(shard="0/2", ray=2).check()
    with pytest.raises(UserError, match="--ray -1: expected a number of shards"):
        ShardConfig(ray=-1).check()


@pytest.fixture
def source(tmp_path) -> InputConfig:
    rng = np.random.default_rng(0)
    features, weights = (rng.normal(size=(rows, NUM_ATTRIBUTES)) for rows in (NUM_SAMPLES, NUM_CLASSES))
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    np.savez(tmp_path / "head.npz", weights=weights.astype(np.float32))
    return InputConfig(features=tmp_path / "features.npy", head=tmp_path / "head.npz")


def workers() -> list[int]:
    """Processes of Ray that answer a shard now."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::_solve" in line]


def test_workers_are_killed_and_the_table_is_that_of_one_command(tmp_path, source, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # a socket's path is short
    assert sweep(Args(tmp_path / "whole", source, quiet=True)) == 0
    files = ["--features", str(source.features), "--head", str(source.head), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "experiments.sweep_attackability", *files, "--ray", str(SHARDS), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    killed, over = [], threading.Event()

    def kill() -> None:
        while not over.is_set() and len(killed) < 3:
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(1)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert process.wait(timeout=400) == 0
    finally:
        process.kill()
        over.set()
        killer.join()
    assert killed
    merged, whole = (pq.read_table(tmp_path / name / "nearest.parquet") for name in ("out", "whole"))
    assert merged == whole


def test_what_is_wrong_with_the_input_is_said_once(tmp_path, source, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    from experiments.sweep_attackability.ray_cluster import solve_on_cluster
    from spectra_jax.logging import Console

    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    gone = Args(tmp_path / "out", InputConfig(features=tmp_path / "gone.npy", head=source.head))
    with pytest.raises(UserError, match=r"gone\.npy"):
        solve_on_cluster(gone, 2, console=Console(quiet=True))
