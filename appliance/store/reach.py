"""Which ports of a network are on other nodes, and at which address each of these is reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from sqlalchemy import bindparam, select

from appliance.model import NetworkReach, RemotePort
from appliance.store import Transaction
from appliance.store import networks as network_rows
from appliance.store.schema import networks, nodes, placements, ports

_PLACED = (
    select(ports.c.id, ports.c.mac, placements.c.node_id, nodes.c.address)
    .join(placements, placements.c.instance_id == ports.c.instance_id)
    .join(nodes, nodes.c.id == placements.c.node_id)
    .where(
        ports.c.network_id == bindparam("network_id"),
        ports.c.is_bound.is_(True),
        placements.c.phase == "committed",
    )
    .order_by(placements.c.epoch)
)
_THESE_PLACED = _PLACED.where(ports.c.id.in_(bindparam("port_ids", expanding=True)))
_PORTS_OF_NODE = (
    select(ports.c.id, networks.c.vpc_id)
    .join(placements, placements.c.instance_id == ports.c.instance_id)
    .join(networks, networks.c.id == ports.c.network_id)
    .where(
        ports.c.is_bound.is_(True),
        placements.c.node_id == bindparam("node_id"),
        placements.c.phase == "committed",
    )
    .distinct()
)


def whole(tx: Transaction, network_id: str, revision: int, node_id: str) -> NetworkReach:
    """Return all ports of a network that are not on a node."""
    rows = tx.execute(_PLACED, {"network_id": network_id}).all()
    return NetworkReach(revision=revision, remotes=_remotes(tx, rows, node_id), is_whole=True)


def difference(
    tx: Transaction, network_id: str, changed: set[str], revision: int, node_id: str
) -> NetworkReach:
    """Return where ports are that have changed; costs what has changed."""
    if not changed:
        return NetworkReach(revision=revision)
    these = {"network_id": network_id, "port_ids": list(changed)}
    remotes = _remotes(tx, tx.execute(_THESE_PLACED, these).all(), node_id)
    removed = changed - {remote.port_id for remote in remotes}
    return NetworkReach(revision=revision, remotes=remotes, removed_port_ids=tuple(sorted(removed)))


def _remotes(tx: Transaction, rows: Iterable[object], node_id: str) -> tuple[RemotePort, ...]:
    """Return the ports whose newest placement is on another node that can be reached."""
    newest = {values["id"]: values for values in (row._mapping for row in rows)}  # type: ignore[attr-defined]
    there = {
        port_id: (values["mac"], address)
        for port_id, values in newest.items()
        if values["node_id"] != node_id and (address := host_of(values["address"]))
    }
    owned = network_rows.of_ports(tx, there)
    return tuple(
        RemotePort(port_id=port_id, mac=mac, addresses=owned.get(port_id, ()), node_address=address)
        for port_id, (mac, address) in there.items()
    )


def host_of(address: str) -> str:
    """Return the IPv4 address of a peer service, ``host:port``; empty where it has none."""
    try:
        return str(ipaddress.IPv4Address(address.rpartition(":")[0]))
    except ValueError:
        return ""


def ports_of_node(tx: Transaction, node_id: str) -> dict[str, list[str]]:
    """Return by VPC the ports that are on a node."""
    found: dict[str, list[str]] = {}
    for row in tx.execute(_PORTS_OF_NODE, {"node_id": node_id}):
        found.setdefault(row.vpc_id, []).append(row.id)
    return found
