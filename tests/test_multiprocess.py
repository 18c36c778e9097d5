"""Two processes with one device each must train like one process."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
# One device per process: several devices in several processes on few cores have been seen to hang.
ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(out: Path, num_processes: int, *, timeout: float = 120) -> None:
    """Runs the worker in `num_processes` processes; SIGKILL ends them all after `timeout` or when one fails."""
    port = free_port()
    logs = [out.with_suffix(f".{index}.log") for index in range(num_processes)]
    processes = []
    for index, log in enumerate(logs):
        command = [sys.executable, str(HERE / "multiprocess_worker.py"), str(out), str(port), str(num_processes)]
        with open(log, "w") as stream:
            processes.append(
                subprocess.Popen([*command, str(index)], env=ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT)
            )
    try:
        for process in processes:
            process.wait(timeout)
    finally:
        for process in processes:
            # jax.distributed swallows SIGTERM.
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert [process.returncode for process in processes] == [0] * num_processes, "\n".join(
        log.read_text()[-3000:] for log in logs
    )


def test_two_processes_equal_one(tmp_path):
    launch(tmp_path / "two", 2)
    launch(tmp_path / "one", 1)
    results = [dict(np.load(tmp_path / name)) for name in ("one.0.npz", "two.0.npz", "two.1.npz")]
    for name in results[0]:
        # The two processes hold the same copy, and the same as one process up to the order of sums.
        np.testing.assert_array_equal(results[1][name], results[2][name], err_msg=name)
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-3, atol=1e-5, err_msg=name)
