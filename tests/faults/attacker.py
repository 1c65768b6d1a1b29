"""Who has taken over a hypervisor: its login, its certificate, its key, and a client of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika

from appliance.bus.topology import login_of
from appliance.cluster import settings
from appliance.cluster.signatures import NodeSigner
from appliance.messages import Message, encode
from tests.faults.mortals import Mortal

EXCHANGE = "anynode"
ANSWER_S = 10.0


class Attacker:
    """Sends whatever the broker takes from a node's login.

    :param channel: of a connection with that login.
    """

    def __init__(self, node: Mortal, channel: Any) -> None:
        self.node = node
        self.node_id = node.node_id
        self.login = login_of(node.node_id, is_control=False)
        self.signer = NodeSigner(settings.folder_of(node.config.state_dir), lambda: ())
        self.channel = channel
        self.process = f"{node.node_id}.evil{uuid.uuid4().hex[:8]}"
        self.queue = f"process.{self.process}"
        channel.queue_declare(self.queue, exclusive=True, auto_delete=True)
        channel.queue_bind(self.queue, EXCHANGE, f"reply.{self.process}")

    def send(self, key: str, message: Message, **more: Any) -> None:
        """Publish a message as a node does."""
        self.send_bytes(key, encode(message), type(message).__name__, **more)

    def send_bytes(self, key: str, body: bytes, kind: str, **more: Any) -> None:
        """Publish anything; ``more`` are properties, over those that a node gives."""
        usual = {"user_id": self.login, "message_id": uuid.uuid4().hex, "type": kind}
        properties = pika.BasicProperties(**{**usual, **more})
        self.channel.basic_publish(EXCHANGE, key, body, properties)

    def around(
        self, key: str, body: bytes, kind: str, user_id: str | None = None, **more: Any
    ) -> None:
        """Publish with any routing key: the broker itself moves what has died in a queue."""
        name = f"process.{self.node_id}.{time.monotonic_ns()}"
        self.channel.queue_declare(
            name,
            exclusive=True,
            arguments={"x-dead-letter-exchange": EXCHANGE, "x-dead-letter-routing-key": key},
        )
        own = f"reply.{name.removeprefix('process.')}"
        self.channel.queue_bind(name, EXCHANGE, own)
        usual = {"message_id": uuid.uuid4().hex, "type": kind, "user_id": user_id}
        properties = pika.BasicProperties(**{**usual, **more, "expiration": "0"})
        self.channel.basic_publish(EXCHANGE, own, body, properties)

    def ask(self, topic: str, message: Message) -> tuple[str, bytes]:
        """Ask something and return kind and body of the answer."""
        number = uuid.uuid4().hex
        self.send(
            f"call.{topic}",
            message,
            message_id=number,
            correlation_id=number,
            reply_to=f"reply.{self.process}",
            expiration=str(int(ANSWER_S * 1000)),
        )
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            _, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
            if properties is not None and properties.correlation_id == number:
                return properties.type, body
            time.sleep(0.02)
        raise AssertionError(f"{topic} answers nothing")


@contextmanager
def attacker(node: Mortal) -> Iterator[Attacker]:
    """Be an attacker at a node for a while; the node's own process goes on."""
    connection = pika.BlockingConnection(pika.URLParameters(node.config.bus.url))
    try:
        yield Attacker(node, connection.channel())
    finally:
        connection.close()
