"""Claims under concurrency: never more than there is room for, and none is lost."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from appliance.model import Phase
from appliance.store import facts as store_facts
from appliance.store import nodes, placements
from appliance.store.facts import Room
from tests.store.conftest import Site, claim_room


def room(site: Site, node_id: str) -> Room:
    return site.store.read(store_facts.read).claims[node_id]


def claim(site: Site, instance_id: str, node_id: str, epoch: int = 1) -> bool:
    return site.store.transaction(lambda tx: claim_room(tx, instance_id, epoch, node_id))


def test_a_hundred_launches_for_sixty_places(site: Site) -> None:
    small, large = site.add_node("a", vcpus=20), site.add_node("b", memory_mib=40 * 512 + 511)
    start = threading.Barrier(16)

    def launch(worker: int) -> Counter[str]:
        won: Counter[str] = Counter()
        start.wait()
        for number in range(worker, 100, 16):
            for node_id in (small, large) if number % 2 else (large, small):
                if claim(site, f"i-{number}", node_id):
                    won[node_id] += 1
                    break
        return won

    with ThreadPoolExecutor(16) as pool:
        total = sum(pool.map(launch, range(16)), Counter())
    assert total == {small: 20, large: 40}
    assert room(site, small) == Room(vcpus=20, memory_mib=20 * 512, disk_gib=20, instances=20)
    assert room(site, large) == Room(vcpus=40, memory_mib=40 * 512, disk_gib=40, instances=40)
    assert len(site.store.read(lambda tx: placements.on_node(tx, small))) == 20


def test_a_placement_ends_once(site: Site) -> None:
    node_id = site.add_node("a")
    assert claim(site, "i-1", node_id)
    placement = site.store.read(lambda tx: placements.find(tx, "i-1", 1))
    assert placement
    with ThreadPoolExecutor(8) as pool:
        ends = list(
            pool.map(
                lambda _: site.store.transaction(lambda tx: placements.end(tx, placement, "x")),
                range(8),
            )
        )
    assert ends.count(True) == 1
    assert room(site, node_id) == Room()
    failed = site.store.read(lambda tx: placements.failed_nodes_of(tx, ["i-1", "i-2"]))
    assert failed == {"i-1": (node_id,)}


def test_commit_needs_the_right_node_and_an_active_phase(site: Site) -> None:
    node_id = site.add_node("a")
    assert claim(site, "i-1", node_id)

    def commit(node: str) -> bool:
        return site.store.transaction(lambda tx: placements.commit(tx, "i-1", 1, node))

    assert not commit("node-b")
    assert commit(node_id)
    assert commit(node_id)
    placement = site.store.read(lambda tx: placements.active(tx, "i-1"))
    assert placement
    assert placement.phase is Phase.COMMITTED
    site.store.transaction(lambda tx: placements.end(tx, placement, "x"))
    assert not commit(node_id)


def test_stop_frees_room_once_and_start_takes_it_again(site: Site) -> None:
    node_id = site.add_node("a", vcpus=1)
    assert claim(site, "i-1", node_id)
    placement = site.store.read(lambda tx: placements.find(tx, "i-1", 1))
    assert placement
    for _ in range(2):
        site.store.transaction(lambda tx: placements.free_while_stopped(tx, placement))
        assert room(site, node_id) == Room(disk_gib=1, instances=1)
    assert claim(site, "i-2", node_id)
    kept = site.store.read(lambda tx: placements.active(tx, "i-1"))
    assert kept

    def renew() -> bool:
        return site.store.transaction(lambda tx: claim_room(tx, "i-1", 2, node_id, kept=kept))

    assert not renew()
    assert site.store.read(lambda tx: placements.active(tx, "i-1")) == kept
    other = site.store.read(lambda tx: placements.find(tx, "i-2", 1))
    assert other
    site.store.transaction(lambda tx: placements.end(tx, other, "x"))
    assert renew()
    assert room(site, node_id) == Room(vcpus=1, memory_mib=512, disk_gib=1, instances=1)
    renewed = site.store.read(lambda tx: placements.active(tx, "i-1"))
    assert renewed
    assert (renewed.epoch, renewed.adopts_epoch, renewed.disk_gib) == (2, 1, 1)


def test_what_was_placed_does_not_end_twice_after_a_stop(site: Site) -> None:
    node_id = site.add_node("a")
    assert claim(site, "i-1", node_id)
    before = site.store.read(lambda tx: placements.find(tx, "i-1", 1))
    assert before
    site.store.transaction(lambda tx: placements.free_while_stopped(tx, before))
    now = site.store.read(lambda tx: placements.find(tx, "i-1", 1))
    assert now
    site.store.transaction(lambda tx: placements.end(tx, now, "gone"))
    assert room(site, node_id) == Room()


def test_a_stale_view_of_a_placement_does_not_free_too_much(site: Site) -> None:
    """What is given back is what is claimed now, not what a reader saw before a stop."""
    node_id = site.add_node("a")
    assert claim(site, "i-1", node_id)
    seen = site.store.read(lambda tx: placements.find(tx, "i-1", 1))
    assert seen
    site.store.transaction(lambda tx: placements.free_while_stopped(tx, seen))
    site.store.transaction(lambda tx: placements.end(tx, seen, "gone"))
    assert room(site, node_id) == Room()


def test_views_count_what_is_claimed(site: Site) -> None:
    node_id = site.add_node("a", vcpus=4)
    assert claim(site, "i-1", node_id)
    (view,) = site.store.read(nodes.views)
    assert (view.vcpus, view.vcpus_claimed, view.instances, view.is_up) == (4, 1, 1, False)
