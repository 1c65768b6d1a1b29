"""The whole life of an instance, as a user of boto3 has it: nothing here but what EC2 offers."""

from __future__ import annotations

import base64

import pytest

from tests.node.cloud import BOOT_S, Cloud, Instance, tcp
from tests.node.place import GATEWAY, Place
from tests.rig import wait_for

pytestmark = pytest.mark.node

SMALL_MIB, LARGER_MIB = 512, 1024


def memory_mib(place: Place, instance_id: str) -> int:
    """Return how much memory the domain has, as libvirt tells."""
    lines = place.rig.run(["virsh", "dominfo", f"anynode-{instance_id}"]).splitlines()
    [kib] = [line.split()[2] for line in lines if line.startswith("Max memory:")]
    return int(kib) // 1024


@pytest.mark.timeout(600)
def test_a_whole_life_with_boto3(cloud: Cloud, place: Place) -> None:
    key = cloud.create_key_pair(KeyName="life", KeyType="ed25519")
    assert key["KeyMaterial"].startswith("-----BEGIN")
    [vpc] = cloud.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    [subnet] = cloud.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])[
        "Subnets"
    ]
    group_id = cloud.create_security_group(
        GroupName="life", Description="A whole life", VpcId=vpc["VpcId"]
    )["GroupId"]
    cloud.authorize_security_group_ingress(
        GroupId=group_id, IpPermissions=[tcp(22, f"{GATEWAY}/32")]
    )
    tags = [{"Key": "Name", "Value": "life"}]
    instance = cloud.launch(
        InstanceType="t3.nano",
        KeyName="life",
        SubnetId=subnet["SubnetId"],
        SecurityGroupIds=[group_id],
        UserData="#!/bin/sh\necho lived\n",
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    ids = [instance.instance_id]
    cloud.wait("instance_running", instance.instance_id)
    found = instance.describe()
    assert (found["VpcId"], found["SubnetId"]) == (vpc["VpcId"], subnet["SubnetId"])
    assert found["SecurityGroups"] == [{"GroupId": group_id, "GroupName": "life"}]
    assert memory_mib(place, instance.instance_id) == SMALL_MIB
    cloud.wait("instance_status_ok", instance.instance_id)
    wait_for(lambda: instance.boots() == 1, BOOT_S, "the first boot")
    wait_for(lambda: "lived" in instance.console(), BOOT_S, "user data to have run")

    cloud.create_tags(Resources=ids, Tags=[{"Key": "stage", "Value": "live"}])
    asked = [{"Name": "resource-id", "Values": ids}]
    assert {tag["Key"] for tag in cloud.describe_tags(Filters=asked)["Tags"]} == {"Name", "stage"}
    tagged = cloud.describe_instances(Filters=[{"Name": "tag:stage", "Values": ["live"]}])
    assert [each["InstanceId"] for each in tagged["Reservations"][0]["Instances"]] == ids
    cloud.delete_tags(Resources=ids, Tags=[{"Key": "stage"}])
    assert instance.describe()["Tags"] == tags

    cloud.reboot_instances(InstanceIds=ids)
    wait_for(lambda: instance.boots() == 2, BOOT_S, "the second boot")
    cloud.stop_instances(InstanceIds=ids)
    cloud.wait("instance_stopped", instance.instance_id)
    cloud.modify_instance_attribute(
        InstanceId=instance.instance_id, InstanceType={"Value": "t3.micro"}
    )
    cloud.modify_instance_attribute(
        InstanceId=instance.instance_id, DisableApiTermination={"Value": True}
    )
    cloud.start_instances(InstanceIds=ids)
    cloud.wait("instance_running", instance.instance_id)
    assert instance.describe()["InstanceType"] == "t3.micro"
    assert memory_mib(place, instance.instance_id) == LARGER_MIB
    data = cloud.describe_instance_attribute(InstanceId=ids[0], Attribute="userData")["UserData"]
    assert base64.b64decode(data["Value"]) == b"#!/bin/sh\necho lived\n"

    with pytest.raises(cloud.client.exceptions.ClientError, match="OperationNotPermitted"):
        cloud.terminate_instances(InstanceIds=ids)
    cloud.modify_instance_attribute(
        InstanceId=instance.instance_id, DisableApiTermination={"Value": False}
    )
    end(cloud, instance)
    cloud.delete_security_group(GroupId=group_id)
    cloud.delete_key_pair(KeyName="life")
    place.verify()


def end(cloud: Cloud, instance: Instance) -> None:
    """Terminate it as a user does, and see that it leaves nothing but its row."""
    tap = instance.tap
    cloud.terminate_instances(InstanceIds=[instance.instance_id])
    cloud.wait("instance_terminated", instance.instance_id)
    assert tap not in instance.place.taps()
    assert instance.place.qemu_pid(instance.instance_id) is None
