"""Transactions and reads: what is retried, and what errors may say."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance.errors import Unavailable, cause_chain
from appliance.store import ATTEMPTS, Store, Transaction
from appliance.world import SystemClock, World

SECRET = "c2VjcmV0IHVzZXIgZGF0YQ=="


class Sleepless(SystemClock):
    """A clock on which no time passes while one sleeps."""

    def __init__(self) -> None:
        self.slept = 0

    def sleep(self, seconds: float) -> None:
        self.slept += 1


@pytest.fixture
def clock() -> Sleepless:
    return Sleepless()


@pytest.fixture
def store(tmp_path: Path, clock: Sleepless) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World(clock=clock))
    made.transaction(lambda tx: tx.execute(text("CREATE TABLE t (a TEXT UNIQUE)")))
    yield made
    made.close()


def put(tx: Transaction, value: str = SECRET) -> None:
    tx.execute(text("INSERT INTO t VALUES (:a)"), {"a": value})


def put_twice(tx: Transaction) -> None:
    put(tx)
    put(tx)


def fill_the_disk(tx: Transaction) -> None:
    tx.execute(text("PRAGMA max_page_count=4"))
    for number in range(50):
        put(tx, f"{SECRET}{number}".ljust(4000, "."))


def busy() -> OperationalError:
    """Return what SQLAlchemy raises where another process holds the database."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return OperationalError("SELECT", None, error)


def fails(times: int, error: Callable[[], Exception]) -> Callable[[Transaction], int]:
    """Return work that fails a number of times and then says how often it was called."""
    calls = iter(range(1, times + 2))

    def work(tx: Transaction) -> int:
        call = next(calls)
        if call <= times:
            raise error()
        return call

    return work


def test_a_conflict_of_values_says_what_and_no_values(store: Store) -> None:
    with pytest.raises(IntegrityError) as caught:
        store.transaction(put_twice)
    chain = cause_chain(caught.value)
    assert chain[0] == "IntegrityError: UNIQUE constraint failed: t.a"
    assert len(chain) == 2
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "INSERT INTO t VALUES (?)" not in shown
    assert caught.value.__cause__ is not caught.value


def test_a_full_disk_is_told_without_values(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable) as caught:
        store.transaction(fill_the_disk)
    logging.getLogger("test").error("failed", exc_info=caught.value)
    assert cause_chain(caught.value) == (
        "The store failed: database or disk is full.",
        "OperationalError: database or disk is full",
        "OperationalError: database or disk is full",
    )
    assert SECRET not in caplog.text
    assert "INSERT INTO t VALUES (?)" not in caplog.text


def test_what_work_makes_of_an_error_of_the_store_has_no_values(store: Store) -> None:
    def work(tx: Transaction) -> None:
        try:
            put_twice(tx)
        except IntegrityError as error:
            raise ValueError("a double") from error

    with pytest.raises(ValueError, match="a double") as caught:
        store.transaction(work)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "INSERT INTO t" not in " ".join(cause_chain(caught.value))


@pytest.mark.parametrize("kind", ["read", "transaction"])
def test_a_conflict_is_tried_again(store: Store, clock: Sleepless, kind: str) -> None:
    assert getattr(store, kind)(fails(3, busy)) == 4
    assert clock.slept == 3


@pytest.mark.parametrize("kind", ["read", "transaction"])
def test_conflicts_that_go_on_are_given_up(store: Store, clock: Sleepless, kind: str) -> None:
    with pytest.raises(Unavailable, match=f"refused a {kind} {ATTEMPTS} times"):
        getattr(store, kind)(fails(ATTEMPTS, busy))
    assert clock.slept == ATTEMPTS - 1


@pytest.mark.parametrize("kind", ["read", "transaction"])
def test_another_error_is_not_tried_again(store: Store, clock: Sleepless, kind: str) -> None:
    with pytest.raises(Unavailable):
        getattr(store, kind)(lambda tx: tx.execute(text("SELECT * FROM nowhere")))
    with pytest.raises(KeyError):
        getattr(store, kind)(fails(1, lambda: KeyError("a")))
    assert clock.slept == 0


def test_a_read_sees_one_state(store: Store) -> None:
    def count(tx: Transaction) -> int:
        return int(tx.execute(text("SELECT COUNT(*) FROM t")).scalar_one())

    def look_twice(tx: Transaction) -> tuple[int, int]:
        first = count(tx)
        store.transaction(put)
        return first, count(tx)

    assert store.read(look_twice) == (0, 0)
    assert store.read(count) == 1
