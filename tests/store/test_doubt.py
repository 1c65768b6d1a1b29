"""The answer to COMMIT is lost: what was written is neither lost nor written twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import insert, select

from appliance import store as store_module
from appliance.errors import Unavailable
from appliance.store import Store, Transaction
from appliance.store.schema import cluster
from appliance.world import World
from tests.services.lossy import Loss, Relay, relayed
from tests.services.postgresql import PostgreSQL


class Judge:
    """Loses the first COMMITs that leave a mark, each in its own way."""

    def __init__(self, *losses: Loss) -> None:
        self._losses = iter(losses)

    def __call__(self, piece: bytes) -> Loss:
        if b"COMMIT" in piece and b"INSERT INTO commits" in piece:
            return next(self._losses, Loss.NOTHING)
        return Loss.NOTHING


class Work:
    """Writes one row and counts how often it was asked to."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tx: Transaction) -> int:
        self.times += 1
        tx.execute(insert(cluster).values(key="k", value=f"written by {self.times}"))
        return self.times


@contextmanager
def lossy_store(postgresql: PostgreSQL, name: str, *losses: Loss) -> Iterator[tuple[Store, Relay]]:
    with relayed(postgresql.port, Judge(*losses)) as relay:
        url = postgresql.tcp_url(name).replace(f":{postgresql.port}/", f":{relay.port}/")
        store = Store(url, World())
        try:
            yield store, relay
        finally:
            store.close()


@pytest.fixture
def database(postgresql: PostgreSQL) -> Iterator[str]:
    name = postgresql.new_database()
    yield name
    postgresql.drop(name)


def written(postgresql: PostgreSQL, name: str) -> list[str]:
    store = Store(postgresql.url(name), World())
    try:
        return store.read(lambda tx: list(tx.execute(select(cluster.c.value)).scalars()))
    finally:
        store.close()


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_an_answer_that_is_lost_was_a_yes(postgresql: PostgreSQL, database: str) -> None:
    work = Work()
    with lossy_store(postgresql, database, Loss.ANSWER) as (store, _):
        assert store.transaction(work) == 1
    assert work.times == 1
    assert written(postgresql, database) == ["written by 1"]


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_a_commit_that_never_arrived_is_done_again(postgresql: PostgreSQL, database: str) -> None:
    work = Work()
    losses = (Loss.REQUEST, Loss.REQUEST, Loss.ANSWER)
    with lossy_store(postgresql, database, *losses) as (store, _):
        assert store.transaction(work) == 3
    assert written(postgresql, database) == ["written by 3"]


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_a_commit_that_arrives_late_is_refused(postgresql: PostgreSQL, database: str) -> None:
    work = Work()
    with lossy_store(postgresql, database, Loss.DELAY) as (store, relay):
        # The row that both write makes the second wait for the first to end.
        waiting = threading.Timer(0.5, relay.may_arrive.set)
        waiting.start()
        assert store.transaction(work) == 2
        waiting.join()
    assert written(postgresql, database) == ["written by 2"]


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_listeners_hear_of_what_was_written_once(postgresql: PostgreSQL, database: str) -> None:
    heard: list[Transaction] = []
    with lossy_store(postgresql, database, Loss.ANSWER) as (store, _):
        store.on_commit(heard.append)

        def work(tx: Transaction) -> None:
            Work()(tx)
            tx.announce("topic", None)  # type: ignore[arg-type]

        store.transaction(work)
    assert len(heard) == 1


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_what_nobody_can_say_is_not_claimed(
    postgresql: PostgreSQL, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "DOUBT_S", 1.0)
    work = Work()
    with lossy_store(postgresql, database, Loss.ANSWER) as (store, relay):
        commit = store._backend.was_committed

        def cut_off(*arguments: object) -> bool | None:
            relay.close()
            return commit(*arguments)  # type: ignore[arg-type]

        store._backend = store._backend._replace(was_committed=cut_off)
        with pytest.raises(Unavailable, match="not known whether it was written"):
            store.transaction(work)
    assert work.times == 1


@pytest.mark.faults("store: answer to COMMIT lost", quick=True)
def test_who_only_read_is_in_no_doubt(postgresql: PostgreSQL, database: str) -> None:
    with lossy_store(postgresql, database) as (store, _):
        store.transaction(lambda tx: tx.execute(select(cluster)).all())
    found = postgresql.execute("SELECT COUNT(*) FROM commits", database)
    assert found == [(0,)]
