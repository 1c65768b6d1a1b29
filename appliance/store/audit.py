"""Who changed what, and requests that must not take effect twice."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select

from appliance.store import Transaction
from appliance.store.schema import audit, handled

_SIGNED_REQUESTS = "signed-request"
_SUBJECT_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A change that somebody asked for."""

    actor: str
    project_id: str
    action: str
    subject: str
    request_id: str
    source: str
    result: str = "ok"


def record(tx: Transaction, deed: Deed) -> None:
    """Write down a change in its own transaction."""
    tx.execute(
        insert(audit).values(
            at=tx.now,
            actor=deed.actor,
            project_id=deed.project_id,
            action=deed.action,
            subject=deed.subject[:_SUBJECT_CHARACTERS],
            result=deed.result,
            request_id=deed.request_id,
            source=deed.source,
        )
    )


def first_seen(tx: Transaction, request_digest: str) -> float | None:
    """Note that a signed request takes effect; return when it did so before, ``None`` if never."""
    same = (handled.c.consumer == _SIGNED_REQUESTS) & (handled.c.message_id == request_digest)
    seen_at: float | None = tx.execute(select(handled.c.handled_at).where(same)).scalar()
    if seen_at is None:
        tx.execute(
            insert(handled).values(
                consumer=_SIGNED_REQUESTS, message_id=request_digest, handled_at=tx.now
            )
        )
    return seen_at
