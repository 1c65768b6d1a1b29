"""Dead letters on their way to the store: all of ours, and some of those of everybody else.

Who is not vouched for may send as many as a broker takes: few of one sender are kept, and the
others are counted without a transaction for each.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

from appliance.errors import Unavailable
from appliance.messages import DeadLetter
from appliance.store import OutboxRow, Store, Transaction
from appliance.store import outbox as outbox_table
from appliance.world import Clock

log = logging.getLogger(__name__)

LONGEST_KEPT = 2**20
"""Bytes of a message that is kept as a dead letter; of a longer one only the name is kept."""

LONGEST_OF_OTHERS = 2**14
"""The same, of a sender for whom nobody vouches."""

MOST_A_MINUTE = 60
"""Letters of such a sender that one process keeps within a minute; the others it counts."""

_MINUTE_S = 60.0


class Letters:
    """Keeps dead letters.

    ``sender`` is the login that sent a message, where nobody vouches for it.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._minute = 0
        self._kept: Counter[str] = Counter()
        self._forgotten: Counter[str] = Counter()
        self._lock = threading.Lock()

    def keep(
        self,
        row: OutboxRow,
        attempts: int,
        error: str,
        letter: DeadLetter | None,
        sender: str = "",
    ) -> None:
        """Keep a message as a dead letter in the store, and let the controller know, once.

        :raises Unavailable: the store does not answer.
        """
        if sender and not self._is_kept(sender, row, error):
            return
        longest = LONGEST_OF_OTHERS if sender else LONGEST_KEPT
        if len(row.body) > longest:
            error = f"{error} (Its {len(row.body)} bytes were not kept.)"
            row = row._replace(body=b"")

        def write(tx: Transaction) -> None:
            if outbox_table.keep(tx, row, attempts, error, sender) and letter is not None:
                tx.cast("controller", letter)

        self._store.transaction(write)

    def _is_kept(self, sender: str, row: OutboxRow, error: str) -> bool:
        with self._lock:
            minute = int(self._clock.monotonic() // _MINUTE_S)
            if minute != self._minute:
                self._minute = minute
                self._kept.clear()
            if self._kept[sender] >= MOST_A_MINUTE:
                self._forgotten[sender] += 1
                return False
            self._kept[sender] += 1
            is_first = self._kept[sender] == 1
        if is_first:
            log.warning("%s sent a %s that has no effect: %s", sender, row.kind[:64], error)
        return True

    def count(self) -> None:
        """Write how many were not kept since the last time; what cannot be is written later."""
        with self._lock:
            forgotten, self._forgotten = self._forgotten, Counter()
        if not forgotten:
            return

        def write(tx: Transaction) -> None:
            for sender, number in sorted(forgotten.items()):
                outbox_table.forget(tx, sender, number)

        try:
            self._store.transaction(write)
        except Unavailable as error:
            log.warning("could not count the dead letters: %s", error)
            with self._lock:
                self._forgotten.update(forgotten)
