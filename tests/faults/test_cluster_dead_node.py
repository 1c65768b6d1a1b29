"""T35: a hypervisor dies at every step of a launch and stays dead.

What it had not bound is launched elsewhere; what it had may be there, so that it is given up for a
reason, and keeps address and room until the node says that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from appliance.compute.launch import LAUNCH
from appliance.crash_points import CRASH_AT
from appliance.store import schema
from tests.faults.mortals import (
    APIS,
    CONTROL,
    HYPERVISOR,
    Mortals,
    Standing,
    mortals,
)
from tests.faults.points import points_of
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

SILENCE_S = 4.0
MOST_LIVES = 12
GIVE_UP_S = 8.0
SETTINGS: dict[str, Any] = {"controller": {"node_silence_s": SILENCE_S, "give_up_s": GIVE_UP_S}}
POINTS = ("bus.before.Order", *points_of(LAUNCH), "bus.after.Order", "report.running.before")
QUICK = "step.bind.before"


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[Standing]:
    """Two control nodes, and two hypervisors in one zone, each with an instance."""

    @contextmanager
    def make() -> Iterator[Mortals]:
        folder = tmp_path_factory.mktemp("mortals")
        with mortals(folder, postgresql, rabbitmq.new_vhost(), **SETTINGS) as cluster:
            for name in APIS:
                cluster.add(name, CONTROL)
            for name in ("n3", "n4"):
                cluster.add(name, HYPERVISOR)
            cluster.start()
            cluster.bystanders += cluster.born(2, via=APIS)
            cluster.reach("running", *cluster.bystanders, via=APIS)
            cluster.assert_sound()
            yield cluster

    made = Standing(make)
    yield made
    made.end()


def node_of(cluster: Mortals, instance_id: str) -> str:
    placement = cluster.placement(instance_id)
    names = {node.node_id: name for name, node in cluster.nodes.items()}
    return names[placement.node_id] if placement else ""


def is_decided(cluster: Mortals, instance_id: str) -> bool:
    (found,) = cluster.described(instance_id, via=APIS).values()
    is_elsewhere = node_of(cluster, instance_id) == "n4"
    runs_elsewhere = is_elsewhere and found["State"]["Name"] == "running"
    return runs_elsewhere or not cluster.mortals["n3"].is_running


def launch_until_it_dies(cluster: Mortals) -> list[str]:
    """Launch one after the other; return their ids, that with which n3 died at the end."""
    node, ids = cluster.mortals["n3"], list[str]()
    while node.is_running:
        assert len(ids) < MOST_LIVES, "n3 never came there"
        ids += cluster.born(via=APIS)

        cluster.wait_for(partial(is_decided, cluster, ids[-1]), "it to run, or its node to die")
    return ids


def has_port(cluster: Mortals, instance_id: str) -> bool:
    table = schema.ports
    query = select(table.c.id).where(table.c.instance_id == instance_id)
    return cluster.read(lambda tx: tx.execute(query).first()) is not None


def settle(cluster: Mortals, instance_id: str) -> dict[str, dict[str, Any]]:
    """Wait until it is out of its transition; return its description."""
    seen: dict[str, dict[str, Any]] = {}

    def is_settled() -> bool:
        seen.update(cluster.described(instance_id, via=APIS))
        return seen[instance_id]["State"]["Name"] in ("running", "terminated")

    cluster.wait_for(is_settled, "it to leave its transition")
    return seen


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=pytest.mark.faults("cluster: a hypervisor stays dead", quick=point == QUICK),
        )
        for point in POINTS
    ],
)
def test_t35_a_node_dies_in_a_launch_and_stays_dead(cluster: Mortals, point: str) -> None:
    node = cluster.mortals["n3"]
    node.kill()
    node.begin(**{CRASH_AT: point})
    cluster.wait_known("n3")
    ids = launch_until_it_dies(cluster)
    cluster.wait_known("n3", is_up=False)
    (*others, victim) = ids
    others += cluster.born(via=APIS)
    cluster.reach("running", *others, *cluster.bystanders, via=APIS)
    assert {node_of(cluster, one) for one in others} == {"n4"}
    (found,) = settle(cluster, victim).values()
    if found["State"]["Name"] == "running":
        assert node_of(cluster, victim) == "n4"
        assert victim not in node.running(), "n3 cannot have begun it"
    else:
        assert found["StateReason"]["Message"]
        assert node_of(cluster, victim) == "n3", "nobody has said that nothing of it is left"
        assert has_port(cluster, victim), "its address is kept"
    node.begin()
    cluster.wait_known("n3")
    cluster.assert_sound()
    cluster.is_sound = False
    cluster.end(*others, victim, via=APIS)
    cluster.reach("terminated", *others, victim, via=APIS)
    cluster.assert_sound()
    cluster.assert_gone(*others, victim)
