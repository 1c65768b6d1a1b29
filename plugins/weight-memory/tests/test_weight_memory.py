from __future__ import annotations

from appliance.hooks import Weights
from appliance.testing.nodes import make_node, make_request
from appliance.testing.weight import WeightContract


class TestMemory(WeightContract, plugin="memory"):
    def test_less_free_memory_scores_lower(self, driver: Weights) -> None:
        nodes = [make_node(1, memory_claimed_mib=40000), make_node(2)]
        [(_, scores)] = driver.score(make_request(), nodes)
        assert scores == [0.0, 1.0]
