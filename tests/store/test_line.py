"""Writers of several nodes that have met each other go one after the other, and never for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import text

from appliance.store import Store, Transaction
from appliance.world import World
from tests.faults.rounds import at_once

LONG_S = 3600.0


@pytest.fixture
def stores(postgresql_url: str) -> Iterator[list[Store]]:
    """The store as three nodes see it, with one number in it."""
    made = [Store(postgresql_url, World()) for _ in range(3)]
    made[0].transaction(lambda tx: tx.execute(text("CREATE TABLE t (n INTEGER)")))
    made[0].transaction(lambda tx: tx.execute(text("INSERT INTO t VALUES (0)")))
    yield made
    for one in made:
        one.close()


def crowd(*stores: Store) -> None:
    """Let stores believe that their writers have just met others."""
    for store in stores:
        store._crowded_until = time.monotonic() + LONG_S


def add(tx: Transaction, attempts: list[int]) -> None:
    """Count up by what was read, with time for others in between."""
    attempts.append(1)
    number = tx.execute(text("SELECT n FROM t")).scalar_one()
    time.sleep(0.005)
    tx.execute(text("UPDATE t SET n = :n"), {"n": number + 1})


def total(store: Store) -> int:
    return int(store.read(lambda tx: tx.execute(text("SELECT n FROM t")).scalar_one()))


def test_in_line_each_needs_one_attempt(stores: list[Store]) -> None:
    crowd(*stores)
    attempts: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            stores[number % 3].transaction(lambda tx: add(tx, attempts))

    at_once([partial(work, number) for number in range(6)])
    assert total(stores[0]) == 30
    assert len(attempts) == 30


def test_who_has_met_nobody_stands_in_no_line(stores: list[Store]) -> None:
    held, others = stores[0], stores[1]
    crowd(held)
    began, may_end = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        began.set()
        assert may_end.wait(30)

    holder = threading.Thread(target=lambda: held.transaction(hold))
    holder.start()
    try:
        assert began.wait(10)
        asked_at = time.monotonic()
        others.transaction(lambda tx: add(tx, []))
        assert time.monotonic() - asked_at < 1
    finally:
        may_end.set()
        holder.join()


def test_who_hangs_in_the_line_holds_nobody_up(stores: list[Store]) -> None:
    held, others = stores[0], stores[1]
    crowd(held, others)
    began, may_end = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        began.set()
        assert may_end.wait(30)

    holder = threading.Thread(target=lambda: held.transaction(hold))
    holder.start()
    try:
        assert began.wait(10)
        asked_at = time.monotonic()
        others.transaction(lambda tx: add(tx, []))
        assert 1 < time.monotonic() - asked_at < 10
        assert total(others) == 1
    finally:
        may_end.set()
        holder.join()
