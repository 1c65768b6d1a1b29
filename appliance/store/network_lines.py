"""Networks and addresses as an operator sees them, and the networks that operators make."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Row, delete, func, select

from appliance.config import Config
from appliance.errors import Conflict, InputError, NotFound
from appliance.model import NetworkSpec
from appliance.plugins import spans_nodes
from appliance.store import Transaction, cluster_facts, nodes, setup, zones
from appliance.store.networks import is_free
from appliance.store.nodes import NodeStatus
from appliance.store.schema import (
    addresses,
    instances,
    networks,
    policy_changes,
    policy_confirmations,
    ports,
    tags,
)
from appliance.store.schema import nodes as node_rows

USED, RESERVED, FREE, FREED = "used", "reserved", "free", "freed"
"""How an address is; a freed one waits until every node has forgotten who had it."""


@dataclass(frozen=True, kw_only=True)
class NetworkView:
    """A network and its addresses in numbers.

    ``node`` is the name of the only node that has it; empty: all nodes of its zone have.
    """

    network: NetworkSpec
    zone: str
    node: str
    is_default: bool
    used: int
    free: int
    freed: int


@dataclass(frozen=True, kw_only=True)
class AddressView:
    """An address. ``instance_id`` is empty, and ``epoch`` 0, where nobody has it."""

    address: str
    network_id: str
    state: str
    instance_id: str = ""
    epoch: int = 0
    node: str = ""
    mac: str = ""


def list_networks(tx: Transaction, quarantine_s: float) -> list[NetworkView]:
    """Return all networks, oldest first.

    :param quarantine_s: seconds after which a freed address is issued again in any case.
    """
    can_be_taken = is_free(addresses, addresses.c.network_id, tx.now - quarantine_s)
    count = select(func.count()).where(addresses.c.network_id == networks.c.id)
    unused = (addresses.c.port_id.is_(None), addresses.c.is_reserved.is_(False))
    query = select(
        networks,
        node_rows.c.name.label("node_name"),
        count.where(addresses.c.port_id.is_not(None)).scalar_subquery().label("used"),
        count.where(*unused).scalar_subquery().label("unused"),
        count.where(can_be_taken).scalar_subquery().label("free"),
    ).outerjoin(node_rows, node_rows.c.id == networks.c.node_id)
    return [
        NetworkView(
            network=msgspec.json.decode(row.body, type=NetworkSpec),
            zone=row.zone,
            node=row.node_name or row.node_id,
            is_default=row.is_default,
            used=row.used,
            free=row.free,
            freed=row.unused - row.free,
        )
        for row in tx.execute(query.order_by(networks.c.created_at, networks.c.id))
    ]


def list_addresses(tx: Transaction, quarantine_s: float, network_id: str = "") -> list[AddressView]:
    """Return all addresses of a network, or of all, in their order.

    :raises NotFound: there is no such network.
    """
    if network_id:
        _check_known(tx, network_id)
    can_be_taken = is_free(addresses, addresses.c.network_id, tx.now - quarantine_s)
    query = (
        select(
            addresses,
            can_be_taken.label("is_free"),
            ports.c.instance_id,
            ports.c.mac,
            instances.c.epoch,
            node_rows.c.name.label("node_name"),
        )
        .join(networks, networks.c.id == addresses.c.network_id)
        .outerjoin(ports, ports.c.id == addresses.c.port_id)
        .outerjoin(instances, instances.c.id == ports.c.instance_id)
        .outerjoin(node_rows, node_rows.c.id == instances.c.node_id)
        .order_by(networks.c.created_at, networks.c.id, addresses.c.position)
    )
    if network_id:
        query = query.where(addresses.c.network_id == network_id)
    return [
        AddressView(
            address=row.address,
            network_id=row.network_id,
            state=_state(row),
            instance_id=row.instance_id or "",
            epoch=row.epoch or 0,
            node=row.node_name or "",
            mac=row.mac or "",
        )
        for row in tx.execute(query)
    ]


def _state(row: Row[tuple[object, ...]]) -> str:
    if row.port_id is not None:
        return USED
    if row.is_reserved:
        return RESERVED
    return FREE if row.is_free else FREED


def create(
    tx: Transaction, config: Config, *, zone: str, kind: str, cidr: str = "", node: str = ""
) -> NetworkSpec:
    """Make a network of a zone, which is the default of none: launches name it.

    :param kind: its plugin; empty: that of default networks.
    :param node: name of the node that has it, for a type that ends at nodes.
    :raises NotFound: there is no such zone or node.
    :raises InputError: the node is of another zone, or one is missing, or must not be named.
    :raises Conflict: its range is another's, or there is none left.
    :raises PluginError: there is no such type.
    """
    if zone not in zones.list_all(tx):
        known = ", ".join(zones.list_all(tx)) or "none"
        raise NotFound(f"No node is in a zone {zone!r}.", hint=f"Zones with nodes: {known}.")
    all_nodes = nodes.status(tx)
    is_alone = cluster_facts.find(tx, cluster_facts.AUTHORITY) is None
    chosen = kind or config.network.type or setup.type_of_defaults(is_alone=is_alone)
    keeper = nodes.match(tx, node) if node else None
    if spans_nodes(chosen):
        if keeper:
            raise InputError(f"A network of type {chosen} is on all nodes: it takes no --node.")
        return setup.make_network(tx, config, zone, chosen, cidr=cidr)
    keeper = keeper or _only_node(all_nodes, zone, chosen)
    if keeper.zone != zone:
        raise InputError(f"{keeper.name} is in zone {keeper.zone}, not in {zone}.")
    return setup.make_network(tx, config, zone, chosen, cidr=cidr, node_id=keeper.node_id)


def _only_node(known: list[NodeStatus], zone: str, kind: str) -> NodeStatus:
    there = [one for one in known if one.zone == zone]
    if len(there) == 1:
        return there[0]
    raise InputError(
        f"A network of type {kind} ends at a node: say which one has it.",
        hint=f"--node one of {', '.join(one.name for one in there)}; vxlan is on all of them.",
    )


def remove(tx: Transaction, network_id: str, quarantine_s: float) -> None:
    """Remove a network in which nobody is, and of which no node remembers anybody.

    :raises NotFound: there is no such network.
    :raises Conflict: it is a zone's default, or instances have addresses or had them of late.
    """
    _check_known(tx, network_id)
    view = next(
        one for one in list_networks(tx, quarantine_s) if one.network.network_id == network_id
    )
    if view.is_default:
        raise Conflict(f"{network_id} is the default network of zone {view.zone}.")
    held = tx.execute(select(ports.c.instance_id).where(ports.c.network_id == network_id))
    instance_ids = sorted(set(held.scalars()))
    if instance_ids:
        shown = ", ".join(instance_ids[:5]) + (" and others" if len(instance_ids) > 5 else "")
        raise Conflict(f"{network_id} has instances: {shown}.", hint="Terminate them first.")
    if view.freed:
        raise Conflict(
            f"{view.freed} addresses of {network_id} were freed a moment ago, and nodes may still "
            "know who had them.",
            hint=f"Try again within {quarantine_s:.0f} s.",
        )
    for table in (addresses, policy_changes, policy_confirmations):
        tx.execute(delete(table).where(table.c.network_id == network_id))
    tx.execute(delete(tags).where(tags.c.resource_id == network_id))
    tx.execute(delete(networks).where(networks.c.id == network_id))


def _check_known(tx: Transaction, network_id: str) -> None:
    known = list(tx.execute(select(networks.c.id).order_by(networks.c.created_at)).scalars())
    if network_id not in known:
        raise NotFound(
            f"There is no network {network_id!r}.", hint=f"There are {', '.join(known) or 'none'}."
        )
