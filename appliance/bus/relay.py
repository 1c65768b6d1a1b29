"""The way of the outbox to a broker: after the commit at once, and again until it was confirmed.

Whoever has written a row publishes it. Rows that stayed behind, because their writer died or the
broker was away, are published by any process that has the store: each takes some for itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from appliance.errors import AnynodeError, Unavailable
from appliance.store import OutboxRow, Store
from appliance.store import outbox as outbox_table
from appliance.world import World

log = logging.getLogger(__name__)

AFTER_S = 2.0
"""Seconds after which a row that is still there is anybody's to publish."""

AGAIN_AFTER_S = 5.0
"""Seconds for which a row is his who took it."""

GATHER_S = 0.1
"""Seconds for which confirmed rows are gathered, to be deleted at once."""

Finish = Callable[[Exception | None], None]
"""Called with what went wrong; with nothing when it went well."""

Publish = Callable[[OutboxRow, Finish], None]


class Relay:
    """Publishes the rows of a store's outbox, and deletes those that a broker has.

    :param publish: sends a row and calls back, from any thread, with what kept it from a queue.
    """

    def __init__(self, store: Store, world: World, publish: Publish) -> None:
        self._store = store
        self._world = world
        self._publish = publish
        self._under_way: set[str] = set()
        self._confirmed: list[str] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look after what stays behind."""
        self._thread = threading.Thread(target=self._loop, name="outbox", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Delete what was confirmed, and end. Safe to repeat."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(deadline_s)
        try:
            self._delete_confirmed()
        except Unavailable as error:
            log.warning("messages that were sent stay in the outbox, and come again: %s", error)

    def take(self, row: OutboxRow) -> None:
        """Publish a row that was committed; one that is under way already is left alone."""
        with self._changed:
            if row.id in self._under_way:
                return
            self._under_way.add(row.id)
        try:
            self._publish(row, lambda error: self._published(row.id, error))
        except AnynodeError as error:
            # It is committed, and whoever has committed it is not to blame.
            log.error("could not send %s, which stays in the outbox: %s", row.kind, error)
            self._published(row.id, error)

    def _published(self, message_id: str, error: Exception | None) -> None:
        if error is None:
            self._world.crash("bus.published")
        with self._changed:
            self._under_way.discard(message_id)
            if error is None:
                self._confirmed.append(message_id)
                self._changed.notify_all()

    def _loop(self) -> None:
        clock = self._world.clock
        next_look = 0.0
        while True:
            with self._changed:
                wait_s = max(next_look - clock.monotonic(), 0.01)
                self._changed.wait_for(lambda: self._is_stopping or self._confirmed, wait_s)
                # In the same wait for the end: others confirm meanwhile.
                self._changed.wait_for(lambda: self._is_stopping, GATHER_S)
                if self._is_stopping:
                    return
            try:
                self._delete_confirmed()
                if clock.monotonic() >= next_look:
                    is_more = self._look()
                    next_look = clock.monotonic() + (GATHER_S if is_more else AFTER_S)
            except Exception as error:  # noqa: BLE001 - without this thread nothing is sent again
                log.warning("could not look at the outbox: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopping, AFTER_S)

    def _look(self) -> bool:
        """Take what has stayed behind; say whether there may be more of it."""
        if not self._store.read(lambda tx: outbox_table.is_any_due(tx, AFTER_S, AGAIN_AFTER_S)):
            return False
        rows = self._store.transaction(lambda tx: outbox_table.claim(tx, AFTER_S, AGAIN_AFTER_S))
        for row in rows:
            self.take(row)
        return bool(rows)

    def _delete_confirmed(self) -> None:
        with self._changed:
            confirmed, self._confirmed = self._confirmed, []
        if not confirmed:
            return
        try:
            self._store.transaction(lambda tx: outbox_table.take_all(tx, confirmed))
        except Exception:
            with self._changed:
                self._confirmed += confirmed
            raise


def wait_for(begin: Callable[[Finish], None], deadline_s: float) -> None:
    """Begin something that calls back, and wait for it.

    :raises Unavailable: it has not called back within ``deadline_s`` seconds.
    """
    done: Future[None] = Future()

    def finish(error: Exception | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    begin(finish)
    try:
        done.result(timeout=deadline_s)
    except FutureTimeoutError as error:
        raise Unavailable(f"The broker has confirmed nothing for {deadline_s:g} s.") from error
