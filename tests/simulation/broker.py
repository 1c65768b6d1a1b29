"""A message broker that delays, doubles, reorders and loses what it may lose.

What it has confirmed it does not lose; hints, questions and answers it may.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar

from appliance.bus import relay
from appliance.errors import AnynodeError, InputError, Stale, Unavailable, cause_chain
from appliance.messages import DeadLetter, Message, decode, encode
from appliance.role import Role
from appliance.store import Announcement, OutboxRow, Transaction, handled
from appliance.store import outbox as outbox_table
from tests.simulation.loop import Loop

if TYPE_CHECKING:
    from tests.simulation.process import Process

M = TypeVar("M", bound=Message)
ATTEMPTS = 5
RELAY_EVERY_S = 4.0


@dataclass
class Weather:
    """How bad it is: each the chance of one thing to go wrong."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    killed: float = 0.0
    interrupted: float = 0.0


class Killed(BaseException):
    """What the code of a process sees at its next crash point when it was killed."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.name)
        self.process = process


class Broker:
    """Queues, and who takes from them."""

    def __init__(self, loop: Loop, random: Random, weather: Weather) -> None:
        self.loop = loop
        self.random = random
        self.weather = weather
        self.processes: list[Process] = []
        self.dead: list[tuple[OutboxRow, str]] = []
        self.waiting: dict[str, list[OutboxRow]] = defaultdict(list)
        self.under_way = 0

    def chance(self, share: float) -> bool:
        """Say whether something that happens so often happens now."""
        return self.random.random() < share

    def delay_s(self) -> float:
        """Return how long a message takes."""
        if self.chance(self.weather.late):
            return self.random.uniform(0.1, 15.0)
        return self.random.uniform(0.0005, 0.02)

    def accept(self, row: OutboxRow) -> None:
        """Take a cast and bring it to whoever serves its topic."""
        for _ in range(2 if self.chance(self.weather.doubled) else 1):
            self.under_way += 1
            self.loop.after(self.delay_s(), lambda: self._arrive(row, 1), interrupts=True)

    def flush(self) -> None:
        """Bring what has waited for somebody who serves its topic."""
        for topic in list(self.waiting):
            for row in self.waiting.pop(topic):
                self.under_way += 1
                self.loop.after(self.delay_s(), partial(self._arrive, row, 1))

    def serving(self, topic: str) -> list[Process]:
        """Return the processes that take a topic's messages now."""
        return [p for p in self.processes if topic in p.topics and not p.is_dead and not p.is_cut]

    def _arrive(self, row: OutboxRow, attempt: int) -> None:
        self.under_way -= 1
        takers = self.serving(row.topic)
        if not takers:
            self.waiting[row.topic].append(row)
            return
        process = self.random.choice(takers)
        if process.is_busy:
            self._again(row, attempt, 0.05)
            return
        if not process.guard(lambda: self._deliver(process, row, attempt)):
            # It died before it could say that it was done.
            self._again(row, attempt + 1, 1.0)
        elif self.chance(self.weather.doubled):
            self._again(row, 1, self.delay_s())

    def _again(self, row: OutboxRow, attempt: int, delay_s: float) -> None:
        self.under_way += 1
        self.loop.after(delay_s, lambda: self._arrive(row, attempt), interrupts=True)

    def _deliver(self, process: Process, row: OutboxRow, attempt: int) -> None:
        process.crash(f"bus.before.{row.kind}")
        try:
            message = decode(row.kind, row.body)
            handler = process.topics[row.topic].casts.get(type(message))
            if handler is None:
                raise InputError(f"{row.topic} takes no {row.kind}.")
            handler(message, Delivery(process, row))
        except Stale:
            pass
        except Unavailable:
            self._again(row, attempt, 1.0)
        except Exception as error:
            if attempt >= ATTEMPTS:
                self.bury(row, error)
            else:
                self._again(row, attempt + 1, 0.1 * 4**attempt)
        process.crash(f"bus.after.{row.kind}")

    def bury(self, row: OutboxRow, error: Exception) -> None:
        """Keep a message that nobody can handle, and tell the controllers."""
        text = " <- ".join(cause_chain(error))
        self.dead.append((row, text))
        if row.kind == DeadLetter.__name__:
            return
        message = decode(row.kind, row.body)
        letter = DeadLetter(
            message_id=row.id,
            topic=row.topic,
            kind=row.kind,
            subject=row.lane,
            instance_id=getattr(message, "instance_id", ""),
            instance_ids=getattr(message, "instance_ids", ()),
            epoch=getattr(message, "epoch", 0),
            error=text,
        )
        kind = DeadLetter.__name__
        self.accept(OutboxRow(f"{row.id}.dead", "controller", "", kind, encode(letter)))


class Delivery:
    """An arrival whose proof of effect is a row in ``handled``."""

    def __init__(self, process: Process, row: OutboxRow) -> None:
        self._process = process
        self._row = row

    @property
    def message_id(self) -> str:
        return self._row.id

    def once(self, work: Callable[[Transaction], None]) -> None:
        def handle(tx: Transaction) -> None:
            if handled.take(tx, self._row.topic, self._row.id):
                work(tx)

        self._process.need_store().transaction(handle)


class SimulatedBus:
    """The broker as one process sees it; see :class:`appliance.bus.Bus`."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker = broker
        self._process = process
        self._publishing: set[str] = set()
        if process.store is not None:
            process.store.on_commit(self._committed)
            self._relay_later()

    def serve(self, role: Role) -> None:
        self._process.topics[role.topic] = role

    def retire(self, topic: str, deadline_s: float) -> None:
        self._process.topics.pop(topic, None)

    def start(self) -> None:
        """Do nothing: messages come as soon as a role is served."""

    def stop(self, deadline_s: float) -> None:
        """Do nothing: a process of a history is killed."""

    def well_for_s(self) -> float:
        return 0.0 if self._process.is_cut else 3600.0

    def cast(self, topic: str, message: Message) -> None:
        store = self._process.store
        if store is not None:
            store.transaction(lambda tx: tx.cast(topic, message))
            return
        if self._process.is_cut or self._broker.chance(self._broker.weather.lost):
            raise Unavailable("No broker confirmed it.")
        kind = type(message).__name__
        row = OutboxRow(self._process.world.ids.uuid(), topic, message.lane, kind, encode(message))
        self._broker.accept(row)
        if self._broker.chance(self._broker.weather.lost):
            raise Unavailable("The confirmation was lost.")

    def call(self, topic: str, question: Message, answer: type[M], deadline_s: float) -> M:
        own = self._process.topics.get(topic)
        kind = type(question).__name__
        if own is not None and type(question) in own.calls:
            given = own.calls[type(question)](decode(kind, encode(question)))
        else:
            given = self._ask(topic, kind, question, deadline_s)
        assert isinstance(given, answer)
        decoded = decode(type(given).__name__, encode(given))
        assert isinstance(decoded, answer)
        return decoded

    def _ask(self, topic: str, kind: str, question: Message, deadline_s: float) -> Message:
        broker, clock = self._broker, self._process.world.clock
        takers = [p for p in broker.serving(topic) if not p.is_busy]
        if self._process.is_cut or not takers or broker.chance(broker.weather.lost):
            clock.sleep(deadline_s)
            raise Unavailable(f"{topic} did not answer {kind}.")
        clock.sleep(broker.delay_s())
        asked = broker.random.choice(takers)
        given: list[Message | None] = []
        failed: list[AnynodeError] = []

        def work() -> None:
            handler = asked.topics[topic].calls[type(question)]
            try:
                given.append(handler(decode(kind, encode(question))))
            except AnynodeError as error:
                failed.append(error)

        is_alive = asked.guard(work)
        if failed:
            raise failed[0]
        if not is_alive or not given or given[0] is None or broker.chance(broker.weather.lost):
            clock.sleep(deadline_s)
            raise Unavailable(f"{topic} did not answer {kind}.")
        clock.sleep(broker.delay_s())
        self._process.crash("bus.answered")
        return given[0]

    def announce(self, topic: str, message: Message) -> None:
        broker = self._broker
        if self._process.is_cut:
            return
        body = encode(message)
        kind = type(message).__name__
        for process in broker.processes:
            for role in process.topics.values():
                if type(message) in role.hears and not broker.chance(broker.weather.lost):
                    self._hint(process, role, kind, body)

    def _hint(self, process: Process, role: Role, kind: str, body: bytes) -> None:
        def hear() -> None:
            if not process.is_cut and not process.is_busy:
                message = decode(kind, body)
                process.guard(lambda: role.hears[type(message)](message))

        self._broker.loop.after(self._broker.delay_s(), hear, process)

    # -- the outbox ---------------------------------------------------------------------------

    def _committed(self, transaction: Transaction) -> None:
        for row in transaction.casts:
            self._publish(row)
        for topic, message in transaction.announcements:
            self.announce(topic, message)
        for read in transaction.news.values():
            self._process.guard(partial(self._announce_news, read))

    def _announce_news(self, read: Callable[[Transaction], Announcement]) -> None:
        for topic, message in self._process.need_store().read(read).messages:
            self.announce(topic, message)

    def _publish(self, row: OutboxRow) -> None:
        if self._process.is_cut or self._broker.chance(self._broker.weather.lost):
            return  # The row stays, and is relayed.
        self._publishing.add(row.id)
        self._broker.accept(row)
        if self._broker.chance(self._broker.weather.lost):
            self._publishing.discard(row.id)
            return
        delay_s = self._broker.delay_s()
        self._broker.loop.after(delay_s, lambda: self._confirmed(row.id), self._process)

    def _confirmed(self, message_id: str) -> None:
        self._publishing.discard(message_id)
        store = self._process.need_store()
        self._process.guard(
            lambda: store.transaction(lambda tx: outbox_table.take_all(tx, [message_id]))
        )

    def _relay_later(self) -> None:
        self._broker.loop.after(RELAY_EVERY_S, self._relay, self._process)

    def _relay(self) -> None:
        self._relay_later()
        store = self._process.need_store()

        def look() -> None:
            if not store.read(
                lambda tx: outbox_table.is_any_due(tx, relay.AFTER_S, relay.AGAIN_AFTER_S)
            ):
                return
            due = store.transaction(
                lambda tx: outbox_table.claim(tx, relay.AFTER_S, relay.AGAIN_AFTER_S)
            )
            for row in due:
                if row.id not in self._publishing:
                    self._publish(row)

        self._process.guard(look)
