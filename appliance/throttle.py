"""Token buckets: how often something may happen, by key, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable


class Buckets:
    """A bucket of tokens for each key; the one that was used longest ago is forgotten first.

    :param size: tokens in a full bucket.
    :param refill_s: seconds in which a bucket gains one token.
    :param most: buckets that are kept.
    """

    def __init__(self, *, size: int, refill_s: float, most: int) -> None:
        self._size = size
        self._refill_s = refill_s
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token of a key; ``False`` when there is none."""
        with self._lock:
            tokens = self._tokens(key, now)
            taken = tokens >= 1
            self._kept[key] = (tokens - 1 if taken else tokens, now)
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return taken

    def is_empty(self, key: Hashable, now: float) -> bool:
        """Say whether a token of a key could not be taken."""
        with self._lock:
            return self._tokens(key, now) < 1

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, at = self._kept.get(key, (float(self._size), now))
        # A clock that was set back gives nothing, and takes nothing away.
        return min(float(self._size), tokens + max(0.0, now - at) / self._refill_s)
