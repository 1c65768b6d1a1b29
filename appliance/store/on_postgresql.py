"""A store in a database of PostgreSQL: for a cluster. Imported only where such a store is used.

BEGIN and COMMIT are sent by this module, not by the driver: the one says whether a transaction
reads or writes, and with the other, in the same round trip, a transaction that wrote something
leaves its mark in the table ``commits``. When the answer to COMMIT is lost, whoever asks writes the
same mark: of the two exactly one gets in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    PoolProxiedConnection,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from appliance.store.failures import Kind

log = logging.getLogger(__name__)

ANSWER_S = 12.0
"""Seconds for which one answer of the server is awaited before the connection is given up."""

SHORTEST_ANSWER_S = 3.0
CONNECT_S = 3
POOL_SIZE = 16
MORE_AT_TIMES = 10

PREPARED_AFTER = 1
"""Times a connection runs a statement before the server keeps its plan."""

MOST_PREPARED = 500
"""Plans that a connection keeps: more than there are statements on the way of a launch."""

# A snapshot is all that a read needs, and unlike SERIALIZABLE it never fails a writer.
_BEGIN_READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_BEGIN_WRITE = b"BEGIN ISOLATION LEVEL SERIALIZABLE"

# LOCK takes no view of the data: that comes after the lock, with the first statement. It ends with
# the transaction, however that ends.
_BEGIN_IN_LINE = (
    _BEGIN_WRITE + b"; SET LOCAL lock_timeout = '2s';"
    b" LOCK TABLE compatibility IN SHARE UPDATE EXCLUSIVE MODE; SET LOCAL lock_timeout = '500ms'"
)

_LEAVE = sql.SQL("INSERT INTO commits (id, is_done, at) VALUES ({mark}, true, {now}); COMMIT")
# It waits for a transaction that has left the mark and has not ended.
_TRY_TO_LEAVE = sql.SQL(
    "INSERT INTO commits (id, is_done, at) VALUES ({mark}, false, {now}) ON CONFLICT DO NOTHING; "
    "SELECT is_done FROM commits WHERE id = {mark}"
)
# Who waits for a row is refused when it is free, as a rule, and a deadlock is found by waiting: so
# one waits for less than the second after which the server looks for those.
_SESSION = b"""
    SET statement_timeout = '10s'; SET lock_timeout = '500ms';
    SET idle_in_transaction_session_timeout = '20s'
"""
_CONNECTION: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "application_name": "anynode",
    # A server whose machine is gone says nothing: the kernel has to notice.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_CONFLICTS = {"40001", "40P01", "55P03"}
# Shutting down, crashed, starting up, too many clients, a transaction that rested for too long.
_AWAY = {"57P01", "57P02", "57P03", "53300", "25P03"}
# A server that has become a standby: another connection may find the one that took over.
_STANDBY = {"25006", "55000"}
# Classes of codes: no room, the system's, the server's own.
_FAULTS = {"53", "58", "XX"}


class NotReached(psycopg.OperationalError):
    """No connection could be made."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection that waits for each answer for so long and then counts as lost."""

    answer_s: float | None = ANSWER_S
    is_reading = False
    mark = ""
    is_queueing = False

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """Await an answer. The server's own time limits are of no use when its machine hangs."""
        if timeout is not None or self.answer_s is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.answer_s)
        except psycopg.errors._WaitTimeout as error:
            # What was asked may be answered still: nobody can use this connection any more.
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the server did not answer within {self.answer_s:.0f} s"
            ) from error

    def begin(self) -> None:
        """Begin a transaction of the kind that was chosen."""
        self.mark = ""
        if self.is_queueing:
            try:
                self.execute(_BEGIN_IN_LINE, prepare=False)
                return
            except psycopg.errors.LockNotAvailable as error:
                # The line only saves conflicts: whoever does not get in goes on all the same.
                log.debug("the writer before does not end: %s", error)
                self.rollback()
        self.execute(_BEGIN_READ if self.is_reading else _BEGIN_WRITE, prepare=False)

    def end(self) -> None:
        """Commit, with the mark if it is to leave one; a transaction that fails here has ended."""
        try:
            if self.mark:
                self.execute(_LEAVE.format(mark=self.mark, now=time.time()), prepare=False)
            elif self.info.transaction_status is psycopg.pq.TransactionStatus.INERROR:
                # COMMIT would roll back without a word.
                raise psycopg.errors.InFailedSqlTransaction("a statement of the transaction failed")
            else:
                self.commit()
        except psycopg.Error:
            if not self.closed:
                self.rollback()
            raise


def make_engine(url: URL, *, patience_s: float) -> Engine:
    """Return connections to a database; none is made yet.

    :param patience_s: for so long a caller waits for a free connection.
    """
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=POOL_SIZE,
        max_overflow=MORE_AT_TIMES,
        pool_timeout=patience_s,
        pool_use_lifo=True,
        hide_parameters=True,
        use_native_hstore=False,
    )

    @event.listens_for(engine, "do_connect")
    def _connect(
        _dialect: object, _record: object, arguments: Any, parameters: dict[str, Any]
    ) -> PatientConnection:
        return connect(*arguments, **parameters)

    @event.listens_for(engine, "begin")
    def _choose(connection: Connection) -> None:
        is_reading = connection.get_execution_options().get("anynode_reads", False)
        driver_of(connection).is_reading = is_reading

    event.listen(engine, "handle_error", _give_up_standby)
    # SQLAlchemy tells errors of these from others, and has no events in their place.
    engine.dialect.do_begin = _on_driver(PatientConnection.begin)  # type: ignore[assignment]
    engine.dialect.do_commit = _on_driver(PatientConnection.end)  # type: ignore[assignment]
    return engine


def _on_driver(
    call: Callable[[PatientConnection], None],
) -> Callable[[PoolProxiedConnection], None]:
    return lambda connection: call(_driver_behind(connection))


def connect(*arguments: Any, **parameters: Any) -> PatientConnection:
    """Connect to the first server that answers, of several to the first that takes writes.

    :raises NotReached: there is none.
    """
    options = {**_CONNECTION, **parameters}
    if "," in str(options.get("host", "")):
        options.setdefault("target_session_attrs", "read-write")
    try:
        connection = PatientConnection.connect(*arguments, autocommit=True, **options)
        connection.answer_s = SHORTEST_ANSWER_S
        connection.execute(_SESSION, prepare=False)
    except psycopg.OperationalError as error:
        raise NotReached(str(error).partition("\n")[0]) from error
    connection.answer_s = ANSWER_S
    connection.prepare_threshold = PREPARED_AFTER
    connection.prepared_max = MOST_PREPARED
    return connection


def driver_of(connection: Connection) -> PatientConnection:
    """Return the driver's connection."""
    return _driver_behind(connection.connection)


def _driver_behind(connection: PoolProxiedConnection) -> PatientConnection:
    driver = connection.driver_connection
    assert isinstance(driver, PatientConnection)
    return driver


def prepare(connection: Connection, patience_s: float, is_queueing: bool) -> None:
    """Let a connection wait for answers no longer than whoever uses it does.

    :param is_queueing: whether its transactions wait for those of others.
    """
    driver = driver_of(connection)
    driver.answer_s = min(max(patience_s, SHORTEST_ANSWER_S), ANSWER_S)
    driver.is_queueing = is_queueing


def set_mark(connection: Connection, mark: str) -> None:
    """Say which mark the transaction is to leave; none when it is empty."""
    driver_of(connection).mark = mark


def kind_of(error: DBAPIError) -> Kind:
    """Say what an error means."""
    code = getattr(error.orig, "sqlstate", None) or ""
    if code in _CONFLICTS:
        return Kind.CONFLICT
    is_cut_off = error.connection_invalidated or isinstance(error.orig, NotReached)
    if is_cut_off or code in _AWAY | _STANDBY:
        return Kind.AWAY
    if isinstance(error, OperationalError) or code[:2] in _FAULTS:
        return Kind.FAULT
    return Kind.QUESTION


def _give_up_standby(context: ExceptionContext) -> None:
    """Give up connections to a server that takes no writes any more."""
    if getattr(context.original_exception, "sqlstate", None) in _STANDBY:
        context.is_disconnect = True


def was_committed(engine: Engine, mark: str, give_up: Callable[[], bool]) -> bool | None:
    """Say whether the transaction with a mark was committed; when it was not, it never will be.

    ``None`` when the server could not be asked in time. Safe to repeat.
    """
    pause_s = 0.05
    while not give_up():
        try:
            return _ask(engine, mark)
        except (psycopg.Error, SQLAlchemyError):
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.5)
    return None


def _ask(engine: Engine, mark: str) -> bool:
    # Not one of the pool's: all of those may be held by others with the same question.
    arguments, parameters = engine.dialect.create_connect_args(engine.url)
    with connect(*arguments, **parameters) as connection:
        connection.answer_s = SHORTEST_ANSWER_S
        cursor = connection.execute(_TRY_TO_LEAVE.format(mark=mark, now=time.time()), prepare=False)
        cursor.nextset()
        (is_done,) = cursor.fetchone() or (False,)
        return bool(is_done)
