"""A hypervisor that was broken into: what it sends with its own login changes nothing of others."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from tests.faults.mortals import Mortals

NOT_ALLOWED = 403
BAD_USER_ID = 406

Refused = Callable[[Any, str], object]


@contextmanager
def attacker(cluster: Mortals) -> Iterator[Any]:
    """Use the login of the third node with a client of one's own."""
    connection = pika.BlockingConnection(pika.URLParameters(cluster["n3"].config.bus.url))
    try:
        yield connection
    finally:
        connection.close()


def publish(
    channel: Any, key: str, body: bytes = b"{}", *, exchange: str = "anynode", **more: str
) -> None:
    """Publish, and return once the broker has taken it or refused it."""
    channel.confirm_delivery()
    properties = pika.BasicProperties(message_id=uuid.uuid4().hex, **more)
    channel.basic_publish(exchange, key, body, properties, mandatory=True)


REFUSED: dict[str, tuple[int, Refused]] = {
    "order another node": (NOT_ALLOWED, lambda c, n: publish(c, f"cast.compute.{n}")),
    "ask another node": (NOT_ALLOWED, lambda c, n: publish(c, f"call.datapath.{n}")),
    "be another node": (
        BAD_USER_ID,
        lambda c, n: publish(c, "cast.controller", user_id=f"h-{n}"),
    ),
    "write to a queue": (NOT_ALLOWED, lambda c, n: publish(c, f"node.{n}", exchange="")),
    "read another's queue": (NOT_ALLOWED, lambda c, n: c.basic_get(f"node.{n}")),
    "read the controllers' queue": (NOT_ALLOWED, lambda c, _: c.basic_get("controller")),
}


@pytest.mark.faults("hostile: hypervisor", quick=True)
def test_the_broker_refuses_what_is_not_a_hypervisors(cluster: Mortals) -> None:
    other = cluster["n4"].node_id
    with attacker(cluster) as connection:
        for what, (code, attack) in REFUSED.items():
            with pytest.raises(ChannelClosedByBroker) as raised:
                attack(connection.channel(), other)
            assert raised.value.reply_code == code, what
    cluster.assert_sound()
