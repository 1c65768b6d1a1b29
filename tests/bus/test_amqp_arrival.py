"""A message that comes again while its first copy ends is ended, too."""

from __future__ import annotations

from typing import cast

import pika

from appliance.bus.amqp_arrival import AmqpArrival
from appliance.bus.amqp_link import Incoming, Link
from appliance.bus.guard import Guard
from appliance.messages import Wanted, encode
from appliance.world import SystemClock


class Ends:
    """A link that notes what becomes of messages."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.number = 1

    def holds(self, incoming: Incoming) -> bool:
        return incoming.connection == self.number

    def acknowledge(self, incoming: Incoming) -> None:
        self.acknowledged.append(incoming.connection)


def arrival(link: Ends, connection: int) -> AmqpArrival:
    properties = pika.BasicProperties(type="Wanted", message_id="m-1", user_id="c-n0")
    body = encode(Wanted(instance_id="i-1"))
    incoming = Incoming("controller", "cast.controller", body, properties, connection, 1)
    guard = Guard("c-n0", "n0", None, SystemClock())
    return AmqpArrival(cast(Link, link), guard, None, None, incoming)


def test_what_comes_again_before_the_end_is_acknowledged_in_its_place() -> None:
    link = Ends()
    first, again = arrival(link, 1), arrival(link, 2)
    link.number = 2
    first.renew(again)
    first.settle()
    assert link.acknowledged == [2]


def test_a_copy_over_another_broker_is_acknowledged_and_the_first_in_the_end() -> None:
    link, other = Ends(), Ends()
    other.number = 2
    first, again = arrival(link, 1), arrival(other, 2)
    first.renew(again)
    assert (link.acknowledged, other.acknowledged) == ([], [2])
    first.settle()
    assert link.acknowledged == [1]


def test_what_comes_again_after_the_end_is_acknowledged_at_once() -> None:
    link = Ends()
    first, again = arrival(link, 1), arrival(link, 2)
    first.settle()
    link.number = 2
    first.renew(again)
    assert link.acknowledged == [1, 2]
