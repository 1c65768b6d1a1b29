"""Terraform's and Packer's calls, in their order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.corpus import (
    TerraformInstance,
    TerraformKeyPair,
    TerraformSecurityGroup,
    refusal,
)
from tests.clients.endpoint import Endpoint
from tests.clients.keys import make_public_key

QUICK = {"Delay": 1, "MaxAttempts": 40}


@pytest.fixture(scope="module")
def ec2(endpoint: Endpoint) -> Any:
    """A client that repeats nothing by itself."""
    return endpoint.client("ec2")


@pytest.fixture(scope="module")
def zone(ec2: Any) -> str:
    """The zone to launch in."""
    return str(ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"])


def test_terraform_looks_who_calls_before_anything_else(endpoint: Endpoint) -> None:
    who = endpoint.client("sts").get_caller_identity()
    # It takes the account out of the name.
    assert who["Arn"].split(":")[4] == who["Account"]


def test_terraform_aws_key_pair(ec2: Any) -> None:
    key = TerraformKeyPair(ec2, "terraform-key", make_public_key())
    key.create()
    key.destroy()


@pytest.mark.parametrize("revokes_rules", [False, True])
def test_terraform_aws_security_group(ec2: Any, revokes_rules: bool) -> None:
    group = TerraformSecurityGroup(ec2, f"terraform-group-{revokes_rules}")
    group.create()
    group.update()
    group.destroy(revokes_rules=revokes_rules)


def test_terraform_aws_instance(ec2: Any, endpoint: Endpoint, zone: str) -> None:
    key = TerraformKeyPair(ec2, "terraform", make_public_key())
    group = TerraformSecurityGroup(ec2, "terraform")
    other = TerraformSecurityGroup(ec2, "terraform-other")
    for resource in (key, group, other):
        resource.create()
    instance = TerraformInstance(ec2, endpoint.image_id, group.group_id, key.name)
    instance.create("terraform-1", zone)
    instance.update_tags()
    instance.update_groups(group.group_id, other.group_id)
    instance.update_type("t3.small", b"#!/bin/sh\ntrue\n")
    instance.destroy()
    for resource in (group, other, key):
        resource.destroy()


def test_packer_amazon_ebs_up_to_the_image(ec2: Any, endpoint: Endpoint) -> None:
    taken = ec2.describe_images(
        Filters=[{"Name": "name", "Values": ["packer-made"]}], Owners=["self"]
    )
    assert taken["Images"] == []
    [source] = ec2.describe_images(ImageIds=[endpoint.image_id])["Images"]
    assert source["RootDeviceType"] == "ebs"
    assert source["Architecture"]
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    offered = ec2.describe_instance_type_offerings(
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": ["t3.micro"]}],
    )["InstanceTypeOfferings"]
    zones = {each["Location"] for each in offered}
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])
    subnet = next(each for each in subnets["Subnets"] if each["AvailabilityZone"] in zones)
    assert subnet["AvailableIpAddressCount"] > 0
    key = ec2.create_key_pair(KeyName="packer", KeyType="rsa")
    assert key["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    group_id = ec2.create_security_group(
        GroupName="packer", Description="Temporary group for Packer", VpcId=vpc["VpcId"]
    )["GroupId"]
    ec2.get_waiter("security_group_exists").wait(GroupIds=[group_id], WaiterConfig=QUICK)
    ec2.authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 22,
                "ToPort": 22,
                "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
            }
        ],
    )
    launched = ec2.run_instances(
        ImageId=endpoint.image_id,
        InstanceType="t3.micro",
        UserData="",
        MinCount=1,
        MaxCount=1,
        Placement={"AvailabilityZone": subnet["AvailabilityZone"]},
        EbsOptimized=False,
        KeyName="packer",
        NetworkInterfaces=[
            {
                "DeviceIndex": 0,
                "SubnetId": subnet["SubnetId"],
                "Groups": [group_id],
                "DeleteOnTermination": True,
            }
        ],
        TagSpecifications=[
            {"ResourceType": kind, "Tags": [{"Key": "Name", "Value": "Packer Builder"}]}
            for kind in ("instance", "volume", "network-interface")
        ],
    )
    ids = [launched["Instances"][0]["InstanceId"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
    [found] = ec2.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"]
    assert found["PrivateIpAddress"]
    ec2.create_tags(Resources=ids, Tags=[{"Key": "Builder", "Value": "packer"}])
    ec2.stop_instances(InstanceIds=ids)
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids, WaiterConfig=QUICK)
    # Here it would call CreateImage.
    ec2.terminate_instances(InstanceIds=ids)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=QUICK)
    assert refusal(ec2.delete_security_group, GroupId=group_id) == ""
    assert refusal(ec2.delete_key_pair, KeyName="packer") == ""
