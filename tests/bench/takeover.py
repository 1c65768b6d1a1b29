"""How soon others launch when the only process of a node's roles is killed."""

from __future__ import annotations

import statistics
import time

from tests.bench.fake_cluster import Place, Watch, place
from tests.bench.fake_node import Client, wait_until
from tests.bench.figure import Figures, ms
from tests.cluster.fakes import CONTROL_ROLES, FakeNode
from tests.cluster.swarm import swarm_of

_ROUNDS = 10
_COMPUTE = 3
_UNDER_WAY = 4
_WAIT_S = 60.0
_TARGET_MS = 5000.0


def measure(is_quick: bool) -> Figures:
    """Kill each of two nodes by turns: both have all roles that reach the store, and no other."""
    with place() as here:
        pair = [here.cluster.add(name, CONTROL_ROLES) for name in ("n1", "n2")]
        swarm = swarm_of(here.cluster, _COMPUTE)
        here.cluster.start()
        try:
            swarm.start()
            here.cluster.wait_known(*(f"s{number}" for number in range(1, _COMPUTE + 1)))
            return _Kills(here, pair).measure(1 if is_quick else _ROUNDS)
        finally:
            swarm.stop()


class _Kills:
    def __init__(self, here: Place, pair: list[FakeNode]) -> None:
        self._here = here
        self._pair = pair
        self._watch: Watch = here.watch()

    def measure(self, rounds: int) -> Figures:
        accepted, running, under_way = [], [], []
        for number in range(2 * rounds):
            dies, other = self._pair[number % 2], self._pair[1 - number % 2]
            client = self._here.client(other)

            [one] = client.run(self._here.cluster.image_id)
            self._wait_running([one])
            if number < rounds:
                first, second = self._next_launch(dies, client)
                accepted.append(first)
                running.append(second)
            else:
                under_way.append(self._launches_under_way(dies, client))
            client.close()
            dies.start()
            self._here.cluster.wait_known(dies.name)
        self._watch.close()
        return {
            **_both("kill of a role's process to the next launch: accepted", accepted),
            **_both("kill of a role's process to the next launch: running", running),
            **_both("kill of a role's process to launches under way: running", under_way),
        }

    def _wait_running(self, ids: list[str]) -> None:
        wait_until(lambda: all(map(self._watch.is_running, ids)), _WAIT_S)

    def _next_launch(self, dies: FakeNode, client: Client) -> tuple[float, float]:
        """Launch at the other node right after the kill."""
        began = time.monotonic()
        dies.kill()
        ids = client.run(self._here.cluster.image_id)
        accepted = time.monotonic() - began
        self._wait_running(ids)
        return accepted, time.monotonic() - began

    def _launches_under_way(self, dies: FakeNode, client: Client) -> float:
        """Kill when launches have been accepted by the other node, and wait until all run."""
        ids = client.run(self._here.cluster.image_id, _UNDER_WAY)
        began = time.monotonic()
        dies.kill()
        self._wait_running(ids)
        return time.monotonic() - began


def _both(name: str, seconds: list[float]) -> Figures:
    return {
        f"{name}, p50": ms(statistics.median(seconds), _TARGET_MS),
        f"{name}, max": ms(max(seconds), _TARGET_MS),
    }
