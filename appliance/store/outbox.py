"""Casts on their way: written with the state they belong to, deleted when they took effect."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from appliance.errors import InputError, NotFound
from appliance.store import OutboxRow, Transaction
from appliance.store.schema import forgotten_letters, outbox

LONGEST_ERROR = 4000
"""Characters that are kept of why a message was given up."""

MOST_OF_ONE = 100
"""Dead letters that are kept of a sender for whom nobody vouches: the newest."""

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


def keep(tx: Transaction, row: OutboxRow, attempts: int, error: str, sender: str = "") -> bool:
    """Keep a message that came from elsewhere as a dead letter; ``False`` when it was kept before.

    What does not fit is cut: such a message was not one of ours.

    :param sender: the login that sent it, when nobody vouches for it. The oldest of too many of one
        are forgotten, and counted; so is one that bears the id of another message of ours.
    """
    fitting = OutboxRow(
        _fit(row.id, 64), _fit(row.topic, 128), _fit(row.lane, 64), _fit(row.kind, 64), row.body
    )
    sender = _fit(sender, 64)
    death = {"dead_at": tx.now, "attempts": attempts, "error": _fit(error, LONGEST_ERROR)}
    known = select(outbox.c.dead_at, outbox.c.body).where(outbox.c.id == fitting.id)
    found = tx.execute(known).first()
    if found is None:
        values = {**fitting._asdict(), "created_at": tx.now, "sender": sender, **death}
        tx.execute(insert(outbox).values(values))
        if sender:
            _forget_oldest(tx, sender)
        return True
    if found.dead_at is not None:
        return False
    if sender and bytes(found.body) != row.body:
        forget(tx, sender, 1)
        return False
    tx.execute(update(outbox).where(outbox.c.id == fitting.id).values(sender=sender, **death))
    return True


def _forget_oldest(tx: Transaction, sender: str) -> None:
    newest_first = select(outbox.c.id).where(outbox.c.sender == sender, outbox.c.dead_at > 0)
    newest_first = newest_first.order_by(outbox.c.dead_at.desc(), outbox.c.id)
    too_many = tx.execute(newest_first.offset(MOST_OF_ONE)).scalars().all()
    if too_many:
        tx.execute(delete(outbox).where(outbox.c.id.in_(too_many)))
        forget(tx, sender, len(too_many))


def forget(tx: Transaction, sender: str, count: int) -> None:
    """Count messages of a sender that were given up and are not kept."""
    dialect_insert = sqlite_insert if tx.is_sqlite else pg_insert
    new = dialect_insert(forgotten_letters).values(sender=sender, count=count, last_at=tx.now)
    more = {"count": forgotten_letters.c.count + count, "last_at": tx.now}
    tx.execute(new.on_conflict_do_update(index_elements=["sender"], set_=more))


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
    """A message that was given up. ``about`` is the instance or reservation, where it has one.

    ``sender`` is the login that sent it where nobody vouches for that, and empty where it is ours.
    """

    message_id: str
    topic: str
    kind: str
    about: str
    attempts: int
    created_at: float
    dead_at: float
    error: str
    size_bytes: int
    sender: str = ""


class Sender(Struct, frozen=True, kw_only=True):
    """A login that sent what could not be taken: of how much, and the last of it."""

    login: str
    kept: int
    forgotten: int
    last_at: float
    last_error: str = ""


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
            outbox.c.sender,
        )
        .where(outbox.c.dead_at.is_not(None))
        .order_by(outbox.c.dead_at.desc(), outbox.c.id)
    )
    return [Letter(**row._mapping) for row in tx.execute(query)]


def senders(tx: Transaction) -> list[Sender]:
    """Return the logins that sent what could not be taken, as far as letters are kept."""
    is_theirs = (outbox.c.sender != "") & outbox.c.dead_at.is_not(None)
    kept = select(outbox.c.sender, outbox.c.dead_at, outbox.c.error).where(is_theirs)
    found: dict[str, Sender] = {}
    for row in tx.execute(kept.order_by(outbox.c.dead_at, outbox.c.id)):
        before = found[row.sender].kept if row.sender in found else 0
        found[row.sender] = Sender(
            login=row.sender,
            kept=before + 1,
            forgotten=0,
            last_at=row.dead_at,
            last_error=row.error,
        )
    for row in tx.execute(select(forgotten_letters)):
        one = found.get(row.sender) or Sender(login=row.sender, kept=0, forgotten=0, last_at=0.0)
        last_at = max(one.last_at, row.last_at)
        found[row.sender] = replace(one, forgotten=row.count, last_at=last_at)
    return [found[login] for login in sorted(found)]


def requeue(tx: Transaction, text: str) -> str:
    """Let a dead letter wait for its handler again, as if it were new; return its id.

    :param text: the id, or the beginning of it.
    :raises NotFound: no message that was given up has it.
    :raises InputError: several have it, or nobody vouches for what it says: sent again it would
        be a message of ours.
    """
    message_id = _match(tx, text)
    sender = tx.execute(select(outbox.c.sender).where(outbox.c.id == message_id)).scalar_one()
    if sender:
        raise InputError(
            f"Message {message_id} came from {sender}: sent again it would count as one of ours.",
            hint="A node repeats by itself what it has to say.",
        )
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


def drop_of(tx: Transaction, login: str) -> int:
    """Delete all dead letters of a sender, and forget how many there were; return their number."""
    dropped = tx.execute(
        delete(outbox).where(outbox.c.sender == login, outbox.c.dead_at.is_not(None))
    ).rowcount
    tx.execute(delete(forgotten_letters).where(forgotten_letters.c.sender == login))
    return dropped


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
