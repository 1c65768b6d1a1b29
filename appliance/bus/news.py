"""Announcements that are read when they are sent: the first at once, many that follow as one.

A network of a hundred nodes is told of each launch; what they do about ten at once they may do
about the last.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from appliance.errors import AnynodeError
from appliance.messages import Message
from appliance.store import Announcement, Store, Transaction
from appliance.world import Clock

log = logging.getLogger(__name__)

Read = Callable[[Transaction], Announcement]


class News:
    """Sends what was to be announced later, on a thread of its own.

    :param send: sends one announcement now.
    """

    def __init__(self, store: Store, clock: Clock, send: Callable[[str, Message], None]) -> None:
        self._store = store
        self._clock = clock
        self._send = send
        self._rests_until: dict[str, float] = {}
        self._waiting: dict[str, Read] = {}
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def tell(self, about: str, read: Read) -> None:
        """Announce something now, or after a rest with what else comes about the same."""
        with self._changed:
            self._waiting[about] = read
            if self._thread is None and not self._is_stopping:
                self._thread = threading.Thread(target=self._loop, name="news", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self, deadline_s: float) -> None:
        """Announce what waits, and end. Safe to repeat."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join(deadline_s)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._is_stopping or self._is_any_due()):
                    self._changed.wait(self._left_s())
                is_last, due = self._is_stopping, self._take_due()
            for about, read in due.items():
                self._announce(about, read)
            if is_last:
                return

    def _is_any_due(self) -> bool:
        left_s = self._left_s()
        return left_s is not None and left_s <= 0

    def _left_s(self) -> float | None:
        """Return the seconds until something is due; ``None`` while nothing waits."""
        now = self._clock.monotonic()
        return min((self._rests_until.get(one, now) - now for one in self._waiting), default=None)

    def _take_due(self) -> dict[str, Read]:
        now = self._clock.monotonic()
        self._rests_until = {one: until for one, until in self._rests_until.items() if until > now}
        due = {
            about: read
            for about, read in self._waiting.items()
            if self._is_stopping or about not in self._rests_until
        }
        for about in due:
            del self._waiting[about]
        return due

    def _announce(self, about: str, read: Read) -> None:
        try:
            announcement = self._store.read(read)
            for topic, message in announcement.messages:
                self._send(topic, message)
        except AnynodeError as error:
            # Whoever waits for it asks by himself before long.
            log.warning("could not announce the %s: %s", about, error)
            return
        with self._changed:
            self._rests_until[about] = self._clock.monotonic() + announcement.rest_s
