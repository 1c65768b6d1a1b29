from __future__ import annotations

from appliance.hooks import Filters
from appliance.testing.filter import FilterContract
from appliance.testing.nodes import make_node, make_request


class TestZone(FilterContract, plugin="zone"):
    def test_refuses_other_zones(self, driver: Filters) -> None:
        nodes = [make_node(1, zone="zone-a"), make_node(2, zone="zone-b")]
        reasons = self.refuse(driver, make_request(zone="zone-a"), nodes)
        assert reasons == [None, "is in another availability zone"]

    def test_lets_all_through_when_no_zone_was_asked_for(self, driver: Filters) -> None:
        nodes = [make_node(1, zone="zone-a"), make_node(2, zone="zone-b")]
        assert self.refuse(driver, make_request(), nodes) == [None, None]
