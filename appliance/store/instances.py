"""Instances as the control side moves them: what is wanted, what is, and how one ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BindParameter, Row, and_, bindparam, delete, or_, select, update

from appliance.model import (
    Binding,
    BlockDeviceSpec,
    Desired,
    ImageRef,
    InstanceMetadata,
    InstanceSpec,
    InstanceState,
    PortRequest,
    PortSpec,
    Reason,
)
from appliance.store import Transaction, networks, policy, quotas
from appliance.store.placements import ACTIVE
from appliance.store.schema import (
    block_devices,
    images,
    instances,
    node_status,
    nodes,
    placements,
    port_groups,
    ports,
    security_groups,
    tags,
)

_GIVEN: BindParameter[Any] = bindparam("ids", expanding=True)
# What decides about an instance, without what only its node needs: user data may be long.
_DECIDING = select(
    *(
        instances.c[name]
        for name in (
            *("id", "project_id", "reservation_id", "request_id", "instance_type"),
            *("vcpus", "memory_mib", "disk_gib", "zone", "desired", "revision", "state"),
            *("epoch", "seq", "attempts", "node_id", "launched_at", "progress_at"),
            *("reason_code", "reason_message"),
        )
    )
)
_FIND = _DECIDING.where(instances.c.id.in_(_GIVEN)).order_by(instances.c.id)
_FIND_PLACED = (
    select(instances, nodes.c.zone.label("node_zone"))
    .outerjoin(nodes, nodes.c.id == instances.c.node_id)
    .where(instances.c.id.in_(_GIVEN))
    .order_by(instances.c.id)
)
_PLACED = (
    update(instances)
    .where(instances.c.id == bindparam("placed_id"))
    .values(
        epoch=bindparam("placed_epoch"),
        seq=0,
        node_id=bindparam("placed_on"),
        progress_at=bindparam("now"),
    )
)
_REPORTED = update(instances).where(
    instances.c.id == bindparam("of_instance"),
    instances.c.epoch == bindparam("at_epoch"),
    instances.c.seq < bindparam("new_seq"),
    instances.c.state != InstanceState.TERMINATED.value,
)
_IMAGES = select(images).where(images.c.id.in_(_GIVEN))
_PORTS = select(ports).where(ports.c.instance_id.in_(_GIVEN)).order_by(ports.c.device_index)
_DISKS = (
    select(block_devices)
    .where(block_devices.c.instance_id.in_(_GIVEN))
    .order_by(block_devices.c.device_name)
)
_MEMBERSHIPS = select(port_groups).where(port_groups.c.port_id.in_(_GIVEN))
_NAMED_MEMBERSHIPS = (
    select(port_groups.c.port_id, security_groups.c.id, security_groups.c.name)
    .join(security_groups, security_groups.c.id == port_groups.c.group_id)
    .where(port_groups.c.port_id.in_(_GIVEN))
    .order_by(security_groups.c.name)
)
_BOUND = update(ports).where(ports.c.id.in_(_GIVEN)).values(is_bound=True)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An instance as the control side sees it."""

    instance_id: str
    project_id: str
    reservation_id: str
    request_id: str
    instance_type: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    zone: str | None
    desired: Desired
    revision: int
    state: InstanceState
    epoch: int
    seq: int
    attempts: int
    node_id: str | None
    launched_at: float | None
    progress_at: float
    reason: Reason | None


def _instance(row: object) -> Instance:
    values = row._mapping  # type: ignore[attr-defined]
    return Instance(
        instance_id=values["id"],
        project_id=values["project_id"],
        reservation_id=values["reservation_id"],
        request_id=values["request_id"],
        instance_type=values["instance_type"],
        vcpus=values["vcpus"],
        memory_mib=values["memory_mib"],
        disk_gib=values["disk_gib"],
        zone=values["zone"],
        desired=Desired(values["desired"]),
        revision=values["revision"],
        state=InstanceState(values["state"]),
        epoch=values["epoch"],
        seq=values["seq"],
        attempts=values["attempts"],
        node_id=values["node_id"],
        launched_at=values["launched_at"],
        progress_at=values["progress_at"],
        reason=Reason(code=values["reason_code"], message=values["reason_message"])
        if values["reason_code"]
        else None,
    )


def find(tx: Transaction, instance_ids: Iterable[str]) -> list[Instance]:
    """Return instances by id; those that do not exist are missing."""
    return [_instance(row) for row in tx.execute(_FIND, {"ids": list(instance_ids)})]


def get(tx: Transaction, instance_id: str) -> Instance | None:
    """Return one instance."""
    return next(iter(find(tx, [instance_id])), None)


def without_progress(tx: Transaction, since: float) -> list[Instance]:
    """Return instances that are under way and have shown no progress since then.

    Progress that lies further ahead than that lies back is of before the clock went back.
    """
    transitional = [
        InstanceState.PENDING.value,
        InstanceState.STOPPING.value,
        InstanceState.SHUTTING_DOWN.value,
    ]
    query = _DECIDING.where(
        or_(
            instances.c.state.in_(transitional),
            and_(
                instances.c.state == InstanceState.RUNNING.value,
                instances.c.desired != Desired.RUNNING.value,
            ),
        ),
        or_(instances.c.progress_at < since, instances.c.progress_at > 2 * tx.now - since),
    )
    return [_instance(row) for row in tx.execute(query)]


def placed(tx: Transaction, placements: Iterable[tuple[str, int, str]]) -> None:
    """Write where instances now belong: instance, epoch and node of each."""
    rows = [
        {"placed_id": instance_id, "placed_epoch": epoch, "placed_on": node_id, "now": tx.now}
        for instance_id, epoch, node_id in placements
    ]
    if rows:
        tx.execute(_PLACED, rows)


def progressed(tx: Transaction, instance_id: str) -> None:
    """Note a sign of life of the work on an instance."""
    tx.execute(update(instances).where(instances.c.id == instance_id).values(progress_at=tx.now))


def reported(
    tx: Transaction, instance_id: str, epoch: int, seq: int, values: Mapping[str, object]
) -> bool:
    """Write what a node reported, if it is newer than what is known; say whether it was."""
    known = {"of_instance": instance_id, "at_epoch": epoch, "new_seq": seq}
    written = {**values, "seq": seq, "progress_at": tx.now}
    return tx.execute(_REPORTED, {**known, **written}).rowcount == 1


def want(
    tx: Transaction, instance: Instance, desired: Desired, *, reason: Reason | None = None
) -> bool:
    """Change what is wanted of an instance, unless somebody changed it since it was read."""
    values: dict[str, object] = {"desired": desired.value, "revision": instance.revision + 1}
    if reason:
        values |= {"reason_code": reason.code, "reason_message": reason.message}
    statement = (
        update(instances)
        .where(instances.c.id == instance.instance_id, instances.c.revision == instance.revision)
        .values(**values)
    )
    return tx.execute(statement).rowcount == 1


def stopped(tx: Transaction, instance: Instance, reason: Reason | None) -> None:
    """End a start that did not succeed: the instance is stopped, as before."""
    tx.execute(
        update(instances)
        .where(instances.c.id == instance.instance_id)
        .values(
            state=InstanceState.STOPPED.value,
            desired=Desired.STOPPED.value,
            revision=instances.c.revision + 1,
            progress_at=tx.now,
            **_reason_columns(reason),
        )
    )
    quotas.uncount(tx, instance.instance_id)


def count_attempt(tx: Transaction, instance_id: str, reason: Reason | None) -> int:
    """Count a launch that failed, and keep why; return how many there were."""
    statement = (
        update(instances)
        .where(instances.c.id == instance_id)
        .values(attempts=instances.c.attempts + 1, progress_at=tx.now, **_reason_columns(reason))
        .returning(instances.c.attempts)
    )
    return int(tx.execute(statement).scalar_one())


def _reason_columns(reason: Reason | None) -> dict[str, object]:
    return {"reason_code": reason.code, "reason_message": reason.message} if reason else {}


def terminated(tx: Transaction, instance: Instance, reason: Reason | None) -> bool:
    """End an instance with its ports, addresses and quota; ``False`` when it had ended before."""
    if not _terminated(tx, instance, reason, node_id=None):
        return False
    release(tx, instance.instance_id)
    return True


def terminated_away(tx: Transaction, instance: Instance, reason: Reason | None) -> bool:
    """End an instance whose node is silent: it may run on, so it keeps its ports and addresses.

    :func:`release` frees them once its copy is known to be gone.
    """
    return _terminated(tx, instance, reason, node_id=instance.node_id)


def _terminated(
    tx: Transaction, instance: Instance, reason: Reason | None, *, node_id: str | None
) -> bool:
    statement = (
        update(instances)
        .where(
            instances.c.id == instance.instance_id,
            instances.c.state != InstanceState.TERMINATED.value,
        )
        .values(
            state=InstanceState.TERMINATED.value,
            desired=Desired.TERMINATED.value,
            terminated_at=tx.now,
            progress_at=tx.now,
            node_id=node_id,
            **_reason_columns(reason),
        )
    )
    if tx.execute(statement).rowcount != 1:
        return False
    quotas.uncount(tx, instance.instance_id)
    quotas.give_back(tx, instance.project_id, "instances", 1)
    return True


def release(tx: Transaction, instance_id: str) -> None:
    """Free what an instance that has ended still had: ports, addresses, disks. Safe to repeat."""
    release_ports(tx, instance_id)
    _remove_disks(tx, instance_id)
    tx.execute(update(instances).where(instances.c.id == instance_id).values(node_id=None))


def ending_on_down_nodes(tx: Transaction) -> list[Instance]:
    """Return instances that are shutting down on nodes that are down, or launches given up.

    The nodes may hold them: one whose placement has ended is nobody's to wait for.
    """
    was_given_up = and_(
        instances.c.state == InstanceState.PENDING.value,
        instances.c.desired == Desired.TERMINATED.value,
    )
    query = (
        _DECIDING.join(node_status, node_status.c.node_id == instances.c.node_id)
        .join(
            placements,
            and_(
                placements.c.instance_id == instances.c.id,
                placements.c.node_id == instances.c.node_id,
                placements.c.phase.in_(ACTIVE),
            ),
        )
        .where(
            or_(instances.c.state == InstanceState.SHUTTING_DOWN.value, was_given_up),
            node_status.c.is_up.is_(False),
        )
    )
    return [_instance(row) for row in tx.execute(query)]


def displaced(tx: Transaction, instance: Instance) -> None:
    """Let an instance be on no node, and its next placement be its first one.

    Whatever its old copy still says is of an older epoch. It is pending when it shall run, and
    stopped otherwise.
    """
    is_wanted = instance.desired is Desired.RUNNING
    state = InstanceState.PENDING if is_wanted else InstanceState.STOPPED
    tx.execute(
        update(instances)
        .where(instances.c.id == instance.instance_id)
        .values(
            state=state.value,
            epoch=instance.epoch + 1,
            seq=0,
            attempts=0,
            node_id=None,
            launched_at=None,
            progress_at=tx.now,
        )
    )
    left_node(tx, instance.instance_id)
    if not is_wanted:
        quotas.uncount(tx, instance.instance_id)


def left_node(tx: Transaction, instance_id: str) -> None:
    """Tell nodes that an instance's ports are not where they were, although they stay its own.

    Its old node may have heard of them only after it gave them up; others still send there.
    """
    bound = ports.c.instance_id == instance_id, ports.c.is_bound.is_(True)
    rows = tx.execute(select(ports.c.id, ports.c.network_id).where(*bound)).all()
    specs = networks.find(tx, {row.network_id for row in rows})
    changes = [policy.Change(kind="port", subject=row.id) for row in rows]
    for vpc_id in sorted({spec.vpc_id for spec in specs.values()}):
        policy.changed(tx, vpc_id, changes)


def _remove_disks(tx: Transaction, instance_id: str) -> None:
    statement = delete(block_devices).where(block_devices.c.instance_id == instance_id)
    removed = tx.execute(statement.returning(block_devices.c.id)).scalars().all()
    tx.execute(delete(tags).where(tags.c.resource_id.in_(removed)))


def release_ports(tx: Transaction, instance_id: str) -> None:
    """Give up an instance's ports and addresses, and tell the nodes that enforce the groups."""
    rows = tx.execute(
        select(ports.c.id, ports.c.network_id).where(ports.c.instance_id == instance_id)
    ).all()
    if not rows:
        return
    port_ids = [row.id for row in rows]
    owned = networks.of_ports(tx, port_ids)
    specs = networks.find(tx, {row.network_id for row in rows})
    changes = _membership_changes(tx, port_ids, owned, "left")
    tx.execute(delete(port_groups).where(port_groups.c.port_id.in_(port_ids)))
    revisions: dict[str, int] = {}
    if owned:
        for vpc_id in sorted({spec.vpc_id for spec in specs.values()}):
            revisions |= policy.changed(tx, vpc_id, changes)
        networks.free(tx, port_ids, revisions)
    tx.execute(delete(tags).where(tags.c.resource_id.in_(port_ids)))
    tx.execute(delete(ports).where(ports.c.id.in_(port_ids)))


def _membership_changes(
    tx: Transaction, port_ids: list[str], owned: Mapping[str, tuple[str, ...]], kind: str
) -> list[policy.Change]:
    group_ids: dict[str, tuple[str, ...]] = {}
    for row in tx.execute(_MEMBERSHIPS, {"ids": port_ids}):
        group_ids[row.port_id] = (*group_ids.get(row.port_id, ()), row.group_id)
    return _changes(port_ids, owned, group_ids, kind)


def _changes(
    port_ids: Iterable[str],
    owned: Mapping[str, tuple[str, ...]],
    group_ids: Mapping[str, tuple[str, ...]],
    kind: str,
) -> list[policy.Change]:
    """Return what ports and their addresses mean to the policy when they join or leave."""
    changes = []
    for port_id in port_ids:
        changes.append(policy.Change(kind="port", subject=port_id))
        changes += [
            policy.Change(kind=kind, subject=group_id, address=address)
            for group_id in group_ids.get(port_id, ())
            for address in owned.get(port_id, ())
        ]
    return changes


def image_ref(row: object) -> ImageRef:
    """Return an image row as orders carry it."""
    values = row._mapping  # type: ignore[attr-defined]
    return ImageRef(
        image_id=values["id"],
        sha256=values["sha256"],
        format=values["format"],
        size_bytes=values["size_bytes"],
        virtual_size_bytes=values["virtual_size_bytes"],
    )


def specs(tx: Transaction, instance_ids: Iterable[str]) -> dict[str, InstanceSpec]:
    """Return what a node needs to build each instance; a handful of SELECTs for any number.

    The zone of one that asked for none is that of its node, empty while it has none.
    """
    ids = list(instance_ids)
    rows = tx.execute(_FIND_PLACED, {"ids": ids}).all()
    wanted_images = {i for row in rows for i in (row.image_id, row.kernel_id, row.ramdisk_id) if i}
    image_rows = {row.id: row for row in tx.execute(_IMAGES, {"ids": list(wanted_images)})}
    port_rows: dict[str, list[PortRequest]] = {}
    for row in tx.execute(_PORTS, {"ids": ids}):
        port_rows.setdefault(row.instance_id, []).append(
            PortRequest(
                port_id=row.id,
                device_index=row.device_index,
                mac=row.mac,
                network_id=row.network_id,
            )
        )
    devices: dict[str, list[BlockDeviceSpec]] = {}
    for row in tx.execute(_DISKS, {"ids": ids}):
        devices.setdefault(row.instance_id, []).append(
            BlockDeviceSpec(
                device_name=row.device_name,
                disk_gib=row.disk_gib,
                image=image_ref(image_rows[row.image_id]),
                delete_on_termination=row.delete_on_termination,
            )
        )
    return {
        row.id: InstanceSpec(
            instance_id=row.id,
            project_id=row.project_id,
            reservation_id=row.reservation_id,
            launch_index=row.launch_index,
            image_id=row.image_id,
            instance_type=row.instance_type,
            vcpus=row.vcpus,
            memory_mib=row.memory_mib,
            zone=row.zone or row.node_zone or "",
            ports=tuple(port_rows.get(row.id, ())),
            block_devices=tuple(devices.get(row.id, ())),
            kernel=image_ref(image_rows[row.kernel_id]) if row.kernel_id else None,
            ramdisk=image_ref(image_rows[row.ramdisk_id]) if row.ramdisk_id else None,
            kernel_command_line=image_rows[row.image_id].kernel_command_line,
            injection=row.injection,
            image_properties=_properties(image_rows[row.image_id].properties),
        )
        for row in rows
    }


def _properties(body: bytes | None) -> dict[str, str]:
    return msgspec.json.decode(body, type=dict[str, str]) if body else {}


def bind(
    tx: Transaction,
    instance_id: str,
    epoch: int,
    *,
    region: str,
    quarantine_s: float,
) -> Binding:
    """Return the binding of an instance, allocating its addresses the first time.

    :raises Conflict: a network has no free address; nothing was taken.
    """
    row = tx.execute(_FIND_PLACED, {"ids": [instance_id]}).one()
    port_rows = tx.execute(_PORTS, {"ids": [instance_id]}).all()
    port_ids = [port.id for port in port_rows]
    owned = {
        port.id: networks.allocate(tx, port.network_id, port.id, quarantine_s=quarantine_s)
        for port in port_rows
    }
    known = networks.find(tx, {port.network_id for port in port_rows})
    group_ids, group_names = _groups_of(tx, port_ids)
    _note_bound(tx, port_rows, owned, group_ids, known.values())
    primary = owned[port_ids[0]][0] if port_ids else ""
    hostname = f"ip-{primary.replace('.', '-')}" if primary else instance_id
    return Binding(
        instance_id=instance_id,
        epoch=epoch,
        networks=tuple(known.values()),
        ports=tuple(
            PortSpec(
                port_id=port.id,
                instance_id=instance_id,
                device_index=port.device_index,
                mac=port.mac,
                network_id=port.network_id,
                addresses=owned[port.id],
                hostname=hostname,
                group_ids=group_ids.get(port.id, ()),
            )
            for port in port_rows
        ),
        metadata=msgspec.structs.replace(
            _metadata(tx, row),
            zone=row.zone or row.node_zone or "",
            region=region,
            hostname=hostname,
            security_groups=group_names,
        ),
    )


def _metadata(tx: Transaction, row: Row[Any]) -> InstanceMetadata:
    """Return what an instance's own record says to the instance."""
    options = msgspec.json.decode(row.attributes) if row.attributes else {}
    shows_tags = options.get("instance_metadata_tags") == "enabled"
    return InstanceMetadata(
        instance_id=row.id,
        project_id=row.project_id,
        reservation_id=row.reservation_id,
        launch_index=row.launch_index,
        image_id=row.image_id,
        instance_type=row.instance_type,
        zone="",
        region="",
        hostname="",
        kernel_id=row.kernel_id or "",
        ramdisk_id=row.ramdisk_id or "",
        key_name=row.key_name or "",
        public_key=row.public_key,
        user_data_base64=row.user_data_base64,
        tags=_tags_of(tx, row.id) if shows_tags else {},
        requires_token=options.get("http_tokens") == "required",
        token_hop_limit=int(options.get("http_put_response_hop_limit", 1)),
    )


def _tags_of(tx: Transaction, resource_id: str) -> dict[str, str]:
    query = select(tags.c.key, tags.c.value).where(tags.c.resource_id == resource_id)
    return {row.key: row.value for row in tx.execute(query)}


def _groups_of(
    tx: Transaction, port_ids: list[str]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    ids: dict[str, tuple[str, ...]] = {}
    names: dict[str, None] = {}
    for row in tx.execute(_NAMED_MEMBERSHIPS, {"ids": port_ids}):
        ids[row.port_id] = (*ids.get(row.port_id, ()), row.id)
        names[row.name] = None
    return ids, tuple(names)


def _note_bound(
    tx: Transaction,
    port_rows: Iterable[object],
    owned: Mapping[str, tuple[str, ...]],
    group_ids: Mapping[str, tuple[str, ...]],
    specs_known: Iterable[object],
) -> None:
    """Tell the nodes of the ports' first binding, or of a move: the port is a change each time."""
    rows = [row._mapping for row in port_rows]  # type: ignore[attr-defined]
    fresh = [row["id"] for row in rows if not row["is_bound"]]
    moved = [row["id"] for row in rows if row["is_bound"]]
    changes = _changes(fresh, owned, group_ids, "joined")
    changes += [policy.Change(kind="port", subject=port_id) for port_id in moved]
    if fresh:
        tx.execute(_BOUND, {"ids": fresh})
    for vpc_id in sorted({spec.vpc_id for spec in specs_known}):  # type: ignore[attr-defined]
        policy.changed(tx, vpc_id, changes)
