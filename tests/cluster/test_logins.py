"""What a node's login may do at a real broker, and how it ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    UnroutableError,
)

from appliance.bus import topology
from appliance.cluster.logins import Logins
from appliance.cluster.management import Management
from appliance.cluster.services.rabbitmq import VHOST
from tests.services.own import OwnServices

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]

OWN, OTHER = "11111111-aaaa-4000-8000-000000000001", "22222222-bbbb-4000-8000-000000000002"
NOT_ALLOWED = 403
BAD_USER_ID = 406


@pytest.fixture(scope="module")
def management(own_services: OwnServices) -> Management:
    return Management(own_services.access)


@pytest.fixture(scope="module")
def logins(management: Management) -> Iterator[Logins]:
    found = Logins(management)
    yield found
    for node_id in (OWN, OTHER):
        found.remove(node_id)


@pytest.fixture(scope="module")
def connect(own_services: OwnServices) -> Callable[..., Any]:
    def connect(name: str, password: str, **more: Any) -> Any:
        return pika.BlockingConnection(
            pika.ConnectionParameters(
                own_services.bus.address,
                own_services.bus.port,
                VHOST,
                pika.PlainCredentials(name, password),
                ssl_options=pika.SSLOptions(own_services.tls),
                **more,
            )
        )

    return connect


@pytest.fixture(scope="module")
def hypervisor(logins: Logins, connect: Callable[..., Any]) -> Iterator[Any]:
    """A connection of a hypervisor's login; another node is there, too."""
    logins.admit(OTHER, is_control=False)
    link = connect(f"h-{OWN}", logins.admit(OWN, is_control=False))
    yield link
    with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):
        link.close()


@pytest.fixture(scope="module")
def control(logins: Logins, connect: Callable[..., Any]) -> Iterator[Any]:
    link = connect(f"c-{OTHER}", logins.admit(OTHER, is_control=True))
    yield link
    link.close()


def publish(channel: Any, key: str, *, exchange: str = "anynode", user_id: str = "") -> None:
    """Publish, and return once the broker has taken it or refused it."""
    channel.confirm_delivery()
    properties = pika.BasicProperties(user_id=user_id or None)
    channel.basic_publish(exchange, key, b"{}", properties, mandatory=True)


def own_queue(channel: Any, name: str = "x1") -> str:
    queue = f"process.{OWN}.{name}"
    channel.queue_declare(queue, exclusive=True)
    return queue


def test_a_hypervisor_does_its_work(hypervisor: Any, control: Any) -> None:
    channel = hypervisor.channel()
    queue = own_queue(channel)
    keys = [f"reply.{OWN}.x1", f"hint.compute.{OWN}", f"hint.datapath.{OWN}", "hint.member"]
    for key in keys:
        channel.queue_bind(queue, "anynode", key)
    publish(channel, "cast.controller", user_id=f"h-{OWN}")
    for key in ("call.controller", "call.network", f"reply.{OWN}.x1"):
        publish(channel, key)
    with pytest.raises(UnroutableError):
        publish(channel, "hint.controller")
    assert channel.basic_get(queue, auto_ack=True)[0].routing_key == f"reply.{OWN}.x1"
    publish(control.channel(), f"cast.compute.{OWN}")
    method, _, _ = channel.basic_get(f"node.{OWN}", auto_ack=True)
    assert method.routing_key == f"cast.compute.{OWN}"
    channel.close()


DENIED: dict[str, Callable[[Any], object]] = {
    "read another node's queue": lambda c: c.basic_consume(f"node.{OTHER}", lambda *_: None),
    "get from another node's queue": lambda c: c.basic_get(f"node.{OTHER}"),
    "read the controllers' queue": lambda c: c.basic_consume("controller", lambda *_: None),
    "read the schedulers' queue": lambda c: c.basic_get("scheduler"),
    "read dead letters": lambda c: c.basic_get("dead"),
    "empty another node's queue": lambda c: c.queue_purge(f"node.{OTHER}"),
    "delete its own queue": lambda c: c.queue_delete(f"node.{OWN}"),
    "delete another node's queue": lambda c: c.queue_delete(f"node.{OTHER}"),
    "delete the exchange": lambda c: c.exchange_delete("anynode"),
    "make an exchange": lambda c: c.exchange_declare("mine", "topic"),
    "make a durable queue": lambda c: c.queue_declare("mine", durable=True),
    "make another's process queue": lambda c: c.queue_declare(f"process.{OTHER}.x", exclusive=True),
    "make a queue of a broker's name": lambda c: c.queue_declare("", exclusive=True),
    "hear another node's hints": lambda c: c.queue_bind(
        own_queue(c, "b1"), "anynode", f"hint.compute.{OTHER}"
    ),
    "hear another node's answers": lambda c: c.queue_bind(
        own_queue(c, "b2"), "anynode", f"reply.{OTHER}.x"
    ),
    "hear orders": lambda c: c.queue_bind(own_queue(c, "b3"), "anynode", "cast.#"),
    "hear everything": lambda c: c.queue_bind(own_queue(c, "b4"), "anynode", "#"),
    "hear all hints": lambda c: c.queue_bind(own_queue(c, "b5"), "anynode", "hint.#"),
    "hear dead letters": lambda c: c.queue_bind(own_queue(c, "b6"), "anynode.dead", "#"),
    "lead more to its own queue": lambda c: c.queue_bind(
        f"node.{OWN}", "anynode", f"hint.compute.{OWN}"
    ),
    "lead away from the controllers": lambda c: c.queue_unbind(
        "controller", "anynode", "cast.controller"
    ),
    "order another node": lambda c: publish(c, f"cast.compute.{OTHER}"),
    "order itself": lambda c: publish(c, f"cast.compute.{OWN}"),
    "ask itself": lambda c: publish(c, f"call.compute.{OWN}"),
    "ask another node": lambda c: publish(c, f"call.compute.{OTHER}"),
    "cast to the schedulers": lambda c: publish(c, "cast.scheduler"),
    "cast to the networks": lambda c: publish(c, "cast.network"),
    "hint to members": lambda c: publish(c, "hint.member"),
    "hint to another node": lambda c: publish(c, f"hint.compute.{OTHER}"),
    "write past the exchange": lambda c: publish(c, "controller", exchange=""),
    "write to a queue by name": lambda c: publish(c, f"node.{OTHER}", exchange=""),
    "write dead letters": lambda c: publish(c, "cast.controller", exchange="anynode.dead"),
    "write to a stock exchange": lambda c: publish(c, "x", exchange="amq.topic"),
}


@pytest.mark.parametrize("what", DENIED)
def test_a_hypervisor_may_not(hypervisor: Any, control: Any, what: str) -> None:
    channel = hypervisor.channel()
    with pytest.raises(ChannelClosedByBroker) as raised:
        DENIED[what](channel)
    assert raised.value.reply_code == NOT_ALLOWED


def test_a_sender_cannot_call_itself_another(hypervisor: Any) -> None:
    for other in (f"c-{OTHER}", f"h-{OTHER}", "anynode-admin"):
        with pytest.raises(ChannelClosedByBroker) as raised:
            publish(hypervisor.channel(), "cast.controller", user_id=other)
        assert raised.value.reply_code == BAD_USER_ID


def test_a_control_node_serves_but_nobody_writes_past_the_exchange(control: Any) -> None:
    channel = control.channel()
    for queue in (*topology.shared_queues(), topology.node_queue(OWN)):
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for binding in queue.bindings:
            channel.queue_bind(queue.name, binding.exchange, binding.key)
    for key in (f"cast.compute.{OWN}", "cast.scheduler", "call.network"):
        publish(channel, key)
    assert channel.queue_purge(f"node.{OWN}").method.message_count >= 1
    with pytest.raises(ChannelClosedByBroker) as raised:
        publish(channel, "controller", exchange="")
    assert raised.value.reply_code == NOT_ALLOWED


def test_a_removed_node_is_cut_off_and_cannot_come_back(
    logins: Logins, management: Management, connect: Callable[..., Any]
) -> None:
    node_id = "33333333-cccc-4000-8000-000000000003"
    password = logins.admit(node_id, is_control=False)
    link = connect(f"h-{node_id}", password)
    link.channel().queue_declare(f"process.{node_id}.x", exclusive=True)
    logins.remove(node_id)
    removed_at = time.monotonic()
    wait_for_end(link)
    assert time.monotonic() - removed_at < 5
    with pytest.raises(AMQPConnectionError):
        connect(f"h-{node_id}", password)
    assert f"h-{node_id}" not in management.users()
    logins.remove(node_id)


def test_a_promoted_node_keeps_its_login_until_it_is_retired(
    logins: Logins, management: Management, connect: Callable[..., Any]
) -> None:
    node_id = "44444444-dddd-4000-8000-000000000004"
    try:
        before = logins.admit(node_id, is_control=False)
        old = connect(f"h-{node_id}", before)
        after = logins.promote(node_id)
        old.channel().close()
        new = connect(f"c-{node_id}", after)
        new.channel().basic_get("controller")
        assert found(management, node_id) == [f"c-{node_id}", f"h-{node_id}"]
        logins.retire(node_id, is_control=False)
        wait_for_end(old)
        new.channel().close()
        assert found(management, node_id) == [f"c-{node_id}"]
    finally:
        logins.remove(node_id)


def wait_for_end(link: Any) -> None:
    with pytest.raises((ConnectionClosedByBroker, AMQPConnectionError)):
        link.process_data_events(time_limit=15)


def found(management: Management, node_id: str) -> list[str]:
    return sorted(name for name in management.users() if name.endswith(node_id))


def test_an_admission_repeated_changes_the_password_and_nothing_else(
    logins: Logins, connect: Callable[..., Any], control: Any
) -> None:
    node_id = "55555555-eeee-4000-8000-000000000005"
    try:
        first = logins.admit(node_id, is_control=False)
        link = connect(f"h-{node_id}", first)
        control.channel().basic_publish("anynode", f"cast.compute.{node_id}", b"kept")
        second = logins.admit(node_id, is_control=False)
        link.channel().close()
        with pytest.raises(AMQPConnectionError):
            connect(f"h-{node_id}", first)
        with connect(f"h-{node_id}", second) as again:
            assert again.channel().basic_get(f"node.{node_id}")[2] == b"kept"
    finally:
        logins.remove(node_id)


def test_a_login_has_a_bounded_number_of_connections(
    logins: Logins, connect: Callable[..., Any]
) -> None:
    node_id = "66666666-ffff-4000-8000-000000000006"
    try:
        password = logins.admit(node_id, is_control=False)
        most = topology.USER_LIMITS["max-connections"]
        links = [connect(f"h-{node_id}", password) for _ in range(most)]
        with pytest.raises(AMQPConnectionError):
            connect(f"h-{node_id}", password)
        assert all(link.is_open for link in links)
    finally:
        logins.remove(node_id)
