"""Whose turn it is to compute: one thread at a time, and long computations let short ones pass."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE = 0.002  # seconds, after which a thread that waits has taken its turn


class Turns:
    """A lock around JAX, for all tabs and both models: answers stay fast beside a picture that is being made.

    Attributes:
        thorough: the lock of searches that take seconds and cannot stop on the way. They run beside edits, one at a
            time.
    """

    def __init__(self) -> None:
        self.thorough = threading.Lock()
        self._lock = threading.Lock()
        self._waiting = 0
        self._count = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the turn while the `with` block lasts."""
        with self._count:
            self._waiting += 1
        self._lock.acquire()
        with self._count:
            self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a turn."""
        return self._waiting > 0

    def let_pass(self) -> None:
        """Within a turn: lets those who wait go first."""
        while self.is_awaited:
            self._lock.release()
            time.sleep(_PAUSE)
            self._lock.acquire()
