"""DescribeVpcAttribute: what a VPC here does, whatever the question."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.front import code_of, error_of


@pytest.mark.parametrize(
    ("attribute", "member", "value"),
    [
        ("enableDnsSupport", "EnableDnsSupport", True),
        ("enableDnsHostnames", "EnableDnsHostnames", False),
        ("enableNetworkAddressUsageMetrics", "EnableNetworkAddressUsageMetrics", False),
    ],
)
def test_each_attribute_has_a_value(ec2: Any, attribute: str, member: str, value: bool) -> None:
    [vpc] = ec2.describe_vpcs()["Vpcs"]
    reply = ec2.describe_vpc_attribute(VpcId=vpc["VpcId"], Attribute=attribute)
    assert reply["VpcId"] == vpc["VpcId"]
    assert {name: reply[name] for name in reply if name.startswith("Enable")} == {
        member: {"Value": value}
    }


def test_a_vpc_that_is_not_there(ec2: Any) -> None:
    asked = {"VpcId": "vpc-0123456789abcdef0", "Attribute": "enableDnsSupport"}
    assert error_of(ec2.describe_vpc_attribute, **asked) == {
        "Code": "InvalidVpcID.NotFound",
        "Message": "The vpc ID 'vpc-0123456789abcdef0' does not exist",
    }


def test_an_attribute_that_nobody_knows(ec2: Any) -> None:
    [vpc] = ec2.describe_vpcs()["Vpcs"]
    asked = {"VpcId": vpc["VpcId"], "Attribute": "enableMagic"}
    assert code_of(ec2.describe_vpc_attribute, **asked) == "InvalidParameterValue"
