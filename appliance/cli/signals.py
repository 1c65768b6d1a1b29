"""SIGTERM and Ctrl-C for commands that run until they are told to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Signals:
    """SIGTERM and SIGINT: a start is broken off, what is up is asked to stop.

    A second signal breaks off the stop.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._is_waiting = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_waiting or self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()

    def ask(self) -> None:
        """Let :meth:`wait` return as after a signal; for another thread."""
        self._asked.set()

    def wait(self) -> None:
        """Return at the first signal."""
        self._is_waiting = True
        self._asked.wait()
