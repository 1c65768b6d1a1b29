from __future__ import annotations

from typing import Any

import pytest

from appliance.hooks import Filters
from appliance.testing.filter import FilterContract
from appliance.testing.nodes import make_node, make_request


class TestCapacity(FilterContract, plugin="capacity"):
    @pytest.mark.parametrize(
        ("claimed", "reason"),
        [
            ({}, None),
            ({"vcpus_claimed": 30}, None),
            ({"vcpus_claimed": 31}, "has too few free vcpus"),
            ({"memory_claimed_mib": 65536 - 2048}, None),
            ({"memory_claimed_mib": 65536 - 2047}, "has too little free memory"),
            ({"disk_claimed_gib": 980}, None),
            ({"disk_claimed_gib": 981}, "has too little free disk"),
            ({"vcpus_claimed": 40}, "has too few free vcpus"),
            ({"vcpus_claimed": 32, "disk_claimed_gib": 1000}, "has too few free vcpus"),
        ],
    )
    def test_takes_what_just_fits(
        self, driver: Filters, claimed: dict[str, Any], reason: str | None
    ) -> None:
        assert self.refuse(driver, make_request(), [make_node(1, **claimed)]) == [reason]

    def test_an_instance_without_a_disk_fits_on_a_full_disk(self, driver: Filters) -> None:
        node = make_node(1, disk_claimed_gib=1000)
        assert self.refuse(driver, make_request(disk_gib=0), [node]) == [None]
