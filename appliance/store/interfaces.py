"""Ports as network interfaces: a handful of SELECTs, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select

from appliance.model import NetworkSpec
from appliance.store import Transaction, filters, tags
from appliance.store.filters import Filter
from appliance.store.schema import (
    addresses,
    instances,
    networks,
    nodes,
    port_groups,
    ports,
    security_groups,
)


class InterfaceView(Struct, kw_only=True, gc=False):
    """A network interface with its instance; groups as (id, name), addresses primary first."""

    port_id: str
    project_id: str
    instance_id: str
    network_id: str
    vpc_id: str
    domain: str
    zone: str
    mac: str
    device_index: int
    attached_at: float
    created_at: float
    addresses: list[str]
    groups: list[tuple[str, str]]
    tags: list[tuple[str, str]]


_joined = (
    ports.join(instances, instances.c.id == ports.c.instance_id)
    .join(networks, networks.c.id == ports.c.network_id)
    .outerjoin(nodes, nodes.c.id == instances.c.node_id)
)
_attached_at = func.coalesce(instances.c.launched_at, instances.c.created_at)


def attachment_id(port_id: str) -> str:
    """Return the id of the tie between an interface and its instance."""
    return f"eni-attach-{port_id.removeprefix('eni-')}"


def _zone(default: str) -> ColumnElement[str]:
    of_network = func.nullif(networks.c.zone, "")
    return func.coalesce(of_network, instances.c.zone, nodes.c.zone, literal(default))


def _address(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    owning = select(addresses.c.port_id).where(
        addresses.c.port_id.is_not(None), filters.matches(tx, addresses.c.address, values)
    )
    return ports.c.id.in_(owning)


def _is_primary(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """An interface has one address, which is its primary one, or none yet."""
    owning = select(addresses.c.port_id).where(addresses.c.port_id.is_not(None))
    return and_(ports.c.id.in_(owning), filters.constant("true")(tx, values))


def _private_dns_name(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """The name is made of the address and the domain of the network, which only its body has."""
    bodies: Iterable[Any] = tx.execute(select(networks.c.body)).scalars()
    conditions = []
    for spec in (msgspec.json.decode(body, type=NetworkSpec) for body in bodies):
        name = literal("ip-") + func.replace(addresses.c.address, ".", "-")
        owning = select(addresses.c.port_id).where(
            addresses.c.network_id == spec.network_id,
            addresses.c.port_id.is_not(None),
            filters.matches(tx, name + literal(f".{spec.domain}"), values),
        )
        conditions.append(ports.c.id.in_(owning))
    return or_(filters.nothing(tx, values), *conditions)


def _group(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: ports.c.id.in_(
        select(port_groups.c.port_id)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(filters.matches(tx, column, values))
    )


def _rules(default_zone: str) -> dict[str, filters.Rule]:
    zone = filters.text(_zone(default_zone))
    return {
        "addresses.association.owner-id": filters.nothing,
        "addresses.association.public-ip": filters.nothing,
        "addresses.primary": _is_primary,
        "addresses.private-ip-address": _address,
        "association.allocation-id": filters.nothing,
        "association.association-id": filters.nothing,
        "association.ip-owner-id": filters.nothing,
        "association.public-dns-name": filters.nothing,
        "association.public-ip": filters.nothing,
        "attachment.attach-time": filters.moment(_attached_at),
        "attachment.attachment-id": filters.text(func.replace(ports.c.id, "eni-", "eni-attach-")),
        "attachment.delete-on-termination": filters.constant("true"),
        "attachment.device-index": filters.number(ports.c.device_index),
        "attachment.instance-id": filters.text(ports.c.instance_id),
        "attachment.instance-owner-id": filters.text(ports.c.project_id),
        "attachment.status": filters.constant("attached"),
        "availability-zone": zone,
        "availability-zone-id": zone,
        "description": filters.constant(""),
        "group-id": _group(security_groups.c.id),
        "group-name": _group(security_groups.c.name),
        "interface-type": filters.constant("interface"),
        "ipv6-addresses.ipv6-address": filters.nothing,
        "mac-address": filters.text(ports.c.mac),
        "network-interface-id": filters.text(ports.c.id),
        "operator.managed": filters.constant("false"),
        "operator.principal": filters.nothing,
        "owner-id": filters.text(ports.c.project_id),
        "private-dns-name": _private_dns_name,
        "private-ip-address": _address,
        "requester-id": filters.nothing,
        "requester-managed": filters.constant("false"),
        "source-dest-check": filters.constant("true"),
        "status": filters.constant("in-use"),
        "subnet-id": filters.text(ports.c.network_id),
        "vpc-id": filters.text(networks.c.vpc_id),
    }


FILTERS = frozenset(_rules(""))
"""What network interfaces can be filtered by, tags aside."""


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    default_zone: str,
    ids: Sequence[str] = (),
    wanted: Sequence[Filter] = (),
    after: Sequence[float | str] = (),
    limit: int | None = None,
) -> list[InterfaceView]:
    """Return a project's interfaces, oldest first, from behind ``after`` (created_at, id) on.

    :param default_zone: what is shown where neither network nor instance is in a zone yet.
    :raises InputError: a filter is not known.
    """
    conditions = [
        ports.c.project_id == project_id,
        *filters.conditions(tx, _rules(default_zone), wanted, ports.c.id),
    ]
    if ids:
        conditions.append(ports.c.id.in_(ids))
    if after:
        created_at, port_id = after
        is_same = (ports.c.created_at == created_at) & (ports.c.id > port_id)
        conditions.append(or_(ports.c.created_at > created_at, is_same))
    query = (
        select(
            ports.c.id,
            ports.c.project_id,
            ports.c.instance_id,
            ports.c.network_id,
            networks.c.body,
            _zone(default_zone),
            ports.c.mac,
            ports.c.device_index,
            _attached_at,
            ports.c.created_at,
        )
        .select_from(_joined)
        .where(*conditions)
        .order_by(ports.c.created_at, ports.c.id)
        .limit(limit)
    )
    rows: Sequence[Any] = tx.execute(query).all()
    if not rows:
        return []
    chosen = select(ports.c.id).select_from(_joined).where(*conditions)
    return _views(tx, rows, chosen.order_by(ports.c.created_at, ports.c.id).limit(limit))


def known_ids(tx: Transaction, project_id: str, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are a project's interfaces."""
    query = select(ports.c.id).where(ports.c.project_id == project_id, ports.c.id.in_(ids))
    return set(tx.execute(query).scalars())


def _views(tx: Transaction, rows: Sequence[Any], chosen: Select[tuple[str]]) -> list[InterfaceView]:
    owned = _addresses(tx, chosen)
    groups = _groups(tx, chosen)
    found_tags = tags.of(tx, chosen)
    specs: dict[str, NetworkSpec] = {}
    views = []
    for (
        port_id,
        project_id,
        instance_id,
        network_id,
        body,
        zone,
        mac,
        index,
        at,
        created_at,
    ) in rows:
        spec = specs.get(network_id)
        if spec is None:
            spec = specs[network_id] = msgspec.json.decode(body, type=NetworkSpec)
        view = InterfaceView(
            port_id=port_id,
            project_id=project_id,
            instance_id=instance_id,
            network_id=network_id,
            vpc_id=spec.vpc_id,
            domain=spec.domain,
            zone=zone,
            mac=mac,
            device_index=index,
            attached_at=at,
            created_at=created_at,
            addresses=owned.get(port_id, []),
            groups=groups.get(port_id, []),
            tags=found_tags.get(port_id, []),
        )
        views.append(view)
    return views


def _addresses(tx: Transaction, chosen: Select[tuple[str]]) -> dict[str, list[str]]:
    query = select(addresses.c.port_id, addresses.c.address).where(addresses.c.port_id.in_(chosen))
    found: dict[str, list[str]] = {}
    rows: Iterable[Any] = tx.execute(query.order_by(addresses.c.position))
    for port_id, address in rows:
        found.setdefault(port_id, []).append(address)
    return found


def _groups(tx: Transaction, chosen: Select[tuple[str]]) -> dict[str, list[tuple[str, str]]]:
    query = (
        select(port_groups.c.port_id, security_groups.c.id, security_groups.c.name)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(port_groups.c.port_id.in_(chosen))
        .order_by(security_groups.c.name)
    )
    found: dict[str, list[tuple[str, str]]] = {}
    rows: Iterable[Any] = tx.execute(query)
    for port_id, group_id, name in rows:
        found.setdefault(port_id, []).append((group_id, name))
    return found
