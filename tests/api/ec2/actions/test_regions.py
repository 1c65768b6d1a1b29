"""Regions, zones, instance types, images and console output."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.instance_types import CATALOG
from appliance.store import Transaction, nodes
from appliance.store.nodes import Node
from tests.api.front import Front, code_of, error_of


def test_the_region_is_at_the_address_that_was_asked(front: Front, ec2: Any) -> None:
    [region] = ec2.describe_regions()["Regions"]
    assert region["RegionName"] == "local-1"
    assert region["Endpoint"] == f"127.0.0.1:{front.server.port}"
    assert code_of(ec2.describe_regions, RegionNames=["mars-1"]) == "InvalidParameterValue"
    none = ec2.describe_regions(Filters=[{"Name": "region-name", "Values": ["mars*"]}])
    assert none["Regions"] == []


def test_zones_are_those_of_the_nodes(front: Front, ec2: Any) -> None:
    def join(tx: Transaction) -> None:
        nodes.join(tx, Node(node_id="node-2", name="n2", zone="local-1b", roles=("compute",)))

    front.change(join)
    found = ec2.describe_availability_zones()["AvailabilityZones"]
    assert [(zone["ZoneName"], zone["State"]) for zone in found][1] == ("local-1b", "unavailable")
    assert {zone["RegionName"] for zone in found} == {"local-1"}
    named = ec2.describe_availability_zones(ZoneNames=["local-1b"])["AvailabilityZones"]
    assert [zone["ZoneName"] for zone in named] == ["local-1b"]
    code = code_of(ec2.describe_availability_zones, ZoneNames=["mars-1a"])
    assert code == "InvalidParameterValue"


def test_every_type_of_the_catalog_is_described(ec2: Any) -> None:
    pages = ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 7})
    found = [each for page in pages for each in page["InstanceTypes"]]
    assert [each["InstanceType"] for each in found] == list(CATALOG)
    assert not any(each["BurstablePerformanceSupported"] for each in found)
    tiny = found[0]
    assert tiny["InstanceType"] == "m1.tiny"
    assert tiny["VCpuInfo"]["DefaultVCpus"] == 1
    assert tiny["MemoryInfo"]["SizeInMiB"] == 512


def test_types_by_name_and_filter(ec2: Any) -> None:
    [one] = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
    assert one["MemoryInfo"]["SizeInMiB"] == 1024
    some = ec2.describe_instance_types(Filters=[{"Name": "instance-type", "Values": ["m1.*"]}])
    assert len(some["InstanceTypes"]) == 5
    refused = error_of(ec2.describe_instance_types, InstanceTypes=["x1.none", "t3.micro"])
    assert refused["Code"] == "InvalidInstanceType"
    assert "x1.none" in refused["Message"]
    for token in ("x", "WyJhIl0", "WzFlOV0", "Wy0xXQ"):
        assert code_of(ec2.describe_instance_types, NextToken=token) == "InvalidParameterValue"


def test_images_with_owner_alias_and_kind(front: Front, ec2: Any) -> None:
    mine = front.make_image(
        project_id=front.keys.project_id, is_public=False, name="mine", description="<mine>"
    )
    kernel = front.make_image(kind="kernel", format="kernel", name="vmlinuz")
    found = {each["ImageId"]: each for each in ec2.describe_images()["Images"]}
    assert set(found) == {front.image.image_id, mine.image_id, kernel.image_id}
    assert found[kernel.image_id]["ImageType"] == "kernel"
    assert kernel.image_id.startswith("aki-")
    assert found[mine.image_id]["Description"] == "<mine>"
    public = found[front.image.image_id]
    assert public["ImageOwnerAlias"] == "amazon"
    assert public["State"] == "available"
    assert public["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", public["CreationDate"])

    def ids(**params: Any) -> set[str]:
        return {each["ImageId"] for each in ec2.describe_images(**params)["Images"]}

    assert ids(Owners=["self"]) == {mine.image_id}
    assert ids(Owners=[front.keys.project_id]) == {mine.image_id}
    assert ids(Owners=["amazon"]) == {front.image.image_id, kernel.image_id}
    assert ids(ExecutableUsers=["self"]) == set()
    assert ids(ExecutableUsers=["all"]) == {front.image.image_id, kernel.image_id}
    assert ids(ImageIds=[mine.image_id]) == {mine.image_id}
    assert ids(Filters=[{"Name": "name", "Values": ["m*"]}]) == {mine.image_id}
    assert ids(Filters=[{"Name": "image-type", "Values": ["kernel"]}]) == {kernel.image_id}
    assert ids(Filters=[{"Name": "is-public", "Values": ["false"]}]) == {mine.image_id}
    assert ids(Filters=[{"Name": "owner-alias", "Values": ["amazon"]}]) == ids(Owners=["amazon"])
    assert ids(Filters=[{"Name": "root-device-type", "Values": ["ebs"]}]) == {
        front.image.image_id,
        mine.image_id,
    }


def test_images_of_others_and_bad_ids(front: Front, ec2: Any) -> None:
    other = front.make_project("other")
    private = front.make_image(project_id=other.project_id, is_public=False)
    refused = error_of(ec2.describe_images, ImageIds=[private.image_id])
    assert refused == {
        "Code": "InvalidAMIID.NotFound",
        "Message": f"The image id '[{private.image_id}]' does not exist",
    }
    assert code_of(ec2.describe_images, ImageIds=["ami-x"]) == "InvalidAMIID.Malformed"
    assert code_of(ec2.describe_images, Owners=["me"]) == "InvalidUserID.Malformed"


def test_the_waiter_of_boto3_finds_the_image(front: Front, ec2: Any) -> None:
    ec2.get_waiter("image_available").wait(
        ImageIds=[front.image.image_id], WaiterConfig={"MaxAttempts": 1}
    )


def test_console_output_is_the_end_of_what_was_printed(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    assert ec2.get_console_output(InstanceId=instance_id)["Output"] == ""
    front.make_running([instance_id])
    front.bus.consoles[instance_id] = b"x" * 70000 + b"login: \x1b[0m\xff"
    reply = ec2.get_console_output(InstanceId=instance_id)
    assert reply["InstanceId"] == instance_id
    assert reply["Output"].startswith("xxxx")
    assert "login: \x1b[0m" in reply["Output"]
    assert len(reply["Output"].encode("utf-8", "replace")) <= 65536 + 2
    [(topic, question)] = front.bus.asked
    assert topic == "compute.node-1"
    assert question.tail_bytes == 65536  # type: ignore[attr-defined]


def test_a_console_whose_node_is_silent_is_unavailable(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    with pytest.raises(ec2.exceptions.ClientError) as caught:
        ec2.get_console_output(InstanceId=instance_id)
    assert caught.value.response["Error"]["Code"] == "Unavailable"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_a_console_of_others_does_not_exist(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    other = front.client(front.make_project("other"))
    code = code_of(other.get_console_output, InstanceId=instance_id)
    assert code == "InvalidInstanceID.NotFound"
    assert code_of(ec2.get_console_output, InstanceId="i-1") == "InvalidInstanceID.Malformed"
    assert front.bus.asked == []
