"""When a node asks for the policy of a network: at once, and then for many changes together."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from anynode_firewall_fake import FakeFirewall

from appliance.datapath.policy import PolicyKeeper
from appliance.datapath.reach import ReachKeeper
from appliance.errors import NotFound, Unavailable
from appliance.hooks import Firewall
from appliance.messages import GetPolicy, PolicyAnswer
from appliance.model import PolicyDelta
from appliance.testing.firewall import make_policy
from appliance.testing.network import make_network

NETWORK = make_network("fake")
NET = NETWORK.network_id
REST_S = 1.0


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


class Controls:
    """A bus with a network role whose policy is at ``revision``."""

    def __init__(self) -> None:
        self.revision = 1
        self.asked: list[int] = []
        self.is_away = self.is_unknown = False

    def call(self, topic: str, question: GetPolicy, answer: type[Any], deadline_s: float) -> Any:
        assert topic == "network"
        self.asked.append(question.known_revision)
        if self.is_away:
            raise Unavailable("Nobody answers.")
        if self.is_unknown:
            raise NotFound("There is no such network.")
        if question.known_revision < 0:
            return PolicyAnswer(policy=make_policy(NETWORK, self.revision))
        delta = PolicyDelta(
            network=NETWORK, from_revision=question.known_revision, to_revision=self.revision
        )
        return PolicyAnswer(delta=delta)


class Place:
    def __init__(self) -> None:
        self.clock, self.controls = Clock(), Controls()
        self.firewall = Firewall("fake", FakeFirewall())
        reach = ReachKeeper(lambda network_id: None)
        bus: Any = self.controls
        clock: Any = self.clock
        self.keeper = PolicyKeeper(bus, self.firewall, reach, "n1", clock, 5.0)
        self.keeper.watch(NET)
        self.keeper.refresh(NET)
        self.controls.asked.clear()

    def hear(self, revision: int, rest_s: float = REST_S) -> None:
        self.controls.revision = revision
        self.keeper.hear(NET, revision, rest_s)

    def revision(self) -> int:
        return self.firewall.state().revisions[NET]


@pytest.fixture
def place() -> Place:
    return Place()


def test_news_after_a_rest_is_asked_for_at_once(place: Place) -> None:
    place.clock.at += REST_S
    place.hear(2)
    assert place.controls.asked == [1]
    assert place.revision() == 2


def test_many_news_are_one_question(place: Place) -> None:
    for revision in range(2, 20):
        place.hear(revision)
        place.keeper.follow()
    assert place.controls.asked == []
    place.clock.at += REST_S
    place.keeper.follow()
    place.keeper.follow()
    assert place.controls.asked == [1]
    assert place.revision() == 19


def test_urgent_news_does_not_wait(place: Place) -> None:
    place.hear(2)
    assert place.controls.asked == []
    place.hear(3, rest_s=0.0)
    assert place.controls.asked == [1]
    place.clock.at += REST_S
    place.keeper.follow()
    assert place.controls.asked == [1]
    assert place.revision() == 3


def test_what_came_with_another_question_is_not_asked_for(place: Place) -> None:
    place.hear(2)
    place.keeper.refresh(NET)
    place.clock.at += REST_S
    place.keeper.follow()
    assert place.controls.asked == [1]


def test_news_of_what_is_not_here_is_nothing(place: Place) -> None:
    place.keeper.hear("subnet-other", 7, REST_S)
    place.clock.at += REST_S
    place.keeper.follow()
    assert place.controls.asked == []


def test_nobody_answers(place: Place) -> None:
    place.hear(2)
    place.controls.is_away = True
    place.clock.at += REST_S
    place.keeper.follow()
    assert place.revision() == 1
    place.controls.is_away = False
    place.clock.at += 1.0
    place.keeper.refresh_silent(REST_S)
    assert place.revision() == 2


def test_a_network_that_is_not_ours_is_asked_for_in_peace(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.controls.is_unknown = True
    place.keeper.watch("subnet-other")
    with caplog.at_level(logging.INFO):
        place.keeper.refresh_silent(3.0)
        place.keeper.refresh_silent(3.0)
        assert place.controls.asked == [-1], "it rests like others"
        assert caplog.messages == []
        place.clock.at += 3.5
        place.keeper.refresh_silent(3.0)
    assert f"policy of {NET} is not known" in caplog.text
    assert "subnet-other" not in caplog.text
    assert place.revision() == 1, "rules that are in force stay"
