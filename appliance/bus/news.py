"""Announcements that follow commits: the first at once, and of many that follow the last.

A network of a hundred nodes is told of each launch; what they do about ten at once they may do
about the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.messages import Message
from appliance.world import Clock

REST_S = 0.5
"""Seconds after an announcement for which others about the same wait."""

_About = tuple[str, str, str]


class News:
    """Sends announcements.

    :param send: sends one now; it does not fail.
    """

    def __init__(self, clock: Clock, send: Callable[[str, Message], None]) -> None:
        self._clock = clock
        self._send = send
        self._rests_until: dict[_About, float] = {}
        self._waiting: dict[_About, tuple[str, Message]] = {}
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def tell(self, topic: str, message: Message) -> None:
        """Send an announcement now, or after a rest with what else comes about the same."""
        if message.about is None:
            self._send(topic, message)
            return
        about = (topic, type(message).__name__, message.about)
        now = self._clock.monotonic()
        with self._changed:
            if now < self._rests_until.get(about, now):
                self._waiting[about] = (topic, message)
                self._begin()
                self._changed.notify()
                return
            self._rests_until[about] = now + REST_S
        self._send(topic, message)

    def stop(self, deadline_s: float) -> None:
        """Send what waits, and end. Safe to repeat."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join(deadline_s)

    def _begin(self) -> None:
        if self._thread is None and not self._is_stopping:
            self._thread = threading.Thread(target=self._loop, name="news", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                self._changed.wait_for(lambda: self._is_stopping, REST_S / 4)
                due = self._due()
                is_last = self._is_stopping
            for topic, message in due:
                self._send(topic, message)
            if is_last:
                return

    def _due(self) -> list[tuple[str, Message]]:
        now = self._clock.monotonic()
        rested = [one for one, until in self._rests_until.items() if until <= now]
        due = []
        for about in rested:
            waiting = self._waiting.pop(about, None)
            if waiting is None:
                del self._rests_until[about]
            else:
                self._rests_until[about] = now + REST_S
                due.append(waiting)
        if self._is_stopping:
            due += self._waiting.values()
            self._waiting.clear()
        return due
