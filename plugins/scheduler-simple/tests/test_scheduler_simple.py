from __future__ import annotations

from appliance.hooks import Scheduler
from appliance.testing.nodes import make_cluster, make_node, make_request
from appliance.testing.scheduler import SchedulerContract


class TestSimple(SchedulerContract, plugin="simple"):
    def test_fewest_claimed_vcpus_first(self, driver: Scheduler) -> None:
        nodes = [
            make_node(number, vcpus_claimed=claimed) for number, claimed in enumerate((9, 1, 5))
        ]
        ranking = driver.rank(make_request(), nodes)
        assert ranking.node_ids == tuple(nodes[place].node_id for place in (1, 2, 0))
        assert ranking.best[0].scores == {"claimed vcpus": -1.0}

    def test_order_holds_in_a_mixed_cluster(self, driver: Scheduler) -> None:
        nodes = {node.node_id: node for node in make_cluster(300)}
        named = driver.rank(make_request(), list(nodes.values())).node_ids
        claimed = [nodes[node_id].vcpus_claimed for node_id in named]
        assert claimed == sorted(claimed)

    def test_a_full_node_does_not_hide_the_others(self, driver: Scheduler) -> None:
        nodes = [make_node(1, vcpus=4, vcpus_claimed=4), make_node(2, vcpus_claimed=10)]
        assert driver.rank(make_request(), nodes).node_ids == (nodes[1].node_id,)

    def test_stays_in_the_zone_that_was_asked_for(self, driver: Scheduler) -> None:
        nodes = [make_node(1, zone="zone-b"), make_node(2, zone="zone-a", vcpus_claimed=10)]
        named = driver.rank(make_request(zone="zone-a"), nodes).node_ids
        assert named == (nodes[1].node_id,)
