"""Instances as their owners see them: a handful of SELECTs, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, or_, select, true

from appliance.model import InstanceState, NetworkSpec
from appliance.store import Transaction, filters, tags
from appliance.store.filters import Filter
from appliance.store.instance_filters import FILTERS, LAUNCHED_AT, TOKEN, ZONE
from appliance.store.schema import (
    addresses,
    block_devices,
    images,
    instances,
    networks,
    nodes,
    port_groups,
    ports,
    reservations,
    security_groups,
)


class PortView(Struct, kw_only=True, gc=False):
    """A network card with its addresses and groups, the latter as (id, name)."""

    port_id: str
    network_id: str
    vpc_id: str
    domain: str
    mac: str
    device_index: int
    created_at: float
    addresses: list[str]
    groups: list[tuple[str, str]]


class DiskView(Struct, kw_only=True, gc=False):
    """A disk."""

    volume_id: str
    device_name: str
    delete_on_termination: bool


class InstanceView(Struct, kw_only=True, gc=False):
    """An instance with everything that belongs to it."""

    instance_id: str
    project_id: str
    reservation_id: str
    client_token: str
    launch_index: int
    image_id: str
    kernel_id: str | None
    ramdisk_id: str | None
    root_device_name: str
    instance_type: str
    vcpus: int
    zone: str | None
    key_name: str | None
    state: str
    reason_code: str
    reason_message: str
    transition_reason: str
    created_at: float
    launched_at: float
    attributes: dict[str, Any]
    ports: list[PortView]
    disks: list[DiskView]
    tags: list[tuple[str, str]]


_joined = instances.join(reservations, reservations.c.id == instances.c.reservation_id).outerjoin(
    nodes, nodes.c.id == instances.c.node_id
)


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    terminated_s: float,
    ids: Sequence[str] = (),
    reservation_id: str = "",
    wanted: Sequence[Filter] = (),
    after: Sequence[float | str] = (),
    limit: int | None = None,
) -> list[InstanceView]:
    """Return a project's instances, oldest first, from behind ``after`` on.

    :param terminated_s: seconds for which terminated instances stay on the list.
    :param after: (created_at, id) of the last row of the page before.
    :raises InputError: a filter is not known.
    """
    if bool(ids) != bool(reservation_id) and not (wanted or after or limit):
        values = {"project_id": project_id, "since": tx.now - terminated_s}
        if ids:
            return _views(tx, _BY_ID, {**values, "ids": list(ids)}, None)
        return _views(tx, _OF_RESERVATION, {**values, "reservation_id": reservation_id}, None)
    condition = and_(
        is_listed(tx, project_id, terminated_s),
        *filters.conditions(tx, FILTERS, wanted, instances.c.id),
    )
    if ids:
        condition = and_(condition, instances.c.id.in_(ids))
    if reservation_id:
        condition = and_(condition, instances.c.reservation_id == reservation_id)
    if after:
        condition = and_(condition, is_behind(after))
    chosen = select(instances.c.id).select_from(_joined).where(condition)
    chosen = chosen.order_by(instances.c.created_at, instances.c.id).limit(limit)
    return _views(tx, _INSTANCES.where(condition).limit(limit), {}, chosen)


def known_ids(
    tx: Transaction, project_id: str, ids: Sequence[str], *, terminated_s: float
) -> set[str]:
    """Return those of the ids that are on a project's list."""
    query = select(instances.c.id).where(
        is_listed(tx, project_id, terminated_s), instances.c.id.in_(ids)
    )
    return set(tx.execute(query).scalars())


def is_listed(tx: Transaction, project_id: str, terminated_s: float) -> ColumnElement[bool]:
    """Return the condition that an instance is on a project's list.

    :param terminated_s: seconds for which terminated instances stay on the list.
    """
    return and_(
        instances.c.project_id == project_id,
        or_(
            instances.c.state != InstanceState.TERMINATED.value,
            instances.c.terminated_at > tx.now - terminated_s,
        ),
    )


def is_behind(after: Sequence[float | str]) -> ColumnElement[bool]:
    """Return the condition that an instance comes later in the list than (created_at, id)."""
    if not after:
        return true()
    created_at, instance_id = after
    return or_(
        instances.c.created_at > created_at,
        (instances.c.created_at == created_at) & (instances.c.id > instance_id),
    )


_INSTANCES = (
    select(
        instances.c.id,
        instances.c.project_id,
        instances.c.reservation_id,
        TOKEN,
        instances.c.launch_index,
        instances.c.image_id,
        instances.c.kernel_id,
        instances.c.ramdisk_id,
        images.c.root_device_name,
        instances.c.instance_type,
        instances.c.vcpus,
        ZONE,
        instances.c.key_name,
        instances.c.state,
        instances.c.reason_code,
        instances.c.reason_message,
        instances.c.transition_reason,
        LAUNCHED_AT,
        instances.c.attributes,
        instances.c.created_at,
    )
    .select_from(_joined.outerjoin(images, images.c.id == instances.c.image_id))
    .order_by(instances.c.created_at, instances.c.id)
)
_LISTED = _INSTANCES.where(
    instances.c.project_id == bindparam("project_id"),
    or_(
        instances.c.state != InstanceState.TERMINATED.value,
        instances.c.terminated_at > bindparam("since"),
    ),
)
_BY_ID = _LISTED.where(instances.c.id.in_(bindparam("ids", expanding=True)))
_OF_RESERVATION = _LISTED.where(instances.c.reservation_id == bindparam("reservation_id"))


def _views(
    tx: Transaction,
    query: Select[Any],
    values: Mapping[str, Any],
    chosen: Select[tuple[str]] | None,
) -> list[InstanceView]:
    """Return what a query finds, with what belongs to it.

    :param chosen: the query for the ids, where they may be too many to list them.
    """
    rows: Sequence[Any] = tx.execute(query, values).all()
    if not rows:
        return []
    listed = [row[0] for row in rows]
    if len(rows) <= _FEW:
        chosen = None
    parts, given = (_OF_LISTED, {"ids": listed}) if chosen is None else (_parts(chosen), {})
    port_views = _ports(tx, parts, given)
    disk_views = _disks(tx, parts, given)
    found_tags = tags.of(tx, listed if chosen is None else chosen)
    return [
        InstanceView(
            instance_id=row[0],
            project_id=row[1],
            reservation_id=row[2],
            client_token=row[3],
            launch_index=row[4],
            image_id=row[5],
            kernel_id=row[6],
            ramdisk_id=row[7],
            root_device_name=row[8] or "",
            instance_type=row[9],
            vcpus=row[10],
            zone=row[11],
            key_name=row[12],
            state=row[13],
            reason_code=row[14],
            reason_message=row[15],
            transition_reason=row[16],
            launched_at=row[17],
            created_at=row[19],
            attributes=msgspec.json.decode(row[18]) if row[18] else {},
            ports=port_views.get(row[0], []),
            disks=disk_views.get(row[0], []),
            tags=found_tags.get(row[0], []),
        )
        for row in rows
    ]


Chosen = Select[tuple[str]] | BindParameter[Any]
"""Instances, as a query for their ids or as a list of them that comes with the execution."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The statements that read what belongs to chosen instances."""

    ports: Select[Any]
    addresses: Select[Any]
    memberships: Select[Any]
    disks: Select[Any]


def _parts(chosen: Chosen) -> _Parts:
    own = select(ports.c.id).where(ports.c.instance_id.in_(chosen))
    return _Parts(
        ports=select(
            ports.c.id,
            ports.c.instance_id,
            ports.c.network_id,
            ports.c.mac,
            ports.c.device_index,
            ports.c.created_at,
        )
        .where(ports.c.instance_id.in_(chosen))
        .order_by(ports.c.device_index),
        addresses=select(addresses.c.port_id, addresses.c.address)
        .where(addresses.c.port_id.in_(own))
        .order_by(addresses.c.position),
        memberships=select(port_groups.c.port_id, security_groups.c.id, security_groups.c.name)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(port_groups.c.port_id.in_(own))
        .order_by(security_groups.c.name),
        disks=select(
            block_devices.c.instance_id,
            block_devices.c.id,
            block_devices.c.device_name,
            block_devices.c.delete_on_termination,
        )
        .where(block_devices.c.instance_id.in_(chosen))
        .order_by(block_devices.c.device_name),
    )


_FEW = 50
"""Instances up to which their ids are listed in statements that are made once for all."""

_OF_LISTED = _parts(bindparam("ids", expanding=True))
_NETWORKS = select(networks.c.id, networks.c.body)


def _ports(tx: Transaction, parts: _Parts, values: Mapping[str, Any]) -> dict[str, list[PortView]]:
    specs = {
        row.id: msgspec.json.decode(row.body, type=NetworkSpec) for row in tx.execute(_NETWORKS)
    }
    found: dict[str, list[PortView]] = {}
    by_id: dict[str, PortView] = {}
    port_rows: Iterable[Any] = tx.execute(parts.ports, values)
    for port_id, instance_id, network_id, mac, index, created_at in port_rows:
        view = by_id[port_id] = PortView(
            port_id=port_id,
            network_id=network_id,
            vpc_id=specs[network_id].vpc_id,
            domain=specs[network_id].domain,
            mac=mac,
            device_index=index,
            created_at=created_at,
            addresses=[],
            groups=[],
        )
        found.setdefault(instance_id, []).append(view)
    if not by_id:
        return found
    address_rows: Iterable[Any] = tx.execute(parts.addresses, values)
    for port_id, address in address_rows:
        by_id[port_id].addresses.append(address)
    member_rows: Iterable[Any] = tx.execute(parts.memberships, values)
    for port_id, group_id, name in member_rows:
        by_id[port_id].groups.append((group_id, name))
    return found


def _disks(tx: Transaction, parts: _Parts, values: Mapping[str, Any]) -> dict[str, list[DiskView]]:
    found: dict[str, list[DiskView]] = {}
    rows: Iterable[Any] = tx.execute(parts.disks, values)
    for instance_id, volume_id, device_name, ends in rows:
        found.setdefault(instance_id, []).append(
            DiskView(volume_id=volume_id, device_name=device_name, delete_on_termination=ends)
        )
    return found
