"""VPCs, networks, and who has which address."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec
from sqlalchemy import (
    ColumnElement,
    Float,
    FromClause,
    String,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from appliance.errors import Conflict, InputError, NotFound
from appliance.model import NetworkSpec
from appliance.store import Transaction
from appliance.store.schema import addresses, networks, policy_confirmations, vpcs

_RESERVED_LOW = 4  # network, gateway and two that EC2 reserves, too
_MOST_ADDRESSES = 65536

_FIND = select(networks.c.body).where(networks.c.id.in_(bindparam("ids", expanding=True)))
_KEEPERS = select(networks.c.id, networks.c.node_id).where(
    networks.c.id.in_(bindparam("ids", expanding=True)), networks.c.node_id != ""
)
_WITH_REVISION = select(networks.c.body, networks.c.policy_revision).where(
    networks.c.id == bindparam("network_id")
)
_DEFAULTS = select(networks.c.id).where(networks.c.is_default.is_(True)).order_by(networks.c.zone)
_DEFAULT_IN_ZONE = _DEFAULTS.where(networks.c.zone == bindparam("zone"))
_OF_PORTS = (
    select(addresses.c.port_id, addresses.c.address)
    .where(addresses.c.port_id.in_(bindparam("port_ids", expanding=True)))
    .order_by(addresses.c.position)
)


def gateway_of(cidr: str) -> str:
    """Return the address of a range that is its gateway: the first after the network's.

    :raises InputError: it is no IPv4 range, or one with host bits.
    """
    try:
        return str(ipaddress.IPv4Network(cidr)[1])
    except (ValueError, IndexError) as error:
        raise InputError(f"{cidr!r} is no range for a network: {error}.") from error


def create_vpc(tx: Transaction, cidr: str, *, is_default: bool) -> str:
    """Make a VPC and return its id."""
    vpc_id = tx.world.ids.ec2("vpc")
    tx.execute(insert(vpcs).values(id=vpc_id, cidr=cidr, is_default=is_default, created_at=tx.now))
    return vpc_id


def default_vpc(tx: Transaction) -> str | None:
    """Return the id of the default VPC."""
    return tx.execute(select(vpcs.c.id).where(vpcs.c.is_default.is_(True))).scalar()


def create(
    tx: Transaction, network: NetworkSpec, *, zone: str, is_default: bool, node_id: str = ""
) -> None:
    """Make a network and its addresses.

    :param node_id: the only node that has it; empty: its type spans nodes.
    :raises Conflict: the range is too large or leaves no address for an instance.
    """
    block = ipaddress.ip_network(network.cidr)
    if not _RESERVED_LOW + 1 < block.num_addresses <= _MOST_ADDRESSES:
        raise Conflict(f"A network of {block.num_addresses} addresses is too small or too large.")
    tx.execute(
        insert(networks).values(
            id=network.network_id,
            vpc_id=network.vpc_id,
            zone=zone,
            is_default=is_default,
            node_id=node_id,
            segment=network.segment or None,
            body=msgspec.json.encode(network),
            created_at=tx.now,
        )
    )
    last = block.num_addresses - 1
    tx.execute(
        insert(addresses),
        [
            {
                "network_id": network.network_id,
                "address": str(block[position]),
                "position": position,
                "is_reserved": position < _RESERVED_LOW or position == last,
            }
            for position in range(block.num_addresses)
        ],
    )


def free_segment(tx: Transaction, first: int, last: int) -> int:
    """Return the lowest number that no network has; two who take the same meet in the store.

    :raises Conflict: all are taken.
    """
    taken = set(tx.execute(select(networks.c.segment)).scalars())
    for number in range(first, last + 1):
        if number not in taken:
            return number
    raise Conflict(
        f"All numbers for networks that span nodes, {first} to {last}, are taken.",
        hint="Raise network.last_segment.",
    )


def keepers(tx: Transaction, network_ids: Iterable[str]) -> dict[str, str]:
    """Return by network the only node that has it; networks that span nodes are missing."""
    rows = tx.execute(_KEEPERS, {"ids": list(network_ids)})
    return {row.id: row.node_id for row in rows}


def keep_on(tx: Transaction, network_ids: Iterable[str], node_id: str) -> None:
    """Write that only that node has networks of which that was not written before."""
    tx.execute(
        update(networks)
        .where(networks.c.id.in_(list(network_ids)), networks.c.node_id == "")
        .values(node_id=node_id)
    )


def end_default(tx: Transaction, network_id: str) -> None:
    """Let a network be its zone's default no more; its instances stay in it."""
    tx.execute(update(networks).where(networks.c.id == network_id).values(is_default=False))


def find(tx: Transaction, network_ids: Iterable[str]) -> dict[str, NetworkSpec]:
    """Return networks by id; those that do not exist are missing."""
    bodies = tx.execute(_FIND, {"ids": list(network_ids)}).scalars()
    specs = [msgspec.json.decode(body, type=NetworkSpec) for body in bodies]
    return {spec.network_id: spec for spec in specs}


def in_vpc(tx: Transaction, vpc_id: str) -> list[NetworkSpec]:
    """Return the networks of a VPC, oldest first."""
    query = select(networks.c.body).where(networks.c.vpc_id == vpc_id)
    rows = tx.execute(query.order_by(networks.c.created_at, networks.c.id)).scalars()
    return [msgspec.json.decode(body, type=NetworkSpec) for body in rows]


def range_of_vpc(tx: Transaction, vpc_id: str) -> str:
    """Return the IPv4 range of a VPC; empty where there is no such VPC."""
    return tx.execute(select(vpcs.c.cidr).where(vpcs.c.id == vpc_id)).scalar() or ""


def default_in_zone(tx: Transaction, zone: str | None) -> str | None:
    """Return the id of a zone's default network, "" for a shared one; ``None``: any zone's."""
    if zone is None:
        return tx.execute(_DEFAULTS).scalars().first()
    return tx.execute(_DEFAULT_IN_ZONE, {"zone": zone}).scalars().first()


def defaults_with_addresses(tx: Transaction, *, quarantine_s: float) -> dict[str, str]:
    """Return the default networks that have an address to take, by zone; see :func:`allocate`."""
    rows = tx.execute(_WITH_ADDRESSES, {"since": tx.now - quarantine_s})
    return {row.zone: row.id for row in rows}


def is_free(
    table: FromClause, network_id: ColumnElement[str], since: float | ColumnElement[float]
) -> ColumnElement[bool]:
    """Return the condition that an address of a network can be taken.

    :param table: the addresses, or an alias of theirs.
    :param since: what was freed before is taken again, whoever has confirmed it.
    """
    confirmed = (
        select(func.min(policy_confirmations.c.revision))
        .where(policy_confirmations.c.network_id == network_id)
        .scalar_subquery()
    )
    return and_(
        table.c.port_id.is_(None),
        table.c.is_reserved.is_(False),
        or_(
            table.c.freed_at == 0,
            table.c.freed_at < since,
            table.c.freed_revision <= confirmed,
        ),
    )


_SINCE: ColumnElement[float] = bindparam("since", type_=Float)
_WITH_ADDRESSES = (
    select(networks.c.zone, networks.c.id)
    .where(
        networks.c.is_default.is_(True),
        # Not EXISTS: PostgreSQL would look at all addresses that there are, and not for the first.
        select(addresses.c.address)
        .where(
            addresses.c.network_id == networks.c.id,
            is_free(addresses, networks.c.id, _SINCE),
        )
        .order_by(addresses.c.position)
        .limit(1)
        .scalar_subquery()
        .is_not(None),
    )
    .order_by(networks.c.zone)
)


def _allocation() -> ReturningUpdate[tuple[str]]:
    """Return the statement that takes the first free address of a network."""
    network_id: ColumnElement[str] = bindparam("in_network", type_=String)
    a = addresses.alias("a")
    first_free = (
        select(a.c.address)
        .where(a.c.network_id == network_id, is_free(a, network_id, _SINCE))
        .order_by(a.c.position)
        .limit(1)
        .scalar_subquery()
    )
    return (
        update(addresses)
        .where(addresses.c.network_id == network_id, addresses.c.address == first_free)
        .values(port_id=bindparam("for_port"))
        .returning(addresses.c.address)
    )


_ALLOCATE = _allocation()


def allocate(
    tx: Transaction, network_id: str, port_id: str, *, quarantine_s: float
) -> tuple[str, ...]:
    """Return the addresses of a port, taking one if it has none yet.

    A freed address is taken again when every node that holds ports of the network has confirmed
    a policy without it, or after ``quarantine_s`` seconds.

    :raises Conflict: there is no free address; nothing was taken.
    """
    had = of_ports(tx, [port_id]).get(port_id)
    if had:
        return had
    values = {"in_network": network_id, "for_port": port_id, "since": tx.now - quarantine_s}
    taken = tx.execute(_ALLOCATE, values).scalar()
    if taken is None:
        raise Conflict(
            f"Network {network_id} has no free address.",
            hint="Terminate instances, or use another network.",
            code="InsufficientFreeAddressesInSubnet",
        )
    return (taken,)


def of_ports(tx: Transaction, port_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses of ports, primary first."""
    found: dict[str, tuple[str, ...]] = {}
    ids = list(port_ids)
    for row in tx.execute(_OF_PORTS, {"port_ids": ids}) if ids else ():
        found[row.port_id] = (*found.get(row.port_id, ()), row.address)
    return found


def free(tx: Transaction, port_ids: Iterable[str], revisions: dict[str, int]) -> None:
    """Give the addresses of ports back; ``revisions`` is each network's policy without them."""
    for network_id, revision in revisions.items():
        tx.execute(
            update(addresses)
            .where(addresses.c.network_id == network_id, addresses.c.port_id.in_(list(port_ids)))
            .values(port_id=None, freed_at=tx.now, freed_revision=revision)
        )


def with_revision(tx: Transaction, network_id: str) -> tuple[NetworkSpec, int]:
    """Return a network and its policy revision.

    :raises NotFound: there is no such network.
    """
    row = tx.execute(_WITH_REVISION, {"network_id": network_id}).first()
    if row is None:
        raise NotFound(f"There is no network {network_id}.", code="InvalidSubnetID.NotFound")
    return msgspec.json.decode(row.body, type=NetworkSpec), int(row.policy_revision)
