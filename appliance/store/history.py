"""Deleting what has had its time: by age, in bounded batches."""

from __future__ import annotations

from sqlalchemy import Column, Table, delete, select

from appliance.model import InstanceState
from appliance.store import Transaction
from appliance.store.schema import (
    audit,
    decisions,
    handled,
    instances,
    placements,
    ports,
    reservations,
    tags,
    timeline,
)

BATCH = 500


def forget(tx: Transaction, *, history_s: float, terminated_s: float) -> bool:
    """Delete one batch of each kind; say whether there may be more.

    Terminated instances go after ``terminated_s`` and only when none of their placements is left
    active; timelines, decisions and the audit log after ``history_s``.
    """
    old = tx.now - history_s
    counts = [
        _delete(tx, timeline, timeline.c.id, timeline.c.started_at, old),
        _delete(tx, decisions, decisions.c.id, decisions.c.made_at, old),
        _delete(tx, audit, audit.c.id, audit.c.at, old),
        _delete(tx, handled, handled.c.message_id, handled.c.handled_at, old),
        _forget_instances(tx, tx.now - terminated_s),
    ]
    return max(counts) >= BATCH


def _delete(tx: Transaction, table: Table, key: Column[str], at: Column[float], old: float) -> int:
    batch = select(key).where(at < old).limit(BATCH)
    return tx.execute(delete(table).where(key.in_(batch))).rowcount


def _forget_instances(tx: Transaction, old: float) -> int:
    active = select(placements.c.instance_id).where(
        placements.c.phase.in_(("claimed", "committed"))
    )
    query = (
        select(instances.c.id, instances.c.reservation_id)
        .where(
            instances.c.state == InstanceState.TERMINATED.value,
            instances.c.terminated_at < old,
            instances.c.id.not_in(active),
        )
        .limit(BATCH)
    )
    rows = tx.execute(query).all()
    ids = [row.id for row in rows]
    if not ids:
        return 0
    tx.execute(delete(placements).where(placements.c.instance_id.in_(ids)))
    tx.execute(delete(ports).where(ports.c.instance_id.in_(ids)))
    tx.execute(delete(tags).where(tags.c.resource_id.in_(ids)))
    tx.execute(delete(instances).where(instances.c.id.in_(ids)))
    used = select(instances.c.reservation_id)
    tx.execute(
        delete(reservations).where(
            reservations.c.id.in_({row.reservation_id for row in rows}),
            reservations.c.id.not_in(used),
        )
    )
    return len(ids)
