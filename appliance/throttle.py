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
        # By key, the moment since which a bucket that was empty would have been filling.
        self._kept: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token of a key; ``False`` when there is none."""
        with self._lock:
            since = self._filling_since(key, now)
            taken = now - since >= self._refill_s
            self._kept[key] = since + self._refill_s if taken else since
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return taken

    def is_empty(self, key: Hashable, now: float) -> bool:
        """Say whether a token of a key could not be taken."""
        with self._lock:
            return now - self._filling_since(key, now) < self._refill_s

    def _filling_since(self, key: Hashable, now: float) -> float:
        full = now - self._size * self._refill_s
        # After the clock was set back a bucket begins empty.
        return min(now, max(full, self._kept.get(key, full)))
