"""Network interfaces: each comes and goes with its instance."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.ec2.actions.counting import counted_statements
from tests.api.ec2.examples.instances import launched, running
from tests.api.ec2.examples.networks import where
from tests.api.ec2.examples.others import new_group
from tests.api.ec2.examples.stage import Stage
from tests.api.front import Front


def described(stage: Stage, **filters: Any) -> list[dict[str, Any]]:
    found = stage.ask("DescribeNetworkInterfaces", Filters=where(**filters))
    return list(found["NetworkInterfaces"])


def instance_of(stage: Stage, instance_id: str) -> dict[str, Any]:
    [found] = stage.ask("DescribeInstances", InstanceIds=[instance_id])["Reservations"]
    return dict(found["Instances"][0])


@pytest.fixture(scope="module")
def instance(stage: Stage) -> dict[str, Any]:
    [instance_id] = running(stage, SecurityGroupIds=[new_group(stage), new_group(stage)])
    return instance_of(stage, instance_id)


@pytest.fixture(scope="module")
def interface(stage: Stage, instance: dict[str, Any]) -> dict[str, Any]:
    [found] = described(stage, **{"attachment.instance-id": instance["InstanceId"]})
    return found


def test_it_says_what_its_instance_says(
    stage: Stage, instance: dict[str, Any], interface: dict[str, Any]
) -> None:
    [shown] = instance["NetworkInterfaces"]
    assert shown["Attachment"].items() <= interface["Attachment"].items()
    assert interface["Attachment"]["InstanceId"] == instance["InstanceId"]
    assert interface["Attachment"]["InstanceOwnerId"] == stage.project_id
    for member in set(shown) & set(interface) - {"Attachment", "Groups"}:
        assert interface[member] == shown[member], member
    by_id = [
        {each["GroupId"]: each["GroupName"] for each in one["Groups"]} for one in (shown, interface)
    ]
    assert by_id[0] == by_id[1]
    assert len(by_id[0]) == 2
    assert interface["PrivateIpAddress"] == instance["PrivateIpAddress"]
    assert interface["PrivateDnsName"] == instance["PrivateDnsName"]
    assert interface["AvailabilityZone"] == instance["Placement"]["AvailabilityZone"]


def test_one_without_an_address_yet(stage: Stage) -> None:
    [instance_id] = launched(stage)
    [found] = described(stage, **{"attachment.instance-id": instance_id})
    assert found["PrivateIpAddresses"] == []
    assert "PrivateIpAddress" not in found
    assert not described(
        stage, **{"attachment.instance-id": instance_id, "addresses.primary": "true"}
    )


FITTING = {
    "addresses.primary": "true",
    "addresses.private-ip-address": "{PrivateIpAddress}",
    "attachment.attachment-id": "{Attachment[AttachmentId]}",
    "attachment.attach-time": "{Attachment[AttachTime]:%Y-%m-%dT%H}*",
    "attachment.delete-on-termination": "true",
    "attachment.device-index": "0",
    "attachment.instance-owner-id": "{OwnerId}",
    "attachment.status": "attached",
    "availability-zone": "local-1a",
    "group-id": "{Groups[0][GroupId]}",
    "group-name": "{Groups[1][GroupName]}",
    "interface-type": "interface",
    "mac-address": "{MacAddress}",
    "network-interface-id": "{NetworkInterfaceId}",
    "operator.managed": "false",
    "owner-id": "{OwnerId}",
    "private-dns-name": "{PrivateDnsName}",
    "private-ip-address": "{PrivateIpAddress}",
    "requester-managed": "false",
    "source-dest-check": "true",
    "status": "in-use",
    "subnet-id": "{SubnetId}",
    "vpc-id": "{VpcId}",
}


@pytest.mark.parametrize("name", FITTING)
def test_filters(stage: Stage, interface: dict[str, Any], name: str) -> None:
    own = {"network-interface-id": interface["NetworkInterfaceId"]}
    value = FITTING[name].format(**interface)
    assert described(stage, **own | {name: value})
    assert described(stage, **own, **({name: ["x", value]} if name not in own else {}))
    if name not in own:
        assert not described(stage, **own | {name: "x"})


@pytest.mark.parametrize(
    "name",
    ["association.public-ip", "association.allocation-id", "ipv6-addresses.ipv6-address"],
)
def test_what_no_interface_has_fits_none(
    stage: Stage, interface: dict[str, Any], name: str
) -> None:
    assert not described(stage, **{name: "*"})


def test_ids(stage: Stage, neighbour: Stage, interface: dict[str, Any]) -> None:
    port_id = interface["NetworkInterfaceId"]
    ask, many = "DescribeNetworkInterfaces", ["eni-0123456789abcdef0", port_id]
    assert len(stage.ask(ask, NetworkInterfaceIds=[port_id])["NetworkInterfaces"]) == 1
    missing = "InvalidNetworkInterfaceID.NotFound"
    assert stage.refusal(ask, NetworkInterfaceIds=many) == missing
    assert neighbour.refusal(ask, NetworkInterfaceIds=[port_id]) == missing
    assert described(neighbour) == []
    malformed = "InvalidNetworkInterfaceId.Malformed"
    assert stage.refusal(ask, NetworkInterfaceIds=["eni-x"]) == malformed
    together = stage.refusal(ask, NetworkInterfaceIds=[port_id], MaxResults=5)
    assert together == "InvalidParameterCombination"


def test_they_end_with_their_instance_and_free_its_group(front: Front) -> None:
    """Terraform looks for interfaces of a group before it deletes the group."""
    stage = Stage(front)
    group = new_group(stage)
    ids = running(stage, 2, SecurityGroupIds=[group])
    assert len(described(stage, group_id=group)) == 2
    assert stage.refusal("DeleteSecurityGroup", GroupId=group) == "DependencyViolation"
    front.make_terminated(ids)
    assert described(stage, group_id=group) == []
    stage.ask("DeleteSecurityGroup", GroupId=group)
    assert stage.refusal("DescribeSecurityGroups", GroupIds=[group]) == "InvalidGroup.NotFound"


def test_pages_and_statements_of_many(front: Front) -> None:
    stage = Stage(front)
    running(stage)
    with counted_statements(front) as of_one:
        assert len(described(stage)) == 1
    running(stage, 12)
    with counted_statements(front) as of_many:
        everything = [each["NetworkInterfaceId"] for each in described(stage)]
    assert len(of_one) == len(of_many) <= 5
    assert len(everything) == 13
    found: list[str] = []
    more: dict[str, str] = {}
    sizes = []
    while True:
        reply = stage.ask("DescribeNetworkInterfaces", MaxResults=6, **more)
        sizes.append(len(reply["NetworkInterfaces"]))
        found += [each["NetworkInterfaceId"] for each in reply["NetworkInterfaces"]]
        if "NextToken" not in reply:
            break
        more = {"NextToken": reply["NextToken"]}
    assert sizes == [6, 6, 1]
    assert found == everything
