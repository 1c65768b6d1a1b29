"""An instance goes where its network is, when only one node has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import networks, placements
from appliance.store.schema import networks as network_rows
from tests.scheduler.test_scheduler_role import Bench
from tests.store.conftest import make_site


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Two nodes; only the second has the network."""
    site = make_site(f"sqlite:///{tmp_path}/store.sqlite")
    made = Bench(site=site)
    for name in ("a", "b"):
        made.add_node(name, 4)
    network_id = site.network_id
    site.store.transaction(lambda tx: networks.keep_on(tx, [network_id], "node-b"))
    yield made
    site.store.close()


def test_only_the_node_that_has_the_network_is_asked_for(bench: Bench) -> None:
    ids = bench.launch(2)
    bench.place(ids, min_count=2)
    assert {request.pinned_node_id for request in bench.scheduler.requests} == {"node-b"}
    assert {placement.node_id for one in ids if (placement := bench.placement(one))} == {"node-b"}
    assert bench.claimed("node-a") == (0, 0, 0)


def test_no_other_node_takes_its_place(bench: Bench) -> None:
    bench.claim("node-b", 4)
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    assert bench.placement(instance_id) is None
    assert bench.get(instance_id).state == "terminated"


def test_where_it_has_failed_it_is_not_tried_again(bench: Bench) -> None:
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    placement = bench.placement(instance_id)
    assert placement
    bench.site.store.transaction(lambda tx: placements.end(tx, placement, "it failed"))
    bench.place([instance_id])
    request = bench.scheduler.requests[-1]
    assert request.pinned_node_id == "node-b"
    assert "node-b" in request.excluded_node_ids
    assert bench.placement(instance_id) is None


def test_a_start_goes_back_to_disk_and_network(bench: Bench) -> None:
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    bench.stop(instance_id)
    bench.want_started(instance_id)
    bench.place([instance_id])
    request = bench.scheduler.requests[-1]
    assert (request.pinned_node_id, request.excluded_node_ids) == ("node-b", ())
    assert bench.get(instance_id).epoch == 2


def test_a_disk_away_from_the_network_finds_no_node(bench: Bench) -> None:
    (instance_id,) = bench.launch()
    bench.place([instance_id])
    bench.stop(instance_id)
    site = bench.site
    site.store.transaction(
        lambda tx: tx.execute(
            network_rows.update()
            .where(network_rows.c.id == site.network_id)
            .values(node_id="node-a")
        )
    )
    bench.want_started(instance_id)
    bench.place([instance_id])
    assert set(bench.scheduler.requests[-1].excluded_node_ids) == {"node-a", "node-b"}
    assert bench.get(instance_id).state == "stopped"
