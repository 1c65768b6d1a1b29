"""Placements: which epoch of an instance belongs on which node, and the room it claims there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import bindparam, insert, select, update

from appliance.model import Phase
from appliance.store import Transaction, nodes
from appliance.store.schema import node_status, placements

ACTIVE = (Phase.CLAIMED.value, Phase.COMMITTED.value)


_WRITE = insert(placements)
_FIND = select(placements).where(
    placements.c.instance_id == bindparam("instance_id"), placements.c.epoch == bindparam("epoch")
)
_ACTIVE_OF = (
    select(placements)
    .where(
        placements.c.instance_id.in_(bindparam("instance_ids", expanding=True)),
        placements.c.phase.in_(ACTIVE),
    )
    .order_by(placements.c.epoch)
)
_FAILED_OF = (
    select(placements.c.instance_id, placements.c.node_id)
    .where(
        placements.c.instance_id.in_(bindparam("instance_ids", expanding=True)),
        placements.c.phase.in_((Phase.GONE.value, Phase.FENCED.value)),
    )
    .order_by(placements.c.epoch)
)
_COMMIT = (
    update(placements)
    .where(
        placements.c.instance_id == bindparam("of_instance"),
        placements.c.epoch == bindparam("at_epoch"),
        placements.c.node_id == bindparam("on_node"),
        placements.c.phase.in_(ACTIVE),
    )
    .values(phase=Phase.COMMITTED.value, changed_at=bindparam("now"))
)


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

    @property
    def is_active(self) -> bool:
        """Whether a copy may be there."""
        return self.phase.value in ACTIVE


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


def write(tx: Transaction, claimed: Sequence[Placement]) -> None:
    """Write placements whose room is claimed.

    The copies that they adopt are gone from then on; their disks' claims pass to the new epochs.
    """
    adopted = [one for one in claimed if one.adopts_epoch]
    if adopted:
        tx.execute(
            update(placements)
            .where(
                placements.c.instance_id == bindparam("adopter_id"),
                placements.c.epoch == bindparam("adopted_epoch"),
            )
            .values(phase=Phase.GONE.value, reason="placed anew for a start", changed_at=tx.now),
            [{"adopter_id": one.instance_id, "adopted_epoch": one.adopts_epoch} for one in adopted],
        )
    if claimed:
        tx.execute(
            _WRITE,
            [{**asdict(one), "phase": one.phase.value, "created_at": tx.now} for one in claimed],
        )


def find(tx: Transaction, instance_id: str, epoch: int) -> Placement | None:
    """Return one placement."""
    row = tx.execute(_FIND, {"instance_id": instance_id, "epoch": epoch}).first()
    return _placement(row) if row else None


def active(tx: Transaction, instance_id: str) -> Placement | None:
    """Return the placement that is claimed or committed; the newest where there are two."""
    return active_of(tx, [instance_id]).get(instance_id)


def active_of(tx: Transaction, instance_ids: Iterable[str]) -> dict[str, Placement]:
    """Return by instance the placement that is claimed or committed; the newest of several."""
    rows = tx.execute(_ACTIVE_OF, {"instance_ids": list(instance_ids)})
    return {row.instance_id: _placement(row) for row in rows}


def on_node(tx: Transaction, node_id: str) -> list[Placement]:
    """Return what is claimed or committed on a node."""
    query = select(placements).where(
        placements.c.node_id == node_id, placements.c.phase.in_(ACTIVE)
    )
    return [_placement(row) for row in tx.execute(query)]


def failed_nodes_of(tx: Transaction, instance_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return by instance the nodes that it was placed on and is no longer, oldest first."""
    failed: dict[str, dict[str, None]] = {}
    for row in tx.execute(_FAILED_OF, {"instance_ids": list(instance_ids)}):
        failed.setdefault(row.instance_id, {})[row.node_id] = None
    return {instance_id: tuple(nodes_failed) for instance_id, nodes_failed in failed.items()}


def commit(tx: Transaction, instance_id: str, epoch: int, node_id: str) -> bool:
    """Make a claimed placement committed; ``False`` when it is neither claimed nor committed."""
    values = {"of_instance": instance_id, "at_epoch": epoch, "on_node": node_id, "now": tx.now}
    return tx.execute(_COMMIT, values).rowcount == 1


def unbound_on_down_nodes(tx: Transaction) -> list[Placement]:
    """Return what is only claimed on nodes that are down, unless it goes on with a disk there."""
    query = (
        select(placements)
        .join(node_status, node_status.c.node_id == placements.c.node_id)
        .where(
            placements.c.phase == Phase.CLAIMED.value,
            placements.c.adopts_epoch == 0,
            node_status.c.is_up.is_(False),
        )
    )
    return [_placement(row) for row in tx.execute(query)]


def was_fenced(tx: Transaction, instance_id: str) -> bool:
    """Say whether an instance was ever on a node that was confirmed dead."""
    query = select(placements.c.epoch).where(
        placements.c.instance_id == instance_id, placements.c.phase == Phase.FENCED.value
    )
    return tx.execute(query.limit(1)).first() is not None


def end(tx: Transaction, placement: Placement, reason: str) -> bool:
    """Make an active placement gone and give its claim back; ``False`` when it was ended before."""
    return _end(tx, placement, Phase.GONE, ACTIVE, reason)


def end_unbound(tx: Transaction, placement: Placement, reason: str) -> bool:
    """End a placement that its node has not bound; ``False`` when it has, or it was ended."""
    return _end(tx, placement, Phase.GONE, (Phase.CLAIMED.value,), reason)


def fence(tx: Transaction, placement: Placement, reason: str) -> bool:
    """End the placement of a copy that is known never to run again, as its node is dead.

    :returns: ``False`` when it was ended before.
    """
    return _end(tx, placement, Phase.FENCED, ACTIVE, reason)


def _end(
    tx: Transaction, placement: Placement, phase: Phase, before: Sequence[str], reason: str
) -> bool:
    statement = (
        update(placements)
        .where(
            placements.c.instance_id == placement.instance_id,
            placements.c.epoch == placement.epoch,
            placements.c.phase.in_(before),
        )
        .values(phase=phase.value, reason=reason, changed_at=tx.now)
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
