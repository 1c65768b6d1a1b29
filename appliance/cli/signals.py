"""SIGTERM and Ctrl-C for commands that run until they are told to stop."""

from __future__ import annotations

import signal
import socket
from types import FrameType

_ASKED = b"\0"
"""What rings where no signal does: those ring with their number."""


class Signals:
    """SIGTERM and SIGINT: a start is broken off, what is up is asked to stop.

    A second signal breaks off the stop. A process has one of these.
    """

    def __init__(self) -> None:
        self._is_up = False
        self._is_asked = False
        # The interpreter writes to it the moment a signal comes. A lock would not do: a signal that
        # comes just before the wait, or to another thread, interrupts nothing, and is lost on it.
        self._rung, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_repeated, self._is_asked = self._is_asked, True
        if not self._is_up or is_repeated:
            raise KeyboardInterrupt

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
        self._bell.send(_ASKED)

    def wait(self) -> None:
        """Return at the first signal since :meth:`up`."""
        self.up()
        while not self._is_asked and self._rung.recv(1) != _ASKED:
            pass
