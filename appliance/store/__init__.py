"""The cluster's state: transactions on SQLite or PostgreSQL.

A transaction is a function without side effects that is handed to :meth:`Store.transaction`; it
may run several times, and only the return of that call means success. Nothing of SQLAlchemy
leaves this package.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import URL, Connection, CursorResult, Engine, RootTransaction, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql.base import Executable

from appliance.config import without_password
from appliance.errors import ConfigError, Unavailable
from appliance.messages import Message, encode
from appliance.store import on_sqlite, schema
from appliance.store.failures import Kind, conceal_values, let_go
from appliance.world import World

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 12
SERVER_ATTEMPTS = 60
PATIENCE_S = 15.0
"""Seconds for which a store that is held or away is tried again before the caller is told."""

BUSY_S = 5.0
"""Seconds for which one statement waits for whoever holds a SQLite database."""

CROWDED_S = 2.0
"""Seconds after a conflict for which writers of a process go one after the other."""

DOUBT_S = 8.0
"""Seconds for which an answer to COMMIT that was lost is asked for again."""

_READONLY_ATTEMPTS = 4
_HINT = "Look for a process that holds it, then try again."
_AWAY_HINT = "Look whether its server runs, and whether this node reaches it."


class Announcement(NamedTuple):
    """What is announced to whom, and for how many seconds the next about the same may wait."""

    messages: Sequence[tuple[str, Message]]
    rest_s: float = 0.0


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
        self.news: dict[str, Callable[[Transaction], Announcement]] = {}
        self.wrote = False

    def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run one statement."""
        self.wrote = self.wrote or not statement.is_select
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

    def announce_later(self, about: str, read: Callable[[Transaction], Announcement]) -> None:
        """Announce what ``read`` finds once this transaction has committed; it may get lost.

        It reads in a view of its own, and once for several transactions that come together.

        :param about: what two that say the same have in common.
        """
        self.news[about] = read

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is SQLite, for the few statements that have no common form."""
        return self._connection.dialect.name == "sqlite"

    def flush(self) -> None:
        """Write the casts to the outbox; called once, before COMMIT."""
        if self.casts:
            self.wrote = True
            self._connection.execute(
                _CAST, [{**row._asdict(), "created_at": self.now} for row in self.casts]
            )


class Store:
    """The state behind one URL."""

    def __init__(self, url: str, world: World) -> None:
        self.url = url
        self._world = world
        parsed = _parse(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        self._listeners: list[Callable[[Transaction], None]] = []
        # SQLite has one writer; waiting here is fair and costs nothing, waiting there is neither.
        self._writer = threading.Lock() if is_sqlite else None
        # On a server: where writers meet they go one after the other, in this process and in all.
        self._line = threading.Lock()
        self._crowded_until = float("-inf")
        self._backend = _sqlite_backend(url) if is_sqlite else _postgresql_backend(parsed)
        self._engine = self._backend.engine
        event.listen(self._engine, "handle_error", conceal_values)

    @property
    def engine(self) -> Engine:
        """The engine, for migrations only."""
        return self._engine

    def on_commit(self, listener: Callable[[Transaction], None]) -> None:
        """Call ``listener`` after each commit with casts, announcements or news."""
        self._listeners.append(listener)

    def transaction(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction, again when the store asks for it; return its answer.

        :raises Unavailable: the store does not answer, or conflicts went on. Nothing was written,
            unless the text says that this is not known.
        """

        def attempt(until: float, is_in_line: bool) -> tuple[Transaction, T]:
            with self._turn(until), self._engine.connect() as connection:
                patience_s = until - self._world.clock.monotonic()
                self._backend.prepare(connection, patience_s, is_in_line)
                with connection.begin() as begun:
                    transaction = Transaction(connection, self._world)
                    answer = work(transaction)
                    transaction.flush()
                    self._world.crash("store.before-commit")
                    mark = self._world.ids.uuid().replace("-", "") if transaction.wrote else ""
                    self._commit(connection, begun, mark)
                self._world.crash("store.after-commit")
                return transaction, answer

        transaction, answer = self._until_accepted("transaction", attempt)
        if transaction.casts or transaction.announcements or transaction.news:
            for listener in self._listeners:
                listener(transaction)
        return answer

    def _commit(self, connection: Connection, begun: RootTransaction, mark: str) -> None:
        """Commit, and when the answer is lost, find out whether it was a yes."""
        self._backend.set_mark(connection, mark)
        try:
            begun.commit()
        except DBAPIError as error:
            if not (mark and error.connection_invalidated):
                raise
            clock = self._world.clock
            until = clock.monotonic() + DOUBT_S
            was_committed = self._backend.was_committed(mark, lambda: clock.monotonic() > until)
            if was_committed is None:
                raise Unavailable(
                    "The store was lost at the end of a transaction, and it is not known whether "
                    "it was written.",
                    hint=_AWAY_HINT,
                ) from error
            if not was_committed:
                raise

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work``, which only reads, on one consistent view; return its answer.

        It may run several times, like that of a transaction.

        :raises Unavailable: the store does not answer, or conflicts went on.
        """

        def attempt(until: float, is_in_line: bool) -> T:
            with self._engine.connect() as connection:
                self._backend.prepare(connection, until - self._world.clock.monotonic(), False)
                reader = connection.execution_options(anynode_reads=True)
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

    def _until_accepted(self, kind: str, attempt: Callable[[float, bool], T]) -> T:
        clock = self._world.clock
        until = clock.monotonic() + PATIENCE_S
        tries: Counter[Kind] = Counter()
        with ExitStack() as turns:
            is_crowded = kind == "transaction" and clock.monotonic() < self._crowded_until
            is_in_line = is_crowded and self._enter_line(turns, until)
            while True:
                try:
                    return attempt(until, is_in_line)
                except PoolTimeoutError as error:
                    raise Unavailable(
                        "All connections to the store are in use.", hint=_HINT
                    ) from error
                except DBAPIError as error:
                    found = self._backend.kind_of(error)
                    tries[found] += 1
                    if found is Kind.QUESTION:
                        raise
                    self._refuse_in_time(kind, error, found, tries[found], until)
                    if found is Kind.CONFLICT and self._writer is None:
                        self._crowded_until = clock.monotonic() + CROWDED_S
                        is_in_line = is_in_line or self._enter_line(turns, until)
                longest_s = self._longest_pause_s(found, tries[found])
                clock.sleep(self._world.random.uniform(0, longest_s))

    def _refuse_in_time(
        self, kind: str, error: DBAPIError, found: Kind, times: int, until: float
    ) -> None:
        """Raise when it is of no use to try again, or when it took too long."""
        is_over = self._world.clock.monotonic() >= until
        if found is Kind.READ_ONLY and times <= _READONLY_ATTEMPTS:
            # Connections that were opened while the disk was not well share what they could only
            # read: once all are closed a fresh one tells whether it is well now.
            let_go(error)
            self._engine.dispose()
            return
        if found is Kind.AWAY:
            if is_over:
                raise Unavailable("The store does not answer.", hint=_AWAY_HINT) from error
            return
        if found is Kind.CONFLICT:
            most = ATTEMPTS if self._writer else SERVER_ATTEMPTS
            if times == most or is_over:
                raise Unavailable(
                    f"The store refused a {kind} {times} times.", hint=_HINT
                ) from error
            return
        let_go(error)
        raise Unavailable(
            f"The store failed: {error.orig}.", hint="Look at its disk and its log."
        ) from error

    def _longest_pause_s(self, kind: Kind, times: int) -> float:
        if kind is Kind.READ_ONLY:
            return 0.05 * times
        if kind is Kind.AWAY:
            return min(0.05 * 2.0**times, 0.5)
        if self._writer is None:
            # The others of this process wait for it: it must not rest for long.
            return min(0.002 * 2.0**times, 0.1)
        return 0.01 * 2.0 ** min(times, 7)

    def _enter_line(self, turns: ExitStack, until: float) -> bool:
        """Go one after the other from now on; ``False`` when those before take too long."""
        if not self._line.acquire(timeout=max(until - self._world.clock.monotonic(), 0.0)):
            return False
        turns.callback(self._line.release)
        return True

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


class _Backend(NamedTuple):
    """What differs between kinds of stores."""

    engine: Engine
    kind_of: Callable[[DBAPIError], Kind]
    prepare: Callable[[Connection, float, bool], None]
    set_mark: Callable[[Connection, str], None]
    was_committed: Callable[[str, Callable[[], bool]], bool | None]


def _sqlite_backend(url: str) -> _Backend:
    return _Backend(
        engine=on_sqlite.make_engine(url, busy_s=BUSY_S, patience_s=PATIENCE_S),
        kind_of=on_sqlite.kind_of,
        prepare=lambda connection, patience_s, is_in_line: None,
        set_mark=lambda connection, mark: None,
        was_committed=lambda mark, give_up: False,
    )


def _postgresql_backend(url: URL) -> _Backend:
    # Its driver is installed where it is needed.
    from appliance.store import on_postgresql

    engine = on_postgresql.make_engine(url, patience_s=PATIENCE_S)
    return _Backend(
        engine=engine,
        kind_of=on_postgresql.kind_of,
        prepare=on_postgresql.prepare,
        set_mark=on_postgresql.set_mark,
        was_committed=partial(on_postgresql.was_committed, engine),
    )


_HOSTS = re.compile(
    r"(?P<head>postgres[^:/?]*://(?:[^/?]*@)?)(?P<hosts>[^/?@]+)(?P<rest>.*)", re.DOTALL
)


def _with_hosts(url: str) -> str:
    """Return a URL as SQLAlchemy knows it: several hosts, which are written like one, are options.

    A URL that names no driver gets the one that is here.
    """
    url = re.sub(r"^postgres(?:ql)?://", "postgresql+psycopg://", url)
    found = _HOSTS.fullmatch(url)
    if found is None or "," not in found["hosts"]:
        return url
    path, _, options = found["rest"].partition("?")
    hosts = [f"host={host}" for host in found["hosts"].split(",")]
    return f"{found['head']}{path}?{'&'.join([*hosts, *filter(None, [options])])}"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(_with_hosts(url))
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
            hint="It looks like postgresql+psycopg://user:password@host/name; write @ : / , in a "
            "password as %40 %3A %2F %2C.",
        ) from None
    return parsed


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite store; ``None`` where the store is a server's or in memory.

    :raises ConfigError: the URL cannot be used.
    """
    return on_sqlite.path_of(url) if _parse(url).get_backend_name() == "sqlite" else None
