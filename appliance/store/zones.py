"""Availability zones: where nodes and networks are."""

from __future__ import annotations

from sqlalchemy import select

from appliance.store import Transaction
from appliance.store.schema import networks, node_status, nodes


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
    query = select(networks.c.zone).where(networks.c.id == network_id)
    return tx.execute(query).scalar() or ""
