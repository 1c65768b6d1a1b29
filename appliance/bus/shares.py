"""How much of a process's attention one sender has: none may take it from the others."""

from __future__ import annotations

import threading
from collections import Counter

MOST_AT_ONCE = 64
"""Questions, or hints, of one node that a process has in hand; what is beyond is not taken."""


class Shares:
    """Counts what is in hand by who sent it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_hand: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, sender: str) -> bool:
        """Note that something of a sender is in hand; ``False`` when there is too much of it.

        The empty name stands for all who may have as much as they want.
        """
        if not sender:
            return True
        with self._lock:
            if self._in_hand[sender] >= self._most:
                return False
            self._in_hand[sender] += 1
            return True

    def give(self, sender: str) -> None:
        """Note that it is done."""
        if not sender:
            return
        with self._lock:
            self._in_hand[sender] -= 1
            if not self._in_hand[sender]:
                del self._in_hand[sender]
