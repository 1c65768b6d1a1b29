"""Casts on their way: written with the state they belong to, deleted when they took effect."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.errors import InputError, NotFound
from appliance.store import OutboxRow, Transaction
from appliance.store.schema import outbox

LONGEST_ERROR = 4000
"""Characters that are kept of why a message was given up."""

_MOST_PENDING = 1000

_MOST_CLAIMED = 200

_TAKE_ALL = delete(outbox).where(
    outbox.c.id.in_(bindparam("message_ids", expanding=True)), outbox.c.dead_at.is_(None)
)
_DUE = select(*(outbox.c[name] for name in OutboxRow._fields)).where(
    outbox.c.dead_at.is_(None),
    outbox.c.created_at < bindparam("written_before"),
    outbox.c.relayed_at < bindparam("relayed_before"),
)
_TAKE = delete(outbox).where(outbox.c.id == bindparam("message_id"))


def take(tx: Transaction, message_id: str) -> bool:
    """Delete a row; ``False`` when it was taken before."""
    return tx.execute(_TAKE, {"message_id": message_id}).rowcount == 1


def pending(tx: Transaction, topics: Iterable[str] | None = None) -> list[OutboxRow]:
    """Return the rows that await their handler, oldest first, at most 1,000.

    :param topics: those that somebody here serves: what waits for others is in nobody's way.
    """
    columns = [outbox.c[name] for name in OutboxRow._fields]
    query = select(*columns).where(outbox.c.dead_at.is_(None)).order_by(outbox.c.created_at)
    if topics is not None:
        query = query.where(outbox.c.topic.in_(list(topics)))
    return [OutboxRow._make(row) for row in tx.execute(query.limit(_MOST_PENDING))]


def take_all(tx: Transaction, message_ids: Iterable[str]) -> None:
    """Delete rows that a broker answers for from now on; what has died meanwhile stays."""
    tx.execute(_TAKE_ALL, {"message_ids": list(message_ids)})


def is_any_due(tx: Transaction, after_s: float, again_s: float) -> bool:
    """Say whether :func:`claim` would find anything."""
    due = _DUE.with_only_columns(outbox.c.id).limit(1)
    return tx.execute(due, _due(tx, after_s, again_s)).first() is not None


def claim(tx: Transaction, after_s: float, again_s: float) -> list[OutboxRow]:
    """Take rows that have stayed behind, oldest first, at most 200, for whoever asks to publish.

    :param after_s: age of the youngest in seconds: younger ones are on their way.
    :param again_s: seconds for which they are given to nobody else.
    """
    oldest = _DUE.order_by(outbox.c.created_at).limit(_MOST_CLAIMED)
    rows = tx.execute(oldest.with_for_update(skip_locked=True), _due(tx, after_s, again_s)).all()
    if rows:
        ids = [row.id for row in rows]
        tx.execute(update(outbox).where(outbox.c.id.in_(ids)).values(relayed_at=tx.now))
    return [OutboxRow._make(row) for row in rows]


def _due(tx: Transaction, after_s: float, again_s: float) -> dict[str, float]:
    return {"written_before": tx.now - after_s, "relayed_before": tx.now - again_s}


def keep(tx: Transaction, row: OutboxRow, attempts: int, error: str) -> bool:
    """Keep a message that came from elsewhere as a dead letter; ``False`` when it was kept before.

    What does not fit is cut: such a message was not one of ours.
    """
    fitting = OutboxRow(
        _fit(row.id, 64), _fit(row.topic, 128), _fit(row.lane, 64), _fit(row.kind, 64), row.body
    )
    death = {"dead_at": tx.now, "attempts": attempts, "error": _fit(error, LONGEST_ERROR)}
    found = tx.execute(select(outbox.c.dead_at).where(outbox.c.id == fitting.id)).first()
    if found is None:
        tx.execute(insert(outbox).values(**fitting._asdict(), created_at=tx.now, **death))
        return True
    if found.dead_at is not None:
        return False
    tx.execute(update(outbox).where(outbox.c.id == fitting.id).values(**death))
    return True


def _fit(text: str, longest: int) -> str:
    return text.replace("\0", "")[:longest]


def bury(tx: Transaction, message_id: str, attempts: int, error: str) -> None:
    """Keep a row as a dead letter."""
    tx.execute(
        update(outbox)
        .where(outbox.c.id == message_id)
        .values(dead_at=tx.now, attempts=attempts, error=error[:LONGEST_ERROR])
    )


class Queue(Struct, frozen=True, kw_only=True):
    """The messages of a topic: how many wait and since when, and how many were given up."""

    topic: str
    waiting: int
    oldest_at: float | None
    dead: int


class Letter(Struct, frozen=True, kw_only=True):
    """A message that was given up. ``about`` is the instance or reservation, where it has one."""

    message_id: str
    topic: str
    kind: str
    about: str
    attempts: int
    created_at: float
    dead_at: float
    error: str
    size_bytes: int


def queues(tx: Transaction) -> list[Queue]:
    """Return the topics that have messages, by name."""
    is_dead = outbox.c.dead_at.is_not(None)
    waiting_at = func.min(outbox.c.created_at).filter(~is_dead)
    query = (
        select(
            outbox.c.topic,
            func.count().filter(~is_dead).label("waiting"),
            waiting_at.label("oldest_at"),
            func.count().filter(is_dead).label("dead"),
        )
        .group_by(outbox.c.topic)
        .order_by(outbox.c.topic)
    )
    return [Queue(**row._mapping) for row in tx.execute(query)]


def dead_letters(tx: Transaction) -> list[Letter]:
    """Return the messages that were given up, without their bodies, the newest first."""
    query = (
        select(
            outbox.c.id.label("message_id"),
            outbox.c.topic,
            outbox.c.kind,
            outbox.c.lane.label("about"),
            outbox.c.attempts,
            outbox.c.created_at,
            outbox.c.dead_at,
            outbox.c.error,
            func.length(outbox.c.body).label("size_bytes"),
        )
        .where(outbox.c.dead_at.is_not(None))
        .order_by(outbox.c.dead_at.desc(), outbox.c.id)
    )
    return [Letter(**row._mapping) for row in tx.execute(query)]


def requeue(tx: Transaction, text: str) -> str:
    """Let a dead letter wait for its handler again, as if it were new; return its id.

    :param text: the id, or the beginning of it.
    :raises NotFound: no message that was given up has it.
    :raises InputError: several have it.
    """
    message_id = _match(tx, text)
    tx.execute(
        update(outbox)
        .where(outbox.c.id == message_id)
        .values(dead_at=None, attempts=0, error="", created_at=tx.now, relayed_at=0.0)
    )
    return message_id


def drop(tx: Transaction, text: str) -> str:
    """Delete a dead letter for good; return its id.

    :param text: the id, or the beginning of it.
    :raises NotFound: no message that was given up has it.
    :raises InputError: several have it.
    """
    message_id = _match(tx, text)
    take(tx, message_id)
    return message_id


def _match(tx: Transaction, text: str) -> str:
    query = select(outbox.c.id).where(
        outbox.c.dead_at.is_not(None), outbox.c.id.startswith(text, autoescape=True)
    )
    found: list[str] = list(tx.execute(query.order_by(outbox.c.id).limit(10)).scalars())
    if text in found:
        return text
    if not found or not text:
        raise NotFound(
            f"No message {text!r} was given up.", hint="`anynode messages` lists those that were."
        )
    if len(found) > 1:
        raise InputError(f"{text!r} may be {', '.join(found)}.", hint="Say more of the id.")
    return found[0]
