"""T43: one of three brokers is cut off from the others; no message is lost, and launches go on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.bus import topology
from tests.faults.mortals import APIS, Mortals, four_nodes, mortals
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq_cluster import COUNT, MOVE_S, OnTrio, Trio, three

USERS = 3
LAUNCHES = 100
CALM_S = 180.0


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    """Three brokers."""
    with three() as made:
        yield made


def copies(vhost: OnTrio) -> dict[str, tuple[int, int]]:
    """Return on how many brokers each durable queue is, and how many of those are there now."""
    listed = vhost.trio.members[0].rabbitmqctl(
        *("list_queues", "-p", vhost.name, "name", "members", "online", "--formatter", "json")
    )
    return {
        one["name"]: (len(one["members"]), len(one["online"]))
        for one in json.loads(listed)
        if not one["name"].startswith("process.")
    }


@pytest.mark.faults("cluster: brokers parted")
def test_t43_a_minority_of_brokers_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, trio: Trio
) -> None:
    vhost = trio.new_vhost()
    with mortals(tmp_path_factory.mktemp("mortals"), postgresql, vhost) as cluster:
        four_nodes(cluster)
        named = {*topology.SHARED_TOPICS, topology.DEAD_QUEUE}
        named |= {f"node.{node.node_id}" for node in cluster.nodes.values()}
        assert copies(vhost) == dict.fromkeys(named, (COUNT, COUNT))
        with ThreadPoolExecutor(USERS) as users:
            launches = [users.submit(launch, cluster, number) for number in range(LAUNCHES)]
            cluster.wait_for(lambda: launches[LAUNCHES // 4].done(), "some launches", CALM_S)
            trio.cut()
            cluster.wait_for(lambda: not trio.lonely.accepts(), "the minority to refuse", MOVE_S)
            ids = [one for launch in launches for one in launch.result(CALM_S)]
        runs = settled(cluster, ids)
        (later,) = cluster.born(via=APIS)
        cluster.reach("running", later, via=APIS)
        assert not trio.lonely.accepts()
        assert len(runs) >= LAUNCHES // 2, "most were launched"
        cluster.assert_sound(seconds=CALM_S)
        trio.heal()
        cluster.wait_for(
            lambda: {*copies(vhost).values()} == {(COUNT, COUNT)}, "all copies to be back", MOVE_S
        )
        cluster.end(*ids, later, via=APIS)
        cluster.reach("terminated", *ids, later, via=APIS, seconds=CALM_S)
        cluster.assert_sound(seconds=CALM_S)
        cluster.assert_gone(*ids, later)


def launch(cluster: Mortals, number: int) -> list[str]:
    via = APIS if number % 2 else APIS[::-1]
    return cluster.born(via=via, token=uuid.uuid4().hex, deadline_s=CALM_S)


def settled(cluster: Mortals, ids: list[str]) -> list[str]:
    """Wait until each runs or has ended for a reason, and return those that run."""
    until = time.monotonic() + CALM_S
    while True:
        seen = cluster.described(*ids, via=APIS)
        states = {key: one["State"]["Name"] for key, one in seen.items()}
        if "pending" not in states.values():
            break
        assert time.monotonic() < until, f"{states}\n{cluster.logs()}"
        time.sleep(0.2)
    ended = [one for one in seen.values() if one["State"]["Name"] == "terminated"]
    assert all(one["StateReason"]["Message"] for one in ended)
    return [key for key, state in states.items() if state == "running"]
