"""Casts on their way: written with the state they belong to, deleted when they took effect."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from appliance.store import OutboxRow, Transaction
from appliance.store.schema import outbox


def take(tx: Transaction, message_id: str) -> bool:
    """Delete a row; ``False`` when it was taken before."""
    return tx.execute(delete(outbox).where(outbox.c.id == message_id)).rowcount == 1


def pending(tx: Transaction) -> list[OutboxRow]:
    """Return the rows that await their handler, oldest first, at most 1,000."""
    columns = [outbox.c[name] for name in OutboxRow._fields]
    query = select(*columns).where(outbox.c.dead_at.is_(None)).order_by(outbox.c.created_at)
    return [OutboxRow._make(row) for row in tx.execute(query.limit(1000))]


def bury(tx: Transaction, message_id: str, attempts: int, error: str) -> None:
    """Keep a row as a dead letter."""
    tx.execute(
        update(outbox)
        .where(outbox.c.id == message_id)
        .values(dead_at=tx.now, attempts=attempts, error=error[:4000])
    )
