"""Instances as their owners see them: a handful of SELECTs, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select

from appliance.model import InstanceState, NetworkSpec
from appliance.store import Transaction, filters, tags
from appliance.store.filters import Filter
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

STATE_CODES: Mapping[str, int] = {
    InstanceState.PENDING: 0,
    InstanceState.RUNNING: 16,
    InstanceState.SHUTTING_DOWN: 32,
    InstanceState.TERMINATED: 48,
    InstanceState.STOPPING: 64,
    InstanceState.STOPPED: 80,
}
"""EC2's number for each state."""

TOKEN_OF_SIGNATURE = "signed:"  # noqa: S105 - it names a kind of token
"""What a client token begins with that was made from a signature, and is nobody's to see."""


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


_zone = func.coalesce(instances.c.zone, nodes.c.zone)
_token = case(
    (func.coalesce(reservations.c.client_token, "").like(f"{TOKEN_OF_SIGNATURE}%"), ""),
    else_=func.coalesce(reservations.c.client_token, ""),
)
_joined = instances.join(reservations, reservations.c.id == instances.c.reservation_id).outerjoin(
    nodes, nodes.c.id == instances.c.node_id
)


def _of_ports(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return instances.c.id.in_(select(ports.c.instance_id).where(condition))


def _port_text(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: _of_ports(filters.matches(tx, column, values))


def _group_text(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: instances.c.id.in_(
        select(ports.c.instance_id)
        .join(port_groups, port_groups.c.port_id == ports.c.id)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(filters.matches(tx, column, values))
    )


def _vpc(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    inside = select(networks.c.id).where(filters.matches(tx, networks.c.vpc_id, values))
    return _of_ports(ports.c.network_id.in_(inside))


def _address(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    owning = select(addresses.c.port_id).where(filters.matches(tx, addresses.c.address, values))
    return _of_ports(ports.c.id.in_(owning))


def _private_dns_name(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """The name is made of the address: ``ip-10-0-0-5.`` and the network's domain."""
    hosts = [value.removeprefix("ip-").partition(".")[0] for value in values if value[:3] == "ip-"]
    return _address(tx, [host.replace("-", ".") for host in hosts])


def _state_code(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    names = [name for name, code in STATE_CODES.items() if str(code) in values]
    return instances.c.state.in_([str(name) for name in names])


def _launch_index(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    return instances.c.launch_index.in_([int(v) for v in values if v.isdecimal() and len(v) < 10])


def _disk_text(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: instances.c.id.in_(
        select(block_devices.c.instance_id).where(filters.matches(tx, column, values))
    )


FILTERS: Mapping[str, filters.Rule] = {
    "affinity": filters.nothing,
    "architecture": filters.constant("x86_64"),
    "availability-zone": filters.text(_zone),
    "block-device-mapping.device-name": _disk_text(block_devices.c.device_name),
    "block-device-mapping.volume-id": _disk_text(block_devices.c.id),
    "client-token": filters.text(_token),
    "dns-name": filters.nothing,
    "group-id": _group_text(security_groups.c.id),
    "group-name": _group_text(security_groups.c.name),
    "host-id": filters.nothing,
    "hypervisor": filters.constant("xen"),
    "image-id": filters.text(instances.c.image_id),
    "instance-id": filters.text(instances.c.id),
    "instance-lifecycle": filters.nothing,
    "instance-state-code": _state_code,
    "instance-state-name": filters.text(instances.c.state),
    "instance-type": filters.text(instances.c.instance_type),
    "instance.group-id": _group_text(security_groups.c.id),
    "instance.group-name": _group_text(security_groups.c.name),
    "ip-address": filters.nothing,
    "kernel-id": filters.text(instances.c.kernel_id),
    "key-name": filters.text(instances.c.key_name),
    "launch-index": _launch_index,
    "launch-time": filters.moment(func.coalesce(instances.c.launched_at, instances.c.created_at)),
    "monitoring-state": filters.constant("disabled"),
    "network-interface.addresses.private-ip-address": _address,
    "network-interface.group-id": _group_text(security_groups.c.id),
    "network-interface.group-name": _group_text(security_groups.c.name),
    "network-interface.mac-address": _port_text(ports.c.mac),
    "network-interface.network-interface-id": _port_text(ports.c.id),
    "network-interface.subnet-id": _port_text(ports.c.network_id),
    "network-interface.vpc-id": _vpc,
    "owner-id": filters.text(instances.c.project_id),
    "placement-group-name": filters.nothing,
    "platform": filters.nothing,
    "private-dns-name": _private_dns_name,
    "private-ip-address": _address,
    "product-code": filters.nothing,
    "ramdisk-id": filters.text(instances.c.ramdisk_id),
    "reason": filters.text(instances.c.transition_reason),
    "requester-id": filters.nothing,
    "reservation-id": filters.text(instances.c.reservation_id),
    "root-device-type": filters.constant("ebs"),
    "source-dest-check": filters.constant("true"),
    "spot-instance-request-id": filters.nothing,
    "state-reason-code": filters.text(instances.c.reason_code),
    "subnet-id": _port_text(ports.c.network_id),
    "tenancy": filters.constant("default"),
    "virtualization-type": filters.constant("hvm"),
    "vpc-id": _vpc,
}


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
    condition = and_(
        is_listed(tx, project_id, terminated_s),
        *filters.conditions(tx, FILTERS, wanted, instances.c.id),
    )
    if ids:
        condition = and_(condition, instances.c.id.in_(ids))
    if reservation_id:
        condition = and_(condition, instances.c.reservation_id == reservation_id)
    if after:
        created_at, instance_id = after
        condition = and_(
            condition,
            or_(
                instances.c.created_at > created_at,
                (instances.c.created_at == created_at) & (instances.c.id > instance_id),
            ),
        )
    chosen = select(instances.c.id).select_from(_joined).where(condition)
    chosen = chosen.order_by(instances.c.created_at, instances.c.id).limit(limit)
    return _views(tx, condition, chosen, limit)


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


def _views(
    tx: Transaction, condition: ColumnElement[bool], chosen: Select[tuple[str]], limit: int | None
) -> list[InstanceView]:
    query = (
        select(
            instances.c.id,
            instances.c.project_id,
            instances.c.reservation_id,
            _token,
            instances.c.launch_index,
            instances.c.image_id,
            instances.c.kernel_id,
            instances.c.ramdisk_id,
            images.c.root_device_name,
            instances.c.instance_type,
            instances.c.vcpus,
            _zone,
            instances.c.key_name,
            instances.c.state,
            instances.c.reason_code,
            instances.c.reason_message,
            instances.c.transition_reason,
            func.coalesce(instances.c.launched_at, instances.c.created_at),
            instances.c.attributes,
            instances.c.created_at,
        )
        .select_from(_joined.outerjoin(images, images.c.id == instances.c.image_id))
        .where(condition)
        .order_by(instances.c.created_at, instances.c.id)
        .limit(limit)
    )
    rows: Sequence[Any] = tx.execute(query).all()
    if not rows:
        return []
    port_views = _ports(tx, chosen)
    disk_views = _disks(tx, chosen)
    found_tags = tags.of(tx, chosen)
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


def _ports(tx: Transaction, chosen: Select[tuple[str]]) -> dict[str, list[PortView]]:
    specs = {
        row.id: msgspec.json.decode(row.body, type=NetworkSpec)
        for row in tx.execute(select(networks.c.id, networks.c.body))
    }
    found: dict[str, list[PortView]] = {}
    by_id: dict[str, PortView] = {}
    query = select(
        ports.c.id,
        ports.c.instance_id,
        ports.c.network_id,
        ports.c.mac,
        ports.c.device_index,
        ports.c.created_at,
    ).where(ports.c.instance_id.in_(chosen))
    port_rows: Iterable[Any] = tx.execute(query.order_by(ports.c.device_index))
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
    own = select(ports.c.id).where(ports.c.instance_id.in_(chosen))
    owned = select(addresses.c.port_id, addresses.c.address).where(addresses.c.port_id.in_(own))
    address_rows: Iterable[Any] = tx.execute(owned.order_by(addresses.c.position))
    for port_id, address in address_rows:
        by_id[port_id].addresses.append(address)
    memberships = (
        select(port_groups.c.port_id, security_groups.c.id, security_groups.c.name)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(port_groups.c.port_id.in_(own))
        .order_by(security_groups.c.name)
    )
    member_rows: Iterable[Any] = tx.execute(memberships)
    for port_id, group_id, name in member_rows:
        by_id[port_id].groups.append((group_id, name))
    return found


def _disks(tx: Transaction, chosen: Select[tuple[str]]) -> dict[str, list[DiskView]]:
    query = select(
        block_devices.c.instance_id,
        block_devices.c.id,
        block_devices.c.device_name,
        block_devices.c.delete_on_termination,
    ).where(block_devices.c.instance_id.in_(chosen))
    found: dict[str, list[DiskView]] = {}
    rows: Iterable[Any] = tx.execute(query.order_by(block_devices.c.device_name))
    for instance_id, volume_id, device_name, ends in rows:
        found.setdefault(instance_id, []).append(
            DiskView(volume_id=volume_id, device_name=device_name, delete_on_termination=ends)
        )
    return found
