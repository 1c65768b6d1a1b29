"""A cast that a broker has brought."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from appliance.bus import topology
from appliance.bus.amqp_link import Incoming, Link
from appliance.bus.guard import Guard, Sent
from appliance.bus.intake import Arrival, dead_letter
from appliance.bus.letters import Letters
from appliance.errors import ConfigError, Denied
from appliance.messages import DeadLetter, Message, encode
from appliance.store import OutboxRow, Store, Transaction, handled

NOBODY = "nobody"
"""The name of the sender of what came without one."""


class AmqpArrival:
    """An arrival whose proof of effect is a row in ``handled``, where there is a store.

    :param letters: where dead letters are kept; ``None`` without a store.
    """

    def __init__(
        self,
        link: Link,
        guard: Guard,
        store: Store | None,
        letters: Letters | None,
        incoming: Incoming,
    ) -> None:
        self.sent = what_was_sent(incoming)
        self.row = _row(self.sent, incoming)
        self._link = link
        self._guard = guard
        self._store = store
        self._letters = letters
        self._incoming = incoming
        self._is_refused = False
        self._lock = threading.Lock()
        self._end: Callable[[Link, Incoming], None] | None = None

    @property
    def message_id(self) -> str:
        return self.row.id

    @property
    def is_trusted(self) -> bool:
        return not self.sender

    @property
    def sender(self) -> str:
        """The login that sent it, where nobody vouches for what it says; else empty."""
        is_ours = not self._is_refused and self._guard.is_control(self.sent.login)
        return "" if is_ours else self.sent.login or NOBODY

    def check(self, message: Message) -> None:
        try:
            self._guard.check(self.sent, message)
        except Denied:
            self._is_refused = True
            raise

    def once(self, work: Callable[[Transaction], None]) -> None:
        if self._store is None:
            raise ConfigError("A role without a store cannot tell what has taken effect.")

        def handle(tx: Transaction) -> None:
            if handled.take(tx, self.row.topic, self.row.id):
                work(tx)

        self._store.transaction(handle)

    def settle(self) -> None:
        self._finish(_acknowledge)

    def bury(self, attempts: int, error: str, letter: DeadLetter | None) -> None:
        if self._letters is None:
            # What a broker gives up comes to a controller, who has a place for it.
            self._finish(_acknowledge if self._is_refused else _give_up)
            return
        self._letters.keep(self.row, attempts, error, letter, self.sender)
        self._finish(_acknowledge)

    def renew(self, other: Arrival) -> None:
        if not isinstance(other, AmqpArrival):
            return
        with self._lock:
            is_held, end = self._end is None and self._link.holds(self._incoming), self._end
            if not is_held:
                self._link, self._incoming = other._link, other._incoming
        if is_held:
            # The first comes again if need be, to this place: two would take two places.
            other._link.acknowledge(other._incoming)
        elif end:
            # It came again between its end and the moment when that was known everywhere.
            end(other._link, other._incoming)

    def release(self) -> None:
        self._finish(_give_back)

    def _finish(self, end: Callable[[Link, Incoming], None]) -> None:
        with self._lock:
            self._end = end
            link, incoming = self._link, self._incoming
        end(link, incoming)


class DeadArrival(AmqpArrival):
    """The arrival of what a broker has given up, in the form of what is to be told of it."""

    def __init__(
        self,
        link: Link,
        guard: Guard,
        store: Store | None,
        letters: Letters | None,
        incoming: Incoming,
    ) -> None:
        super().__init__(link, guard, store, letters, incoming)
        self.dead = self.row
        self.error = _why_it_died(incoming)
        self.letter = None if self.sender else dead_letter(self.dead, self.error)
        told = self.letter or DeadLetter(
            message_id=self.dead.id, topic=self.dead.topic, kind=self.dead.kind
        )
        self.row = OutboxRow(
            f"dead.{self.dead.id}", topology.DEAD_QUEUE, "", DeadLetter.__name__, encode(told)
        )

    @property
    def is_trusted(self) -> bool:
        # Whatever comes of it, nobody is to be told of a letter about a letter.
        return False

    def check(self, message: Message) -> None:
        """The broker has made it; what its sender may say was decided above."""

    def keep(self) -> None:
        """Keep the message, and let the controller know, once."""
        if self._letters is None:
            raise ConfigError("Dead letters are kept in the store, and this process has none.")
        attempts = topology.DELIVERY_LIMIT
        self._letters.keep(self.dead, attempts, self.error, self.letter, self.sender)


def what_was_sent(incoming: Incoming) -> Sent:
    """Return what is vouched for of something that came. An answer has the id of its question."""
    properties = incoming.properties
    message_id = properties.message_id or properties.correlation_id or ""
    headers: Mapping[str, Any] = properties.headers or {}
    return Sent(
        incoming.key,
        properties.type or "",
        message_id,
        incoming.body,
        properties.user_id,
        headers,
    )


def _acknowledge(link: Link, incoming: Incoming) -> None:
    link.acknowledge(incoming)


def _give_back(link: Link, incoming: Incoming) -> None:
    link.give_back(incoming)


def _give_up(link: Link, incoming: Incoming) -> None:
    link.give_up(incoming)


def _row(sent: Sent, incoming: Incoming) -> OutboxRow:
    lane = str(sent.headers.get("lane", ""))
    return OutboxRow(sent.message_id, sent.key.partition(".")[2], lane, sent.kind, sent.body)


def _why_it_died(incoming: Incoming) -> str:
    headers: Mapping[str, Any] = incoming.properties.headers or {}
    queue = headers.get("x-first-death-queue", "")
    if headers.get("x-first-death-reason") == "rejected":
        node_id = str(queue).removeprefix("node.")
        return f"Node {node_id} gave it up, and its log says why."
    return f"It was handed out {topology.DELIVERY_LIMIT} times, and never handled."
