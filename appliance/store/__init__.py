"""The cluster's state: transactions on SQLite or PostgreSQL.

A transaction is a function without side effects that is handed to :meth:`Store.transaction`; it
may run several times, and only the return of that call means success. Nothing of SQLAlchemy
leaves this package.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql.base import Executable

from appliance.config import without_password
from appliance.errors import ConfigError, Unavailable
from appliance.messages import Message, encode
from appliance.store import schema
from appliance.world import World

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 12
PATIENCE_S = 15.0
"""Seconds for which a store that is held by others is tried again before the caller is told."""

BUSY_S = 5.0
"""Seconds for which one statement waits for whoever holds a SQLite database."""

_READONLY_ATTEMPTS = 4
_RETRIED_SQLSTATES = {"40001", "40P01", "55P03"}
_RETRIED_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED_SQLITE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_HARMED_SQLITE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, *_DAMAGED_SQLITE}
_HINT = "Look for a process that holds it, then try again."
_SQLITE_READS: dict[str, Any] = {"anynode_reads": True}
# A snapshot is all that a read needs, and unlike SERIALIZABLE it never fails a writer.
_SERVER_READS: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


class OutboxRow(NamedTuple):
    """A cast that was written in a transaction and awaits its way to the topic."""

    id: str
    topic: str
    lane: str
    kind: str
    body: bytes


_CAST = schema.outbox.insert()


class Transaction:
    """One transaction: statements, casts that go with it, announcements that follow it."""

    def __init__(self, connection: Connection, world: World) -> None:
        self._connection = connection
        self.world = world
        self.now = world.clock.now()
        self.casts: list[OutboxRow] = []
        self.announcements: list[tuple[str, Message]] = []

    def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run one statement."""
        return self._connection.execute(statement, parameters)

    def cast(self, topic: str, message: Message) -> None:
        """Send a message if, and only if, this transaction commits."""
        self.casts.append(
            OutboxRow(
                self.world.ids.uuid(), topic, message.lane, type(message).__name__, encode(message)
            )
        )

    def announce(self, topic: str, message: Message) -> None:
        """Announce something once this transaction has committed; it may get lost."""
        self.announcements.append((topic, message))

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is SQLite, for the few statements that have no common form."""
        return self._connection.dialect.name == "sqlite"

    def flush(self) -> None:
        """Write the casts to the outbox; called once, before COMMIT."""
        if self.casts:
            self._connection.execute(
                _CAST, [{**row._asdict(), "created_at": self.now} for row in self.casts]
            )


class Store:
    """The state behind one URL."""

    def __init__(self, url: str, world: World) -> None:
        self.url = url
        self._world = world
        self._is_sqlite = _parse(url).get_backend_name() == "sqlite"
        self._listeners: list[Callable[[Transaction], None]] = []
        # SQLite has one writer; waiting here is fair and costs nothing, waiting there is neither.
        self._writer = threading.Lock() if self._is_sqlite else None
        self._engine = _sqlite_engine(url) if self._is_sqlite else _server_engine(url)
        event.listen(self._engine, "handle_error", _handle)
        self._read_options = dict(_SQLITE_READS if self._is_sqlite else _SERVER_READS)

    @property
    def engine(self) -> Engine:
        """The engine, for migrations only."""
        return self._engine

    def on_commit(self, listener: Callable[[Transaction], None]) -> None:
        """Call ``listener`` after each commit with casts or announcements."""
        self._listeners.append(listener)

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction, again when the store asks for it; return its answer.

        :raises Unavailable: the store does not answer, or conflicts went on; nothing was written.
        """

        def attempt(until: float) -> tuple[Transaction, T]:
            with self._turn(until), self._engine.connect() as connection:
                with connection.begin():
                    transaction = Transaction(connection, self._world)
                    answer = work(transaction)
                    transaction.flush()
                    self._world.crash("store.before-commit")
                self._world.crash("store.after-commit")
                return transaction, answer

        transaction, answer = self._until_accepted("transaction", attempt)
        if transaction.casts or transaction.announcements:
            for listener in self._listeners:
                listener(transaction)
        return answer

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work``, which only reads, on one consistent view; return its answer.

        It may run several times, like that of a transaction.

        :raises Unavailable: the store does not answer, or conflicts went on.
        """

        def attempt(until: float) -> T:
            with self._engine.connect() as connection:
                reader = connection.execution_options(**self._read_options)
                with reader.begin():
                    return work(Transaction(reader, self._world))

        return self._until_accepted("read", attempt)

    @contextmanager
    def _turn(self, until: float) -> Iterator[None]:
        """Hold the right to write, where one at a time may."""
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=max(until - self._world.clock.monotonic(), 0.0)):
            raise Unavailable("The store is held by a transaction that does not end.", hint=_HINT)
        try:
            yield
        finally:
            self._writer.release()

    def _until_accepted(self, kind: str, attempt: Callable[[float], T]) -> T:
        clock = self._world.clock
        until = clock.monotonic() + PATIENCE_S
        for number in range(1, ATTEMPTS + 1):
            try:
                return attempt(until)
            except PoolTimeoutError as error:
                raise Unavailable("All connections to the store are in use.", hint=_HINT) from error
            except DBAPIError as error:
                if number <= _READONLY_ATTEMPTS and _is_readonly(error):
                    # Connections that were opened while the disk was not well share what they could
                    # only read: once all are closed a fresh one tells whether it is well now.
                    _let_go(error)
                    self._engine.dispose()
                    clock.sleep(self._world.random.uniform(0, 0.05 * number))
                    continue
                if not _is_retried(error):
                    if _is_of_the_store(error):
                        _let_go(error)
                        raise Unavailable(
                            f"The store failed: {error.orig}.", hint="Look at its disk and its log."
                        ) from error
                    raise
                if number == ATTEMPTS or clock.monotonic() >= until:
                    raise Unavailable(
                        f"The store refused a {kind} {number} times.", hint=_HINT
                    ) from error
            clock.sleep(self._world.random.uniform(0, 0.01 * 2 ** min(number, 7)))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _is_retried(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _RETRIED_SQLITE
    return getattr(error.orig, "sqlstate", None) in _RETRIED_SQLSTATES


def _let_go(error: BaseException | None) -> None:
    """Forget what the calls that failed worked on: their cursors keep a connection open."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _is_readonly(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def _is_of_the_store(error: DBAPIError) -> bool:
    """Say whether the store is at fault, and not what it was asked."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    is_damaged = code in _DAMAGED_SQLITE
    return isinstance(error, OperationalError) or error.connection_invalidated or is_damaged


def _handle(context: ExceptionContext) -> None:
    """Leave the driver's sentence of an error: statements and values end up in logs.

    Connections that a bad disk has harmed are given up.
    """
    error, orig = context.sqlalchemy_exception, context.original_exception
    if getattr(orig, "sqlite_errorcode", 0) & 0xFF in _HARMED_SQLITE:
        context.is_disconnect = True
    # PostgreSQL says what clashed in a detail that holds the row's values.
    primary = getattr(getattr(orig, "diag", None), "message_primary", None)
    if primary:
        orig.args = (primary,)
    if error is not None:
        error.args, error.statement, error.params = (str(orig),), None, None
        error.code = None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise ConfigError(
            f"The driver for the store {without_password(url)} is not installed.",
            hint="Install it beside anynode, or set store.url to another kind of store.",
        ) from error
    except (SQLAlchemyError, ValueError):
        # Not its cause: it shows what was taken for a part of the URL, maybe of the password.
        raise ConfigError(
            "store.url is no URL of a store that SQLAlchemy knows.",
            hint="It looks like postgresql+psycopg://user:password@host/name; write @ : / in a "
            "password as %40 %3A %2F.",
        ) from None
    return parsed


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite store; ``None`` where the store is a server's or in memory.

    :raises ConfigError: the URL cannot be used.
    """
    parsed = _parse(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, ":memory:")
    return Path(str(parsed.database)) if is_file else None


def _sqlite_engine(url: str) -> Engine:
    path = sqlite_path(url)
    if path and not path.parent.is_dir():
        raise Unavailable(f"There is no folder {path.parent} for the store.")
    if path:
        _make_private(path)
    engine = create_engine(
        url,
        connect_args={"check_same_thread": False, "timeout": BUSY_S},
        pool_size=16,
        max_overflow=16,
        pool_timeout=PATIENCE_S,
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

    return engine


def _make_private(path: Path) -> None:
    """Make a database that its owner alone may read; what SQLite puts beside it is likewise."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Unavailable(f"Could not open the store {path}: {error.strerror}.") from error


def _server_engine(url: str) -> Engine:
    return create_engine(
        url,
        isolation_level="SERIALIZABLE",
        pool_size=16,
        pool_timeout=PATIENCE_S,
        pool_pre_ping=True,
        hide_parameters=True,
    )
