"""Placements: which epoch of an instance belongs on which node, and the room it claims there."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update

from appliance.model import Phase
from appliance.store import Transaction, nodes
from appliance.store.schema import placements

ACTIVE = (Phase.CLAIMED.value, Phase.COMMITTED.value)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One placement with what it claims."""

    instance_id: str
    epoch: int
    node_id: str
    phase: Phase
    vcpus: int
    memory_mib: int
    disk_gib: int
    changed_at: float
    adopts_epoch: int = 0
    """The epoch of the stopped copy on the same node whose disk this one goes on with."""


def _placement(row: object) -> Placement:
    values = row._mapping  # type: ignore[attr-defined]
    return Placement(
        instance_id=values["instance_id"],
        epoch=values["epoch"],
        node_id=values["node_id"],
        phase=Phase(values["phase"]),
        vcpus=values["vcpus"],
        memory_mib=values["memory_mib"],
        disk_gib=values["disk_gib"],
        changed_at=values["changed_at"],
        adopts_epoch=values["adopts_epoch"],
    )


def claim(
    tx: Transaction,
    instance_id: str,
    epoch: int,
    node_id: str,
    *,
    vcpus: int,
    memory_mib: int,
    disk_gib: int,
) -> bool:
    """Place an instance if the node has room; ``False``, with nothing written, when it has not."""
    if not nodes.claim(tx, node_id, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib):
        return False
    _insert(tx, instance_id, epoch, node_id, vcpus, memory_mib, disk_gib)
    return True


def _insert(
    tx: Transaction,
    instance_id: str,
    epoch: int,
    node_id: str,
    vcpus: int,
    memory_mib: int,
    disk_gib: int,
    *,
    adopts_epoch: int = 0,
) -> None:
    tx.execute(
        insert(placements).values(
            adopts_epoch=adopts_epoch,
            instance_id=instance_id,
            epoch=epoch,
            node_id=node_id,
            phase=Phase.CLAIMED.value,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_gib=disk_gib,
            created_at=tx.now,
            changed_at=tx.now,
        )
    )


def find(tx: Transaction, instance_id: str, epoch: int) -> Placement | None:
    """Return one placement."""
    query = select(placements).where(
        placements.c.instance_id == instance_id, placements.c.epoch == epoch
    )
    row = tx.execute(query).first()
    return _placement(row) if row else None


def active(tx: Transaction, instance_id: str) -> Placement | None:
    """Return the placement that is claimed or committed; the newest where there are two."""
    query = (
        select(placements)
        .where(placements.c.instance_id == instance_id, placements.c.phase.in_(ACTIVE))
        .order_by(placements.c.epoch.desc())
    )
    row = tx.execute(query).first()
    return _placement(row) if row else None


def on_node(tx: Transaction, node_id: str) -> list[Placement]:
    """Return what is claimed or committed on a node."""
    query = select(placements).where(
        placements.c.node_id == node_id, placements.c.phase.in_(ACTIVE)
    )
    return [_placement(row) for row in tx.execute(query)]


def failed_nodes(tx: Transaction, instance_id: str) -> tuple[str, ...]:
    """Return the nodes that an instance was placed on and is no longer."""
    query = select(placements.c.node_id).where(
        placements.c.instance_id == instance_id, placements.c.phase == Phase.GONE.value
    )
    return tuple(dict.fromkeys(tx.execute(query).scalars()))


def commit(tx: Transaction, instance_id: str, epoch: int, node_id: str) -> bool:
    """Make a claimed placement committed; ``False`` when it is neither claimed nor committed."""
    statement = (
        update(placements)
        .where(
            placements.c.instance_id == instance_id,
            placements.c.epoch == epoch,
            placements.c.node_id == node_id,
            placements.c.phase.in_(ACTIVE),
        )
        .values(phase=Phase.COMMITTED.value, changed_at=tx.now)
    )
    return tx.execute(statement).rowcount == 1


def end(tx: Transaction, placement: Placement, reason: str) -> bool:
    """Make an active placement gone and give its claim back; ``False`` when it was ended before."""
    statement = (
        update(placements)
        .where(
            placements.c.instance_id == placement.instance_id,
            placements.c.epoch == placement.epoch,
            placements.c.phase.in_(ACTIVE),
        )
        .values(phase=Phase.GONE.value, reason=reason, changed_at=tx.now)
        .returning(placements.c.vcpus, placements.c.memory_mib, placements.c.disk_gib)
    )
    # What the row says now, not what it said when the caller read it: a stop may lie between.
    row = tx.execute(statement).first()
    if row is None:
        return False
    nodes.unclaim(
        tx,
        placement.node_id,
        vcpus=row.vcpus,
        memory_mib=row.memory_mib,
        disk_gib=row.disk_gib,
        instances=1,
    )
    return True


def renew(tx: Transaction, kept: Placement, epoch: int, *, vcpus: int, memory_mib: int) -> bool:
    """Place a stopped instance anew on the node of its disk; ``False`` when it has no room.

    The disk's claim passes from the old epoch to the new one.
    """
    if not nodes.claim(tx, kept.node_id, vcpus=vcpus, memory_mib=memory_mib, disk_gib=0):
        return False
    nodes.unclaim(tx, kept.node_id, vcpus=0, memory_mib=0, disk_gib=0, instances=1)
    tx.execute(
        update(placements)
        .where(placements.c.instance_id == kept.instance_id, placements.c.epoch == kept.epoch)
        .values(phase=Phase.GONE.value, reason="placed anew for a start", changed_at=tx.now)
    )
    _insert(
        tx,
        kept.instance_id,
        epoch,
        kept.node_id,
        vcpus,
        memory_mib,
        kept.disk_gib,
        adopts_epoch=kept.epoch,
    )
    return True


def free_while_stopped(tx: Transaction, placement: Placement) -> None:
    """Give vcpus and memory back and keep the disk; safe to repeat."""
    statement = (
        update(placements)
        .where(
            placements.c.instance_id == placement.instance_id,
            placements.c.epoch == placement.epoch,
            placements.c.phase.in_(ACTIVE),
            placements.c.memory_mib > 0,
            placements.c.memory_mib == placement.memory_mib,
            placements.c.vcpus == placement.vcpus,
        )
        .values(vcpus=0, memory_mib=0, changed_at=tx.now)
    )
    if tx.execute(statement).rowcount == 1:
        nodes.unclaim(
            tx,
            placement.node_id,
            vcpus=placement.vcpus,
            memory_mib=placement.memory_mib,
            disk_gib=0,
            instances=0,
        )
