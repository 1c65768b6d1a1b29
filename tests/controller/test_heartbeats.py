"""Heartbeats: who of several controllers writes them, and what becomes of the others'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import event

from appliance.config import Config, ControllerSettings
from appliance.controller.heartbeats import TELL_EVERY_S, Heard, Heartbeats
from appliance.messages import Heartbeat
from appliance.model import NodeCapacity
from appliance.node import NodeParts
from appliance.store import Store, members, node_changes, nodes
from appliance.store.nodes import Beat, Condition, Offer
from appliance.world import SystemClock, World
from tests.store.conftest import Site, make_site

CAPACITY = NodeCapacity(vcpus=8, memory_mib=1000, disk_gib=10)


class Clock(SystemClock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def now(self) -> float:
        return super().now() + self.offset_s

    def monotonic(self) -> float:
        return super().monotonic() + self.offset_s


@dataclass
class Parts:
    """What of a node's parts heartbeats look at."""

    store: Store
    world: World
    node_id: str
    config: Config = field(
        default_factory=lambda: Config(controller=ControllerSettings(sweep_every_s=5.0))
    )

    def need_store(self) -> Store:
        return self.store


@dataclass
class Place:
    """A store with nodes, and controllers on it."""

    site: Site
    clock: Clock
    store: Store

    def controller(self, name: str) -> Heartbeats:
        parts = Parts(store=self.store, world=World(clock=self.clock), node_id=name)
        return Heartbeats(cast("NodeParts", parts))

    def seen_s(self, node_id: str) -> float:
        """Return for how many seconds a node has been silent, as the store has it."""
        known = {one.node_id: one for one in self.site.store.read(nodes.status)}
        return self.clock.now() - known[node_id].seen_at

    def is_up(self, node_id: str) -> bool:
        return {one.node_id: one.is_up for one in self.site.store.read(nodes.status)}[node_id]


@pytest.fixture
def place(store_url: str) -> Iterator[Place]:
    clock = Clock()
    site = make_site(store_url)
    store = Store(site.store.url, World(clock=clock))
    yield Place(site=site, clock=clock, store=store)
    site.store.close()
    store.close()


def beat(node_id: str, vcpus: int = 8) -> Heartbeat:
    return Heartbeat(
        node_id=node_id,
        boot_id="b",
        capacity=CAPACITY,
        offered_vcpus=vcpus,
        offered_memory_mib=1000,
        offered_disk_gib=10,
        release="1.2",
        roles=("compute",),
        problems={"api": "It has a problem."},
    )


def test_the_first_is_written_at_once_and_others_together(place: Place) -> None:
    node_id = place.site.add_node("a")
    controller = place.controller("c1")
    revision = place.store.read(members.revision)
    controller.hear(beat(node_id))
    assert place.is_up(node_id)
    assert place.store.read(members.revision) == revision + 1
    (known,) = place.store.read(nodes.status)
    assert known.condition.problems == {"api": "It has a problem."}
    assert (known.condition.release, known.condition.roles) == ("1.2", ("compute",))
    place.clock.offset_s += 4
    controller.hear(beat(node_id))
    assert place.seen_s(node_id) > 3.9
    controller.write()
    assert place.seen_s(node_id) < 1
    assert place.store.read(members.revision) == revision + 1


def test_one_of_two_controllers_writes(place: Place) -> None:
    node_id = place.site.add_node("a")
    first, second = place.controller("c1"), place.controller("c2")
    first.hear(beat(node_id))
    place.clock.offset_s += 4
    second.hear(beat(node_id, vcpus=1))
    second.write()
    assert place.seen_s(node_id) > 3.9


def test_who_takes_over_knows_who_was_alive(place: Place) -> None:
    """The sweep of a new controller writes what it has heard before it looks who was silent."""
    node_id = place.site.add_node("a")
    place.site.add_node("b")
    first, second = place.controller("c1"), place.controller("c2")
    first.hear(beat(node_id))
    place.clock.offset_s += first.lease_s - 1
    second.hear(beat(node_id))
    place.clock.offset_s += 2

    def sweep(tx: Any) -> bool:
        if not second.take_turn(tx):
            return False
        second.note_all(tx)
        return True

    assert place.store.transaction(sweep)
    assert 1.9 < place.seen_s(node_id) < 3
    second.hear(beat(node_id))
    second.write()
    assert place.seen_s(node_id) < 1


def test_many_nodes_cost_a_handful_of_statements(place: Place) -> None:
    node_ids = [place.site.add_node(f"n{number}") for number in range(40)]
    controller = place.controller("c1")
    for node_id in node_ids:
        controller.hear(beat(node_id))
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(place.store.engine, "before_cursor_execute", note)
    for node_id in node_ids:
        controller.hear(beat(node_id))
    controller.write()
    assert 0 < len(statements) < 6, statements


def test_only_the_load_waits(place: Place) -> None:
    """What a node can do is written when it changes, its load now and then."""
    node_id = place.site.add_node("a")
    controller = place.controller("c1")
    controller.hear(beat(node_id))
    loaded = replace(CAPACITY, load_1m=3.0)
    controller.hear(replace(beat(node_id), capacity=loaded))
    controller.write()
    (known,) = place.store.read(nodes.status)
    assert known.capacity == CAPACITY
    controller.hear(replace(beat(node_id), capacity=loaded, roles=("compute", "api")))
    controller.write()
    (known,) = place.store.read(nodes.status)
    assert (known.capacity, known.condition.roles) == (loaded, ("compute", "api"))


def test_a_node_that_is_not_known_yet_is_written_in_full_when_it_is(place: Place) -> None:
    controller = place.controller("c1")
    controller.hear(beat("node-a"))
    node_id = place.site.add_node("a")
    assert not place.is_up(node_id)
    controller.hear(beat(node_id))
    assert place.is_up(node_id)
    (known,) = place.store.read(nodes.status)
    assert known.capacity == CAPACITY


def test_what_is_approved_counts_from_the_next_heartbeat(place: Place) -> None:
    node_id = place.site.add_node("a")
    controller = place.controller("c1")
    controller.hear(beat(node_id))
    place.store.transaction(
        lambda tx: node_changes.set_approved(tx, node_id, vcpus=3, memory_mib=None, disk_gib=None)
    )
    controller.hear(beat(node_id))
    controller.write()
    assert place.store.read(nodes.views)[0].vcpus == 3


class TestHeard:
    """The bookkeeping by itself."""

    def told(self, heard: Heard) -> set[str]:
        batch = heard.batch()
        heard.note_written(batch, set(batch.beats))
        return set(batch.in_full)

    def beat(self, at: float, boot_id: str = "b", **capacity: float) -> Beat:
        condition = Condition(capacity=replace(CAPACITY, **capacity))
        return Beat("a", boot_id, condition, Offer(8, 1000, 10), at)

    def test_news_is_the_first_a_new_boot_and_one_after_silence(self) -> None:
        heard = Heard(30.0)
        assert heard.add(self.beat(0))
        assert self.told(heard) == {"a"}
        assert not heard.add(self.beat(30))
        assert self.told(heard) == {"a"}
        assert not heard.add(self.beat(31))
        assert self.told(heard) == set()
        assert heard.add(self.beat(32, "another"))
        assert self.told(heard) == {"a"}
        assert heard.add(self.beat(63, "another"))

    def test_a_condition_is_told_when_it_changes_or_was_not_for_long(self) -> None:
        heard = Heard(30.0)
        heard.add(self.beat(0))
        assert self.told(heard) == {"a"}
        for at in (1, TELL_EVERY_S - 1):
            heard.add(self.beat(at, load_1m=at))
            assert self.told(heard) == set()
        heard.add(self.beat(TELL_EVERY_S, load_1m=1))
        assert self.told(heard) == {"a"}
        heard.add(self.beat(TELL_EVERY_S + 1, vcpus=9))
        assert self.told(heard) == {"a"}

    def test_news_is_also_what_a_node_does(self) -> None:
        heard, other = Heard(30.0), self.beat(1)
        heard.add(self.beat(0))
        self.told(heard)
        does = other._replace(condition=replace(other.condition, roles=("api",)))
        assert heard.add(does)
        self.told(heard)
        assert not heard.add(does)
        assert heard.add(does._replace(condition=replace(does.condition, problems={"api": "no"})))

    def test_what_comes_while_a_batch_is_written_waits_for_the_next(self) -> None:
        heard = Heard(30.0)
        heard.add(self.beat(0))
        batch = heard.batch()
        heard.add(self.beat(1))
        heard.note_written(batch, {"a"})
        assert heard.batch().beats["a"].at == 1

    def test_who_lost_its_turn_tells_all_again(self) -> None:
        heard = Heard(30.0)
        heard.add(self.beat(0))
        self.told(heard)
        heard.forget_written()
        assert heard.add(self.beat(1))
        assert self.told(heard) == {"a"}


def test_what_could_not_be_written_is_kept(place: Place) -> None:
    node_id = place.site.add_node("a")
    controller = place.controller("c1")
    controller.hear(beat(node_id))
    place.clock.offset_s += 4
    controller.hear(beat(node_id))

    def fail(*_anything: Any) -> None:
        raise RuntimeError("told to fail")

    event.listen(place.store.engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        controller.write()
    event.remove(place.store.engine, "before_cursor_execute", fail)
    controller.write()
    assert place.seen_s(node_id) < 1


def test_a_node_offers_no_more_than_is_approved(place: Place) -> None:
    node_id = place.site.add_node("a")
    place.store.transaction(
        lambda tx: node_changes.set_approved(tx, node_id, vcpus=3, memory_mib=None, disk_gib=None)
    )
    place.controller("c1").hear(beat(node_id))
    (view,) = place.store.read(nodes.views)
    assert (view.vcpus, view.memory_mib, view.disk_gib) == (3, 1000, 10)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"boot_id": "b\0"},
        {"boot_id": "b" * 65},
        {"offered_vcpus": 2**40},
        {"offered_memory_mib": -(2**40)},
        {"problems": {"api": "x" * 70_000}},
    ],
    ids=["nothing", "long", "much", "less than nothing", "big"],
)
def test_what_cannot_be_written_spoils_nobody_elses(place: Place, spoilt: dict[str, Any]) -> None:
    hostile, other = place.site.add_node("a"), place.site.add_node("b")
    controller = place.controller("c1")
    for node_id in (hostile, other):
        controller.hear(beat(node_id))
    place.clock.offset_s += 40
    for node_id in (hostile, other):
        bad = spoilt if node_id == hostile else {}
        controller.hear(msgspec.structs.replace(beat(node_id), **bad))
    controller.write()
    assert place.seen_s(other) < 1
    assert place.seen_s(hostile) > 39
    view = {one.node_id: one for one in place.store.read(nodes.views)}[hostile]
    assert (view.vcpus, view.memory_mib, view.disk_gib) == (8, 1000, 10)
