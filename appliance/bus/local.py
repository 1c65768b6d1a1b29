"""The bus of a lone node: one process, roles on threads, the outbox table as the queue.

A row is deleted in the transaction in which its handler takes effect, or after a handler without
a store has returned. Rows that other processes wrote are found by looking every two seconds.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from appliance.ending import Countdown, end_threads
from appliance.errors import AnynodeError, InputError, Stale, Unavailable, cause_chain
from appliance.lanes import Lanes
from appliance.messages import DeadLetter, Message, decode, encode
from appliance.role import CastHandler, Role
from appliance.store import OutboxRow, Store, Transaction
from appliance.store import outbox as outbox_table
from appliance.world import World

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

LOOK_EVERY_S = 2.0
_CALL_THREADS = 32


class _LocalDelivery:
    """An arrival whose proof of effect is that its row is gone."""

    def __init__(self, store: Store, row: OutboxRow) -> None:
        self._store = store
        self._row = row
        self.is_taken = False

    @property
    def message_id(self) -> str:
        return self._row.id

    def once(self, work: Callable[[Transaction], None]) -> None:
        def handle(tx: Transaction) -> None:
            if outbox_table.take(tx, self._row.id):
                work(tx)

        self._store.transaction(handle)
        self.is_taken = True


class LocalBus:
    """Delivers within one process; see :class:`appliance.bus.Bus`."""

    def __init__(self, store: Store, world: World, *, attempts: int, lanes: int) -> None:
        self._store = store
        self._world = world
        self._attempts = attempts
        self._lane_count = lanes
        self._roles: dict[str, Role] = {}
        self._lanes: dict[str, Lanes] = {}
        # For each topic: a question that is asked while another is answered finds a thread.
        self._callers: dict[str, Lanes] = {}
        self._done: set[str] = set()
        self._known: set[str] = set()
        self._later: list[tuple[float, int, OutboxRow, int]] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._count = 0
        self._thread: threading.Thread | None = None
        store.on_commit(self._committed)

    def serve(self, role: Role) -> None:
        self._roles[role.topic] = role
        self._lanes[role.topic] = Lanes(role.name, self._lane_count)
        self._callers[role.topic] = Lanes(f"{role.name}-call", _CALL_THREADS)

    def start(self) -> None:
        self._is_stopping = False
        self._thread = threading.Thread(target=self._look, name="bus", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        countdown = Countdown(deadline_s)
        if self._thread:
            end_threads([self._thread], countdown.left_s())
        # What takes casts asks questions, and so comes first.
        for lanes in (*self._lanes.values(), *self._callers.values()):
            lanes.stop(countdown.left_s())

    def cast(self, topic: str, message: Message) -> None:
        self._store.transaction(lambda tx: tx.cast(topic, message))

    def call(self, topic: str, question: Message, answer: type[M], deadline_s: float) -> M:
        kind = type(question).__name__
        role = self._roles.get(topic)
        handler = role.calls.get(type(question)) if role else None
        if handler is None:
            raise Unavailable(f"Nobody here answers {kind} on {topic}.")
        # Through the codec, so that nobody comes to rely on shared objects.
        asked = decode(kind, encode(question))
        future = self._callers[topic].ask(lambda: handler(asked))
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

    def announce(self, topic: str, message: Message) -> None:
        for name, role in self._roles.items():
            hear = role.hears.get(type(message))
            if hear and (name == topic or name.startswith(f"{topic}.")):
                self._lanes[name].submit("", lambda hear=hear: hear(message))  # type: ignore[misc]

    def wait_quiet(self, deadline_s: float) -> bool:
        """Wait until all that was cast here is handled; say whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._known, deadline_s)

    def _committed(self, transaction: Transaction) -> None:
        for row in transaction.casts:
            self._accept(row, attempt=1)
        for topic, message in transaction.announcements:
            self.announce(topic, message)

    def _accept(self, row: OutboxRow, attempt: int) -> None:
        role = self._roles.get(row.topic)
        with self._changed:
            if role is None or self._is_stopping or row.id in self._known:
                return
            self._known.add(row.id)
        self._submit(role, row, attempt)

    def _submit(self, role: Role, row: OutboxRow, attempt: int) -> None:
        self._lanes[row.topic].submit(row.lane, lambda: self._deliver(role, row, attempt))

    def _deliver(self, role: Role, row: OutboxRow, attempt: int) -> None:
        try:
            self._attempt(role, row, attempt)
        except Unavailable as error:
            # It is the store that is away, not the message that is bad: this does not count.
            self._retry(row, attempt - 1, error)

    def _attempt(self, role: Role, row: OutboxRow, attempt: int) -> None:
        try:
            message = decode(row.kind, row.body)
            handler = role.casts.get(type(message))
            if handler is None:
                raise InputError(f"Role {role.name} takes no {row.kind}.")
            self._handle(handler, message, row)
        except Stale as stale:
            log.debug("dropped %s: %s", row.kind, stale)
            self._store.transaction(lambda tx: outbox_table.take(tx, row.id))
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - it is retried, then kept as a dead letter
            is_hopeless = isinstance(error, InputError)
            if is_hopeless or attempt >= self._attempts:
                self._bury(row, attempt, error)
            else:
                self._retry(row, attempt, error)
                return
        self._forget(row)

    def _handle(self, handler: CastHandler, message: Message, row: OutboxRow) -> None:
        self._world.crash(f"bus.before.{row.kind}")
        delivery = _LocalDelivery(self._store, row)
        handler(message, delivery)
        self._world.crash(f"bus.after.{row.kind}")
        if not delivery.is_taken:
            self._store.transaction(lambda tx: outbox_table.take(tx, row.id))

    def _retry(self, row: OutboxRow, attempt: int, error: Exception) -> None:
        level = logging.INFO if isinstance(error, AnynodeError) else logging.ERROR
        log.log(
            level, "%s failed, attempt %d: %s", row.kind, attempt, " <- ".join(cause_chain(error))
        )
        due = self._world.clock.monotonic() + min(0.1 * 4 ** max(attempt, 1), 10.0)
        with self._changed:
            self._count += 1
            heapq.heappush(self._later, (due, self._count, row, attempt + 1))
            self._changed.notify_all()

    def _bury(self, row: OutboxRow, attempt: int, error: Exception) -> None:
        log.error("gave up %s after %d attempts", row.kind, attempt, exc_info=error)
        text = " <- ".join(cause_chain(error))[: outbox_table.LONGEST_ERROR]
        letter = _dead_letter(row, text)

        def bury(tx: Transaction) -> None:
            outbox_table.bury(tx, row.id, attempt, text)
            if letter is not None:
                tx.cast("controller", letter)

        self._store.transaction(bury)

    def _forget(self, row: OutboxRow) -> None:
        with self._changed:
            self._known.discard(row.id)
            self._done.add(row.id)
            if not self._known:
                self._changed.notify_all()

    def _look(self) -> None:
        """Deliver what waits: retries when they are due, rows of others every two seconds."""
        next_look = 0.0
        while True:
            now = self._world.clock.monotonic()
            if now >= next_look:
                self._look_at_outbox()
                next_look = now + LOOK_EVERY_S
            with self._changed:
                if self._is_stopping:
                    return
                due = [heapq.heappop(self._later) for _ in self._later_due(now)]
                wait_s = min([next_look, *(item[0] for item in self._later[:1])]) - now
                if not due:
                    self._changed.wait(max(wait_s, 0.01))
            for _, _, row, attempt in due:
                self._submit(self._roles[row.topic], row, attempt)

    def _later_due(self, now: float) -> range:
        return range(sum(1 for item in self._later if item[0] <= now))

    def _look_at_outbox(self) -> None:
        with self._changed:
            self._done.clear()
        try:
            topics = tuple(self._roles)
            rows = self._store.read(lambda tx: outbox_table.pending(tx, topics))
        except Exception as error:  # noqa: BLE001 - without this thread nothing is delivered
            log.warning("could not look at the outbox: %s", error)
            return
        for row in rows:
            # One that was handled since it was read is only here because it was read before.
            if row.id not in self._done:
                self._accept(row, attempt=1)


def _dead_letter(row: OutboxRow, error: str) -> DeadLetter | None:
    if row.kind == DeadLetter.__name__:
        return None
    try:
        message = decode(row.kind, row.body)
    except InputError:
        message = None
    return DeadLetter(
        message_id=row.id,
        topic=row.topic,
        kind=row.kind,
        subject=row.lane,
        instance_id=getattr(message, "instance_id", ""),
        instance_ids=getattr(message, "instance_ids", ()),
        epoch=getattr(message, "epoch", 0),
        error=error,
        request_id=message.request_id if message else "",
    )
