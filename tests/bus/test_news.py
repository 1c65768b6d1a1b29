"""News is read when it is announced: the first at once, what follows as one; others never wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.bus.news import News
from appliance.errors import Unavailable
from appliance.messages import PolicyChanged
from appliance.store import Announcement, Store, Transaction
from appliance.world import World


class Told:
    """What was announced, and a network's revision, which is counted up with each change."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, int]] = []
        self.revisions: dict[str, int] = {}
        self.rest_s = 0.3
        self.changed = threading.Condition()

    def send(self, topic: str, message: Any) -> None:
        with self.changed:
            self.all.append((topic, message.network_id, message.revision))
            self.changed.notify()

    def change(self, network_id: str) -> Callable[[Transaction], Announcement]:
        """Change a network, and return what is read of it when it is announced."""
        self.revisions[network_id] = self.revisions.get(network_id, 0) + 1

        def read(tx: Transaction) -> Announcement:
            news = PolicyChanged(network_id=network_id, revision=self.revisions[network_id])
            return Announcement([("datapath.a", news), ("datapath.b", news)], self.rest_s)

        return read

    def wait_for(self, count: int) -> list[tuple[str, str, int]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.all) >= count, 10), self.all
            return list(self.all)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def announcer(told: Told, tmp_path: Path) -> Iterator[News]:
    world = World()
    store = Store(f"sqlite:///{tmp_path}/store.db", world)
    made = News(store, world.clock, told.send)
    yield made
    made.stop(10)
    store.close()


def both(network_id: str, revision: int) -> list[tuple[str, str, int]]:
    return [(topic, network_id, revision) for topic in ("datapath.a", "datapath.b")]


def test_the_first_at_once_and_the_last_after_a_rest(announcer: News, told: Told) -> None:
    announcer.tell("one", told.change("one"))
    assert told.wait_for(2) == both("one", 1)
    for _ in range(40):
        announcer.tell("one", told.change("one"))
    assert told.wait_for(4) == [*both("one", 1), *both("one", 41)]


def test_others_do_not_wait(announcer: News, told: Told) -> None:
    told.rest_s = 3600
    announcer.tell("one", told.change("one"))
    told.wait_for(2)
    announcer.tell("one", told.change("one"))
    announcer.tell("two", told.change("two"))
    assert told.wait_for(4) == [*both("one", 1), *both("two", 1)]


def test_what_needs_no_rest_is_told_each_time(announcer: News, told: Told) -> None:
    told.rest_s = 0
    for number in (1, 2, 3):
        announcer.tell("one", told.change("one"))
        told.wait_for(2 * number)
    assert told.all == [*both("one", 1), *both("one", 2), *both("one", 3)]


def test_what_waits_at_the_end_is_told(announcer: News, told: Told) -> None:
    told.rest_s = 3600
    announcer.tell("one", told.change("one"))
    told.wait_for(2)
    announcer.tell("one", told.change("one"))
    announcer.stop(10)
    assert told.all == [*both("one", 1), *both("one", 2)]


def test_a_store_that_is_away_ends_nothing(
    announcer: News, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(tx: Transaction) -> Announcement:
        raise Unavailable("The store does not answer.")

    with caplog.at_level(logging.WARNING):
        announcer.tell("lost", refuse)
        announcer.tell("one", told.change("one"))
        assert told.wait_for(2) == both("one", 1)
    assert "could not announce the lost: The store does not answer." in caplog.text
