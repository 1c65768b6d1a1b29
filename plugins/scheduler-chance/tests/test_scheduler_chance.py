from __future__ import annotations

from collections import Counter

from appliance.hooks import Scheduler
from appliance.testing.nodes import make_node, make_request
from appliance.testing.scheduler import SchedulerContract


class TestChance(SchedulerContract, plugin="chance"):
    def test_each_node_is_as_likely_as_another(self, driver: Scheduler) -> None:
        nodes = [make_node(1), make_node(2, vcpus_claimed=20), make_node(3, zone="zone-b")]
        first = Counter(
            driver.rank(make_request(seed=seed), nodes).node_ids[0] for seed in range(900)
        )
        assert len(first) == 3
        assert min(first.values()) > 200

    def test_takes_only_nodes_that_are_up_open_and_have_room(self, driver: Scheduler) -> None:
        nodes = [
            make_node(1, is_up=False),
            make_node(2, accepts_instances=False),
            make_node(3, memory_claimed_mib=65000),
            make_node(4),
        ]
        ranking = driver.rank(make_request(), nodes)
        assert ranking.node_ids == (nodes[3].node_id,)
        up, capacity = ranking.refusals
        assert up.reasons == {"is down": 1, "takes no new instances": 1}
        assert capacity.examples == ("node-3",)

    def test_the_zone_does_not_count(self, driver: Scheduler) -> None:
        assert driver.rank(make_request(zone="zone-b"), [make_node(1, zone="zone-a")]).node_ids
