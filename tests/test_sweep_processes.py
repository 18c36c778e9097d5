"""A sweep in processes of its own: two of them equal one, and kills at random moments leave no trace."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_multiprocess import ENVIRONMENT, HERE, free_port

from experiments.benchmarks.sweep_kills import Args, command, differences, kills
from experiments.cli.devices import num_cores

pytestmark = pytest.mark.slow


def written(folder: Path, args: Args) -> None:
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(args.samples, args.attributes)).astype(np.float32)
    np.savez(folder / "features.npz", attributes=attributes, labels=rng.integers(0, args.classes, args.samples))
    np.savez(folder / "head.npz", weights=rng.normal(size=(args.classes, args.attributes)).astype(np.float32))


def together(commands: list[list[str]], *, devices: int = 1, timeout: float = 200) -> list[tuple[int, str]]:
    """Exit code and messages of processes that form one job; SIGKILL ends them all after `timeout`."""
    hosts = ["--coordinator-address", f"127.0.0.1:{free_port()}", "--num-processes", str(len(commands))]
    environment = {**ENVIRONMENT, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    processes = [
        subprocess.Popen(
            [*line, *(hosts if len(commands) > 1 else []), *(["--process-id", str(i)] if len(commands) > 1 else [])],
            env=environment, cwd=HERE.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i, line in enumerate(commands)
    ]  # fmt: skip
    try:
        return [(process.wait(timeout), process.stderr.read() if process.stderr else "") for process in processes]
    finally:
        for process in processes:
            # jax.distributed swallows SIGTERM.
            process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stderr:
                process.stderr.close()


def test_two_processes_and_four_devices_equal_one(tmp_path):
    args = Args(samples=65, classes=5, attributes=4, files=7, methods=("projection", "boundary"))
    written(tmp_path, args)
    assert together([command(args, tmp_path, tmp_path / "one")])[0][0] == 0
    two = together([command(args, tmp_path, tmp_path / "two")] * 2)
    assert [code for code, _ in two] == [0, 0], two
    assert differences(tmp_path / "one", tmp_path / "two") == []
    four = together([command(args, tmp_path, tmp_path / "four")], devices=4)
    assert four[0][0] == 0, four
    assert differences(tmp_path / "one", tmp_path / "four") == []


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, None),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, 1),
    ],
)
def test_a_cpu_is_one_device_a_core_unless_the_user_says_otherwise(chosen, expected):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "XLA_FLAGS"} | chosen
    text = "import jax; from experiments.cli import devices; devices.one_device_a_core(); print(jax.device_count())"
    said = subprocess.run(
        [sys.executable, "-c", text], env=environment, cwd=HERE.parent, capture_output=True, text=True
    )
    assert said.stdout.strip() == str(expected or num_cores()), said


def test_processes_that_disagree_or_fail_all_end(tmp_path):
    args = Args(samples=20, classes=5, attributes=4, files=2, methods=("boundary",))
    written(tmp_path, args)
    line = command(args, tmp_path, tmp_path / "out")
    np.savez(tmp_path / "other.npz", weights=np.ones((5, 4), np.float32))
    other = [str(tmp_path / "other.npz") if part.endswith("head.npz") else part for part in line]
    disagree = together([line, other])
    assert [code for code, _ in disagree] == [2, 2]
    assert all("do not see the same features" in text for _, text in disagree), disagree
    missing = [str(tmp_path / "none.npz") if part.endswith("features.npz") else part for part in line]
    fail = together([line, missing])
    assert [code for code, _ in fail] == [2, 2]
    assert "Another process cannot continue" in fail[0][1] and "there is no such file" in fail[1][1], fail
    assert not (tmp_path / "out").exists()


def test_kills_leave_no_trace(tmp_path):
    args = Args(kills=3, samples=600, classes=8, attributes=6, files=12, methods=("boundary",), seed=1)
    wrong, finished = kills(args, tmp_path)
    assert wrong == [] and finished > 0


def test_ctrl_c_finishes_the_partition(tmp_path):
    args = Args(samples=60_000, classes=40, attributes=64, files=60, methods=("boundary",))
    written(tmp_path, args)
    line = [part for part in command(args, tmp_path, tmp_path / "out") if part != "--quiet"]
    process = subprocess.Popen(line, env=ENVIRONMENT, cwd=HERE.parent, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        while not list(tmp_path.glob("out/pairs/*.parquet")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "repeat the command to continue" in messages, messages
    assert not list(tmp_path.glob("out/**/*.tmp")) and not (tmp_path / "out" / "summary.json").exists()


def test_the_command_line_explains_itself():
    shown = subprocess.run(
        [sys.executable, "-m", "experiments.sweep_attackability", "--help"],
        env=ENVIRONMENT, cwd=HERE.parent, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for option in ("--run-dir", "--features", "--head", "--out", "--methods", "--margin", "--immutable", "--deltas",
                   "--head-weight", "--coordinator-address"):  # fmt: skip
        assert option in shown
    with pytest.raises(subprocess.CalledProcessError) as failed:
        subprocess.run([sys.executable, "-m", "experiments.sweep_attackability", "--out", "x"], env=ENVIRONMENT,
                       cwd=HERE.parent, capture_output=True, text=True, check=True)  # fmt: skip
    assert failed.value.returncode == 2 and "Name either --run-dir" in failed.value.stderr
