"""Contract of filter plugins: ``class TestMine(FilterContract, plugin="mine"): ...``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from appliance.hooks import Filters
from appliance.model import NodeView, PlacementRequest
from appliance.testing.nodes import ZONES, make_cluster, make_request
from appliance.testing.plugin import PluginContract, RecordProperty


class FilterContract(PluginContract):
    """What the ``filter`` scheduler relies on, whatever the plugin refuses."""

    group = "appliance.filter"

    @pytest.fixture
    def driver(self, made: object) -> Filters:
        """Return the plugin as the scheduler calls it."""
        return Filters({self.plugin: made})

    @pytest.fixture(params=[None, *ZONES])
    def request_(self, request: pytest.FixtureRequest) -> PlacementRequest:
        """Return requests that a filter may tell apart."""
        return make_request(zone=request.param)

    def refuse(
        self, driver: Filters, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        """Return the answer to one question."""
        [(_, refuse)] = driver.named()
        return list(refuse(request, nodes))

    def test_answers_once_per_node(self, driver: Filters, request_: PlacementRequest) -> None:
        for count in (0, 1, 100):
            assert len(self.refuse(driver, request_, make_cluster(count))) == count

    def test_same_question_has_the_same_answer(
        self, driver: Filters, request_: PlacementRequest
    ) -> None:
        nodes = make_cluster(200)
        assert self.refuse(driver, request_, nodes) == self.refuse(driver, request_, nodes)

    def test_order_of_nodes_does_not_count(
        self, driver: Filters, request_: PlacementRequest
    ) -> None:
        nodes = make_cluster(200)
        backwards = self.refuse(driver, request_, nodes[::-1])
        assert backwards[::-1] == self.refuse(driver, request_, nodes)

    def test_reasons_are_few_and_short_phrases(
        self, driver: Filters, request_: PlacementRequest
    ) -> None:
        reasons = set(self.refuse(driver, request_, make_cluster(1000))) - {None}
        assert len(reasons) <= 6, "a reason is counted, so it names nothing of a single node"
        for reason in reasons:
            assert reason is not None
            assert len(reason) <= 80
            assert reason == reason.strip().rstrip(".")

    def test_10000_nodes(self, driver: Filters, record_property: RecordProperty) -> None:
        nodes = make_cluster(10_000)
        before = time.process_time()
        self.refuse(driver, make_request(zone=ZONES[0]), nodes)
        # Reported and not asserted: how fast the machine is, is not the plugin's.
        record_property("cpu_ms_10000_nodes", round((time.process_time() - before) * 1000, 1))
