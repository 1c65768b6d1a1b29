"""SIGTERM and Ctrl-C for commands that run until they are told to stop."""

from __future__ import annotations

import queue
import signal
from types import FrameType


class Signals:
    """SIGTERM and SIGINT: a start is broken off, what is up is asked to stop.

    A second signal breaks off the stop.
    """

    def __init__(self) -> None:
        # Not an Event: its lock may be held where the signal interrupts this thread.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_up = False
        self._is_asked = False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_repeated, self._is_asked = self._is_asked, True
        if not self._is_up or is_repeated:
            raise KeyboardInterrupt
        self._asked.put(None)

    def up(self) -> None:
        """Note that the start is done: from now on the first signal only ends :meth:`wait`.

        :raises KeyboardInterrupt: a signal came before. Python may have dropped what it raised,
            as it does in callbacks.
        """
        if self._is_asked and not self._is_up:
            raise KeyboardInterrupt
        self._is_up = True

    def ask(self) -> None:
        """Let :meth:`wait` return as after a signal; for another thread."""
        self._asked.put(None)

    def wait(self) -> None:
        """Return at the first signal since :meth:`up`."""
        self.up()
        self._asked.get()
