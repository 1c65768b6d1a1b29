"""How full the broker's queues are: for people, on a connection of its own."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence

import pika
from msgspec import Struct
from pika.exceptions import AMQPError, ChannelClosedByBroker

from appliance.config import without_password
from appliance.errors import Unavailable

# What it would say is in the error, in one sentence.
logging.getLogger("pika").setLevel(logging.CRITICAL)

_DEADLINE_S = 10.0
_NOT_FOUND = 404


class Depth(Struct, frozen=True, kw_only=True):
    """How many messages a queue holds that nobody has taken yet, and how many processes take them.

    Without the queue both are ``None``.
    """

    queue: str
    messages: int | None
    consumers: int | None


def depths(
    urls: Sequence[str], queues: Sequence[str], tls: ssl.SSLContext | None = None
) -> list[Depth]:
    """Return how full queues are.

    :param urls: brokers with a login that may read them, in the order in which they are tried.
    :raises Unavailable: no broker answers within some ten seconds each, or it refuses.
    """
    shown = ", ".join(without_password(url) for url in urls)
    try:
        broker = pika.BlockingConnection([parameters(url, tls) for url in urls])
    except (AMQPError, OSError) as error:
        raise Unavailable(f"No message broker answers at {shown}: {error!r}.") from error
    try:
        return [_depth(broker, name) for name in queues]
    except (AMQPError, OSError) as error:
        raise Unavailable(f"The message broker at {shown} refused: {error}.") from error
    finally:
        if broker.is_open:
            broker.close()


def _depth(broker: pika.BlockingConnection, queue: str) -> Depth:
    # A channel for each: the broker closes one on which a queue was asked for that is not there.
    channel = broker.channel()
    try:
        found = channel.queue_declare(queue, passive=True).method
    except ChannelClosedByBroker as error:
        if error.reply_code != _NOT_FOUND:
            raise
        return Depth(queue=queue, messages=None, consumers=None)
    channel.close()
    return Depth(queue=queue, messages=found.message_count, consumers=found.consumer_count)


def parameters(url: str, tls: ssl.SSLContext | None) -> pika.URLParameters:
    """Return how a broker is asked that shall answer soon or not at all."""
    made = pika.URLParameters(url)
    made.socket_timeout = made.stack_timeout = _DEADLINE_S
    made.blocked_connection_timeout = _DEADLINE_S
    if tls and made.ssl_options:
        made.ssl_options = pika.SSLOptions(tls, made.host)
    return made
