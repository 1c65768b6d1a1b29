"""Nodes: who they are, whether they are up, and how much of them is claimed.

Claims and status are different tables, so that a heartbeat never races with a placement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from sqlalchemy import Row, bindparam, insert, select, update

from appliance.errors import NotFound
from appliance.model import NodeCapacity, NodeView
from appliance.store import Transaction
from appliance.store.schema import node_claims, node_status, nodes

_VIEWS = (
    # Nothing else: it is read for each launch, of every node, and some of it is long.
    select(
        nodes.c.id.label("node_id"),
        nodes.c.name,
        nodes.c.zone,
        nodes.c.accepts_instances,
        node_status.c.is_up,
        node_claims.c.vcpus,
        node_claims.c.vcpus_claimed,
        node_claims.c.memory_mib,
        node_claims.c.memory_claimed_mib,
        node_claims.c.disk_gib,
        node_claims.c.disk_claimed_gib,
        node_claims.c.instances,
    )
    .join(node_status, node_status.c.node_id == nodes.c.id)
    .join(node_claims, node_claims.c.node_id == nodes.c.id)
    .where(nodes.c.removed_at.is_(None))
)
_KNOWN = (
    select(
        nodes.c.id,
        nodes.c.approved_vcpus,
        nodes.c.approved_memory_mib,
        nodes.c.approved_disk_gib,
        node_status.c.is_up,
        node_claims.c.vcpus,
        node_claims.c.memory_mib,
        node_claims.c.disk_gib,
    )
    .join(node_status, node_status.c.node_id == nodes.c.id)
    .outerjoin(node_claims, node_claims.c.node_id == nodes.c.id)
    .where(nodes.c.id.in_(bindparam("node_ids", expanding=True)), nodes.c.removed_at.is_(None))
)
_SEEN = (
    update(node_status)
    .where(node_status.c.node_id.in_(bindparam("node_ids", expanding=True)))
    .values(seen_at=bindparam("heard_at"))
)
_TELL = (
    update(node_status)
    .where(node_status.c.node_id == bindparam("of_node"))
    .values(boot_id=bindparam("boot"), body=bindparam("said"))
)
_RISE = (
    update(node_status)
    .where(node_status.c.node_id.in_(bindparam("node_ids", expanding=True)))
    .values(is_up=True, changed_at=bindparam("now"))
)
_CLAIM = (
    update(node_claims)
    .where(
        node_claims.c.node_id == bindparam("on_node"),
        node_claims.c.vcpus_claimed + bindparam("more_vcpus") <= node_claims.c.vcpus,
        node_claims.c.memory_claimed_mib + bindparam("more_memory") <= node_claims.c.memory_mib,
        node_claims.c.disk_claimed_gib + bindparam("more_disk") <= node_claims.c.disk_gib,
    )
    .values(
        vcpus_claimed=node_claims.c.vcpus_claimed + bindparam("more_vcpus"),
        memory_claimed_mib=node_claims.c.memory_claimed_mib + bindparam("more_memory"),
        disk_claimed_gib=node_claims.c.disk_claimed_gib + bindparam("more_disk"),
        instances=node_claims.c.instances + bindparam("more_instances"),
    )
)


DOUBT = 5.0
"""How much longer nodes must be silent that fell silent together."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as it joined."""

    node_id: str
    name: str
    zone: str
    roles: tuple[str, ...]


class Condition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node is, as it says itself. ``problems`` say by role why it does not run."""

    capacity: NodeCapacity | None = None
    release: str = ""
    versions: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    problems: dict[str, str] = {}
    buses: tuple[str, ...] = ()


def join(tx: Transaction, node: Node) -> None:
    """Make a node known, or renew what is known of it; its claims stay."""
    values = {"name": node.name, "zone": node.zone, "roles": " ".join(node.roles)}
    known = tx.execute(update(nodes).where(nodes.c.id == node.node_id).values(**values)).rowcount
    if not known:
        tx.execute(insert(nodes).values(id=node.node_id, joined_at=tx.now, **values))
        tx.execute(insert(node_status).values(node_id=node.node_id, changed_at=tx.now))


class Offer(NamedTuple):
    """What a node offers to instances."""

    vcpus: int
    memory_mib: int
    disk_gib: int


class Beat(NamedTuple):
    """A heartbeat, with the moment at which it came."""

    node_id: str
    boot_id: str
    condition: Condition
    offer: Offer
    at: float


class Known(NamedTuple):
    """What became of heartbeats: the nodes that are known, and those of them that were down."""

    node_ids: frozenset[str]
    risen: tuple[str, ...]


def offer(tx: Transaction, node_id: str, *, vcpus: int, memory_mib: int, disk_gib: int) -> None:
    """Write what a node offers to instances, at most what the operator has approved.

    Nothing is written for one that has never offered anything, and offers nothing now.
    """
    for row in tx.execute(_KNOWN, {"node_ids": [node_id]}).all():
        _offer(tx, row, Offer(vcpus, memory_mib, disk_gib))


def _offer(tx: Transaction, row: Row[Any], given: Offer) -> None:
    """Write an offer where it differs from the one that ``row``, one of ``_KNOWN``, has."""
    approved = (row.approved_vcpus, row.approved_memory_mib, row.approved_disk_gib)
    wanted = Offer(
        *(
            min(offered, most) if most is not None else offered
            for offered, most in zip(given, approved, strict=True)
        )
    )
    if row.vcpus is None:
        if any(wanted):
            tx.execute(insert(node_claims).values(node_id=row.id, **wanted._asdict()))
    elif (row.vcpus, row.memory_mib, row.disk_gib) != wanted:
        tx.execute(
            update(node_claims).where(node_claims.c.node_id == row.id).values(**wanted._asdict())
        )


def seen(tx: Transaction, node_id: str, boot_id: str, condition: Condition) -> None:
    """Write that a node is alive, which it was not, or was."""
    known = tx.execute(_KNOWN, {"node_ids": [node_id]}).all()
    _seen(tx, [Beat(node_id, boot_id, condition, Offer(0, 0, 0), tx.now)], {node_id})
    _rise(tx, known)


def _seen(tx: Transaction, beats: Sequence[Beat], in_full: Collection[str]) -> None:
    by_second: dict[int, list[Beat]] = {}
    for beat in beats:
        by_second.setdefault(int(beat.at), []).append(beat)
    for together in by_second.values():
        values = {
            "node_ids": [beat.node_id for beat in together],
            "heard_at": min(beat.at for beat in together),
        }
        tx.execute(_SEEN, values)
    told = [
        {
            "of_node": beat.node_id,
            "boot": beat.boot_id,
            "said": msgspec.json.encode(beat.condition),
        }
        for beat in beats
        if beat.node_id in in_full
    ]
    if told:
        tx.execute(_TELL, told)


def _rise(tx: Transaction, known: Sequence[Row[Any]]) -> tuple[str, ...]:
    risen = tuple(row.id for row in known if not row.is_up)
    if risen:
        tx.execute(_RISE, {"node_ids": risen, "now": tx.now})
    return risen


def heard(tx: Transaction, beats: Sequence[Beat], in_full: Collection[str]) -> Known:
    """Write heartbeats, one of each node: it is up, since now if it was not.

    When they came is written to the second, for all of a second at once: two statements for any
    number of nodes of which nothing else has changed.

    :param in_full: the nodes whose conditions are written, too.
    """
    if not beats:
        return Known(frozenset(), ())
    known = tx.execute(_KNOWN, {"node_ids": [beat.node_id for beat in beats]}).all()
    of_node = {row.id: row for row in known}
    _seen(tx, [beat for beat in beats if beat.node_id in of_node], in_full)
    for beat in beats:
        if beat.node_id in of_node:
            _offer(tx, of_node[beat.node_id], beat.offer)
    return Known(frozenset(of_node), _rise(tx, known))


def mark_silent_down(tx: Transaction, silence_s: float, well_for_s: float) -> list[str]:
    """Mark the nodes down that have been silent too long; return their ids.

    Silence says nothing while messages do not get through: none is marked before they have for
    that long. When several fell silent at once, and they are over 30 % of all, the bus is
    suspected, and they are marked only after ``DOUBT`` times as long. A lone node never is: who
    would say so? A node that was heard in the future, before the clock went back, counts as heard
    now.

    :param well_for_s: seconds for which the bus has been well, as its own pings say.
    """
    status = node_status.c
    tx.execute(
        update(node_status)
        .where(status.is_up.is_(True), status.seen_at > tx.now)
        .values(seen_at=tx.now)
    )
    up = tx.execute(select(status.node_id, status.seen_at).where(status.is_up.is_(True))).all()
    silent = [row.node_id for row in up if row.seen_at < tx.now - silence_s]
    if len(silent) > max(1.0, 0.3 * len(up)):
        silence_s *= DOUBT
        silent = [row.node_id for row in up if row.seen_at < tx.now - silence_s]
    if not silent or len(silent) == len(up) or well_for_s < silence_s:
        return []
    tx.execute(
        update(node_status)
        .where(status.node_id.in_(silent), status.seen_at < tx.now - silence_s)
        .values(is_up=False, changed_at=tx.now)
    )
    return silent


def views(tx: Transaction) -> list[NodeView]:
    """Return every node that offers something to instances, up or not."""
    return [NodeView(**row) for row in tx.execute(_VIEWS).mappings()]


def claim(
    tx: Transaction, node_id: str, *, vcpus: int, memory_mib: int, disk_gib: int, instances: int
) -> bool:
    """Take room on a node in one conditional UPDATE; ``False`` when it has too little left."""
    values = {
        "on_node": node_id,
        "more_vcpus": vcpus,
        "more_memory": memory_mib,
        "more_disk": disk_gib,
        "more_instances": instances,
    }
    return tx.execute(_CLAIM, values).rowcount == 1


def unclaim(
    tx: Transaction, node_id: str, *, vcpus: int, memory_mib: int, disk_gib: int, instances: int
) -> None:
    """Give room on a node back."""
    c = node_claims.c
    tx.execute(
        update(node_claims)
        .where(c.node_id == node_id)
        .values(
            vcpus_claimed=c.vcpus_claimed - vcpus,
            memory_claimed_mib=c.memory_claimed_mib - memory_mib,
            disk_claimed_gib=c.disk_claimed_gib - disk_gib,
            instances=c.instances - instances,
        )
    )


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """A node and how it is, for people. It is up, or down, since ``changed_at``.

    ``approved`` is the most that it may offer: vcpus, MiB of memory, GiB of disk; ``None`` is no
    limit.
    """

    node_id: str
    name: str
    zone: str
    roles: tuple[str, ...]
    address: str
    is_control: bool
    accepts_instances: bool
    is_up: bool
    seen_at: float
    changed_at: float
    approved: tuple[int | None, int | None, int | None]
    condition: Condition

    @property
    def capacity(self) -> NodeCapacity | None:
        """What the node has for instances; ``None`` where it has not said it yet."""
        return self.condition.capacity


def status(tx: Transaction) -> list[NodeStatus]:
    """Return all nodes and how they are, by name."""
    query = (
        select(nodes, node_status)
        .join(node_status, node_status.c.node_id == nodes.c.id)
        .where(nodes.c.removed_at.is_(None))
        .order_by(nodes.c.name)
    )
    return [
        NodeStatus(
            node_id=row.id,
            name=row.name,
            zone=row.zone,
            roles=tuple(row.roles.split()),
            address=row.address,
            is_control=row.is_control,
            accepts_instances=row.accepts_instances,
            is_up=row.is_up,
            seen_at=row.seen_at,
            changed_at=row.changed_at,
            approved=(row.approved_vcpus, row.approved_memory_mib, row.approved_disk_gib),
            condition=msgspec.json.decode(row.body, type=Condition) if row.body else Condition(),
        )
        for row in tx.execute(query)
    ]


def match(tx: Transaction, name: str) -> NodeStatus:
    """Return a node by its name or its id.

    :raises NotFound: there is none; the hint names those that there are.
    """
    known = status(tx)
    for node in known:
        if name in (node.name, node.node_id):
            return node
    names = ", ".join(node.name for node in known)
    raise NotFound(f"There is no node {name!r}.", hint=f"There are {names}.")
