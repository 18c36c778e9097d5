"""Ctrl-C and SIGTERM as a polite request, so that work stops where it can be resumed."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stop:
    """Whether the user asked to stop: Ctrl-C or SIGTERM sets `signal`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells expect."""
        return 128 + (self.signal or 0)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns Ctrl-C and SIGTERM into a polite request inside the `with` block."""
    stop = Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
