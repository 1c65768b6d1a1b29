"""Names and rights at the broker; and that a hostile hypervisor gets nothing out of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from appliance.bus import topology
from appliance.bus.amqp import AmqpBus
from appliance.messages import Order, Report, Wanted, encode
from appliance.store import outbox
from appliance.testing.bus import Listener, wait_until
from tests.bus.places import CONTROL, HYPERVISOR, OTHER, Places, serve
from tests.services.rabbitmq import VirtualHost

REFUSED = 403
ORDER = Order(instance_id="i-1", epoch=1, revision=1, verb="run")


@pytest.mark.parametrize(
    ("topic", "queue"),
    [
        ("controller", "controller"),
        ("network", "network"),
        ("compute.n1", "node.n1"),
        ("member.n1", "node.n1"),
    ],
)
def test_queue_of_a_topic(topic: str, queue: str) -> None:
    assert topology.queue_of(topic) == queue
    names = {one.name for one in (*topology.shared_queues(), topology.node_queue("n1"))}
    assert queue in names


def test_an_id_is_taken_as_it_is() -> None:
    rights = topology.permissions_of("a.b", is_control=False)
    assert re.fullmatch(rights.read, "node.a.b")
    assert not re.fullmatch(rights.read, "node.axb")
    assert not re.fullmatch(rights.read, "node.a.b.c")


@contextmanager
def login(url: str) -> Iterator[pika.BlockingConnection]:
    """Connect with a node's login."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    yield connection
    if connection.is_open:
        connection.close()


def refused(
    connection: pika.BlockingConnection, attempt: Callable[[BlockingChannel], object]
) -> int:
    """Return the code with which the broker refuses an attempt; 0 when it does not."""
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        attempt(channel)
        # A publication is refused a moment later.
        connection.process_data_events(0.2)
        channel.queue_declare(f"process.{HYPERVISOR}.probe", exclusive=True)
    except ChannelClosedByBroker as error:
        return int(error.reply_code)
    return 0


OWN = f"process.{HYPERVISOR}.x"

ATTEMPTS: dict[str, Callable[[BlockingChannel], object]] = {
    "declare a queue": lambda c: c.queue_declare("mine", durable=True),
    "declare its node's queue": lambda c: c.queue_declare(f"node.{HYPERVISOR}", durable=True),
    "declare another's queue": lambda c: c.queue_declare(f"process.{OTHER}.x", exclusive=True),
    "declare an exchange": lambda c: c.exchange_declare("mine", "topic"),
    "delete the exchange": lambda c: c.exchange_delete("anynode"),
    "delete its node's queue": lambda c: c.queue_delete(f"node.{HYPERVISOR}"),
    "delete the controller's queue": lambda c: c.queue_delete("controller"),
    "purge another's queue": lambda c: c.queue_purge(f"node.{OTHER}"),
    "read another's queue": lambda c: c.basic_get(f"node.{OTHER}"),
    "read the controller's queue": lambda c: c.basic_get("controller"),
    "consume the dead": lambda c: c.basic_consume("dead", lambda *_: None),
    "hear another's hints": lambda c: bind(c, f"hint.datapath.{OTHER}"),
    "hear all hints": lambda c: bind(c, "hint.#"),
    "hear all": lambda c: bind(c, "#"),
    "hear the controllers": lambda c: bind(c, "hint.controller"),
    "hear another's orders": lambda c: bind(c, f"cast.compute.{OTHER}"),
    "hear another's answers": lambda c: bind(c, f"reply.{OTHER}.#"),
    "bind its node's queue": lambda c: c.queue_bind(
        f"node.{HYPERVISOR}", "anynode", f"reply.{HYPERVISOR}.x"
    ),
    "hear the dead": lambda c: bind(c, "cast.#", "anynode.dead"),
    "order": lambda c: say(c, f"cast.compute.{OTHER}"),
    "order itself": lambda c: say(c, f"cast.compute.{HYPERVISOR}"),
    "ask another node": lambda c: say(c, f"call.compute.{OTHER}"),
    "hint at members": lambda c: say(c, "hint.member"),
    "hint at a node": lambda c: say(c, f"hint.datapath.{OTHER}"),
    "speak to the scheduler": lambda c: say(c, "cast.scheduler"),
    "cast to the network": lambda c: say(c, "cast.network"),
    "write a dead letter": lambda c: say(c, "cast.controller", "anynode.dead"),
    "go round the exchange": lambda c: say(c, f"node.{OTHER}", ""),
    "use another exchange": lambda c: say(c, "x", "amq.topic"),
    "be another": lambda c: say(c, "cast.controller", user_id=f"h-{OTHER}"),
    "be a control node": lambda c: say(c, "cast.controller", user_id=f"c-{CONTROL}"),
}


def bind(channel: BlockingChannel, key: str, exchange: str = "anynode") -> object:
    channel.queue_declare(OWN, exclusive=True)
    return channel.queue_bind(OWN, exchange, key)


def say(
    channel: BlockingChannel, key: str, exchange: str = "anynode", user_id: str | None = None
) -> object:
    properties = pika.BasicProperties(type="Order", message_id="m-1", user_id=user_id)
    return channel.basic_publish(exchange, key, encode(ORDER), properties)


@pytest.mark.faults("hostile: login", quick=True)
def test_what_a_hypervisors_login_may_not(vhost: VirtualHost) -> None:
    for node_id, is_control in ((CONTROL, True), (OTHER, False)):
        vhost.admit(node_id, is_control=is_control)
    with login(vhost.admit(HYPERVISOR, is_control=False)) as connection:
        codes = {what: refused(connection, attempt) for what, attempt in ATTEMPTS.items()}
    own = {"be another": 406, "be a control node": 406}
    assert codes == {what: own.get(what, REFUSED) for what in ATTEMPTS}
    assert [vhost.depth(f"node.{one}") for one in (HYPERVISOR, OTHER)] == [0, 0]
    assert [vhost.depth(one) for one in (*topology.SHARED_TOPICS, "dead")] == [0, 0, 0, 0]


@pytest.mark.faults("hostile: login", quick=True)
def test_what_it_may_is_what_a_node_needs(vhost: VirtualHost) -> None:
    with login(vhost.admit(HYPERVISOR, is_control=False)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for key in (
            f"reply.{HYPERVISOR}.x",
            f"hint.datapath.{HYPERVISOR}",
            f"hint.member.{HYPERVISOR}",
            "hint.member",
        ):
            bind(channel, key)
        for key in ("cast.controller", "call.controller", "call.network", "hint.controller"):
            say(channel, key, user_id=f"h-{HYPERVISOR}")
        say(channel, f"reply.{OTHER}.x")
        channel.basic_get(f"node.{HYPERVISOR}")
    with login(vhost.admit(CONTROL, is_control=True)) as connection:
        channel = connection.channel()
        for key in ("cast.scheduler", f"cast.compute.{HYPERVISOR}", "hint.member"):
            say(channel, key, user_id=f"c-{CONTROL}")
        channel.queue_declare(f"process.{CONTROL}.x", exclusive=True)
        for queue in (*topology.shared_queues(), topology.node_queue("n7")):
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


@pytest.mark.faults("hostile: login", quick=True)
def test_a_removed_nodes_login_ends_at_once(vhost: VirtualHost) -> None:
    url = vhost.admit(HYPERVISOR, is_control=False)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    vhost.logins.remove(HYPERVISOR)
    with pytest.raises(pika.exceptions.AMQPError):
        connection.process_data_events(10)
    with pytest.raises(pika.exceptions.AMQPError):
        pika.BlockingConnection(pika.URLParameters(url))


@pytest.mark.faults("hostile: login", quick=True)
def test_a_way_round_the_rights_leads_nowhere(places: Places) -> None:
    """The broker does not ask for rights when it moves what has died in a queue of the login's own.

    So it may send what it likes to whom it likes, under its own name: which is not enough.
    """
    control, victim = places.control(), places.hypervisor(OTHER)
    orders, wishes, reports = Listener(), Listener(), Listener()
    serve(victim, f"compute.{OTHER}", casts={Order: orders})
    serve(control, "controller", casts={Wanted: wishes, Report: reports})
    control.start()
    victim.start()
    control.cast(f"compute.{OTHER}", ORDER)
    orders.wait_for(1)
    report = Report(instance_id="i-2", node_id=OTHER, epoch=1, seq=1, revision=1, state="gone")
    with login(places.vhost.admit(HYPERVISOR, is_control=False)) as connection:
        channel = connection.channel()
        for message, key in (
            (ORDER, f"cast.compute.{OTHER}"),
            (Wanted(instance_id="i-1"), "cast.controller"),
            (report, "cast.controller"),
        ):
            for user_id in (f"h-{HYPERVISOR}", None):
                _let_die(channel, key, encode(message), type(message).__name__, user_id)
        _until_refused(connection, victim, 2)
    _until_refused(None, control, 4)
    assert len(orders.heard) == 1
    assert wishes.heard == reports.heard == []
    letters = places.store().read(outbox.dead_letters)
    assert {one.kind for one in letters} == {"Wanted", "Report"}


def _let_die(
    channel: BlockingChannel, key: str, body: bytes, kind: str, user_id: str | None
) -> None:
    name = f"process.{HYPERVISOR}.{time.monotonic_ns()}"
    channel.queue_declare(
        name,
        exclusive=True,
        arguments={"x-dead-letter-exchange": "anynode", "x-dead-letter-routing-key": key},
    )
    channel.queue_bind(name, "anynode", f"reply.{name.removeprefix('process.')}")
    properties = pika.BasicProperties(
        type=kind, message_id=name[-36:], user_id=user_id, expiration="0"
    )
    channel.basic_publish("anynode", f"reply.{name.removeprefix('process.')}", body, properties)


def _until_refused(connection: pika.BlockingConnection | None, bus: AmqpBus, count: int) -> None:
    def is_so() -> bool:
        if connection:
            connection.process_data_events(0.05)
        return sum(bus.guard.refused.values()) >= count

    wait_until(is_so, f"{count} were refused: {bus.guard.refused}")
