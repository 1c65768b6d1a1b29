"""Deleting what has had its time: by age, in bounded batches."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, and_, delete, exists, select, tuple_

from appliance.model import InstanceState, Phase
from appliance.store import Transaction, audit
from appliance.store.schema import audit as audit_rows
from appliance.store.schema import (
    commits,
    decisions,
    forgotten_letters,
    handled,
    instances,
    outbox,
    placements,
    ports,
    reservations,
    tags,
    timeline,
)

BATCH = 500
SIGNED_REQUEST_S = 86400.0
"""Seconds for which signed requests are remembered: far more than one is good for."""

COMMITTED_S = 3600.0
"""Seconds for which a transaction leaves its mark: far more than anybody asks for it."""


def forget(tx: Transaction, *, history_s: float, audit_s: float, terminated_s: float) -> bool:
    """Delete one batch of each kind; say whether there may be more.

    Terminated instances go after ``terminated_s`` and only when none of their placements is left
    active. Timelines, decisions, dead letters, handled ids and gone placements go after
    ``history_s``, the audit log after ``audit_s``; the newest placement of an instance stays as
    long as the instance.
    """
    old = tx.now - history_s
    counts = [
        _delete(tx, timeline, timeline.c.started_at < old),
        _delete(tx, decisions, decisions.c.made_at < old),
        _delete(tx, audit_rows, audit_rows.c.at < tx.now - audit_s),
        _delete(tx, handled, handled.c.handled_at < old),
        _delete(tx, handled, _is_expired(tx.now)),
        _delete(tx, commits, commits.c.at < tx.now - COMMITTED_S),
        _delete(tx, outbox, outbox.c.dead_at < old),
        _delete(tx, forgotten_letters, forgotten_letters.c.last_at < old),
        _delete(tx, placements, _is_replaced(old)),
        _forget_instances(tx, tx.now - terminated_s),
    ]
    return max(counts) >= BATCH


def _delete(tx: Transaction, table: Table, is_old: ColumnElement[bool]) -> int:
    key = tuple_(*table.primary_key.columns)
    batch = select(*table.primary_key.columns).where(is_old).limit(BATCH)
    return tx.execute(delete(table).where(key.in_(batch))).rowcount


def _is_expired(now: float) -> ColumnElement[bool]:
    return and_(
        handled.c.consumer.in_((audit.CARRIED_OUT, audit.REFUSED)),
        handled.c.handled_at < now - SIGNED_REQUEST_S,
    )


def _is_replaced(old: float) -> ColumnElement[bool]:
    newer = placements.alias("newer")
    return and_(
        placements.c.phase.in_((Phase.GONE.value, Phase.FENCED.value)),
        placements.c.changed_at < old,
        exists().where(
            newer.c.instance_id == placements.c.instance_id, newer.c.epoch > placements.c.epoch
        ),
    )


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
