"""Announcements about one thing come as one when there are many; others never wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.bus import news
from appliance.bus.news import News
from appliance.messages import MembersChanged, Message, PolicyChanged
from appliance.world import World


class Told:
    def __init__(self) -> None:
        self.all: list[tuple[str, int]] = []
        self.changed = threading.Condition()

    def send(self, topic: str, message: Any) -> None:
        with self.changed:
            self.all.append((topic, message.revision))
            self.changed.notify()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.all) >= count, 10), self.all


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def announcer(told: Told) -> Iterator[News]:
    made = News(World().clock, told.send)
    yield made
    made.stop(10)


def changed(revision: int, network_id: str = "one") -> Message:
    return PolicyChanged(network_id=network_id, revision=revision)


def test_the_first_at_once_and_the_last_after_a_rest(announcer: News, told: Told) -> None:
    for revision in range(1, 50):
        announcer.tell("datapath.a", changed(revision))
    assert told.all == [("datapath.a", 1)]
    told.wait_for(2)
    assert told.all[1:] == [("datapath.a", 49)]


def test_others_do_not_wait(announcer: News, told: Told) -> None:
    announcer.tell("datapath.a", changed(1))
    announcer.tell("datapath.b", changed(1))
    announcer.tell("datapath.a", changed(7, "two"))
    for revision in (3, 4):
        announcer.tell("member", MembersChanged(revision=revision))
    expected = [("datapath.a", 1), ("datapath.b", 1), ("datapath.a", 7)]
    assert told.all == [*expected, ("member", 3), ("member", 4)]


def test_after_a_rest_the_next_is_sent_at_once(
    announcer: News, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "REST_S", 0.0)
    for revision in (1, 2):
        announcer.tell("datapath.a", changed(revision))
    assert told.all == [("datapath.a", 1), ("datapath.a", 2)]


def test_what_waits_at_the_end_is_sent(told: Told) -> None:
    announcer = News(World().clock, told.send)
    for revision in (1, 2, 3):
        announcer.tell("datapath.a", changed(revision))
    announcer.stop(10)
    assert told.all == [("datapath.a", 1), ("datapath.a", 3)]
