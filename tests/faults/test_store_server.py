"""PostgreSQL dies, hangs, refuses or moves under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import insert, select, text, update

from appliance import store as store_module
from appliance.errors import Unavailable
from appliance.store import Store, Transaction, on_postgresql
from appliance.store.schema import cluster
from appliance.world import World
from tests.faults.rounds import answers, at_once, rounds
from tests.services.postgresql import PostgreSQL, running

WRITERS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A server that may be harmed."""
    with running() as made:
        yield made


@pytest.fixture
def database(server: PostgreSQL) -> Iterator[str]:
    if not server.pids:
        server.start()
    name = server.new_database()
    yield name
    server.resume()
    if not server.pids:
        server.start()
    server.drop(name)


@pytest.fixture
def store(server: PostgreSQL, database: str) -> Iterator[Store]:
    made = Store(server.url(database), World())
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever waits give up early."""
    monkeypatch.setattr(store_module, "PATIENCE_S", 1.0)
    monkeypatch.setattr(store_module, "DOUBT_S", 1.0)
    monkeypatch.setattr(on_postgresql, "SHORTEST_ANSWER_S", 1.0)
    monkeypatch.setattr(on_postgresql, "CONNECT_S", 1)


def put(tx: Transaction, key: str) -> None:
    tx.execute(insert(cluster).values(key=key, value="v"))


def keys(store: Store) -> set[str]:
    return set(store.read(lambda tx: list(tx.execute(select(cluster.c.key)).scalars())))


class Load:
    """Writers, each of one new row after the other, who note what came of each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=partial(self._write, number)) for number in range(WRITERS)
        ]
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.errors: list[Exception] = []
        self.may_be_lost: set[str] = set()

    def _write(self, writer: int) -> None:
        for number in itertools.count():
            if self._is_over.is_set():
                return
            key = f"{writer}-{number}"
            try:
                # A second writing of what was committed would break the key.
                self._store.transaction(partial(put, key=key))
                self.acknowledged.add(key)
            except Unavailable as error:
                (self.unknown if "not known" in str(error) else self.refused).add(key)
            except Exception as error:
                self.errors.append(error)

    def wait_for(self, more: int, seconds: float = 30) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acknowledged) + more
        deadline = time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"nobody gets on: {self.refused}, {self.errors}"
            time.sleep(0.01)

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer is stuck"

    def assert_sound(self) -> None:
        """Check that the store has what was acknowledged, and nothing that was refused."""
        assert self.errors == []
        found = keys(self._store)
        assert self.acknowledged - found <= self.may_be_lost
        assert self.refused & found == set()
        assert found <= self.acknowledged | self.unknown


@contextmanager
def load(store: Store) -> Iterator[Load]:
    made = Load(store)
    for thread in made._threads:
        thread.start()
    try:
        made.wait_for(50)
        yield made
    finally:
        made.end()
    made.assert_sound()


@rounds("store: server killed")
def test_a_server_is_killed_under_load(server: PostgreSQL, store: Store, number: int) -> None:
    with load(store) as writers:
        for _ in range(3):
            server.kill()
            server.start()
            writers.wait_for(50)
    assert writers.refused | writers.unknown == set(), "it was away for less than all are patient"


@rounds("store: server restarted", 5)
def test_a_server_is_restarted_under_load(server: PostgreSQL, store: Store, number: int) -> None:
    with load(store) as writers:
        server.restart()
        writers.wait_for(50)
        server.stop(immediately=True)
        server.start()
        writers.wait_for(50)
    assert writers.refused | writers.unknown == set()


@rounds("store: connections ended", 5)
def test_an_operator_ends_connections(server: PostgreSQL, store: Store, number: int) -> None:
    ending = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'anynode'"
    )
    with load(store) as writers:
        for _ in range(10):
            assert server.execute(ending)
            writers.wait_for(10)
    assert writers.refused | writers.unknown == set()


@pytest.mark.faults("store: server paused", quick=True)
def test_a_server_that_hangs_holds_nobody_up(
    server: PostgreSQL, store: Store, impatient: None
) -> None:
    with load(store) as writers:
        server.pause()
        started = time.monotonic()
        for work in (lambda: store.transaction(partial(put, key="x")), lambda: keys(store)):
            with pytest.raises(Unavailable):
                work()
        assert time.monotonic() - started < 2 * 6
        server.resume()
        writers.wait_for(50)


@pytest.mark.faults("store: server paused")
def test_a_server_hangs_for_thirty_seconds(server: PostgreSQL, store: Store) -> None:
    with load(store) as writers:
        server.pause()
        started = time.monotonic()
        results = at_once([partial(store.transaction, partial(put, key=f"x{n}")) for n in range(8)])
        waited_s = time.monotonic() - started
        assert {type(result) for result in results} == {Unavailable}
        assert waited_s < store_module.PATIENCE_S + 10
        time.sleep(max(0.0, 30 - waited_s))
        assert writers.refused | writers.unknown, "they were told, too"
        server.resume()
        writers.wait_for(50)


@pytest.mark.faults("store: server away", quick=True)
def test_a_server_that_is_away_is_told_in_time(
    server: PostgreSQL, store: Store, impatient: None
) -> None:
    store.transaction(partial(put, key="before"))
    server.stop()
    for work in (lambda: store.transaction(partial(put, key="x")), lambda: keys(store)):
        started = time.monotonic()
        with pytest.raises(Unavailable, match="The store does not answer") as caught:
            work()
        assert time.monotonic() - started < 4
        assert str(server.folder) not in caught.value.message, "clients of the API read it"
    server.start()
    assert keys(store) == {"before"}


@pytest.mark.faults("store: too many connections", quick=True)
def test_a_server_without_room_for_all_serves_them_in_turn(
    server: PostgreSQL, store: Store
) -> None:
    server.execute("ALTER ROLE anynode CONNECTION LIMIT 3")
    try:
        results = at_once([partial(store.transaction, partial(put, key=f"{n}")) for n in range(20)])
    finally:
        server.execute("ALTER ROLE anynode CONNECTION LIMIT -1")
    answers(results)
    assert keys(store) == {str(n) for n in range(20)}


def set_read_only(server: PostgreSQL, database: str, value: str) -> None:
    server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = {value}")
    server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    )


@pytest.mark.faults("store: read-only", quick=True)
def test_a_server_that_takes_no_writes_is_read(
    server: PostgreSQL, store: Store, database: str, impatient: None
) -> None:
    store.transaction(partial(put, key="before"))
    set_read_only(server, database, "on")
    with pytest.raises(Unavailable):
        store.transaction(partial(put, key="x"))
    assert keys(store) == {"before"}
    healing = threading.Timer(0.3, set_read_only, (server, database, "off"))
    healing.start()
    store.transaction(partial(put, key="after"))
    healing.join()
    assert keys(store) == {"before", "after"}


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'told to fail' USING ERRCODE = '{code}'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON cluster EXECUTE FUNCTION refuse()
"""


@pytest.mark.faults("store: disk full", quick=True)
@pytest.mark.parametrize("code", ["53100", "53200", "58030", "XX000"])
def test_a_server_in_need_is_told_at_once(
    server: PostgreSQL, store: Store, database: str, code: str
) -> None:
    server.execute(REFUSE.format(code=code), database)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="The store failed"):
        store.transaction(partial(put, key="x"))
    assert time.monotonic() - started < 2
    server.execute("DROP TRIGGER refuse ON cluster", database)
    store.transaction(partial(put, key="after"))
    assert keys(store) == {"after"}


@pytest.mark.faults("store: deadlock", quick=True)
def test_who_locks_in_another_order_gets_on(server: PostgreSQL, store: Store) -> None:
    for key in ("a", "b"):
        store.transaction(partial(put, key=key))
    both_have_one = threading.Barrier(2)

    def lock(first: str, second: str) -> Callable[[Transaction], None]:
        def work(tx: Transaction) -> None:
            table = cluster
            tx.execute(
                update(table).where(table.c.key == first).values(value=table.c.value + first)
            )
            try:
                both_have_one.wait(2)
            except threading.BrokenBarrierError:
                pass
            tx.execute(
                update(table).where(table.c.key == second).values(value=table.c.value + first)
            )

        return work

    answers(at_once([partial(store.transaction, lock(*order)) for order in ("ab", "ba")]))
    found = store.read(lambda tx: list(tx.execute(select(cluster.c.value)).scalars()))
    assert [sorted(value) for value in found] == [sorted("vab")] * 2


@pytest.mark.faults("store: held lock", quick=True)
def test_a_row_that_is_held_is_told_in_time(
    server: PostgreSQL, store: Store, impatient: None
) -> None:
    store.transaction(partial(put, key="a"))
    change = update(cluster).where(cluster.c.key == "a").values(value="changed")
    may_end, is_held = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        tx.execute(change)
        is_held.set()
        may_end.wait(20)

    holder = threading.Thread(target=partial(store.transaction, hold))
    holder.start()
    assert is_held.wait(5)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        store.transaction(lambda tx: tx.execute(change))
    assert time.monotonic() - started < 6
    may_end.set()
    holder.join(10)
    store.transaction(lambda tx: tx.execute(change))


@pytest.mark.faults("store: failed statement", quick=True)
def test_an_error_that_was_caught_is_not_taken_for_success(store: Store) -> None:
    def work(tx: Transaction) -> None:
        put(tx, "a")
        try:
            tx.execute(text("SELECT 1/0"))
        except Exception:
            return

    with pytest.raises(Exception, match=r"aborted|failed"):
        store.transaction(work)
    assert keys(store) == set()
    store.transaction(partial(put, key="a"))


@pytest.fixture
def pair(database: str, server: PostgreSQL) -> Iterator[PostgreSQL]:
    """A second server that follows the first."""
    second = PostgreSQL()
    try:
        second.copy_of(server)
        yield second
    finally:
        second.destroy()


@rounds("store: failover", 5)
def test_another_server_takes_over(
    server: PostgreSQL, pair: PostgreSQL, database: str, number: int
) -> None:
    head, _, tail = server.tcp_url(database).rpartition(f"127.0.0.1:{server.port}/")
    url = f"{head}127.0.0.1:{server.port},127.0.0.1:{pair.port}/{tail}"
    store = Store(url, World())
    try:
        with load(store) as writers:
            before = set(writers.acknowledged)
            caught_up(server, pair)
            server.kill()
            killed_at = time.monotonic()
            # It follows, no more: what it had not received when the first died is lost.
            writers.may_be_lost = writers.acknowledged - before
            pair.promote()
            writers.wait_for(20, 10)
            assert time.monotonic() - killed_at < 10
        assert writers.refused == set()
    finally:
        store.close()


def caught_up(first: PostgreSQL, second: PostgreSQL) -> None:
    """Wait until the second server has all that the first has now."""
    [(position,)] = first.execute("SELECT pg_current_wal_flush_lsn()::text")
    deadline = time.monotonic() + 20
    query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
    while second.execute(query) != [(True,)]:
        assert time.monotonic() < deadline, "the second server does not follow"
        time.sleep(0.02)
