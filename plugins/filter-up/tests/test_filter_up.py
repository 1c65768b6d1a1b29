from __future__ import annotations

from appliance.hooks import Filters
from appliance.testing.filter import FilterContract
from appliance.testing.nodes import make_node, make_request


class TestUp(FilterContract, plugin="up"):
    def test_refuses_what_is_down_or_closed(self, driver: Filters) -> None:
        nodes = [
            make_node(1),
            make_node(2, is_up=False),
            make_node(3, accepts_instances=False),
            make_node(4, is_up=False, accepts_instances=False),
        ]
        reasons = self.refuse(driver, make_request(), nodes)
        assert reasons == [None, "is down", "takes no new instances", "is down"]
