"""Availability zones: where nodes and networks are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy import bindparam, func, select

from appliance.store import Transaction
from appliance.store.schema import instances, networks, node_claims, node_status, nodes

_OF_NETWORK = select(networks.c.zone).where(networks.c.id == bindparam("network_id"))
_CLAIMED = {
    "vcpus": "vcpus_claimed",
    "memory_mib": "memory_claimed_mib",
    "disk_gib": "disk_claimed_gib",
}


def list_all(tx: Transaction) -> dict[str, bool]:
    """Return the zones by name, and whether a node of each is up."""
    query = (
        select(nodes.c.zone, node_status.c.is_up)
        .outerjoin(node_status, node_status.c.node_id == nodes.c.id)
        .where(nodes.c.removed_at.is_(None))
        .order_by(nodes.c.zone)
    )
    found: dict[str, bool] = {}
    for row in tx.execute(query):
        found[row.zone] = found.get(row.zone, False) or bool(row.is_up)
    return found


def of_network(tx: Transaction, network_id: str) -> str:
    """Return the zone of a network; empty where it is shared by all zones, or does not exist."""
    return tx.execute(_OF_NETWORK, {"network_id": network_id}).scalar() or ""


def room(tx: Transaction, need: Mapping[str, int]) -> dict[str, int]:
    """Return how many more instances of one size fit into each zone, all its nodes taken as one.

    Nodes that are down or take no instances do not count; instances that were accepted and have
    no node yet do. For choosing between zones: only a claim says that an instance fits.

    :param need: what one instance takes: ``vcpus``, ``memory_mib`` and ``disk_gib``.
    """
    offered = (
        select(
            nodes.c.zone,
            *(
                func.sum(node_claims.c[name] - node_claims.c[claimed]).label(name)
                for name, claimed in _CLAIMED.items()
            ),
        )
        .join(node_claims, node_claims.c.node_id == nodes.c.id)
        .join(node_status, node_status.c.node_id == nodes.c.id)
        .where(
            nodes.c.removed_at.is_(None),
            nodes.c.accepts_instances.is_(True),
            node_status.c.is_up.is_(True),
        )
        .group_by(nodes.c.zone)
    )
    waiting = (
        select(instances.c.zone, *(func.sum(instances.c[name]).label(name) for name in _CLAIMED))
        .where(instances.c.state == "pending", instances.c.node_id.is_(None))
        .group_by(instances.c.zone)
    )
    taken: dict[str, Mapping[str, int]] = defaultdict(lambda: dict.fromkeys(_CLAIMED, 0))
    taken |= {row.zone: row._mapping for row in tx.execute(waiting) if row.zone}
    return {
        row.zone: max(
            min(
                (int(row._mapping[name]) - int(taken[row.zone][name])) // max(need[name], 1)
                for name in _CLAIMED
            ),
            0,
        )
        for row in tx.execute(offered)
    }
