"""What an account may, and where instance types are on offer."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.instance_types import CATALOG
from tests.api.ec2.examples.networks import where
from tests.api.ec2.examples.stage import Stage


def attributes(stage: Stage, *names: str) -> dict[str, list[str]]:
    asked = {"AttributeNames": list(names)} if names else {}
    found = stage.ask("DescribeAccountAttributes", **asked)["AccountAttributes"]
    return {
        each["AttributeName"]: [value["AttributeValue"] for value in each["AttributeValues"]]
        for each in found
    }


class TestAttributes:
    def test_they_are_the_projects(self, stage: Stage) -> None:
        [vpc] = stage.ask("DescribeVpcs", Filters=where(isDefault="true"))["Vpcs"]
        assert attributes(stage) == {
            "supported-platforms": ["VPC"],
            "default-vpc": [vpc["VpcId"]],
            "max-instances": [str(stage.front.config.quota.instances)],
            "vpc-max-security-groups-per-interface": ["16"],
            "max-elastic-ips": ["0"],
            "vpc-max-elastic-ips": ["0"],
        }

    def test_only_those_asked_for(self, stage: Stage) -> None:
        found = attributes(stage, "max-instances", "supported-platforms", "max-instances")
        assert list(found) == ["max-instances", "supported-platforms"]

    def test_one_that_nobody_knows(self, stage: Stage) -> None:
        refused = stage.refusal("DescribeAccountAttributes", AttributeNames=["max-luck"])
        assert refused == "InvalidParameterValue"


def offered(stage: Stage, **params: Any) -> list[tuple[str, str]]:
    found = stage.ask("DescribeInstanceTypeOfferings", **params)["InstanceTypeOfferings"]
    return [(each["Location"], each["InstanceType"]) for each in found]


class TestOfferings:
    @pytest.mark.parametrize(
        ("kind", "location"),
        [
            (None, "local-1"),
            ("region", "local-1"),
            ("availability-zone", "local-1a"),
            ("availability-zone-id", "local-1a"),
        ],
    )
    def test_every_type_is_everywhere(self, stage: Stage, kind: str | None, location: str) -> None:
        asked = {"LocationType": kind} if kind else {}
        assert offered(stage, **asked) == [(location, name) for name in sorted(CATALOG)]

    def test_there_are_no_outposts(self, stage: Stage) -> None:
        assert offered(stage, LocationType="outpost") == []
        refused = stage.refusal("DescribeInstanceTypeOfferings", LocationType="moon")
        assert refused == "InvalidParameterValue"

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({"instance-type": "t3.micro"}, 1),
            ({"instance-type": ["t3.micro", "t3.small", "x9.none"]}, 2),
            ({"instance-type": "t3.*", "location": "local-1a"}, 7),
            ({"location": "local-1?"}, len(CATALOG)),
            ({"location": "local-1"}, 0),
        ],
    )
    def test_filters_as_packer_asks(
        self, stage: Stage, filters: dict[str, Any], count: int
    ) -> None:
        asked = {"LocationType": "availability-zone", "Filters": where(**filters)}
        assert len(offered(stage, **asked)) == count

    def test_pages(self, stage: Stage) -> None:
        found: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        while True:
            action = "DescribeInstanceTypeOfferings"
            reply = stage.ask(action, MaxResults=7, **more)
            page = [
                (each["Location"], each["InstanceType"]) for each in reply["InstanceTypeOfferings"]
            ]
            found += page
            if "NextToken" not in reply:
                break
            assert len(page) == 7
            more = {"NextToken": reply["NextToken"]}
        assert found == offered(stage)
        assert stage.refusal(action, MaxResults=4) == "InvalidParameterValue"
