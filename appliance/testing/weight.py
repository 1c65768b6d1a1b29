"""Contract of weight plugins: ``class TestMine(WeightContract, plugin="mine"): ...``."""

from __future__ import annotations

import time

import pytest

from appliance.hooks import Weights
from appliance.testing.nodes import make_cluster, make_node, make_request
from appliance.testing.plugin import PluginContract, RecordProperty


class WeightContract(PluginContract):
    """What the ``filter`` scheduler relies on, whatever the plugin prefers."""

    group = "appliance.weight"

    @pytest.fixture
    def driver(self, made: object) -> Weights:
        """Return the plugin as the scheduler calls it, with a multiplier of 1."""
        return Weights({self.plugin: (made, 1.0)})

    def test_scores_each_node(self, driver: Weights) -> None:
        for count in (0, 1, 100):
            [(name, scores)] = driver.score(make_request(), make_cluster(count))
            assert name == self.plugin
            assert len(scores) == count
            assert all(0.0 <= score <= 1.0 for score in scores)

    def test_same_question_has_the_same_answer(self, driver: Weights) -> None:
        nodes = make_cluster(200)
        assert driver.score(make_request(), nodes) == driver.score(make_request(), nodes)

    def test_order_of_nodes_does_not_count(self, driver: Weights) -> None:
        nodes = make_cluster(200)
        [(_, scores)] = driver.score(make_request(), nodes)
        [(_, backwards)] = driver.score(make_request(), nodes[::-1])
        assert backwards[::-1] == scores

    def test_equal_nodes_score_alike(self, driver: Weights) -> None:
        nodes = [make_node(1, name="same"), make_node(1, name="same")]
        [(_, scores)] = driver.score(make_request(), nodes)
        assert scores[0] == scores[1]

    def test_10000_nodes(self, driver: Weights, record_property: RecordProperty) -> None:
        nodes = make_cluster(10_000)
        before = time.process_time()
        driver.score(make_request(), nodes)
        # Reported and not asserted: how fast the machine is, is not the plugin's.
        record_property("cpu_ms_10000_nodes", round((time.process_time() - before) * 1000, 1))
