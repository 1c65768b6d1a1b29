"""The timeline of instances, and the decisions that placed them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from appliance.model import Decision, TimelineEntry
from appliance.store import Transaction
from appliance.store.schema import decisions, timeline

_RECORD = {
    is_sqlite: dialect_insert(timeline).on_conflict_do_nothing()
    for is_sqlite, dialect_insert in ((True, sqlite_insert), (False, pg_insert))
}
_DECIDE = insert(decisions)


def record(tx: Transaction, entries: Iterable[TimelineEntry]) -> None:
    """Write entries; those that are there already are left alone."""
    rows = [
        {**msgspec.structs.asdict(entry), "causes": msgspec.json.encode(entry.causes)}
        for entry in entries
    ]
    if rows:
        tx.execute(_RECORD[tx.is_sqlite], rows)


def of_instance(tx: Transaction, instance_id: str) -> list[TimelineEntry]:
    """Return an instance's timeline, oldest first."""
    query = (
        select(timeline)
        .where(timeline.c.instance_id == instance_id)
        .order_by(timeline.c.started_at, timeline.c.id)
    )
    return [
        TimelineEntry(
            instance_id=row.instance_id,
            epoch=row.epoch,
            request_id=row.request_id,
            node=row.node,
            role=row.role,
            name=row.name,
            started_at=row.started_at,
            duration_ms=row.duration_ms,
            outcome=row.outcome,
            detail=row.detail,
            causes=tuple(msgspec.json.decode(row.causes)) if row.causes else (),
        )
        for row in tx.execute(query)
    ]


def decide(tx: Transaction, made: Iterable[Decision]) -> None:
    """Keep the records of placement choices."""
    rows = [
        {
            "instance_id": decision.instance_id,
            "epoch": decision.epoch,
            "body": msgspec.json.encode(decision),
            "made_at": decision.made_at,
        }
        for decision in made
    ]
    if rows:
        tx.execute(_DECIDE, rows)


def decisions_of(tx: Transaction, instance_id: str) -> list[Decision]:
    """Return the placement choices made for an instance, oldest first."""
    query = (
        select(decisions.c.body)
        .where(decisions.c.instance_id == instance_id)
        .order_by(decisions.c.id)
    )
    return [msgspec.json.decode(body, type=Decision) for body in tx.execute(query).scalars()]
