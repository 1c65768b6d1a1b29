"""Periodic work: each piece on a thread of its own, until it is told to end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from appliance.errors import AnynodeError
from appliance.role import Periodic

log = logging.getLogger(__name__)


class Rounds:
    """The periodic work of one role. What fails is logged, and tried again at the next time."""

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._turns: list[tuple[str, threading.Event]] = []

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """The threads, for whoever waits for their end."""
        return self._threads

    def begin(self, periodic: Periodic) -> None:
        """Do a piece of work from now on, for the first time after its interval."""

        turn = threading.Event()
        self._turns.append((periodic.name, turn))

        def loop() -> None:
            while True:
                turn.wait(periodic.every_s)
                turn.clear()
                if self._ending.is_set():
                    return
                try:
                    periodic.run()
                except AnynodeError as error:
                    log.warning("%s: %s", periodic.name, error)
                except Exception:
                    log.exception("%s failed; it is tried again", periodic.name)

        thread = threading.Thread(target=loop, name=periodic.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def hurry(self, name: str) -> None:
        """Do the work of that name now, or once more where it is under way; none is no error."""
        for known, turn in self._turns:
            if known == name:
                turn.set()

    def end(self) -> None:
        """Begin no round any more; those under way go on."""
        self._ending.set()
        for _, turn in self._turns:
            turn.set()
