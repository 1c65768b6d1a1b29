"""T38: two schedulers at two nodes share out fewer places than are asked for."""

from __future__ import annotations

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.mortals import APIS, CONTROL, HYPERVISOR, Mortals, mortals
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker

NANO_MIB = 512
USERS = 4
CALM_S = 180.0


def launch_many(cluster: Mortals, count: int) -> list[str]:
    """Launch so many, one in each call, at both nodes at once."""

    def launch(number: int) -> list[str]:
        via = APIS if number % 2 else APIS[::-1]
        return cluster.born(via=via, token=uuid.uuid4().hex, deadline_s=CALM_S)

    with ThreadPoolExecutor(USERS) as users:
        return [one for ids in users.map(launch, range(count)) for one in ids]


@pytest.mark.parametrize(
    ("count", "places"),
    [
        pytest.param(10, 6, marks=pytest.mark.faults("races: two schedulers", quick=True)),
        pytest.param(100, 60, marks=pytest.mark.faults("races: two schedulers")),
    ],
)
def test_t38_two_schedulers_give_away_what_there_is(
    tmp_path: Path, postgresql: PostgreSQL, rabbitmq: Broker, count: int, places: int
) -> None:
    memory = {"fake": {"survives": True, "memory_mib": places // 2 * NANO_MIB}}
    sections: dict[str, Any] = {
        "compute": {"reserved_memory_mib": 0},
        "plugins": {"compute": memory},
    }
    with mortals(tmp_path, postgresql, rabbitmq.new_vhost(), **sections) as cluster:
        for name in APIS:
            cluster.add(name, CONTROL)
        for name in ("n3", "n4"):
            cluster.add(name, HYPERVISOR)
        cluster.start()
        for name in APIS:
            node = cluster.mortals[name]
            node.kill()
            node.begin(**node.tracing)
        ids = launch_many(cluster, count)
        seen: dict[str, str] = {}

        def is_settled() -> bool:
            for found in cluster.described(*ids, via=APIS).values():
                reason = found.get("StateReason", {}).get("Code", "")
                seen[found["InstanceId"]] = f"{found['State']['Name']} {reason}".strip()
            return "pending" not in seen.values()

        cluster.wait_for(is_settled, "all to be decided", CALM_S)
        assert Counter(seen.values()) == {
            "running": places,
            "terminated Server.InsufficientInstanceCapacity": count - places,
        }
        both = [cluster.mortals[name].trace() for name in APIS]
        assert all("bus.after.Place" in trace for trace in both), "both have placed"
        cluster.assert_sound(seconds=CALM_S)
        assert len(cluster.runs_on()) == places
