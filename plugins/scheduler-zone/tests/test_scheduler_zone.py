from __future__ import annotations

from appliance.hooks import Scheduler
from appliance.testing.nodes import make_node, make_request
from appliance.testing.scheduler import SchedulerContract


class TestZone(SchedulerContract, plugin="zone"):
    def test_stays_in_the_zone_that_was_asked_for(self, driver: Scheduler) -> None:
        nodes = [make_node(number, zone=f"zone-{number % 2}") for number in range(10)]
        wanted = {node.node_id for node in nodes if node.zone == "zone-1"}
        for seed in range(20):
            ranking = driver.rank(make_request(zone="zone-1", seed=seed), nodes)
            assert set(ranking.node_ids) == wanted

    def test_goes_anywhere_when_no_zone_was_asked_for(self, driver: Scheduler) -> None:
        nodes = [make_node(number, zone=f"zone-{number}") for number in range(3)]
        assert len(driver.rank(make_request(), nodes).node_ids) == 3

    def test_says_that_the_zone_has_no_node(self, driver: Scheduler) -> None:
        ranking = driver.rank(make_request(zone="nowhere"), [make_node(1)])
        assert ranking.refusals[0].reasons == {"is in another availability zone": 1}
