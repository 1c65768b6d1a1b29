"""VPCs and subnets: the defaults are always there, and counts are true."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.model import NetworkSpec
from appliance.store import networks
from appliance.store import setup as store_setup
from tests.api.ec2.actions.counting import counted_statements
from tests.api.ec2.examples.networks import where
from tests.api.ec2.examples.stage import Stage
from tests.api.front import Front

DEFAULT_PREFIX = 24
TAKEN_BY_EC2 = 5


def vpcs(stage: Stage, **filters: Any) -> list[str]:
    found = stage.ask("DescribeVpcs", Filters=where(**filters))["Vpcs"]
    return [vpc["VpcId"] for vpc in found]


def subnets(stage: Stage, **filters: Any) -> list[str]:
    found = stage.ask("DescribeSubnets", Filters=where(**filters))["Subnets"]
    return [subnet["SubnetId"] for subnet in found]


@pytest.fixture(scope="module")
def vpc(stage: Stage) -> dict[str, Any]:
    [found] = stage.ask("DescribeVpcs")["Vpcs"]
    return dict(found)


@pytest.fixture(scope="module")
def subnet(stage: Stage) -> dict[str, Any]:
    [found] = stage.ask("DescribeSubnets")["Subnets"]
    return dict(found)


class TestVpcs:
    def test_it_has_ec2s_shape(self, stage: Stage, vpc: dict[str, Any]) -> None:
        vpc_id = vpc["VpcId"]
        assert vpc == {
            "VpcId": vpc_id,
            "OwnerId": stage.project_id,
            "State": "available",
            "CidrBlock": "10.64.0.0/16",
            "CidrBlockAssociationSet": [
                {
                    "AssociationId": vpc_id.replace("vpc-", "vpc-cidr-assoc-"),
                    "CidrBlock": "10.64.0.0/16",
                    "CidrBlockState": {"State": "associated"},
                }
            ],
            "DhcpOptionsId": "default",
            "InstanceTenancy": "default",
            "IsDefault": True,
            "BlockPublicAccessStates": {"InternetGatewayBlockMode": "off"},
            "Tags": [],
        }

    def test_everybody_owns_it(self, neighbour: Stage, vpc: dict[str, Any]) -> None:
        [seen] = neighbour.ask("DescribeVpcs", VpcIds=[vpc["VpcId"]])["Vpcs"]
        assert seen["OwnerId"] == neighbour.project_id

    @pytest.mark.parametrize(
        ("filters", "fits"),
        [
            ({"is-default": "true"}, True),
            ({"isDefault": "true"}, True),
            ({"is-default": "false"}, False),
            ({"is-default": "maybe"}, False),
            ({"is-default": ["true", "false"]}, True),
            ({"cidr": "10.64.0.0/16"}, True),
            ({"cidr": "10.64.*"}, True),
            ({"cidr": "10.65.0.0/16"}, False),
            ({"cidr-block-association.cidr-block": "10.64.0.0/16"}, True),
            ({"cidr-block-association.state": "associated"}, True),
            ({"cidr-block-association.association-id": "vpc-cidr-assoc-*"}, True),
            ({"cidr-block-association.association-id": "vpc-*0000000000"}, False),
            ({"dhcp-options-id": "default"}, True),
            ({"ipv6-cidr-block-association.state": "*"}, False),
            ({"state": "available"}, True),
            ({"state": "pending"}, False),
            ({"state": "available", "is-default": "false"}, False),
            ({"owner-id": "000000000000"}, False),
            ({"vpc-id": "vpc-*"}, True),
        ],
    )
    def test_filters(self, stage: Stage, filters: dict[str, Any], fits: bool) -> None:
        assert bool(vpcs(stage, **filters)) is fits

    def test_the_owner_is_who_asks(self, stage: Stage, neighbour: Stage) -> None:
        owned = {"owner-id": stage.project_id}
        assert vpcs(stage, **owned)
        assert not vpcs(neighbour, **owned)

    @pytest.mark.parametrize(
        ("vpc_id", "code"),
        [
            ("vpc-0123456789abcdef0", "InvalidVpcID.NotFound"),
            ("vpc-01234567", "InvalidVpcID.NotFound"),
            ("vpc-x", "InvalidVpcID.Malformed"),
        ],
    )
    def test_one_that_is_not_there(
        self, stage: Stage, vpc: dict[str, Any], vpc_id: str, code: str
    ) -> None:
        assert stage.refusal("DescribeVpcs", VpcIds=[vpc["VpcId"], vpc_id]) == code


class TestSubnets:
    def test_it_has_ec2s_shape(self, stage: Stage, subnet: dict[str, Any]) -> None:
        subnet_id = subnet["SubnetId"]
        assert subnet == {
            "SubnetId": subnet_id,
            "SubnetArn": f"arn:aws:ec2:local-1:{stage.project_id}:subnet/{subnet_id}",
            "VpcId": vpcs(stage)[0],
            "OwnerId": stage.project_id,
            "State": "available",
            "CidrBlock": "10.64.0.0/24",
            "AvailableIpAddressCount": 2 ** (32 - DEFAULT_PREFIX) - TAKEN_BY_EC2,
            "AvailabilityZone": "local-1a",
            "AvailabilityZoneId": "local-1a",
            "DefaultForAz": True,
            "MapPublicIpOnLaunch": False,
            "MapCustomerOwnedIpOnLaunch": False,
            "AssignIpv6AddressOnCreation": False,
            "Ipv6CidrBlockAssociationSet": [],
            "Ipv6Native": False,
            "EnableDns64": False,
            "PrivateDnsNameOptionsOnLaunch": {
                "HostnameType": "ip-name",
                "EnableResourceNameDnsARecord": False,
                "EnableResourceNameDnsAAAARecord": False,
            },
            "BlockPublicAccessStates": {"InternetGatewayBlockMode": "off"},
            "Tags": [],
        }

    @pytest.mark.parametrize(
        ("filters", "fits"),
        [
            ({"availability-zone": "local-1a"}, True),
            ({"availabilityZone": "local-1?"}, True),
            ({"availability-zone-id": "local-1a"}, True),
            ({"availability-zone": "local-1b"}, False),
            ({"available-ip-address-count": "251"}, True),
            ({"available-ip-address-count": ["1", "2"]}, False),
            ({"available-ip-address-count": "many"}, False),
            ({"cidr": "10.64.0.0/24"}, True),
            ({"cidrBlock": "10.64.0.0/24"}, True),
            ({"cidr-block": "10.64.0.0/2?"}, True),
            ({"cidr-block": "10.64.0.0/16"}, False),
            ({"default-for-az": "true"}, True),
            ({"defaultForAz": "true"}, True),
            ({"default-for-az": "false"}, False),
            ({"map-public-ip-on-launch": "false"}, True),
            ({"map-public-ip-on-launch": "true"}, False),
            ({"ipv6-native": "true"}, False),
            ({"outpost-arn": "*"}, False),
            ({"private-dns-name-options-on-launch.hostname-type": "ip-name"}, True),
            ({"state": ["pending", "available"]}, True),
            ({"subnet-arn": "arn:aws:ec2:local-1:*:subnet/subnet-*"}, True),
            ({"subnet-arn": "arn:aws:ec2:local-2:*"}, False),
            ({"subnet-id": "subnet-*"}, True),
            ({"vpc-id": "vpc-0*", "default-for-az": "true"}, True),
            ({"vpc-id": "vpc-none"}, False),
        ],
    )
    def test_filters(self, stage: Stage, filters: dict[str, Any], fits: bool) -> None:
        assert bool(subnets(stage, **filters)) is fits

    @pytest.mark.parametrize(
        ("subnet_id", "code"),
        [
            ("subnet-0123456789abcdef0", "InvalidSubnetID.NotFound"),
            ("vpc-01234567", "InvalidSubnetID.Malformed"),
        ],
    )
    def test_one_that_is_not_there(self, stage: Stage, subnet_id: str, code: str) -> None:
        assert stage.refusal("DescribeSubnets", SubnetIds=[subnet_id]) == code


def free_addresses(stage: Stage) -> int:
    [found] = stage.ask("DescribeSubnets")["Subnets"]
    count = int(found["AvailableIpAddressCount"])
    assert subnets(stage, **{"available-ip-address-count": str(count)}) == [found["SubnetId"]]
    return count


def test_free_addresses_are_those_that_a_launch_can_get(front: Front) -> None:
    stage = Stage(front)
    before = free_addresses(stage)
    ids = front.run(3)
    assert free_addresses(stage) == before
    front.make_running(ids)
    assert free_addresses(stage) == before - 3
    front.make_terminated(ids[:2])
    assert free_addresses(stage) == before - 3, "their nodes have not confirmed it yet"
    front.clock.offset_s += front.config.network.address_quarantine_s + 1
    assert free_addresses(stage) == before - 1


def test_each_zone_has_its_default(front: Front) -> None:
    stage = Stage(front)
    node = msgspec.structs.replace(front.config.node, zone="local-1b")
    other = msgspec.structs.replace(front.config, node=node)
    front.change(lambda tx: store_setup.prepare(tx, other))
    found = stage.ask("DescribeSubnets", Filters=where(default_for_az="true"))["Subnets"]
    assert [one["AvailabilityZone"] for one in found] == ["local-1a", "local-1b"]
    assert len({one["VpcId"] for one in found}) == 1
    assert found[0]["VpcId"] == vpcs(stage, isDefault="true")[0]


def add_networks(front: Front, count: int) -> None:
    def add(tx: Any) -> None:
        vpc_id = networks.default_vpc(tx)
        for number in range(count):
            spec = NetworkSpec(
                network_id=tx.world.ids.ec2("subnet"),
                vpc_id=vpc_id or "",
                type="flatdhcp",
                cidr=f"10.64.{200 + number}.0/28",
                gateway=f"10.64.{200 + number}.1",
                bridge=f"br{number}",
                dns=(),
                mtu=1500,
            )
            networks.create(tx, spec, zone="local-1a", is_default=False)

    front.change(add)


def test_pages_and_statements_of_many_subnets(front: Front) -> None:
    stage = Stage(front)
    with counted_statements(front) as of_one:
        assert len(subnets(stage)) == 1
    add_networks(front, 10)
    with counted_statements(front) as of_many:
        everything = subnets(stage)
    assert len(of_one) == len(of_many) <= 4
    assert len(everything) == 11
    first = stage.ask("DescribeSubnets", MaxResults=6)
    second = stage.ask("DescribeSubnets", MaxResults=5, NextToken=first["NextToken"])
    assert "NextToken" not in second
    found = [one["SubnetId"] for reply in (first, second) for one in reply["Subnets"]]
    assert found == everything
    assert stage.refusal("DescribeSubnets", MaxResults=4) == "InvalidParameterValue"
    assert stage.refusal("DescribeSubnets", MaxResults=1001) == "InvalidParameterValue"
    assert stage.refusal("DescribeSubnets", NextToken="x") == "InvalidParameterValue"


def test_pages_of_vpcs(front: Front) -> None:
    stage = Stage(front)

    def add(tx: Any) -> None:
        for number in range(6):
            networks.create_vpc(tx, f"10.{number}.0.0/16", is_default=False)

    front.change(add)
    first = stage.ask("DescribeVpcs", MaxResults=5)
    second = stage.ask("DescribeVpcs", MaxResults=5, NextToken=first["NextToken"])
    assert "NextToken" not in second
    found = [one["VpcId"] for reply in (first, second) for one in reply["Vpcs"]]
    assert len(found) == 7
    assert found == sorted(vpcs(stage))
    assert len(vpcs(stage, isDefault="true")) == 1
    assert vpcs(stage, cidr="10.3.0.0/16") == vpcs(stage, **{"vpc-id": vpcs(stage, cidr="10.3*")})
