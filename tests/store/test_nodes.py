"""Nodes: joining, offering, being heard of, and falling silent."""

from __future__ import annotations

import time

import pytest

from appliance.errors import NotFound
from appliance.model import NodeCapacity
from appliance.store import Transaction, nodes
from appliance.store.schema import node_status
from tests.store.conftest import Site

CAPACITY = NodeCapacity(vcpus=4, memory_mib=8192, disk_gib=100)


def beat(site: Site, *node_ids: str) -> None:
    def seen(tx: Transaction) -> None:
        for node_id in node_ids:
            nodes.seen(tx, node_id, "boot", nodes.Condition(capacity=CAPACITY))

    site.store.transaction(seen)


def hear_at(site: Site, at: float, *node_ids: str) -> None:
    site.store.transaction(
        lambda tx: tx.execute(
            node_status.update().where(node_status.c.node_id.in_(node_ids)).values(seen_at=at)
        )
    )


def fall_silent(site: Site, *node_ids: str, for_s: float = 60.0) -> None:
    hear_at(site, time.time() - for_s, *node_ids)


def up(site: Site) -> set[str]:
    return {view.node_id for view in site.store.read(nodes.views) if view.is_up}


def mark(site: Site, well_for_s: float = 3600.0) -> list[str]:
    return site.store.transaction(lambda tx: nodes.mark_silent_down(tx, 30.0, well_for_s))


def test_a_lone_node_is_never_down(site: Site) -> None:
    """Its store is in its own process: who asks is up, and only the clock can say otherwise."""
    node_id = site.add_node("a")
    assert up(site) == set()
    beat(site, node_id)
    assert up(site) == {node_id}
    fall_silent(site, node_id)
    assert mark(site) == []
    assert up(site) == {node_id}


def test_one_of_many_that_falls_silent_is_down(site: Site) -> None:
    ids = [site.add_node(name) for name in "abcd"]
    beat(site, *ids)
    assert mark(site) == []
    fall_silent(site, ids[0])
    assert mark(site) == ids[:1]
    assert mark(site) == []
    assert up(site) == set(ids[1:])
    beat(site, ids[0])
    assert up(site) == set(ids)


def test_one_of_three_is_down(site: Site) -> None:
    ids = [site.add_node(name) for name in "abc"]
    beat(site, *ids)
    fall_silent(site, ids[0])
    assert mark(site) == ids[:1]


def test_silence_says_nothing_while_the_bus_is_away(site: Site) -> None:
    ids = [site.add_node(name) for name in "abcd"]
    beat(site, *ids)
    fall_silent(site, ids[0])
    assert mark(site, well_for_s=29.0) == []
    assert mark(site, well_for_s=31.0) == ids[:1]


def test_what_fell_silent_together_is_down_in_the_end(site: Site) -> None:
    """A rack that lost its power is no bus that is away, when that has been well all the time."""
    ids = [site.add_node(name) for name in "abc"]
    beat(site, *ids)
    fall_silent(site, *ids[:2], for_s=149.0)
    assert mark(site) == []
    fall_silent(site, *ids[:2], for_s=151.0)
    assert mark(site, well_for_s=140.0) == []
    assert sorted(mark(site)) == ids[:2]


def test_a_node_is_found_by_its_name(site: Site) -> None:
    node_id = site.add_node("a")
    assert site.store.read(lambda tx: nodes.match(tx, "a")).node_id == node_id
    assert site.store.read(lambda tx: nodes.match(tx, node_id)).name == "a"
    with pytest.raises(NotFound, match="no node 'b'") as refused:
        site.store.read(lambda tx: nodes.match(tx, "b"))
    assert refused.value.hint == "There are a."


def test_a_node_heard_in_the_future_was_heard_now(site: Site) -> None:
    ids = [site.add_node(name) for name in "abcd"]
    beat(site, *ids)
    now = time.time()
    hear_at(site, now + 86400.0, ids[0])
    assert mark(site) == []
    seen = {one.node_id: one.seen_at for one in site.store.read(nodes.status)}
    assert now <= seen[ids[0]] <= time.time()


def test_when_many_fall_silent_at_once_the_bus_is_suspected(site: Site) -> None:
    ids = [site.add_node(name) for name in "abcdefghij"]
    beat(site, *ids)
    fall_silent(site, *ids[:4])
    assert mark(site) == []
    assert up(site) == set(ids)
    beat(site, ids[3])
    assert sorted(mark(site)) == sorted(ids[:3])


def test_an_offer_keeps_the_claims(site: Site) -> None:
    node_id = site.add_node("a", vcpus=4)
    assert site.store.transaction(
        lambda tx: nodes.claim(tx, node_id, vcpus=3, memory_mib=10, disk_gib=1, instances=1)
    )
    site.add_node("a", vcpus=2)
    (view,) = site.store.read(nodes.views)
    assert (view.vcpus, view.vcpus_claimed) == (2, 3)
    assert not site.store.transaction(
        lambda tx: nodes.claim(tx, node_id, vcpus=0, memory_mib=10, disk_gib=1, instances=1)
    )


def test_status_of_all(site: Site) -> None:
    beat(site, site.add_node("b"))
    site.add_node("a")
    found = site.store.read(nodes.status)
    assert [(one.name, one.is_up) for one in found] == [("a", False), ("b", True)]
    assert found[1].capacity == CAPACITY
