"""Messages carried from one broker to another, as they are: their senders' names stay with them.

A broker lets a login write in its own name only, unless it has the tag ``impersonator``: such a
login is made for the time of it, with a password that nobody keeps.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError

from appliance import bus
from appliance.bus import TlsFiles, topology
from appliance.bus.depth import parameters
from appliance.bus.urls import split, with_login
from appliance.cluster.brokers import Broker
from appliance.cluster.management import Management
from appliance.cluster.services.rabbitmq import hash_password
from appliance.config import without_password
from appliance.errors import AnynodeError, Unavailable

log = logging.getLogger(__name__)

PREFIX = "anynode-carrier-"
_NOT_FOUND = 404


@contextmanager
def login_at(broker: Broker) -> Iterator[list[str]]:
    """Give a broker's URLs with a login that may carry messages; it is gone afterwards.

    :raises Unavailable: the broker does not answer.
    :raises Denied: its administrator may not make logins.
    """
    management, password = Management(broker.access), secrets.token_urlsafe(32)
    name = PREFIX + secrets.token_hex(4)
    for old in management.users():
        if old.startswith(PREFIX):
            management.remove_user(old)
    management.import_definitions(
        {
            "vhosts": [{"name": management.vhost}],
            "users": [
                {
                    "name": name,
                    "password_hash": hash_password(password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "impersonator",
                }
            ],
            "permissions": [
                {
                    "user": name,
                    "vhost": management.vhost,
                    "configure": "",
                    "write": ".*",
                    "read": ".*",
                }
            ],
        }
    )
    try:
        yield split(with_login(broker.urls, name, password))
    finally:
        with suppress(AnynodeError):
            management.remove_user(name)


@contextmanager
def channel_at(urls: Sequence[str], tls: TlsFiles | None) -> Iterator[BlockingChannel]:
    """Give a channel at the first machine of a broker that answers.

    :raises Unavailable: none does, or the connection broke.
    """
    shown = ", ".join(without_password(url) for url in urls)
    context = bus.tls_context(tls) if tls else None
    try:
        connection = pika.BlockingConnection([parameters(url, context) for url in urls])
    except (AMQPError, OSError) as error:
        said = str(error) or type(error).__name__
        raise Unavailable(f"The message broker at {shown} cannot be reached: {said}.") from error
    try:
        yield connection.channel()
    except (AMQPError, OSError) as error:
        raise Unavailable(f"The message broker at {shown} failed: {error!r}.") from error
    finally:
        if connection.is_open:
            with suppress(AMQPError, OSError):
                connection.close()


def carry(
    queues: Sequence[str],
    source: tuple[Sequence[str], TlsFiles | None],
    target: tuple[Sequence[str], TlsFiles | None],
    passed: Callable[[str], None] = lambda point: None,
) -> int:
    """Bring all that lies in queues of one broker to another; return how many messages.

    Each leaves the one once the other has confirmed it, so that a repetition loses none; one may
    come twice. What no queue takes there is dropped: its node is gone.

    :raises Unavailable: one of them fails; what was carried is there.
    """
    count = 0
    with channel_at(*target) as out:
        out.confirm_delivery()
        for queue in queues:
            count += _carry(queue, source, out, passed)
    return count


def _carry(
    queue: str,
    source: tuple[Sequence[str], TlsFiles | None],
    out: BlockingChannel,
    passed: Callable[[str], None],
) -> int:
    exchange = topology.DEAD_EXCHANGE if queue == topology.DEAD_QUEUE else topology.EXCHANGE
    count = 0
    # A connection for each: the broker closes a channel on which a queue was asked for in vain.
    with channel_at(*source) as into:
        while True:
            try:
                method, properties, body = into.basic_get(queue)
            except ChannelClosedByBroker as error:
                if error.reply_code == _NOT_FOUND:
                    return count
                raise
            if method is None or method.delivery_tag is None:
                return count
            try:
                out.basic_publish(exchange, method.routing_key, body, properties, mandatory=True)
            except UnroutableError:
                log.warning("dropped a message for %s: no queue takes it", method.routing_key)
            passed("move.carried")
            into.basic_ack(method.delivery_tag)
            count += 1
