"""A store in a SQLite database: for a lone node."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from appliance.errors import Unavailable
from appliance.store.failures import Kind

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_HARMED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, *_DAMAGED}


def path_of(url: str) -> Path | None:
    """Return the file of a URL's database; ``None`` for one in memory."""
    database = make_url(url).database
    return None if database in (None, ":memory:") else Path(str(database))


def make_engine(url: str, *, busy_s: float, patience_s: float) -> Engine:
    """Return connections to a database, which is made when it is missing.

    :param busy_s: for so long one statement waits for whoever holds the database.
    :param patience_s: for so long a caller waits for a free connection.
    :raises Unavailable: the file cannot be opened.
    """
    path = path_of(url)
    if path and not path.parent.is_dir():
        raise Unavailable(f"There is no folder {path.parent} for the store.")
    if path:
        _make_private(path)
    engine = create_engine(
        url,
        connect_args={"check_same_thread": False, "timeout": busy_s},
        pool_size=16,
        max_overflow=16,
        pool_timeout=patience_s,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours: see below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("anynode_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    event.listen(engine, "handle_error", _give_up_if_harmed)
    return engine


def kind_of(error: DBAPIError) -> Kind:
    """Say what an error means."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return Kind.CONFLICT
    if code == sqlite3.SQLITE_READONLY:
        return Kind.READ_ONLY
    if isinstance(error, OperationalError) or error.connection_invalidated or code in _DAMAGED:
        return Kind.FAULT
    return Kind.QUESTION


def _give_up_if_harmed(context: ExceptionContext) -> None:
    """Give connections up that a bad disk has harmed."""
    if getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF in _HARMED:
        context.is_disconnect = True


def _make_private(path: Path) -> None:
    """Make a database that its owner alone may read; what SQLite puts beside it is likewise."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Unavailable(f"Could not open the store {path}: {error.strerror}.") from error
