"""The audit log: who changed what, or tried to; and requests that must not take effect twice.

The log is append-only: rows are written once, and go by age only, see ``history``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select

from appliance.store import Transaction
from appliance.store.schema import audit, handled

OK = "ok"
COMMAND_LINE = "command line"
SETUP = "setup"
"""Who makes what a node begins with."""


CARRIED_OUT, REFUSED = "signed-request", "refused-request"
"""What became of a signed request: the consumers in ``handled``."""

_SUBJECT_CHARACTERS = 2000

_RECORD = insert(audit)
_SETTLE = insert(handled)
_FATE = select(handled.c.consumer, handled.c.handled_at).where(
    (handled.c.consumer == CARRIED_OUT) | (handled.c.consumer == REFUSED),
    handled.c.message_id == bindparam("digest"),
)


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A change that somebody asked for.

    ``actor`` is a user's name, ``operator NAME`` for the command line, or empty where nobody was
    recognised; ``result`` is ``ok`` or the code with which it was refused.
    """

    actor: str
    project_id: str
    action: str
    subject: str
    request_id: str
    source: str
    user_id: str = ""
    access_key_id: str = ""
    result: str = OK


@dataclass(frozen=True, kw_only=True)
class Entry(Deed):
    """A deed as it is in the log; ``number`` grows with each."""

    number: int
    at: float


def record(tx: Transaction, deed: Deed) -> None:
    """Write down a change in its own transaction."""
    tx.execute(
        _RECORD,
        {
            "at": tx.now,
            "actor": deed.actor,
            "user_id": deed.user_id,
            "access_key_id": deed.access_key_id,
            "project_id": deed.project_id,
            "action": deed.action,
            "subject": _one_line(deed.subject[:_SUBJECT_CHARACTERS]),
            "result": deed.result,
            "request_id": deed.request_id,
            "source": deed.source,
        },
    )


def _one_line(text: str) -> str:
    """Return a text without what could make it look like two lines of the log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text)


def record_command(tx: Transaction, actor: str, action: str, subject: str) -> None:
    """Write down a change that was made on the command line."""
    record(
        tx,
        Deed(
            actor=actor,
            project_id="",
            action=action,
            subject=subject,
            request_id=tx.world.ids.uuid(),
            source=COMMAND_LINE,
        ),
    )


def find(
    tx: Transaction,
    *,
    since: float = 0.0,
    after: int = 0,
    actors: Sequence[str] = (),
    project_id: str = "",
    action: str = "",
    refused_only: bool = False,
    limit: int,
) -> list[Entry]:
    """Return the newest entries that fit, oldest first.

    :param after: the number of the last entry that is known already.
    :param actors: names or ids of users, of which one must be the actor's; none for all.
    """
    query = select(audit).where(audit.c.at >= since, audit.c.id > after)
    if actors:
        query = query.where(audit.c.actor.in_(actors) | audit.c.user_id.in_(actors))
    if project_id:
        query = query.where(audit.c.project_id == project_id)
    if action:
        query = query.where(audit.c.action == action)
    if refused_only:
        query = query.where(audit.c.result != OK)
    rows = tx.execute(query.order_by(audit.c.id.desc()).limit(limit)).all()
    return [
        Entry(
            number=row.id,
            at=row.at,
            actor=row.actor,
            user_id=row.user_id,
            access_key_id=row.access_key_id,
            project_id=row.project_id,
            action=row.action,
            subject=row.subject,
            result=row.result,
            request_id=row.request_id,
            source=row.source,
        )
        for row in reversed(rows)
    ]


def fate_of(tx: Transaction, request_digest: str) -> tuple[str, float] | None:
    """Return what became of a signed request, and when; ``None`` when it is new."""
    rows = tx.execute(_FATE, {"digest": request_digest})
    fates = {row.consumer: row.handled_at for row in rows}
    for fate in (CARRIED_OUT, REFUSED):
        if fate in fates:
            return fate, fates[fate]
    return None


def settle_fate(tx: Transaction, request_digest: str, fate: str) -> None:
    """Note what becomes of a signed request, which has no such fate yet."""
    values = {"consumer": fate, "message_id": request_digest, "handled_at": tx.now}
    tx.execute(_SETTLE, values)
