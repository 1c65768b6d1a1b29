"""The cluster's own PostgreSQL and RabbitMQ, on the node that began the cluster.

They outlive the node's process, as instances do. The node starts them again when they do not run,
and gives them its certificate when that was renewed.
"""

from __future__ import annotations

from pathlib import Path

from appliance.cluster.services.daemon import Tls
from appliance.cluster.services.postgresql import Postgresql
from appliance.cluster.services.rabbitmq import Rabbitmq

START_S = 60.0
LOOK_EVERY_S = 10.0
"""Seconds between two looks of the node that has them."""


def store_of(state_dir: Path) -> Postgresql:
    """Return the PostgreSQL of a node, made or not."""
    return Postgresql(state_dir / "services" / "postgresql")


def broker_of(state_dir: Path) -> Rabbitmq:
    """Return the RabbitMQ of a node, made or not."""
    return Rabbitmq(state_dir / "services" / "rabbitmq")


def both(state_dir: Path) -> tuple[Postgresql, Rabbitmq]:
    """Return both, in the order in which they are started."""
    return store_of(state_dir), broker_of(state_dir)


def tls_of(state_dir: Path) -> Tls:
    """Return where a node of a cluster has its certificate."""
    return tls_in(state_dir / "cluster")


def tls_in(folder: Path) -> Tls:
    """Return the certificate of a node in a folder of what makes it a member."""
    return Tls(
        authority=folder / "authority.pem",
        certificate=folder / "node.pem",
        key=folder / "node.key",
    )


def look_after(state_dir: Path, deadline_s: float = START_S) -> tuple[str, ...]:
    """Start the services of this node that do not run, and renew what they need of its certificate.

    For the start of the node, before it opens its store, and again and again. Cheap when there is
    nothing to do or when this node has no services.

    :param deadline_s: seconds for which each may take to answer.
    :returns: the names of those that had to be started.
    :raises AnynodeError: one does not start, or does not answer in time; it goes on.
    """
    tls = tls_of(state_dir)
    return tuple(one.name for one in both(state_dir) if one.exists and one.ensure(tls, deadline_s))


def stop(state_dir: Path, *, is_orderly: bool = True) -> tuple[str, ...]:
    """End the services of this node; their state stays. Safe to repeat.

    :param is_orderly: let them finish what they do; else they are killed, which loses nothing that
        they have confirmed.
    :returns: the names of those that ran.
    :raises CommandFailed: one does not end.
    """
    return tuple(
        one.name for one in reversed(both(state_dir)) if one.stop(is_orderly=is_orderly) is not None
    )
