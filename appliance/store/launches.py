"""Hop 2 of a launch: everything that RunInstances writes, in bulk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import bindparam, insert, select, update

from appliance.errors import LimitExceeded
from appliance.instance_types import InstanceType
from appliance.messages import Place
from appliance.model import Desired, InstanceState, TimelineEntry
from appliance.store import Transaction, quotas, tags, timeline
from appliance.store.images import Image
from appliance.store.schema import (
    block_devices,
    instances,
    port_groups,
    ports,
    reservations,
)

_GIB = 1 << 30

_RESERVE = insert(reservations)
_WRITE = insert(instances)
_WRITE_PORTS = insert(ports)
_WRITE_MEMBERS = insert(port_groups)
_WRITE_DISKS = insert(block_devices)
_BY_TOKEN = select(reservations.c.id, reservations.c.request_hash).where(
    reservations.c.project_id == bindparam("project_id"),
    reservations.c.client_token == bindparam("client_token"),
)


@dataclass(frozen=True, kw_only=True)
class RootDisk:
    """The root disk that instances get; ``disk_gib`` 0 means the size of the image."""

    device_name: str
    disk_gib: int
    delete_on_termination: bool

    def claimed_gib(self, image: Image) -> int:
        """Return what the disk takes of its node."""
        return self.disk_gib or max(1, math.ceil(image.virtual_size_bytes / _GIB))


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch whose parts were all found: what shall be written.

    ``tags`` maps ``instance``, ``volume`` and ``network-interface`` to their tags.
    """

    project_id: str
    request_id: str
    request_hash: str
    client_token: str | None
    min_count: int
    count: int
    image: Image
    kernel_id: str | None
    ramdisk_id: str | None
    instance_type: InstanceType
    root_disk: RootDisk
    zone: str | None
    network_id: str
    group_ids: Sequence[str]
    key_name: str | None
    public_key: str
    user_data_base64: str
    attributes: Mapping[str, Any]
    tags: Mapping[str, Mapping[str, str]]
    node: str
    started_at: float
    duration_ms: float


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A launch that was accepted before."""

    reservation_id: str
    request_hash: str


def find_by_token(tx: Transaction, project_id: str, client_token: str) -> Reservation | None:
    """Return the launch that bore a client token."""
    values = {"project_id": project_id, "client_token": client_token}
    row = tx.execute(_BY_TOKEN, values).first()
    return Reservation(reservation_id=row.id, request_hash=row.request_hash) if row else None


def instance_ids(tx: Transaction, reservation_id: str) -> tuple[str, ...]:
    """Return the ids of a reservation's instances, in the order of their launch."""
    query = select(instances.c.id).where(instances.c.reservation_id == reservation_id)
    return tuple(tx.execute(query.order_by(instances.c.launch_index)).scalars())


def take_quota(
    tx: Transaction, project_id: str, instance_type: InstanceType, min_count: int, max_count: int
) -> int:
    """Take quota for as many instances as fit, up to ``max_count``; return how many.

    :raises LimitExceeded: there is too little for ``min_count``; the code names the resource as
        EC2 does. Nothing was taken.
    """
    needs = {
        "instances": 1,
        "vcpus": instance_type.vcpus,
        "memory_mib": instance_type.memory_mib,
    }
    left = quotas.left(tx, project_id)
    fits = {name: max(left.get(name, 0), 0) // need for name, need in needs.items()}
    scarce = min(fits, key=lambda name: fits[name])
    count = min(max_count, fits[scarce])
    # The condition of each UPDATE decides; what was read before only says how many to try.
    wanted = {name: need * count for name, need in needs.items()}
    if count < min_count or not quotas.take_all(tx, project_id, wanted):
        raise _limit_exceeded(scarce, fits[scarce], max_count, instance_type)
    return count


def _limit_exceeded(
    resource: str, fits: int, requested: int, instance_type: InstanceType
) -> LimitExceeded:
    if resource == "instances":
        return LimitExceeded(
            f"You have requested more instances ({requested}) than your current instance limit "
            f"leaves room for ({fits}).",
            code="InstanceLimitExceeded",
        )
    word, code = {
        "vcpus": ("vCPU", "VcpuLimitExceeded"),
        "memory_mib": ("memory", "InstanceLimitExceeded"),
    }[resource]
    return LimitExceeded(
        f"You have requested more {word} capacity than your current {word} limit leaves room for: "
        f"{fits} of {requested} {instance_type.name} instances fit.",
        code=code,
    )


def write(tx: Transaction, launch: Launch) -> str:
    """Write a launch and send it to the scheduler; return its reservation's id.

    A fixed number of statements, however many instances.
    """
    reservation_id = tx.world.ids.ec2("r")
    tx.execute(
        _RESERVE,
        {
            "id": reservation_id,
            "project_id": launch.project_id,
            "client_token": launch.client_token,
            "request_hash": launch.request_hash,
            "request_id": launch.request_id,
            "created_at": tx.now,
        },
    )
    ids = [tx.world.ids.ec2("i") for _ in range(launch.count)]
    tx.execute(_WRITE, _instance_rows(tx, launch, reservation_id, ids))
    _write_ports(tx, launch, ids)
    _write_disks(tx, launch, ids)
    tags.add(tx, launch.project_id, "instance", ids, launch.tags.get("instance", {}))
    timeline.record(tx, [_entry(launch, instance_id) for instance_id in ids])
    place = Place(
        reservation_id=reservation_id,
        instance_ids=tuple(ids),
        min_count=launch.min_count,
        request_id=launch.request_id,
    )
    tx.cast("scheduler", place)
    return reservation_id


def _instance_rows(
    tx: Transaction, launch: Launch, reservation_id: str, ids: Sequence[str]
) -> list[dict[str, Any]]:
    shared = {
        "project_id": launch.project_id,
        "reservation_id": reservation_id,
        "request_id": launch.request_id,
        "image_id": launch.image.image_id,
        "kernel_id": launch.kernel_id,
        "ramdisk_id": launch.ramdisk_id,
        "instance_type": launch.instance_type.name,
        "vcpus": launch.instance_type.vcpus,
        "memory_mib": launch.instance_type.memory_mib,
        "disk_gib": launch.root_disk.claimed_gib(launch.image),
        "zone": launch.zone,
        "key_name": launch.key_name,
        "public_key": launch.public_key,
        "user_data_base64": launch.user_data_base64,
        "injection": launch.image.properties.get("injection", ""),
        "desired": Desired.RUNNING.value,
        "revision": 1,
        "state": InstanceState.PENDING.value,
        "attributes": msgspec.json.encode(dict(launch.attributes)),
        "created_at": tx.now,
        "progress_at": tx.now,
    }
    return [
        {**shared, "id": instance_id, "launch_index": index}
        for index, instance_id in enumerate(ids)
    ]


def _write_ports(tx: Transaction, launch: Launch, ids: Sequence[str]) -> None:
    rows = [
        {
            "id": tx.world.ids.ec2("eni"),
            "instance_id": instance_id,
            "project_id": launch.project_id,
            "network_id": launch.network_id,
            "device_index": 0,
            "mac": tx.world.ids.mac(),
            "created_at": tx.now,
        }
        for instance_id in ids
    ]
    tx.execute(_WRITE_PORTS, rows)
    members = [
        {"port_id": row["id"], "group_id": group_id}
        for row in rows
        for group_id in launch.group_ids
    ]
    tx.execute(_WRITE_MEMBERS, members)
    port_ids = [str(row["id"]) for row in rows]
    wanted = launch.tags.get("network-interface", {})
    tags.add(tx, launch.project_id, "network-interface", port_ids, wanted)


def _write_disks(tx: Transaction, launch: Launch, ids: Sequence[str]) -> None:
    disk = launch.root_disk
    rows = [
        {
            "id": tx.world.ids.ec2("vol"),
            "instance_id": instance_id,
            "device_name": disk.device_name,
            "disk_gib": disk.disk_gib,
            "image_id": launch.image.image_id,
            "delete_on_termination": disk.delete_on_termination,
        }
        for instance_id in ids
    ]
    tx.execute(_WRITE_DISKS, rows)
    volume_ids = [str(row["id"]) for row in rows]
    tags.add(tx, launch.project_id, "volume", volume_ids, launch.tags.get("volume", {}))


def _entry(launch: Launch, instance_id: str) -> TimelineEntry:
    return TimelineEntry(
        instance_id=instance_id,
        epoch=0,
        request_id=launch.request_id,
        node=launch.node,
        role="api",
        name="accept",
        started_at=launch.started_at,
        duration_ms=launch.duration_ms,
        detail=f"{launch.instance_type.name} from {launch.image.image_id}",
    )


def take_running_quota(tx: Transaction, instance_ids: Sequence[str]) -> None:
    """Count stopped instances again that shall run.

    :raises LimitExceeded: there is too little left; nothing was taken once the caller rolls back.
    """
    statement = (
        update(instances)
        .where(instances.c.id.in_(instance_ids), instances.c.is_counted.is_(False))
        .values(is_counted=True)
        .returning(
            instances.c.project_id,
            instances.c.instance_type,
            instances.c.vcpus,
            instances.c.memory_mib,
        )
    )
    for row in tx.execute(statement).all():
        needs = {"vcpus": row.vcpus, "memory_mib": row.memory_mib}
        for name, need in needs.items():
            if not quotas.take(tx, row.project_id, name, need):
                size = InstanceType(
                    name=row.instance_type, vcpus=row.vcpus, memory_mib=row.memory_mib
                )
                raise _limit_exceeded(name, 0, len(instance_ids), size)
