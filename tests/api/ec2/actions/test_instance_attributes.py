"""DescribeInstanceAttribute: the asked element is always there."""

from __future__ import annotations

import base64
from typing import Any

import botocore.session
import pytest

from appliance.api.ec2.actions.instance_attributes import ELEMENTS
from tests.api.front import Front, code_of

MISSING = "i-0123456789abcdef0"

_model = botocore.session.get_session().get_service_model("ec2")

PLAIN: dict[str, tuple[str, Any]] = {
    "disableApiStop": ("DisableApiStop", {"Value": False}),
    "disableApiTermination": ("DisableApiTermination", {"Value": False}),
    "ebsOptimized": ("EbsOptimized", {"Value": False}),
    "enaSupport": ("EnaSupport", {"Value": False}),
    "enclaveOptions": ("EnclaveOptions", {"Enabled": False}),
    "instanceInitiatedShutdownBehavior": ("InstanceInitiatedShutdownBehavior", {"Value": "stop"}),
    "instanceType": ("InstanceType", {"Value": "m1.tiny"}),
    "kernel": ("KernelId", {}),
    "productCodes": ("ProductCodes", []),
    "ramdisk": ("RamdiskId", {}),
    "rootDeviceName": ("RootDeviceName", {"Value": "/dev/vda"}),
    "sourceDestCheck": ("SourceDestCheck", {"Value": True}),
    "sriovNetSupport": ("SriovNetSupport", {}),
    "userData": ("UserData", {}),
}


def ask(ec2: Any, instance_id: str, attribute: str) -> dict[str, Any]:
    reply = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=attribute)
    assert reply.pop("ResponseMetadata")
    assert reply.pop("InstanceId") == instance_id
    return dict(reply)


def test_every_documented_attribute_has_its_element() -> None:
    names = _model.shape_for("InstanceAttributeName").enum
    assert set(ELEMENTS) == set(names)
    members = _model.operation_model("DescribeInstanceAttribute").output_shape.members
    assert {member for member, _ in ELEMENTS.values()} == set(members) - {"InstanceId"}


def test_a_plain_instance_has_the_defaults(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    for attribute, (member, value) in PLAIN.items():
        assert ask(ec2, instance_id, attribute) == {member: value}, attribute


def test_what_was_asked_for_at_the_launch_is_told(front: Front, ec2: Any) -> None:
    kernel = front.make_image(kind="kernel", format="kernel", name="k").image_id
    ramdisk = front.make_image(kind="ramdisk", format="ramdisk", name="r").image_id
    [instance_id] = front.run(
        KernelId=kernel,
        RamdiskId=ramdisk,
        UserData="#!/bin/sh\n",
        DisableApiStop=True,
        DisableApiTermination=True,
        InstanceInitiatedShutdownBehavior="terminate",
    )
    expected = {
        "kernel": {"KernelId": {"Value": kernel}},
        "ramdisk": {"RamdiskId": {"Value": ramdisk}},
        "userData": {"UserData": {"Value": base64.b64encode(b"#!/bin/sh\n").decode()}},
        "disableApiStop": {"DisableApiStop": {"Value": True}},
        "disableApiTermination": {"DisableApiTermination": {"Value": True}},
        "instanceInitiatedShutdownBehavior": {
            "InstanceInitiatedShutdownBehavior": {"Value": "terminate"}
        },
    }
    for attribute, reply in expected.items():
        assert ask(ec2, instance_id, attribute) == reply


def test_groups_and_disks_are_those_of_describe_instances(front: Front, ec2: Any) -> None:
    group_id = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    [instance_id] = front.run(SecurityGroupIds=[group_id])
    front.make_running([instance_id])
    [instance] = ec2.describe_instances()["Reservations"][0]["Instances"]
    disks = ask(ec2, instance_id, "blockDeviceMapping")
    assert disks == {"BlockDeviceMappings": instance["BlockDeviceMappings"]}
    groups = ask(ec2, instance_id, "groupSet")
    assert groups == {"Groups": [{"GroupId": group_id, "GroupName": "web"}]}
    front.make_terminated([instance_id])
    assert ask(ec2, instance_id, "groupSet") == {"Groups": []}
    assert ask(ec2, instance_id, "blockDeviceMapping") == {"BlockDeviceMappings": []}


@pytest.mark.parametrize(
    ("instance_id", "attribute", "code"),
    [
        (MISSING, "userData", "InvalidInstanceID.NotFound"),
        ("i-x", "userData", "InvalidInstanceID.Malformed"),
        (MISSING, "colour", "InvalidParameterValue"),
    ],
)
def test_bad_requests(ec2: Any, instance_id: str, attribute: str, code: str) -> None:
    describe = ec2.describe_instance_attribute
    assert code_of(describe, InstanceId=instance_id, Attribute=attribute) == code


def test_anothers_user_data_is_not_told(front: Front) -> None:
    [instance_id] = front.run(UserData="secret")
    other = front.client(front.make_project("other"))
    asked = {"InstanceId": instance_id, "Attribute": "userData"}
    assert code_of(other.describe_instance_attribute, **asked) == "InvalidInstanceID.NotFound"
