"""What is at the message broker: names, queues, and what a login may do with them. All pure.

A cast has the routing key ``cast.<topic>``, a question ``call.<topic>``, a hint ``hint.<topic>``
and an answer ``reply.<node id>.<process>``. What the broker gives up keeps its key and goes to the
exchange ``anynode.dead``: there the casts are caught, and questions that ran out of time are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

EXCHANGE = "anynode"
DEAD_EXCHANGE = "anynode.dead"
DEAD_QUEUE = "dead"
EXCHANGES = (EXCHANGE, DEAD_EXCHANGE)
"""Topic exchanges, durable."""

SHARED_TOPICS = ("scheduler", "controller", "network")
"""Topics with one queue for all nodes that serve them."""

MEMBER_TOPIC = "member"
"""The group that every node's member hears."""

DELIVERY_LIMIT = 20
"""Times that the broker hands out a message before it takes it for one that kills its handlers."""

CONTROL, HYPERVISOR = "c-", "h-"
"""How the names of logins begin; the node's id follows."""

USER_LIMITS = {"max-connections": 8, "max-channels": 64}
"""What one node's login may hold at once; a node needs one connection and three channels."""

_QUORUM: Mapping[str, str | int] = {"x-queue-type": "quorum"}
_WORK: Mapping[str, str | int] = {
    **_QUORUM,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
}


class Binding(Struct, frozen=True, kw_only=True):
    """What brings messages of an exchange to a queue."""

    exchange: str
    key: str


class Queue(Struct, frozen=True, kw_only=True):
    """A durable queue."""

    name: str
    bindings: tuple[Binding, ...]
    arguments: Mapping[str, str | int]


class TopicPermission(Struct, frozen=True, kw_only=True):
    """Patterns of the routing keys that a login may write to an exchange, and bind of it."""

    exchange: str
    write: str
    read: str


class Permissions(Struct, frozen=True, kw_only=True):
    """Patterns of what a login may configure, write and read in its virtual host."""

    configure: str
    write: str
    read: str
    topics: tuple[TopicPermission, ...]


def shared_queues() -> tuple[Queue, ...]:
    """Return the queues that there are once."""
    work = tuple(
        Queue(name=topic, bindings=_both(topic), arguments=_WORK) for topic in SHARED_TOPICS
    )
    dead = Queue(
        name=DEAD_QUEUE,
        bindings=(Binding(exchange=DEAD_EXCHANGE, key="cast.#"),),
        arguments=_QUORUM,
    )
    return (*work, dead)


def node_queue(node_id: str) -> Queue:
    """Return the queue of all roles of one node."""
    return Queue(name=f"node.{node_id}", bindings=_both(f"*.{node_id}"), arguments=_WORK)


def _both(topic: str) -> tuple[Binding, ...]:
    return tuple(Binding(exchange=EXCHANGE, key=f"{verb}.{topic}") for verb in ("cast", "call"))


def queue_of(topic: str) -> str:
    """Return the name of the queue of a topic: ``compute.<node id>`` is in ``node.<node id>``."""
    _, dot, node_id = topic.partition(".")
    return f"node.{node_id}" if dot else topic


def login_of(node_id: str, *, is_control: bool) -> str:
    """Return the name of a node's login."""
    return f"{CONTROL if is_control else HYPERVISOR}{node_id}"


def permissions_of(node_id: str, *, is_control: bool) -> Permissions:
    """Return what a node's login may do.

    Nobody may write to the broker's default exchange, which reaches any queue.
    """
    own = re.escape(node_id)
    process = rf"process\.{own}\..+"
    if is_control:
        durable = [re.escape(name) for name in (*EXCHANGES, *SHARED_TOPICS, DEAD_QUEUE)]
        everything = _any([*durable, r"node\.[^.]+", process])
        return Permissions(
            configure=everything,
            write=everything,
            read=everything,
            topics=(
                TopicPermission(
                    exchange=EXCHANGE,
                    write=_any([r"(cast|call|hint|reply)\..+"]),
                    read=_any([r"(cast|call|hint)\..+", rf"reply\.{own}\..+"]),
                ),
            ),
        )
    exchange = re.escape(EXCHANGE)
    said = [r"(cast|call|hint)\.controller", r"call\.network", r"reply\..+"]
    heard = [rf"reply\.{own}\.[^.]+", rf"hint\.[a-z]+\.{own}", rf"hint\.{MEMBER_TOPIC}"]
    return Permissions(
        configure=_any([process]),
        write=_any([exchange, process]),
        read=_any([exchange, process, rf"node\.{own}"]),
        topics=(
            TopicPermission(
                exchange=EXCHANGE,
                write=_any(said),
                read=_any(heard),
            ),
        ),
    )


def _any(patterns: Sequence[str]) -> str:
    return f"^({'|'.join(patterns)})$"
