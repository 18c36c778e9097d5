"""What a run writes and shows: metrics as JSON lines, JSON files, and progress on the console."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from spectra_jax.extras import extra

with extra("experiments"):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON: a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line torn by a crash is left out.

    Raises:
        ValueError: a line is not a JSON object, naming it.
    """
    if not Path(path).exists():
        return []
    whole, _, _ = Path(path).read_bytes().rpartition(b"\n")
    return [_record(line, number) for number, line in enumerate(whole.split(b"\n"), start=1) if line]


def _record(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"line {number} is {str(record)[:40]}; expected a JSON object")
    return record


class MetricsFile:
    """Appends records to a JSON-lines file, one whole line a record, on disk when `append` returns.

    `position` belongs into a checkpoint: opening the file with it removes every line written after that checkpoint, so
    a killed and resumed run leaves each record once. Not for several writers.
    """

    def __init__(self, path: Path, *, position: int = 0):
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        kept = os.pread(self._descriptor, min(position, size), 0)
        # Where the file is shorter than promised (edited, or lost with the power) keep its whole lines.
        os.ftruncate(self._descriptor, kept.rfind(b"\n") + 1)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._descriptor).st_size

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; numbers that JSON cannot hold (NaN, infinity) become null."""
        line = json.dumps(_finite(dict(record)), allow_nan=False) + "\n"
        # One write call: a process killed here leaves the whole line or none on every usual file system.
        os.write(self._descriptor, line.encode())

    def sync(self) -> None:
        """Forces the lines to the disk, so that they outlive a power cut as surely as the checkpoint after them."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Console:
    """Progress for people: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

    Args:
        stream: where to write; default standard error, which leaves standard output to results.
        every: seconds between two plain lines where the stream is no terminal.
        quiet: show nothing.
    """

    def __init__(self, *, stream: TextIO | None = None, every: float = 15.0, quiet: bool = False):
        self._stream = stream if stream is not None else sys.stderr
        self._every = every
        self.quiet = quiet
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """One line of text, above the bar where there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def progress(self, title: str, total: int, *, start: int = 0, unit: str = "steps") -> "Task":
        """A task of `total` units of which `start` are done; use it in a `with` statement."""
        return Task(self, title, total, start=start, unit=unit)


class Task:
    """One line of progress; see `Console.progress`."""

    def __init__(self, console: Console, title: str, total: int, *, start: int, unit: str):
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._start = self._done = start
        self._began = self._spoke = time.monotonic()
        self._id: Any = None

    def __enter__(self) -> "Task":
        console = self._console
        if not console.quiet and console._stream.isatty() and console._bar is None:
            from rich.console import Console as RichConsole

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
            )
            console._bar = Progress(
                *columns, TimeRemainingColumn(), console=RichConsole(file=console._stream), transient=True
            )
            console._bar.start()
            self._id = console._bar.add_task(self._title, total=self._total, completed=self._done, info="")
        return self

    def __exit__(self, *exception) -> None:
        if self._id is not None and self._console._bar is not None:
            self._console._bar.stop()
            self._console._bar = None

    def update(self, done: int, info: str = "") -> None:
        """Says that `done` units in all are finished; `info` is a short remark such as the current loss."""
        self._done = done
        now = time.monotonic()
        rate = (done - self._start) / max(now - self._began, 1e-9)
        text = f"{rate:.3g} {self._unit}/s {info}".rstrip()
        if self._id is not None and self._console._bar is not None:
            self._console._bar.update(self._id, completed=done, info=text)
        elif not self._console.quiet and now - self._spoke >= self._console._every:
            self._spoke = now
            left = duration((self._total - done) / rate) if rate else "unknown"
            self._console.say(f"{self._title}: {done}/{self._total}, {text}, {left} left")


def duration(seconds: float) -> str:
    """Seconds as people read them: "48 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
