"""What every bus does with what arrives: lanes, attempts, retries, dead letters, answers.

How a message came, and what makes that it does not come again, is the business of an
:class:`Arrival`; when it is handled, and how often, is decided here.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from appliance.ending import Countdown, end_threads
from appliance.errors import (
    AnynodeError,
    Denied,
    InputError,
    NotFound,
    Stale,
    Unavailable,
    cause_chain,
)
from appliance.lanes import Lanes
from appliance.messages import DeadLetter, Message, decode
from appliance.role import Role
from appliance.store import OutboxRow, Transaction
from appliance.store.outbox import LONGEST_ERROR
from appliance.world import World

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
_CALL_THREADS = 32


class Arrival(Protocol):
    """A cast that has arrived; it is also the delivery that its handler is given."""

    @property
    def row(self) -> OutboxRow:
        """The message, as it is written in an outbox."""
        ...

    @property
    def is_trusted(self) -> bool:
        """Whether its sender may say anything, so that others may go by what it says."""
        ...

    @property
    def message_id(self) -> str:
        """The message's id, the same at each arrival."""
        ...

    def check(self, message: Message) -> None:
        """See that its sender may say this.

        :raises Denied: it may not; the message is kept as a dead letter, and nobody is told.
        :raises Stale: it comes too late; it is dropped.
        """
        ...

    def once(self, work: Callable[[Transaction], None]) -> None:
        """See :meth:`appliance.bus.Delivery.once`."""
        ...

    def settle(self) -> None:
        """See to it that it does not come again: it took effect, or never shall."""
        ...

    def bury(self, attempts: int, error: str, letter: DeadLetter | None) -> None:
        """Keep it as a dead letter, and send ``letter`` to the controller."""
        ...

    def renew(self, other: Arrival) -> None:
        """Take note that it has come once more while it is worked on."""
        ...

    def release(self) -> None:
        """Leave it to whoever serves its topic next."""
        ...


class Intake:
    """The roles of a process, and the threads on which their handlers run.

    :param look: called every two seconds, and first when the intake starts.
    :param pause: called with a topic whose handler cannot work now (``True``), or can again.
    """

    def __init__(
        self,
        world: World,
        *,
        attempts: int,
        lanes: int,
        look: Callable[[], None] = lambda: None,
        pause: Callable[[str, bool], None] = lambda topic, is_paused: None,
    ) -> None:
        self._world = world
        self._attempts = attempts
        self._lane_count = lanes
        self._look = look
        self._pause = pause
        self._roles: dict[str, Role] = {}
        self._lanes: dict[str, Lanes] = {}
        # For each topic: a question that is asked while another is answered finds a thread.
        self._callers: dict[str, Lanes] = {}
        self._strays = Lanes("stray", 1)
        self._known: dict[str, Arrival] = {}
        self._paused: set[str] = set()
        self._later: list[tuple[float, int, Arrival, int]] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._count = 0
        self._warned_at = float("-inf")
        self._thread: threading.Thread | None = None

    @property
    def roles(self) -> dict[str, Role]:
        """The roles by their topics."""
        with self._changed:
            return dict(self._roles)

    def serve(self, role: Role) -> None:
        """Let a role take its messages."""
        with self._changed:
            self._lanes[role.topic] = Lanes(role.name, self._lane_count)
            self._callers[role.topic] = Lanes(f"{role.name}-call", _CALL_THREADS)
            self._roles[role.topic] = role

    def retire(self, topic: str, deadline_s: float) -> None:
        """Finish what a role has under way, and leave the rest to others. Safe to repeat."""
        with self._changed:
            self._roles.pop(topic, None)
            lanes, callers = self._lanes.pop(topic, None), self._callers.pop(topic, None)
        countdown = Countdown(deadline_s)
        for threads in (lanes, callers):
            if threads:
                threads.stop(countdown.left_s())
        with self._changed:
            self._paused.discard(topic)
            left = [one for one in self._known.values() if one.row.topic == topic]
            for arrival in left:
                del self._known[arrival.row.id]
            self._later = [item for item in self._later if item[2] not in left]
            heapq.heapify(self._later)
            self._changed.notify_all()
        for arrival in left:
            arrival.release()

    def start(self) -> None:
        """Begin to look and to try again."""
        self._thread = threading.Thread(target=self._loop, name="bus", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Finish what is under way and take no more. Safe to repeat."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        countdown = Countdown(deadline_s)
        if self._thread:
            end_threads([self._thread], countdown.left_s())
        # What takes casts asks questions, and so comes first.
        for lanes in (*self._lanes.values(), self._strays, *self._callers.values()):
            lanes.stop(countdown.left_s())

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_stopping

    def wait_quiet(self, deadline_s: float) -> bool:
        """Wait until all that has arrived is handled; say whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._known, deadline_s)

    def accept(self, arrival: Arrival) -> None:
        """Have a cast handled; one that is here already is not handled twice."""
        with self._changed:
            if self._is_stopping:
                return
            known = self._known.setdefault(arrival.row.id, arrival)
        if known is not arrival:
            known.renew(arrival)
            return
        self._submit(arrival, 1)

    def ask(
        self, topic: str, kind: str, body: bytes, check: Callable[[Message], None] | None = None
    ) -> Future[Message | None]:
        """Have a question answered; it is decoded on the thread that answers it.

        :raises Unavailable: no role here has the topic, or answers what is asked.
        """

        with self._changed:
            role, callers = self._roles.get(topic), self._callers.get(topic)
        if role is None or callers is None:
            raise Unavailable(f"Nobody here answers {kind} on {topic}.")
        handlers = role.calls

        def give() -> Message | None:
            asked = decode(kind, body)
            if check:
                check(asked)
            handler = handlers.get(type(asked))
            if handler is None:
                raise Unavailable(f"Nobody here answers {kind} on {topic}.")
            return handler(asked)

        return callers.ask(give)

    def announce(self, topic: str, message: Message) -> list[Future[None]]:
        """Let the roles of a topic hear something, and those whose group it is.

        :returns: what is done, or cancelled, when they have heard it.
        """
        hearing = []
        for name, role in self.roles.items():
            hear = role.hears.get(type(message))
            lanes = self._lanes.get(name)
            if hear and lanes and topic in (name, role.group_topic):
                hearing.append(lanes.ask(partial(hear, message)))
        for one in hearing:
            one.add_done_callback(_say_what_failed)
        return hearing

    def _submit(self, arrival: Arrival, attempt: int) -> None:
        row = arrival.row
        with self._changed:
            role, lanes = self._roles.get(row.topic), self._lanes.get(row.topic, self._strays)
        lanes.submit(row.lane, lambda: self._deliver(role, arrival, attempt))

    def _deliver(self, role: Role | None, arrival: Arrival, attempt: int) -> None:
        topic = arrival.row.topic
        try:
            self._attempt(role, arrival, attempt)
        except Unavailable as error:
            # It is the store that is away, not the message that is bad: this does not count.
            self._set_paused(topic, True)
            self._retry(arrival, attempt - 1, error)
        else:
            self._set_paused(topic, False)

    def _set_paused(self, topic: str, is_paused: bool) -> None:
        with self._changed:
            if (topic in self._paused) == is_paused or topic not in self._roles:
                return
            (self._paused.add if is_paused else self._paused.discard)(topic)
        self._pause(topic, is_paused)

    def _attempt(self, role: Role | None, arrival: Arrival, attempt: int) -> None:
        row = arrival.row
        try:
            if role is None:
                raise NotFound(f"No role here takes what comes to {row.topic}.")
            message = decode(row.kind, row.body)
            arrival.check(message)
            handler = role.casts.get(type(message))
            if handler is None:
                raise InputError(f"Role {role.name} takes no {row.kind}.")
            self._world.crash(f"bus.before.{row.kind}")
            handler(message, arrival)
            self._world.crash(f"bus.after.{row.kind}")
            arrival.settle()
        except Stale as stale:
            log.debug("dropped %s: %s", row.kind, stale)
            arrival.settle()
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - it is retried, then kept as a dead letter
            is_hopeless = isinstance(error, (InputError, Denied))
            if attempt < self._attempts and not is_hopeless:
                self._retry(arrival, attempt, error)
                return
            self._bury(arrival, attempt, error)
        self._forget(row)

    def _retry(self, arrival: Arrival, attempt: int, error: Exception) -> None:
        level = logging.INFO if isinstance(error, AnynodeError) else logging.ERROR
        kind, chain = arrival.row.kind, " <- ".join(cause_chain(error))
        log.log(level, "%s failed, attempt %d: %s", kind, attempt, chain)
        due = self._world.clock.monotonic() + min(0.1 * 4 ** max(attempt, 1), 10.0)
        with self._changed:
            self._count += 1
            heapq.heappush(self._later, (due, self._count, arrival, attempt + 1))
            self._changed.notify_all()

    def _bury(self, arrival: Arrival, attempt: int, error: Exception) -> None:
        row = arrival.row
        if arrival.is_trusted:
            log.error("gave up %s after %d attempts", row.kind, attempt, exc_info=error)
        else:
            self._warn_of(row, error)
        text = " <- ".join(cause_chain(error))[:LONGEST_ERROR]
        arrival.bury(attempt, text, dead_letter(row, text) if arrival.is_trusted else None)

    def _warn_of(self, row: OutboxRow, error: Exception) -> None:
        """Say what came of what others sent, but not as often as they please."""
        now = self._world.clock.monotonic()
        if now - self._warned_at >= LOOK_EVERY_S:
            self._warned_at = now
            log.warning("gave up a %s: %s", row.kind[:64], " <- ".join(cause_chain(error))[:1000])

    def _forget(self, row: OutboxRow) -> None:
        with self._changed:
            self._known.pop(row.id, None)
            if not self._known:
                self._changed.notify_all()

    def _loop(self) -> None:
        """Look every two seconds, and hand out retries when they are due."""
        next_look = 0.0
        while True:
            now = self._world.clock.monotonic()
            if now >= next_look:
                self._look()
                next_look = now + LOOK_EVERY_S
            with self._changed:
                if self._is_stopping:
                    return
                due = []
                while self._later and self._later[0][0] <= now:
                    due.append(heapq.heappop(self._later))
                if not due:
                    wait_s = min([next_look, *(item[0] for item in self._later[:1])]) - now
                    self._changed.wait(max(wait_s, 0.01))
            for _, _, arrival, attempt in due:
                self._submit(arrival, attempt)


def _say_what_failed(hearing: Future[None]) -> None:
    error = None if hearing.cancelled() else hearing.exception()
    if isinstance(error, AnynodeError):
        log.warning("a hint was heard in vain: %s", " <- ".join(cause_chain(error)))
    elif error is not None:
        log.error("a hint was heard in vain", exc_info=error)


def dead_letter(row: OutboxRow, error: str) -> DeadLetter | None:
    """Return what the controller is told of a message that was given up."""
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
