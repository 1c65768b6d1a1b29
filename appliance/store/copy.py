"""Copy a whole store into an empty one, for a node that grows into a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import BigInteger, Table, delete, func, insert, select, text
from sqlalchemy.exc import DataError

from appliance.errors import Conflict, Unavailable
from appliance.store import Store, Transaction, migrations
from appliance.store.schema import commits, compatibility, metadata

Progress = Callable[[str, int, int], None]
"""Called with a table, how many of its rows are copied, and how many there are."""

_BATCH = 1000
_TABLES = [
    # The others say something of the one database that they are in.
    table
    for table in metadata.sorted_tables
    if table not in (commits, compatibility)
]


class Content(Struct, frozen=True, kw_only=True):
    """How many rows a table has, and a digest of all their values."""

    rows: int
    sha256: str


def copy(
    source: Store, target: Store, progress: Progress = lambda table, copied, rows: None
) -> Mapping[str, Content]:
    """Copy all rows of all tables, compare both stores, and return what each table has.

    Left out is what says something of the one database that it is in. It is one transaction on
    the target, which gets its tables first: whatever interrupts it, the target is empty or
    complete, and the call may be repeated. A target that has what the source has is left alone.
    Nobody may write to the source meanwhile, as what comes later is missed.

    :raises Conflict: the target has something else already; it is as it was.
    :raises Unavailable: a store does not answer, or the copy is not like the original; the target
        has no rows.
    """
    migrations.upgrade(target)
    return source.read(lambda reading: target.transaction(lambda tx: _copy(reading, tx, progress)))


def clear(tx: Transaction) -> None:
    """Remove all rows of all tables that a copy fills."""
    for table in reversed(_TABLES):
        tx.execute(delete(table))


def contents(tx: Transaction) -> dict[str, Content]:
    """Return what each table has, the same for the same values in whichever kind of store."""
    return {table.name: _content(tx, table) for table in _TABLES}


def _copy(reading: Transaction, tx: Transaction, progress: Progress) -> Mapping[str, Content]:
    if not tx.is_sqlite:
        # Reading the other store may take longer than a transaction may usually rest.
        tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        tx.execute(text("SET LOCAL statement_timeout = 0"))
    filled = [table.name for table in _TABLES if _count(tx, table)]
    original = contents(reading)
    if filled:
        if contents(tx) == original:
            return original
        raise Conflict(
            f"The store to copy to is not empty: {', '.join(filled[:3])} have rows.",
            hint="Name an empty database, or remove what it has.",
        )
    for table in _TABLES:
        _copy_table(reading, tx, table, progress, original[table.name].rows)
    _set_counters(tx)
    copied = contents(tx)
    wrong = [name for name, content in original.items() if copied[name] != content]
    if wrong:
        raise Unavailable(f"The copy is not like the original: {', '.join(wrong)}.")
    return copied


def _copy_table(
    reading: Transaction, tx: Transaction, table: Table, progress: Progress, rows: int
) -> None:
    statement, copied = insert(table), 0
    for batch in _batches(reading, table):
        try:
            tx.execute(statement, batch)
        except DataError as error:
            raise Conflict(
                f"The store to copy to does not take a value of {table.name}: {error.orig}."
            ) from error
        copied += len(batch)
        progress(table.name, copied, rows)


def _batches(tx: Transaction, table: Table) -> Iterator[Sequence[dict[str, object]]]:
    """Yield the rows of a table; who copies it does nothing else with the transaction meanwhile."""
    found = tx.execute(select(table))
    while batch := found.fetchmany(_BATCH):
        yield [dict(row._mapping) for row in batch]


def _count(tx: Transaction, table: Table) -> int:
    return int(tx.execute(select(func.count()).select_from(table)).scalar_one())


def _content(tx: Transaction, table: Table) -> Content:
    """Digest rows in no order: how texts are sorted differs between stores and their settings."""
    total, rows = 0, 0
    for batch in _batches(tx, table):
        for row in batch:
            encoded = msgspec.json.encode(list(row.values()))
            total += int.from_bytes(hashlib.sha256(encoded).digest())
        rows += len(batch)
    return Content(rows=rows, sha256=f"{total % (1 << 256):064x}")


def _set_counters(tx: Transaction) -> None:
    """Let columns that count up go on behind the largest number that was copied."""
    if tx.is_sqlite:
        return  # it looks for the largest number by itself
    for table in _TABLES:
        column = table.autoincrement_column
        if column is None or not isinstance(column.type, BigInteger):
            continue
        largest = tx.execute(select(func.max(column))).scalar()
        if largest is not None:
            tx.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, :column), :largest)"),
                {"table": table.name, "column": column.name, "largest": largest},
            )
