"""Leases: one owner at a time, who may go on, and a next one when it is over."""

from __future__ import annotations

from functools import partial

import pytest

from appliance.store import Store, leases, migrations
from appliance.world import SystemClock, World
from tests.faults.rounds import answers, at_once


class Calendar(SystemClock):
    """A clock that is told what time it is."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def store(store_url: str, calendar: Calendar) -> Store:
    made = Store(store_url, World(clock=calendar))
    migrations.upgrade(made)
    return made


def take(store: Store, owner: str, name: str = "sweep") -> bool:
    return store.transaction(lambda tx: leases.take(tx, name, owner, 10.0))


def release(store: Store, owner: str) -> None:
    store.transaction(lambda tx: leases.release(tx, "sweep", owner))


def test_another_gets_it_when_it_is_over(store: Store, calendar: Calendar) -> None:
    assert take(store, "a")
    assert not take(store, "b")
    assert take(store, "b", "another lease")
    calendar.seconds += 10
    assert take(store, "b")
    assert not take(store, "a")


def test_the_owner_goes_on(store: Store, calendar: Calendar) -> None:
    assert take(store, "a")
    calendar.seconds += 9
    assert take(store, "a")
    calendar.seconds += 9
    assert not take(store, "b")


def test_what_is_given_up_can_be_taken_at_once(store: Store) -> None:
    assert take(store, "a")
    release(store, "b")
    assert not take(store, "b")
    release(store, "a")
    assert take(store, "b")


@pytest.mark.faults("races: lease", quick=True)
def test_one_of_many_gets_it(store: Store) -> None:
    for _ in range(5):
        taken = answers(at_once([partial(take, store, f"owner-{n}") for n in range(12)]))
        assert taken.count(True) == 1
        release(store, f"owner-{taken.index(True)}")
