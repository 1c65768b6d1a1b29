"""A connection to RabbitMQ that comes back: one thread, one connection, many senders.

Everything of pika happens on the link's own thread; others hand their wishes over. What was not
confirmed when a connection broke is reported as not sent, and what was not acknowledged comes
again: both are for the bus to bear.
"""

from __future__ import annotations

import itertools
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import pika
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from appliance.bus import topology
from appliance.bus.amqp_reading import CarefulConnection, are_texts
from appliance.bus.relay import Finish
from appliance.bus.topology import EXCHANGE
from appliance.errors import AnynodeError, Unavailable
from appliance.world import World

log = logging.getLogger(__name__)
# It says in ten lines what the link says in one.
logging.getLogger("pika").setLevel(logging.CRITICAL)

PREFETCH = 64
"""Messages of a queue that a process holds at once without having acknowledged them."""

MOST_BYTES = 16 * 2**20
"""Size of a message above which it is none of ours: a broker closes the channel of a longer one."""

HEARTBEAT_S = 15
PING_EVERY_S = 5.0
WEDGED_AFTER_S = 15.0
"""Seconds without a ping of its own after which a connection is given up."""

OPEN_S = 10.0
"""Seconds that a connection may take from its first packet to its last consumer."""

_TOO_LONG = "A message for {} is too long, {:,} bytes: no broker takes it."
_numbers = itertools.count(1)
"""Of connections, each its own: a process may have some to several brokers."""

_BACK_OFF_S = (0.1, 0.3, 1.0, 2.0, 5.0)


class Outgoing(NamedTuple):
    """Something to publish.

    ``finish`` is told once a broker has it in a queue, or has not. Where the answer is proof enough
    (``is_confirmed`` is false) it is only told what is known to have gone wrong.
    """

    key: str
    body: bytes
    properties: pika.BasicProperties
    finish: Finish | None = None
    is_confirmed: bool = True


class Incoming(NamedTuple):
    """What a consumer received. The tag means something to its connection alone."""

    queue: str
    key: str
    body: bytes
    properties: pika.BasicProperties
    connection: int
    tag: int


class Link:
    """Sends and receives until it is stopped.

    :param urls: brokers; the next one is tried when one does not answer.
    :param tls: returns how to meet them, for those whose URL begins with ``amqps:``; it is asked at
        each connection, since certificates are renewed.
    :param name: of this process at the broker: its own queue and the key of answers are after it.
    :param declared: what is declared at each connection, with the exchanges; if nothing, none is.
    :param receive: called on the link's thread with all that arrives; it must not block.
    :param unroutable: called there with the id and the key of what no queue has taken, of what was
        sent without asking for a confirmation.
    """

    def __init__(
        self,
        urls: Sequence[str],
        world: World,
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        name: str,
        declared: Sequence[topology.Queue],
        receive: Callable[[Incoming], None],
        unroutable: Callable[[str, str], None],
    ) -> None:
        self._urls = list(urls)
        self._world = world
        self._tls = tls
        self._name = name
        self.reply_key = f"reply.{name}"
        self._declared = declared
        self._receive = receive
        self._unroutable = unroutable
        self._connection: SelectConnection | None = None
        self._number = 0
        self._held: set[int] = set()
        self._up = threading.Event()
        self._up_since = 0.0
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wishes: deque[Callable[[], None]] = deque()
        self._is_woken = False
        self._wanted_queues: frozenset[str] = frozenset()
        self._wanted_keys: frozenset[str] = frozenset()
        self._clear()

    def _clear(self) -> None:
        """Know nothing of a connection."""
        self._confirmed: Channel | None = None
        self._lossy: Channel | None = None
        self._inward: Channel | None = None
        self._own_queue = ""
        self._sequence = 0
        self._held = set()
        self._waiting: dict[int, Outgoing] = {}
        self._numbers: dict[str, int] = {}
        self._returned: set[int] = set()
        self._consumers: dict[str, str] = {}
        self._bound: set[str] = set()
        self._heard_at = 0.0
        self._is_blocked = False
        self._is_aborted = False

    # -- for every thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and go on doing so."""
        self._thread = threading.Thread(target=self._run, name="amqp", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Close the connection; what was not confirmed is reported as not sent. Repeatable."""
        self._is_stopping.set()
        self._wish(self._close)
        if self._thread:
            self._thread.join(deadline_s)

    @property
    def is_begun(self) -> bool:
        """Whether it was started."""
        return self._thread is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing that has come awaits its end, and nothing sent its confirmation.

        Where nothing more is consumed it stays so, unless something is sent.
        """
        if not self._up.is_set():
            return True
        with self._lock:
            is_quiet = not (self._wishes or self._wanted_queues or self._is_woken)
        consumes_none = not set(self._consumers) - {self._own_queue}
        return is_quiet and consumes_none and not self._held and not self._waiting

    def holds(self, incoming: Incoming) -> bool:
        """Say whether what came is still this connection's to settle."""
        return incoming.connection == self._number

    def wait_up(self, deadline_s: float) -> bool:
        """Wait until there is a connection; say whether there is one."""
        return self._up.wait(deadline_s)

    def well_for_s(self) -> float:
        """Return for how many seconds pings have come back; 0 where they do not now."""
        now = self._world.clock.monotonic()
        silent_s = now - self._heard_at
        if not self._up.is_set() or self._is_blocked or silent_s > 2 * PING_EVERY_S:
            return 0.0
        return max(now - self._up_since, 0.001)

    def want(self, queues: Iterable[str], keys: Iterable[str]) -> None:
        """Consume these queues, and bind these keys to the process's own, from now on."""
        with self._lock:
            self._wanted_queues, self._wanted_keys = frozenset(queues), frozenset(keys)
        self._wish(self._follow)

    def send(self, outgoing: Outgoing) -> None:
        """Publish; its ``finish`` is called on the link's thread. Without one it may get lost."""
        if len(outgoing.body) > MOST_BYTES:
            if outgoing.finish:
                outgoing.finish(Unavailable(_TOO_LONG.format(outgoing.key, len(outgoing.body))))
            return
        is_possible = self._up.is_set() and not self._is_blocked
        is_left = is_possible and self._wish(lambda: self._publish(outgoing))
        if not is_left and outgoing.finish:
            outgoing.finish(self._why_not())

    def acknowledge(self, incoming: Incoming) -> None:
        """Tell the broker that a message need not come again."""
        self._wish(lambda: self._settle(incoming, is_taken=True))

    def give_back(self, incoming: Incoming) -> None:
        """Let the broker hand a message to another."""
        self._wish(lambda: self._settle(incoming, is_taken=False))

    def give_up(self, incoming: Incoming) -> None:
        """Let the broker keep a message among the dead."""
        self._wish(lambda: self._settle(incoming, is_taken=False, is_dead=True))

    def _wish(self, wish: Callable[[], None]) -> bool:
        """Have something done on the link's thread; many wishes wake it but once.

        Say whether it will be: without a connection what it is about has gone with the last one.
        """
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            self._wishes.append(wish)
            if not self._is_woken:
                self._is_woken = True
                connection.ioloop.add_callback_threadsafe(self._work)
            return True

    # -- on the link's thread -----------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._is_stopping.is_set():
            was_up = self._hold(self._urls[failures % len(self._urls)])
            failures = 0 if was_up else failures + 1
            self._is_stopping.wait(_BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)])

    def _hold(self, url: str) -> bool:
        """Hold one connection from beginning to end; say whether it ever came up."""
        self._number = next(_numbers)
        try:
            connection = CarefulConnection(
                self._parameters(url),
                on_open_callback=self._opened,
                on_open_error_callback=self._ended,
                on_close_callback=self._ended,
            )
        except (OSError, AnynodeError) as error:
            log.warning("no connection to the message broker: %s", error)
            return False
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        connection.ioloop.call_later(OPEN_S, self._check_opened)
        with self._lock:
            self._connection = connection
        if self._is_stopping.is_set():
            self._wish(self._close)
        try:
            connection.ioloop.start()
        except Exception:
            log.exception("the connection to the message broker failed")
        was_up = self._up.is_set()
        self._forget()
        return was_up

    def _parameters(self, url: str) -> pika.URLParameters:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = HEARTBEAT_S
        parameters.socket_timeout = parameters.stack_timeout = OPEN_S
        parameters.client_properties = {"connection_name": self._name}
        if self._tls and parameters.ssl_options:
            parameters.ssl_options = pika.SSLOptions(self._tls(), parameters.host)
        return parameters

    def _opened(self, connection: SelectConnection) -> None:
        if self._is_stopping.is_set():
            self._close()
            return
        connection.channel(on_open_callback=self._open_confirmed)

    def _open_confirmed(self, channel: Channel) -> None:
        self._confirmed = channel
        self._watch(channel)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._open_lossy())

    def _open_lossy(self) -> None:
        assert self._connection is not None
        self._connection.channel(on_open_callback=self._lossy_opened)

    def _lossy_opened(self, channel: Channel) -> None:
        assert self._connection is not None
        self._lossy = channel
        self._watch(channel)
        channel.add_on_return_callback(self._on_unroutable)
        self._connection.channel(on_open_callback=self._declare)

    def _declare(self, channel: Channel) -> None:
        """Declare and consume: the channel keeps the order, its last answer says that all is."""
        self._inward = channel
        self._watch(channel)
        channel.basic_qos(prefetch_count=PREFETCH)
        if self._declared:
            for exchange in topology.EXCHANGES:
                channel.exchange_declare(exchange, "topic", durable=True)
        for queue in self._declared:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            for binding in queue.bindings:
                channel.queue_bind(queue.name, binding.exchange, binding.key)
        # A new name each time: the broker may not know yet that the last connection is dead.
        self._own_queue = f"process.{self._name}-{self._number}"
        channel.queue_declare(self._own_queue, exclusive=True, auto_delete=True)
        channel.queue_bind(self._own_queue, EXCHANGE, self.reply_key)
        self._consume(self._own_queue)
        self._follow()
        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _frame: self._ready())

    def _ready(self) -> None:
        self._heard_at = self._up_since = self._world.clock.monotonic()
        self._up.set()
        log.info("connected to the message broker as %s", self._name)
        self._follow()
        self._ping()

    def _check_opened(self) -> None:
        if not self._up.is_set():
            self._abort(f"the message broker did not answer within {OPEN_S:g} s")

    def _set_blocked(self, is_blocked: bool) -> None:
        log.warning(
            "the message broker takes %s",
            "nothing now: it is short of memory or disk" if is_blocked else "messages again",
        )
        self._is_blocked = is_blocked
        self._heard_at = self._up_since = self._world.clock.monotonic()

    def _watch(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)

    def _channel_closed(self, channel: Channel, reason: Exception) -> None:
        if self._connection and self._connection.is_open:
            log.warning("the message broker closed a channel: %s", reason)
            self._close()

    def _follow(self) -> None:
        """Consume and bind what is wanted, and no more."""
        with self._lock:
            queues, keys = self._wanted_queues, self._wanted_keys
        channel = self._inward
        if channel is None or not channel.is_open or not self._own_queue:
            return
        for key in keys - self._bound:
            channel.queue_bind(self._own_queue, EXCHANGE, key)
        for key in self._bound - keys:
            channel.queue_unbind(self._own_queue, EXCHANGE, key)
        self._bound = set(keys)
        for name in queues - set(self._consumers):
            self._consume(name)
        for name in set(self._consumers) - queues - {self._own_queue}:
            channel.basic_cancel(self._consumers.pop(name))

    def _consume(self, name: str) -> None:
        assert self._inward is not None
        self._consumers[name] = self._inward.basic_consume(
            name,
            lambda _channel, method, properties, body: self._deliver(
                name, method, properties, body
            ),
            exclusive=name == self._own_queue,
        )

    def _deliver(
        self, queue: str, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        incoming = Incoming(
            queue, method.routing_key, body, properties, self._number, method.delivery_tag
        )
        self._held.add(incoming.tag)
        if properties.type == "ping" and queue == self._own_queue:
            self._heard_at = self._world.clock.monotonic()
            self._settle(incoming, is_taken=True)
            return
        if not are_texts(incoming.key, properties):
            log.warning("dropped a message of %s whose key or properties are no texts", queue)
            self._settle(incoming, is_taken=True)
            return
        try:
            self._receive(incoming)
        except Exception:
            log.exception("could not take a message of %s", queue)
            self._settle(incoming, is_taken=False, is_dead=True)

    def _ping(self) -> None:
        """See that what is sent comes back: a connection may look alive and carry nothing."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        silent_s = self._world.clock.monotonic() - self._heard_at
        if silent_s > WEDGED_AFTER_S and not self._is_blocked:
            self._abort(f"no ping of its own came back for {silent_s:.0f} s")
            return
        if self._lossy and self._lossy.is_open and not self._is_blocked:
            self._lossy.basic_publish(
                EXCHANGE, self.reply_key, b"", pika.BasicProperties(type="ping")
            )
        connection.ioloop.call_later(PING_EVERY_S, self._ping)

    def _work(self) -> None:
        with self._lock:
            wishes, self._wishes = self._wishes, deque()
            self._is_woken = False
        for wish in wishes:
            wish()

    def _publish(self, outgoing: Outgoing) -> None:
        is_confirmed = outgoing.finish is not None and outgoing.is_confirmed
        channel = self._confirmed if is_confirmed else self._lossy
        if channel is None or not channel.is_open or self._is_blocked:
            if outgoing.finish:
                outgoing.finish(self._why_not())
            return
        if is_confirmed:
            self._sequence += 1
            self._waiting[self._sequence] = outgoing
            self._numbers[outgoing.properties.message_id] = self._sequence
        is_mandatory = outgoing.finish is not None
        channel.basic_publish(
            EXCHANGE, outgoing.key, outgoing.body, outgoing.properties, is_mandatory
        )

    def _why_not(self) -> Unavailable:
        if self._is_blocked:
            return Unavailable("The message broker takes nothing now: it is short of memory.")
        return Unavailable("There is no connection to the message broker.")

    def _on_return(
        self, _channel: Channel, _method: Any, properties: pika.BasicProperties, _body: bytes
    ) -> None:
        number = self._numbers.get(properties.message_id)
        if number is not None:
            self._returned.add(number)

    def _on_unroutable(
        self, _channel: Channel, method: Any, properties: pika.BasicProperties, _body: bytes
    ) -> None:
        self._unroutable(properties.message_id or "", method.routing_key)

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag
        # They are in order, and there may be many behind the last one.
        numbers = list(takewhile(lambda n: n <= last, self._waiting)) if method.multiple else [last]
        for number in numbers:
            outgoing = self._waiting.pop(number, None)
            if outgoing is None or outgoing.finish is None:
                continue
            self._numbers.pop(outgoing.properties.message_id, None)
            error = None
            if number in self._returned:
                self._returned.discard(number)
                error = Unavailable(f"No queue takes messages for {outgoing.key}.")
            elif isinstance(method, pika.spec.Basic.Nack):
                error = Unavailable(f"The message broker refused a message for {outgoing.key}.")
            outgoing.finish(error)

    def _settle(self, incoming: Incoming, *, is_taken: bool, is_dead: bool = False) -> None:
        channel = self._inward
        if incoming.connection != self._number or channel is None or not channel.is_open:
            return
        self._held.discard(incoming.tag)
        if is_taken:
            channel.basic_ack(incoming.tag)
        else:
            channel.basic_reject(incoming.tag, requeue=not is_dead)

    def _close(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.is_open:
            connection.close()
            # A broker that does not answer any more would keep it for ever.
            connection.ioloop.call_later(1.0, lambda: self._abort("it did not say goodbye"))
        elif not connection.is_closing:
            self._abort("it is no longer wanted")

    def _abort(self, reason: str) -> None:
        """End a connection without a word: whoever does not answer would not answer that either."""
        connection = self._connection
        if connection is not None and not connection.is_closed and not self._is_aborted:
            self._is_aborted = True
            connection._terminate_stream(ConnectionError(reason))

    def _ended(self, connection: SelectConnection, reason: Any) -> None:
        if not self._is_stopping.is_set():
            log.warning("no connection to the message broker: %s", reason)
        connection.ioloop.stop()

    def _forget(self) -> None:
        """Leave nothing of a connection that has ended."""
        with self._lock:
            self._up.clear()
            connection, self._connection = self._connection, None
        waiting = self._waiting
        self._clear()
        if connection is not None:
            connection.ioloop.close()
        # Those who wished for something sent are told that it was not.
        self._work()
        for outgoing in waiting.values():
            if outgoing.finish:
                outgoing.finish(Unavailable("The connection to the message broker broke."))
