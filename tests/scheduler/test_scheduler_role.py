"""Placing: what is ranked when, what is claimed, and what becomes of those that find no place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import event, update

from appliance.hooks import Scheduler
from appliance.messages import Order, Place
from appliance.model import (
    Desired,
    InstanceState,
    NodeCapacity,
    NodeView,
    Phase,
    PlacementRequest,
    Ranking,
)
from appliance.node import NodeParts
from appliance.scheduler.plan import Placing
from appliance.scheduler.role import place
from appliance.store import OutboxRow, Store, Transaction, nodes, placements, timeline
from appliance.store import instances as instance_rows
from appliance.store.instances import Instance
from appliance.store.placements import Placement
from appliance.store.schema import instances
from appliance.world import World
from tests.store.conftest import Site, make_site

Action = Callable[[], object]


def nothing() -> None:
    """What happens between the ranking and the transaction where nothing does."""


@dataclass
class Parts:
    """What of a node's parts placing looks at."""

    store: Store
    world: World
    node_name: str = "n1"

    def need_store(self) -> Store:
        return self.store


@dataclass
class FirstWithRoom:
    """A scheduler that names the nodes with room by name, at most ``most`` of them."""

    name: str = "first"
    most: int = 50
    is_in_transaction: bool = False
    requests: list[PlacementRequest] = field(default_factory=list)

    def rank(self, request: PlacementRequest, views: Sequence[NodeView]) -> Ranking:
        assert not self.is_in_transaction, "the store waits for no plugin"
        self.requests.append(request)
        fit = [
            view.node_id
            for view in sorted(views, key=lambda view: view.name)
            if view.vcpus_claimed + request.vcpus <= view.vcpus
            and view.node_id not in request.excluded_node_ids
            and request.pinned_node_id in (None, view.node_id)
        ]
        return Ranking(node_ids=tuple(fit[: self.most]), considered=len(views))


@dataclass
class Delivery:
    """An arrival; ``before`` happens once, just before its transaction."""

    bench: Bench
    before: Action
    message_id: str = "m"

    def once(self, work: Callable[[Transaction], None]) -> None:
        self.before()
        self.before = nothing

        def watched(tx: Transaction) -> None:
            self.bench.statements.clear()
            self.bench.scheduler.is_in_transaction = True
            try:
                work(tx)
            finally:
                self.bench.scheduler.is_in_transaction = False
            self.bench.orders = [_order(row) for row in tx.casts if row.kind == "Order"]

        self.bench.site.store.transaction(watched)


def _order(row: OutboxRow) -> Order:
    return msgspec.json.decode(row.body, type=Order)


@dataclass
class Bench:
    """A store with nodes, and a scheduler role on it."""

    site: Site
    scheduler: FirstWithRoom = field(default_factory=FirstWithRoom)
    statements: list[str] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    def add_node(self, name: str, vcpus: int) -> str:
        node_id = self.site.add_node(name, vcpus=vcpus)
        capacity = NodeCapacity(vcpus=vcpus, memory_mib=1, disk_gib=1)
        self.site.store.transaction(
            lambda tx: nodes.seen(tx, node_id, "boot", nodes.Condition(capacity=capacity))
        )
        return node_id

    def launch(self, count: int = 1) -> list[str]:
        return self.site.store.transaction(lambda tx: self.site.launch(tx, count))

    def place(self, ids: Sequence[str], min_count: int = 1, before: Action = nothing) -> None:
        parts = cast("NodeParts", Parts(store=self.site.store, world=World()))
        placing = Placing(parts=parts, scheduler=cast("Scheduler", self.scheduler))
        message = Place(reservation_id="r", instance_ids=tuple(ids), min_count=min_count)
        place(placing, message, Delivery(bench=self, before=before))

    def claim(self, node_id: str, vcpus: int) -> None:
        """Take room on a node, as another scheduler does."""
        assert self.site.store.transaction(
            lambda tx: nodes.claim(tx, node_id, vcpus=vcpus, memory_mib=0, disk_gib=0, instances=1)
        )

    def get(self, instance_id: str) -> Instance:
        found = self.site.store.read(lambda tx: instance_rows.get(tx, instance_id))
        assert found
        return found

    def placement(self, instance_id: str) -> Placement | None:
        return self.site.store.read(lambda tx: placements.active(tx, instance_id))

    def claimed(self, node_id: str) -> tuple[int, int, int]:
        """Return the vcpus, the disk in GiB and the instances claimed on a node."""
        views = {view.node_id: view for view in self.site.store.read(nodes.views)}
        view = views[node_id]
        return view.vcpus_claimed, view.disk_claimed_gib, view.instances

    def summary(self, instance_id: str) -> str:
        made = self.site.store.read(lambda tx: timeline.decisions_of(tx, instance_id))
        return made[-1].summary

    def stop(self, instance_id: str) -> None:
        """Let an instance be stopped, its disk kept."""

        def write(tx: Transaction) -> None:
            placement = placements.active(tx, instance_id)
            assert placement
            placements.free_while_stopped(tx, placement)
            self._set(tx, instance_id, Desired.STOPPED, InstanceState.STOPPED)

        self.site.store.transaction(write)

    def want_started(self, instance_id: str) -> None:
        self.site.store.transaction(
            lambda tx: self._set(tx, instance_id, Desired.RUNNING, InstanceState.PENDING)
        )

    def _set(self, tx: Transaction, instance_id: str, want: Desired, state: InstanceState) -> None:
        tx.execute(
            update(instances)
            .where(instances.c.id == instance_id)
            .values(desired=want.value, state=state.value, revision=instances.c.revision + 1)
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    site = make_site(f"sqlite:///{tmp_path}/store.sqlite")
    made = Bench(site=site)

    def note(_connection: object, _cursor: object, statement: str, *_rest: Any) -> None:
        made.statements.append(statement)

    event.listen(site.store.engine, "before_cursor_execute", note)
    yield made
    site.store.close()


def test_an_instance_is_placed_and_ordered(bench: Bench) -> None:
    node_id = bench.add_node("a", 4)
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    instance, placement = bench.get(instance_id), bench.placement(instance_id)
    assert placement
    assert (placement.node_id, placement.epoch, placement.phase) == (node_id, 1, Phase.CLAIMED)
    assert (instance.node_id, instance.epoch, instance.state) == (node_id, 1, "pending")
    assert bench.claimed(node_id) == (1, placement.disk_gib, 1)
    (order,) = bench.orders
    assert (order.instance_id, order.epoch, order.verb) == (instance_id, 1, "run")
    assert order.spec
    assert order.spec.zone == "z", "the node's, since it asked for none"
    assert bench.summary(instance_id) == "Placed on a, one of 1 that could hold it, of 1 nodes."


def test_the_transaction_has_no_statement_per_instance(bench: Bench) -> None:
    bench.add_node("a", 1000)
    bench.place(bench.launch())
    one = list(bench.statements)
    bench.place(bench.launch(50))
    assert len(bench.statements) == len(one) < 20


def test_a_reservation_spreads_over_what_there_is(bench: Bench) -> None:
    node_ids = [bench.add_node("a", 2), bench.add_node("b", 2)]
    ids = bench.launch(4)
    bench.place(ids, min_count=4)
    assert [bench.claimed(node_id)[0] for node_id in node_ids] == [2, 2]
    assert len(bench.scheduler.requests) == 4, "nobody was ranked twice"
    assert all("filled up" not in bench.summary(instance_id) for instance_id in ids)


def test_the_next_node_of_the_ranking_where_the_first_has_filled_up(bench: Bench) -> None:
    full, free = bench.add_node("a", 3), bench.add_node("b", 3)
    ids = bench.launch(3)
    bench.place(ids, min_count=3, before=lambda: bench.claim(full, 2))
    assert bench.claimed(full)[0] == 3
    assert bench.claimed(free)[0] == 2
    assert len(bench.scheduler.requests) == 3
    assert sum("1 filled up meanwhile" in bench.summary(one) for one in ids) == 2


def test_another_ranking_where_all_named_nodes_have_filled_up(bench: Bench) -> None:
    bench.scheduler.most = 1
    full, free = bench.add_node("a", 2), bench.add_node("b", 2)
    (instance_id,) = bench.launch()
    bench.place([instance_id], before=lambda: bench.claim(full, 2))
    placement = bench.placement(instance_id)
    assert placement
    assert placement.node_id == free
    assert [request.excluded_node_ids for request in bench.scheduler.requests] == [(), (full,)]
    assert "1 filled up meanwhile" in bench.summary(instance_id)
    assert bench.claimed(full) == (2, 0, 1), "what was rolled back is claimed no more"


def test_no_third_ranking(bench: Bench) -> None:
    full = bench.add_node("a", 2)
    (instance_id,) = bench.launch()
    bench.place([instance_id], before=lambda: bench.claim(full, 2))
    instance = bench.get(instance_id)
    assert instance.state == "terminated"
    assert instance.reason
    assert instance.reason.code == "Server.InsufficientInstanceCapacity"
    assert instance.reason.message == "All 1 nodes that could hold it filled up meanwhile."
    assert len(bench.scheduler.requests) == 2
    assert bench.claimed(full) == (2, 0, 1)


@pytest.mark.parametrize(("min_count", "placed"), [(1, 2), (2, 2), (3, 0)])
def test_as_many_as_asked_for_or_none(bench: Bench, min_count: int, placed: int) -> None:
    node_id = bench.add_node("a", 2)
    ids = bench.launch(3)
    bench.place(ids, min_count=min_count)
    states = [bench.get(instance_id).state.value for instance_id in ids]
    assert sorted(states) == sorted(["pending"] * placed + ["terminated"] * (3 - placed))
    assert bench.claimed(node_id)[0] == placed
    assert bench.claimed(node_id)[2] == placed
    assert len(bench.orders) == placed
    reasons = {str(bench.get(one).reason) for one in ids if bench.get(one).state == "terminated"}
    assert any("Fewer than the 3" in reason for reason in reasons) == (placed == 0)


def test_who_is_not_wanted_any_more_is_not_placed(bench: Bench) -> None:
    node_id = bench.add_node("a", 4)
    gone, stays = bench.launch(2)

    def terminate() -> None:
        instance = bench.get(gone)
        bench.site.store.transaction(lambda tx: instance_rows.terminated(tx, instance, None))

    bench.place([gone, stays], min_count=2, before=terminate)
    assert bench.placement(gone) is None
    assert bench.placement(stays)
    assert bench.claimed(node_id)[0] == 1


def test_who_was_placed_meanwhile_is_not_placed_again(bench: Bench) -> None:
    node_id = bench.add_node("a", 4)
    ids = bench.launch(2)
    bench.place(ids, before=lambda: bench.place(ids[:1]))
    assert bench.claimed(node_id)[0] == 2
    assert [bench.get(instance_id).epoch for instance_id in ids] == [1, 1]


def test_who_changed_meanwhile_is_ranked_again(bench: Bench) -> None:
    node_id = bench.add_node("a", 4)
    (instance_id,) = bench.launch()

    def lose_a_placement() -> None:
        bench.place([instance_id])
        placement = bench.placement(instance_id)
        assert placement
        bench.site.store.transaction(lambda tx: placements.end(tx, placement, "failed"))

    bench.add_node("b", 4)
    bench.place([instance_id], before=lose_a_placement)
    placement = bench.placement(instance_id)
    assert placement
    assert (placement.epoch, placement.node_id != node_id) == (2, True)
    assert bench.scheduler.requests[-1].excluded_node_ids == (node_id,)


def test_a_start_goes_back_to_its_disk(bench: Bench) -> None:
    node_id = bench.add_node("a", 1)
    bench.add_node("0", 8)
    (instance_id,) = bench.launch()
    bench.place([instance_id], before=nothing)
    first = bench.placement(instance_id)
    assert first
    before = bench.claimed(first.node_id)
    bench.stop(instance_id)
    bench.want_started(instance_id)
    bench.place([instance_id])
    placement = bench.placement(instance_id)
    assert placement
    assert (placement.node_id, placement.epoch, placement.adopts_epoch) == (first.node_id, 2, 1)
    assert bench.claimed(first.node_id) == before
    assert bench.orders[0].adopts_epoch == 1
    assert bench.scheduler.requests[-1].pinned_node_id == first.node_id
    assert node_id != first.node_id


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_start_without_room_stays_stopped(bench: Bench, when: str) -> None:
    node_id = bench.add_node("a", 1)
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    bench.stop(instance_id)
    kept = bench.placement(instance_id)
    bench.want_started(instance_id)
    ranked = len(bench.scheduler.requests)
    if when == "before":
        bench.claim(node_id, 1)
        bench.place([instance_id])
    else:
        bench.place([instance_id], before=lambda: bench.claim(node_id, 1))
    instance = bench.get(instance_id)
    assert instance.state == "stopped"
    assert instance.reason
    assert instance.reason.code == "Server.InsufficientInstanceCapacity"
    assert bench.placement(instance_id) == kept
    assert len(bench.scheduler.requests) == ranked + 1
    assert kept
    assert bench.claimed(node_id) == (1, kept.disk_gib, 2)


def test_an_instance_avoids_the_nodes_that_failed_it(bench: Bench) -> None:
    node_ids = [bench.add_node("a", 4), bench.add_node("b", 4)]
    ids = bench.launch(2)
    for expected in node_ids:
        bench.place(ids[:1])
        placement = bench.placement(ids[0])
        assert placement
        assert placement.node_id == expected
        bench.site.store.transaction(
            lambda tx, lost=placement: placements.end(tx, lost, "failed")  # type: ignore[misc]
        )
    bench.place(ids)
    assert bench.get(ids[0]).state == "terminated"
    assert [request.excluded_node_ids for request in bench.scheduler.requests[-2:]] in (
        [tuple(node_ids), ()],
        [(), tuple(node_ids)],
    )
