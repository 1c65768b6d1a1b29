"""Heartbeats: who of several controllers writes them, and what becomes of the others'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import event

from appliance.config import Config, ControllerSettings
from appliance.controller.heartbeats import Heartbeats
from appliance.messages import Heartbeat
from appliance.model import NodeCapacity
from appliance.node import NodeParts
from appliance.store import Store, members, nodes
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
def place(tmp_path: Path) -> Iterator[Place]:
    clock = Clock()
    site = make_site(f"sqlite:///{tmp_path}/store.sqlite")
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
    assert 0 < len(statements) < 8, statements


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
    from appliance.store import node_changes

    node_id = place.site.add_node("a")
    place.store.transaction(
        lambda tx: node_changes.set_approved(tx, node_id, vcpus=3, memory_mib=None, disk_gib=None)
    )
    place.controller("c1").hear(beat(node_id))
    (view,) = place.store.read(nodes.views)
    assert (view.vcpus, view.memory_mib, view.disk_gib) == (3, 1000, 10)
