"""The bus of a lone node: one process, roles on threads, the outbox table as the queue.

A row is deleted in the transaction in which its handler takes effect, or after a handler without
a store has returned. Rows that other processes wrote are found by looking every two seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from appliance.bus.intake import Arrival, Intake
from appliance.errors import Unavailable
from appliance.messages import DeadLetter, Message, encode
from appliance.role import Role
from appliance.store import Announcement, OutboxRow, Store, Transaction
from appliance.store import outbox as outbox_table
from appliance.world import World

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

ALWAYS_S = float("inf")


class _LocalArrival:
    """An arrival whose proof of effect is that its row is gone."""

    is_trusted = True

    def __init__(self, store: Store, row: OutboxRow, done: set[str]) -> None:
        self.row = row
        self._store = store
        self._done = done
        self._is_taken = False

    @property
    def message_id(self) -> str:
        return self.row.id

    def check(self, message: Message) -> None:
        """Within a process all may say anything."""

    def once(self, work: Callable[[Transaction], None]) -> None:
        def handle(tx: Transaction) -> None:
            if outbox_table.take(tx, self.row.id):
                work(tx)

        self._store.transaction(handle)
        self._is_taken = True

    def settle(self) -> None:
        if not self._is_taken:
            self._store.transaction(lambda tx: outbox_table.take(tx, self.row.id))
        self._done.add(self.row.id)

    def bury(self, attempts: int, error: str, letter: DeadLetter | None) -> None:
        def keep(tx: Transaction) -> None:
            outbox_table.bury(tx, self.row.id, attempts, error)
            if letter is not None:
                tx.cast("controller", letter)

        self._store.transaction(keep)
        self._done.add(self.row.id)

    def renew(self, other: Arrival) -> None:
        """The row is the same one."""

    def release(self) -> None:
        """The row stays where it is."""


class LocalBus:
    """Delivers within one process; see :class:`appliance.bus.Bus`."""

    def __init__(self, store: Store, world: World, *, attempts: int, lanes: int) -> None:
        self._store = store
        self._intake = Intake(world, attempts=attempts, lanes=lanes, look=self._look_at_outbox)
        # What was handled since the outbox was last looked at.
        self._done: set[str] = set()
        store.on_commit(self._committed)

    def serve(self, role: Role) -> None:
        self._intake.serve(role)

    def retire(self, topic: str, deadline_s: float) -> None:
        self._intake.retire(topic, deadline_s)

    def start(self) -> None:
        self._intake.start()

    def stop(self, deadline_s: float) -> None:
        self._intake.stop(deadline_s)

    def cast(self, topic: str, message: Message) -> None:
        self._store.transaction(lambda tx: tx.cast(topic, message))

    def call(self, topic: str, question: Message, answer: type[M], deadline_s: float) -> M:
        return ask_here(self._intake, topic, question, answer, deadline_s)

    def announce(self, topic: str, message: Message) -> None:
        self._intake.announce(topic, message)

    def well_for_s(self) -> float:
        return ALWAYS_S

    def wait_quiet(self, deadline_s: float) -> bool:
        """Wait until all that was cast here is handled; say whether that came true in time."""
        return self._intake.wait_quiet(deadline_s)

    def _committed(self, transaction: Transaction) -> None:
        served = self._intake.roles
        for row in transaction.casts:
            if row.topic in served:
                self._accept(row)
        for topic, message in transaction.announcements:
            self.announce(topic, message)
        for about, read in transaction.news.items():
            self._announce_news(about, read)

    def _announce_news(self, about: str, read: Callable[[Transaction], Announcement]) -> None:
        try:
            announcement = self._store.read(read)
        except Unavailable as error:
            log.warning("could not announce the %s: %s", about, error)
            return
        for topic, message in announcement.messages:
            self.announce(topic, message)

    def _accept(self, row: OutboxRow) -> None:
        self._intake.accept(_LocalArrival(self._store, row, self._done))

    def _look_at_outbox(self) -> None:
        self._done.clear()
        try:
            topics = tuple(self._intake.roles)
            rows = self._store.read(lambda tx: outbox_table.pending(tx, topics))
        except Exception as error:  # noqa: BLE001 - without this thread nothing is delivered
            log.warning("could not look at the outbox: %s", error)
            return
        for row in rows:
            # One that was handled since it was read is only here because it was read before.
            if row.id not in self._done:
                self._accept(row)


def ask_here(
    intake: Intake, topic: str, question: Message, answer: type[M], deadline_s: float
) -> M:
    """Ask a role of this process.

    :raises Unavailable: nobody here answers it, or not within ``deadline_s``.
    """
    kind = type(question).__name__
    # Through the codec, so that nobody comes to rely on shared objects.
    future = intake.ask(topic, kind, encode(question))
    try:
        given = future.result(timeout=deadline_s)
    except CancelledError as error:
        raise Unavailable(f"The bus takes no {kind} any more: it was stopped.") from error
    except FutureTimeoutError as error:
        future.cancel()
        raise Unavailable(f"{topic} did not answer {kind} within {deadline_s:g} s.") from error
    if not isinstance(given, answer):
        raise Unavailable(f"{topic} answered {kind} with {type(given).__name__}.")
    return given
