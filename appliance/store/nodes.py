"""Nodes: who they are, whether they are up, and how much of them is claimed.

Claims and status are different tables, so that a heartbeat never races with a placement.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import bindparam, insert, select, update

from appliance.model import NodeCapacity, NodeView
from appliance.store import Transaction
from appliance.store.schema import node_claims, node_status, nodes

_VIEWS = (
    select(nodes, node_status.c.is_up, node_claims)
    .join(node_status, node_status.c.node_id == nodes.c.id)
    .join(node_claims, node_claims.c.node_id == nodes.c.id)
    .where(nodes.c.removed_at.is_(None))
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


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as it joined."""

    node_id: str
    name: str
    zone: str
    roles: tuple[str, ...]


def join(tx: Transaction, node: Node) -> None:
    """Make a node known, or renew what is known of it; its claims stay."""
    values = {"name": node.name, "zone": node.zone, "roles": " ".join(node.roles)}
    known = tx.execute(update(nodes).where(nodes.c.id == node.node_id).values(**values)).rowcount
    if not known:
        tx.execute(insert(nodes).values(id=node.node_id, joined_at=tx.now, **values))
        tx.execute(insert(node_status).values(node_id=node.node_id, changed_at=tx.now))


def offer(tx: Transaction, node_id: str, *, vcpus: int, memory_mib: int, disk_gib: int) -> None:
    """Write what a node offers to instances."""
    offered = {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib}
    c = node_claims.c
    row = tx.execute(select(c.vcpus, c.memory_mib, c.disk_gib).where(c.node_id == node_id)).first()
    if row is None:
        tx.execute(insert(node_claims).values(node_id=node_id, **offered))
    elif tuple(row) != tuple(offered.values()):
        tx.execute(update(node_claims).where(c.node_id == node_id).values(**offered))


def seen(tx: Transaction, node_id: str, boot_id: str, capacity: NodeCapacity) -> None:
    """Write a heartbeat: the node is up, since now if it was not."""
    body = msgspec.json.encode(capacity)
    table = node_status
    tx.execute(
        update(table)
        .where(table.c.node_id == node_id)
        .values(seen_at=tx.now, boot_id=boot_id, body=body)
    )
    tx.execute(
        update(table)
        .where(table.c.node_id == node_id, table.c.is_up.is_(False))
        .values(is_up=True, changed_at=tx.now)
    )


def mark_silent_down(tx: Transaction, silence_s: float) -> list[str]:
    """Mark the nodes down that have been silent too long; return their ids.

    None is marked when over 30 % of the nodes that were up fell silent at once, so never a lone
    one: then the bus is suspected, or the clock. A node that was heard in the future, before the
    clock went back, counts as heard now.
    """
    status = node_status.c
    tx.execute(
        update(node_status)
        .where(status.is_up.is_(True), status.seen_at > tx.now)
        .values(seen_at=tx.now)
    )
    up = tx.execute(select(status.node_id, status.seen_at).where(status.is_up.is_(True))).all()
    silent = [row.node_id for row in up if row.seen_at < tx.now - silence_s]
    if not silent or len(silent) > 0.3 * len(up):
        return []
    tx.execute(
        update(node_status)
        .where(status.node_id.in_(silent), status.seen_at < tx.now - silence_s)
        .values(is_up=False, changed_at=tx.now)
    )
    return silent


def views(tx: Transaction) -> list[NodeView]:
    """Return every node that offers something to instances, up or not."""
    return [
        NodeView(
            node_id=row.id,
            name=row.name,
            zone=row.zone,
            is_up=row.is_up,
            accepts_instances=row.accepts_instances,
            vcpus=row.vcpus,
            vcpus_claimed=row.vcpus_claimed,
            memory_mib=row.memory_mib,
            memory_claimed_mib=row.memory_claimed_mib,
            disk_gib=row.disk_gib,
            disk_claimed_gib=row.disk_claimed_gib,
            instances=row.instances,
        )
        for row in tx.execute(_VIEWS)
    ]


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
    """A node and how it is, for people."""

    node_id: str
    name: str
    zone: str
    roles: tuple[str, ...]
    is_up: bool
    seen_at: float
    capacity: NodeCapacity | None


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
            is_up=row.is_up,
            seen_at=row.seen_at,
            capacity=msgspec.json.decode(row.body, type=NodeCapacity) if row.body else None,
        )
        for row in tx.execute(query)
    ]
