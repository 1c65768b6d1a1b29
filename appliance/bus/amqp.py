"""The bus of a cluster: RabbitMQ, one topic exchange, durable quorum queues.

* A cast is published from the outbox after the commit, and its row goes once a broker has
  confirmed it. It is acknowledged when its handler has returned, so that it comes again when the
  process dies before.
* A question carries its deadline as its expiry, and is acknowledged when it is begun.
* An announcement goes to the queues of the processes that hear it now.

What is asked of a role of the same process is answered in the process, broker or not.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import pika

from appliance.bus import Delivery, Place, TlsFiles, failure, tls_context, topology
from appliance.bus.amqp_arrival import NOBODY, AmqpArrival, DeadArrival, what_was_sent
from appliance.bus.amqp_link import MOST_BYTES, Incoming, Link, Outgoing
from appliance.bus.amqp_links import Links, Urls
from appliance.bus.guard import Guard, Signer
from appliance.bus.intake import Intake
from appliance.bus.letters import Letters
from appliance.bus.local import ask_here
from appliance.bus.news import News
from appliance.bus.relay import Finish, Relay, wait_for
from appliance.bus.shares import MOST_AT_ONCE, Shares
from appliance.bus.urls import without_login
from appliance.errors import AnynodeError, Denied, InputError, Stale, Unavailable
from appliance.lanes import Lanes
from appliance.messages import DeadLetter, Message, decode, encode
from appliance.role import Role
from appliance.store import OutboxRow, Store, Transaction
from appliance.world import World

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
_Answers = SimpleQueue[Incoming | Exception]

CAST_S = 10.0
"""Seconds within which a broker must have confirmed a cast that is not in an outbox."""

START_S = 5.0
"""Seconds that a start waits for a connection, before it goes on without one."""

LONGEST_ID = 64


class AmqpBus:
    """Delivers through RabbitMQ; see :class:`appliance.bus.Bus`.

    :param urls: brokers of one cluster, with the login, in the order in which they are tried.
    :param store: where the outbox is; ``None`` in a process whose roles reach no store.
    :param declares: whether its login may declare durable queues; else they must be there.
    :param also: a broker that is heard, too, see :class:`appliance.bus.MovingBus`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        world: World,
        *,
        store: Store | None,
        node_id: str,
        attempts: int,
        lanes: int,
        tls: TlsFiles | None = None,
        signer: Signer | None = None,
        declares: bool = True,
        also: Place | None = None,
    ) -> None:
        self._store = store
        self._world = world
        self._node_id = node_id
        self._login = _login_of(tuple(urls))
        self.guard = Guard(self._login, node_id, signer, world.clock)
        self._letters = Letters(store, world.clock) if store is not None else None
        self._intake = Intake(
            world,
            attempts=attempts,
            lanes=lanes,
            look=self._letters.count if self._letters else lambda: None,
            pause=self._pause,
        )
        self._asking, self._telling = Shares(MOST_AT_ONCE), Shares(MOST_AT_ONCE)
        self._process = f"{node_id}.{uuid.uuid4().hex[:12]}"
        self._declared = (
            (*topology.shared_queues(), topology.node_queue(node_id)) if declares else ()
        )
        places = _places(Place(urls=tuple(urls), tls=tls), also)
        self._tls = {place.urls: place.tls for place in places}
        self._links = Links(self._make_link, [place.urls for place in places])
        self._hints = Lanes("hint", 1)
        self._asked: dict[str, _Answers] = {}
        self._lock = threading.Lock()
        self._is_started = False
        self._silenced: set[str] = set()
        self._relay: Relay | None = None
        self._news: News | None = None
        if store is not None:
            self._relay = Relay(store, world, self._publish)
            self._news = News(store, world.clock, self.announce)
            store.on_commit(self._committed)

    def _make_link(self, urls: Urls) -> Link:
        def receive(incoming: Incoming) -> None:
            self._receive(link, incoming)

        files = self._tls[urls]
        link = Link(
            urls,
            self._world,
            tls=partial(tls_context, files) if files else None,
            name=self._process,
            declared=self._declared,
            receive=receive,
            unroutable=self._unroutable,
        )
        return link

    @property
    def _link(self) -> Link:
        """The connection that is sent over."""
        return self._links.first

    def serve(self, role: Role) -> None:
        self._intake.serve(role)
        if role.topic == "controller" and self._store is not None:
            self._intake.serve(
                Role(
                    name="dead-letters",
                    topic=topology.DEAD_QUEUE,
                    casts={DeadLetter: _keep_dead},
                )
            )
        self._follow()

    def retire(self, topic: str, deadline_s: float) -> None:
        for one in (topic, topology.DEAD_QUEUE) if topic == "controller" else (topic,):
            with self._lock:
                self._silenced.add(one)
            self._follow()
            self._intake.retire(one, deadline_s)
            with self._lock:
                self._silenced.discard(one)
        self._follow()

    def start(self) -> None:
        self._is_started = True
        self._connect()
        self._follow()
        if not self._link.wait_up(START_S):
            log.warning("there is no connection to the message broker yet")
        self._intake.start()
        if self._relay:
            self._relay.start()

    def stop(self, deadline_s: float) -> None:
        self._intake.stop(deadline_s)
        self._hints.stop(deadline_s)
        if self._news:
            self._news.stop(deadline_s)
        if self._relay:
            self._relay.stop(deadline_s)
        self._links.stop(deadline_s)

    def well_for_s(self) -> float:
        return self._link.well_for_s()

    def move(self, place: Place, also: Place | None = None) -> bool:
        places = _places(place, also)
        if any(_login_of(one.urls) != self._login for one in places):
            return False
        self._tls |= {one.urls: one.tls for one in places}
        self._links.move([one.urls for one in places])
        return True

    def places(self) -> tuple[str, ...]:
        return tuple(_shown(urls) for urls in self._links.places())

    def trouble(self) -> str:
        missing = [_shown(urls) for urls in self._links.missing()]
        return f"There is no connection to {' and '.join(missing)}." if missing else ""

    def _connect(self) -> Link:
        """Return the connection, which begins with the first that is sent, or the start."""
        return self._links.start()

    def _follow(self) -> None:
        """Take what comes for the roles that are here and can work."""
        if not self._is_started:
            return
        roles = self._intake.roles
        with self._lock:
            heard = [role for topic, role in roles.items() if topic not in self._silenced]
        hearing = [role for role in heard if role.hears]
        topics = {role.topic for role in hearing} | {role.group_topic for role in hearing}
        self._links.want(
            {topology.queue_of(role.topic) for role in heard},
            {f"hint.{topic}" for topic in topics if topic},
        )

    def _pause(self, topic: str, is_paused: bool) -> None:
        """Leave what comes to others while a role cannot work; a node's own queue has no others."""
        if "." in topic or self._intake.is_stopping:
            return
        log.info("%s takes %s", topic, "no messages for now" if is_paused else "messages again")
        with self._lock:
            (self._silenced.add if is_paused else self._silenced.discard)(topic)
        self._follow()

    # -- sending ------------------------------------------------------------------------------

    def cast(self, topic: str, message: Message) -> None:
        if self._intake.is_stopping:
            raise Unavailable("The bus was stopped.")
        if self._store is not None:
            self._store.transaction(lambda tx: tx.cast(topic, message))
            return
        kind = type(message).__name__
        row = OutboxRow(self._world.ids.uuid(), topic, message.lane, kind, encode(message))
        wait_for(lambda finish: self._publish(row, finish), CAST_S)

    def call(self, topic: str, question: Message, answer: type[M], deadline_s: float) -> M:
        kind = type(question).__name__
        if self._intake.is_stopping:
            raise Unavailable(f"The bus takes no {kind} any more: it was stopped.")
        role = self._intake.roles.get(topic)
        if role and type(question) in role.calls:
            return ask_here(self._intake, topic, question, answer, deadline_s)
        given = self._ask(topic, kind, encode(question), deadline_s)
        if given.properties.type == failure.FAILURE:
            raise failure.decode(given.body)
        message = decode(given.properties.type or "", given.body)
        if not isinstance(message, answer):
            raise Unavailable(f"{topic} answered {kind} with {type(message).__name__}.")
        return message

    def _ask(self, topic: str, kind: str, body: bytes, deadline_s: float) -> Incoming:
        clock = self._world.clock
        until = clock.monotonic() + deadline_s
        number = self._world.ids.uuid()
        answers: _Answers = SimpleQueue()
        self._asked[number] = answers
        try:
            if not self._connect().wait_up(deadline_s):
                raise Unavailable("There is no connection to the message broker.")
            key, left_ms = f"call.{topic}", int((until - clock.monotonic()) * 1000)
            properties = self._properties(
                key,
                kind,
                number,
                body,
                correlation_id=number,
                reply_to=self._link.reply_key,
                expiration=str(max(left_ms, 1)),
            )

            def sent(error: Exception | None) -> None:
                if error is not None:
                    answers.put(error)

            self._link.send(Outgoing(key, body, properties, sent, is_confirmed=False))
            while True:
                given = answers.get(timeout=max(until - clock.monotonic(), 0.0))
                if isinstance(given, Exception):
                    raise given
                if self._is_answer(given, topic):
                    return given
        except Empty as error:
            raise Unavailable(f"{topic} did not answer {kind} within {deadline_s:g} s.") from error
        finally:
            self._asked.pop(number, None)

    def _unroutable(self, message_id: str, key: str) -> None:
        answers = self._asked.get(message_id)
        if answers is not None:
            answers.put(Unavailable(f"No queue takes messages for {key}."))

    def _is_answer(self, given: Incoming, topic: str) -> bool:
        """Say whether an answer comes from whom was asked."""
        try:
            self.guard.check_answer(what_was_sent(given), topic)
        except (Denied, Stale) as error:
            log.debug("did not take an answer: %s", error)
            return False
        return True

    def announce(self, topic: str, message: Message) -> None:
        self._intake.announce(topic, message)
        if topic in self._intake.roles and "." in topic:
            return
        key, kind, body = f"hint.{topic}", type(message).__name__, encode(message)
        number = self._world.ids.uuid()
        properties = self._properties(key, kind, number, body, app_id=self._process)
        self._connect().send(Outgoing(key, body, properties))

    def _publish(self, row: OutboxRow, finish: Finish) -> None:
        key = f"cast.{row.topic}"
        properties = self._properties(
            key, row.kind, row.id, row.body, headers={"lane": row.lane}, delivery_mode=2
        )
        self._connect().send(Outgoing(key, row.body, properties, finish))

    def _properties(
        self,
        key: str,
        kind: str,
        message_id: str,
        body: bytes,
        *,
        headers: dict[str, Any] | None = None,
        **others: Any,
    ) -> pika.BasicProperties:
        vouched = self.guard.headers(key, kind, message_id, body)
        # The broker compares the user with the login: nobody speaks for another.
        return pika.BasicProperties(
            user_id=self._login,
            type=kind,
            message_id=message_id,
            headers={**(headers or {}), **vouched} or None,
            **others,
        )

    def _committed(self, transaction: Transaction) -> None:
        if self._relay:
            for row in transaction.casts:
                self._relay.take(row)
        for topic, message in transaction.announcements:
            self._announce_hint(topic, message)
        if self._news:
            for about, read in transaction.news.items():
                self._news.tell(about, read)

    def _announce_hint(self, topic: str, message: Message) -> None:
        try:
            self.announce(topic, message)
        except AnynodeError as error:
            # It is committed, and whoever has committed it is not to blame.
            log.error("could not announce %s: %s", type(message).__name__, error)

    # -- receiving ----------------------------------------------------------------------------

    def _receive(self, link: Link, incoming: Incoming) -> None:
        if incoming.queue == topology.DEAD_QUEUE:
            self._intake.accept(self._arrival(DeadArrival, link, incoming))
            return
        verb, _, topic = incoming.key.partition(".")
        if verb == "cast":
            self._receive_cast(link, incoming)
            return
        link.acknowledge(incoming)
        if len(incoming.body) > MOST_BYTES:
            log.warning("dropped a %s of %d bytes", incoming.key, len(incoming.body))
        elif verb == "call":
            self._answer(link, incoming, topic)
        elif verb == "reply":
            answers = self._asked.get(incoming.properties.correlation_id or "")
            # One that comes too late is dropped.
            if answers is not None:
                answers.put(incoming)
        elif verb == "hint" and incoming.properties.app_id != self._process:
            self._receive_hint(incoming, topic)

    def _receive_cast(self, link: Link, incoming: Incoming) -> None:
        message_id = incoming.properties.message_id or ""
        if not 0 < len(message_id) <= LONGEST_ID or len(incoming.body) > MOST_BYTES:
            link.give_up(incoming)
            return
        self._intake.accept(self._arrival(AmqpArrival, link, incoming))

    def _arrival(self, kind: type[AmqpArrival], link: Link, incoming: Incoming) -> AmqpArrival:
        return kind(link, self.guard, self._store, self._letters, incoming)

    def _receive_hint(self, incoming: Incoming, topic: str) -> None:
        """Have a hint heard, unless too many of the same node wait: it may get lost."""
        share = self._share(incoming)
        if not self._telling.take(share):
            return

        def heard(_hearing: object = None) -> None:
            self._telling.give(share)

        def hear() -> None:
            hearing = self._hear(incoming, topic)
            if not hearing:
                heard()
            for one in hearing[:1]:
                one.add_done_callback(heard)

        self._hints.submit("", hear)

    def _share(self, incoming: Incoming) -> str:
        """Return whose share something takes: a hypervisor's; empty for those without limits."""
        login = incoming.properties.user_id
        return "" if self.guard.is_control(login) else login or NOBODY

    def _hear(self, incoming: Incoming, topic: str) -> list[Future[None]]:
        sent = what_was_sent(incoming)
        try:
            message = decode(sent.kind, sent.body)
            self.guard.check(sent, message)
        except InputError as error:
            self.guard.refuse(sent, error)
            return []
        except (Denied, Stale) as error:
            log.debug("did not hear a hint: %s", error)
            return []
        return self._intake.announce(topic, message)

    def _answer(self, link: Link, incoming: Incoming, topic: str) -> None:
        asked = incoming.properties
        clock = self._world.clock
        until = clock.monotonic() + int(asked.expiration or 0) / 1000

        def check(message: Message) -> None:
            if asked.expiration and clock.monotonic() > until:
                raise Stale(f"{asked.type} was asked too long ago.")
            self.guard.check(what_was_sent(incoming), message)

        def reply(kind: str, body: bytes) -> None:
            key, number = asked.reply_to or "", asked.correlation_id or ""
            if not key.startswith("reply.") or (asked.expiration and clock.monotonic() > until):
                return
            properties = self._properties(key, kind, number, body, correlation_id=number)
            # Whoever asks hears every broker that its own process is at.
            (link if link.wait_up(0) else self._link).send(Outgoing(key, body, properties))

        share = self._share(incoming)
        if not self._asking.take(share):
            error = Unavailable(f"{share} asks more than {topic} answers at once.")
            reply(failure.FAILURE, failure.encode(error))
            return

        def answered(future: Future[Message | None]) -> None:
            self._asking.give(share)
            if future.cancelled():
                return
            error = future.exception()
            given = None if error else future.result()
            if error:
                reply(failure.FAILURE, failure.encode(error))
            elif given is not None:
                reply(type(given).__name__, encode(given))

        try:
            self._intake.ask(topic, asked.type or "", incoming.body, check).add_done_callback(
                answered
            )
        except AnynodeError as error:
            self._asking.give(share)
            reply(failure.FAILURE, failure.encode(error))


def _places(place: Place, also: Place | None) -> list[Place]:
    return [place, also] if also else [place]


def _login_of(urls: Urls) -> str:
    return str(pika.URLParameters(urls[0]).credentials.username)


def _shown(urls: Urls) -> str:
    return ",".join(without_login(url) for url in urls)


def _keep_dead(letter: DeadLetter, delivery: Delivery) -> None:
    assert isinstance(delivery, DeadArrival)
    delivery.keep()
