from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ConfigError, PluginError
from appliance.hooks import Scheduler
from appliance.plugin_loader import PluginLoader
from appliance.testing.nodes import make_cluster, make_node, make_request
from appliance.testing.scheduler import SchedulerContract


class TestFilterWithDefaults(SchedulerContract, plugin="filter"):
    def test_picks_one_of_the_best_three(self, driver: Scheduler) -> None:
        nodes = [make_node(number, instances=number) for number in range(10)]
        rankings = [driver.rank(make_request(seed=seed), nodes) for seed in range(60)]
        assert {ranking.node_ids[0] for ranking in rankings} == {n.node_id for n in nodes[:3]}
        rest = tuple(node.node_id for node in nodes[3:])
        assert all(ranking.node_ids[3:] == rest for ranking in rankings)

    def test_weights_are_scaled_before_they_are_added(self, driver: Scheduler) -> None:
        nodes = [
            make_node(1, memory_claimed_mib=60000, vcpus_claimed=0, instances=1),
            make_node(2, memory_claimed_mib=0, vcpus_claimed=20, instances=9),
        ]
        best = {one.node_id: one for one in driver.rank(make_request(), nodes).best}
        assert best[nodes[0].node_id].scores == {"memory": 0.0, "vcpus": 1.0, "spread": 1.0}
        assert best[nodes[0].node_id].score == 2.0
        assert best[nodes[1].node_id].scores == {"memory": 1.0, "vcpus": 0.0, "spread": 0.0}

    def test_a_filter_counts_only_what_the_ones_before_let_through(self, driver: Scheduler) -> None:
        nodes = [
            make_node(1, is_up=False, zone="zone-b"),
            make_node(2, zone="zone-b", vcpus_claimed=32),
            make_node(3, vcpus_claimed=32),
            make_node(4),
        ]
        request = make_request(zone="zone-a", excluded_node_ids=(nodes[3].node_id,))
        ranking = driver.rank(request, nodes)
        assert ranking.node_ids == ()
        assert [(one.filter, one.reasons) for one in ranking.refusals] == [
            ("request", {"has been tried for this instance": 1}),
            ("up", {"is down": 1}),
            ("zone", {"is in another availability zone": 1}),
            ("capacity", {"has too few free vcpus": 1}),
        ]


class TestFilterWithoutChance(SchedulerContract, plugin="filter", settings={"choose_among": 1}):
    def test_takes_the_best(self, driver: Scheduler) -> None:
        nodes = [make_node(number, vcpus_claimed=20 - number) for number in range(20)]
        for seed in range(20):
            ranking = driver.rank(make_request(seed=seed), nodes)
            assert ranking.node_ids == tuple(node.node_id for node in nodes[::-1])


class TestFilterWithoutWeights(SchedulerContract, plugin="filter", settings={"weights": {}}):
    def test_takes_any(self, driver: Scheduler) -> None:
        first = {
            driver.rank(make_request(seed=seed), make_cluster(40)).node_ids[0]
            for seed in range(100)
        }
        assert len(first) > 5


class TestFilterStacking(
    SchedulerContract, plugin="filter", settings={"weights": {"memory": -1.0}, "choose_among": 1}
):
    def test_negative_multiplier_fills_nodes_up(self, driver: Scheduler) -> None:
        nodes = [make_node(1), make_node(2, memory_claimed_mib=30000)]
        assert driver.rank(make_request(), nodes).node_ids[0] == nodes[1].node_id


LoaderOf = Callable[[dict[str, Any]], PluginLoader]


@pytest.fixture
def loader_of(tmp_path: Path) -> LoaderOf:
    """Return a maker of loaders that give settings to the scheduler."""

    def make(settings: dict[str, Any]) -> PluginLoader:
        return PluginLoader(
            node_name="node-1",
            state_dir=tmp_path,
            run_dir=tmp_path,
            settings=lambda group, name: settings if group == "appliance.scheduler" else {},
        )

    return make


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"filters": ["up", "zoen"]},
                "No plugin 'zoen' in appliance.filter; .*zone",
            ),
            ({"weights": {"memroy": 1.0}}, "No plugin 'memroy' in appliance.weight; .*memory"),
        ],
    )
    def test_unknown_names_list_what_is_installed(
        self, loader_of: LoaderOf, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(PluginError, match=message):
            loader_of(settings).create("appliance.scheduler", "filter")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"weights": {"memory": "much"}}, r"Expected `float`, got `str` - at `\$.weights"),
            ({"weights": {"memory": float("nan")}}, "multiplier of weight 'memory' is nan"),
            ({"choose_among": 0}, r">= 1 - at `\$.choose_among`"),
            ({"chose_among": 2}, "no setting 'chose_among'; it has filters, weights, choose_among"),
        ],
    )
    def test_wrong_settings_name_the_place(
        self, loader_of: LoaderOf, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            loader_of(settings).create("appliance.scheduler", "filter")
