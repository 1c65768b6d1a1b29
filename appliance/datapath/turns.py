"""Turns: calls about one instance one after the other, those about several at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import Unavailable


class Turns:
    """Lets callers with the same key go one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: dict[str, deque[object]] = {}

    @contextmanager
    def turn(self, key: str, deadline_s: float) -> Iterator[None]:
        """Wait for the turn and hold it; a turn cannot be had twice by the same caller.

        :raises Unavailable: it did not come in time; whoever asked has given up by then, so that
            what it wanted must not take effect any more.
        """
        ticket = object()
        with self._changed:
            line = self._lines.setdefault(key, deque())
            line.append(ticket)
            is_our_turn = self._changed.wait_for(lambda: line[0] is ticket, deadline_s)
            if not is_our_turn:
                self._leave(key, ticket)
                raise Unavailable(f"Other work on {key} did not end within {deadline_s:g} s.")
        try:
            yield
        finally:
            with self._changed:
                self._leave(key, ticket)

    def _leave(self, key: str, ticket: object) -> None:
        line = self._lines[key]
        line.remove(ticket)
        if not line:
            del self._lines[key]
        self._changed.notify_all()
