"""Nodes that only tell that they are alive: each a connection with a login of its own.

``python -m tests.bench.beating EVERY_S`` reads a line of JSON for each node until an empty one:
the URL with the login, the routing key, the kind and the text of what it sends. It prints a line
when all are connected, and sends until its input ends.
"""

from __future__ import annotations

import select
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import pika
from msgspec import Struct

from appliance.bus.topology import EXCHANGE

_SERVE_EVERY_S = 30.0
"""Seconds after which a connection is looked at: it may be asked whether it lives."""


class Beating(Struct, frozen=True, kw_only=True):
    """One node."""

    url: str
    login: str
    key: str
    kind: str
    body: str


class _Node:
    def __init__(self, beating: Beating) -> None:
        self._beating = beating
        self._connection = pika.BlockingConnection(pika.URLParameters(beating.url))
        self._channel = self._connection.channel()
        self._served_at = time.monotonic()

    def beat(self) -> None:
        """Send a heartbeat."""
        one = self._beating
        properties = pika.BasicProperties(
            user_id=one.login, type=one.kind, message_id=str(uuid.uuid4())
        )
        self._channel.basic_publish(EXCHANGE, one.key, one.body.encode(), properties)
        if time.monotonic() - self._served_at > _SERVE_EVERY_S:
            self._served_at = time.monotonic()
            self._connection.process_data_events(0)


def main(arguments: Sequence[str]) -> None:
    """Send the heartbeats of all, evenly over the time between two of one."""
    every_s = float(arguments[0])
    nodes: list[Any] = []
    for line in iter(sys.stdin.buffer.readline, b"\n"):
        nodes.append(_Node(msgspec.json.decode(line, type=Beating)))
    print(f"{len(nodes)} nodes beat", flush=True)
    due = time.monotonic()
    while True:
        for node in nodes:
            due += every_s / len(nodes)
            readable, _, _ = select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))
            if readable:
                return
            node.beat()


if __name__ == "__main__":
    main(sys.argv[1:])
