"""Runs experiments.train and sends itself a signal at a chosen moment.

usage: resume_worker.py SIGNAL LINES DELAY RUN_DIR [training options]
The signal comes DELAY seconds after metrics.jsonl has LINES lines; SIGNAL 0 sends none.
"""

import os
import sys
import threading
import time
from pathlib import Path

from experiments.cli.command import run_main
from experiments.runs.folder import METRICS
from experiments.train.__main__ import main


def signal_at(number: int, lines: int, delay: float, metrics: Path) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    number, lines, delay, run_dir, *options = sys.argv[1:]
    if int(number):
        arguments = (int(number), int(lines), float(delay), Path(run_dir) / METRICS)
        threading.Thread(target=signal_at, args=arguments, daemon=True).start()
    run_main(lambda: main(["--run-dir", run_dir, *options]))
