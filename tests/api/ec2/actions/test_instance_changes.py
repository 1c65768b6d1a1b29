"""ModifyInstanceAttribute: what can be changed, when, and what follows."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.messages import PolicyChanged
from appliance.store import schema
from tests.api.front import Front, code_of, error_of

MISSING = "i-0123456789abcdef0"


@pytest.fixture
def running(front: Front) -> str:
    [instance_id] = front.run()
    front.make_running([instance_id])
    front.bus.casts.clear()
    return instance_id


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Any, str]]:
    """An instance that runs, for requests that leave it as it is."""
    front = Front(tmp_path_factory.mktemp("untouched"))
    [instance_id] = front.run()
    front.make_running([instance_id])
    yield front, front.client(), instance_id
    front.close()


def refused_alike(untouched: tuple[Front, Any, str], change: Any) -> dict[str, str]:
    """Return how a change is refused that must leave all instances as they were."""
    front, ec2, instance_id = untouched
    before = front.rows(schema.instances)
    found = error_of(ec2.modify_instance_attribute, InstanceId=instance_id, **change)
    assert front.rows(schema.instances) == before
    return found


@pytest.fixture
def stopped(front: Front, running: str) -> str:
    front.make_stopped([running])
    return running


def attribute_of(ec2: Any, instance_id: str, attribute: str) -> Any:
    reply = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=attribute)
    [value] = [reply[name] for name in reply if name not in ("InstanceId", "ResponseMetadata")]
    return value


FLAGS = ["disableApiStop", "disableApiTermination"]


@pytest.mark.parametrize("attribute", FLAGS)
def test_protection_is_set_in_both_forms(ec2: Any, running: str, attribute: str) -> None:
    member = attribute[0].upper() + attribute[1:]
    ec2.modify_instance_attribute(InstanceId=running, **{member: {"Value": True}})
    assert attribute_of(ec2, running, attribute) == {"Value": True}
    ec2.modify_instance_attribute(InstanceId=running, Attribute=attribute, Value="False")
    assert attribute_of(ec2, running, attribute) == {"Value": False}
    other = next(each for each in FLAGS if each != attribute)
    assert attribute_of(ec2, running, other) == {"Value": False}


def test_protection_works_and_can_be_taken_away(front: Front, ec2: Any, running: str) -> None:
    modify = ec2.modify_instance_attribute
    modify(InstanceId=running, DisableApiTermination={"Value": True})
    refused = error_of(ec2.terminate_instances, InstanceIds=[running])
    assert refused == {
        "Code": "OperationNotPermitted",
        "Message": f"The instance '{running}' may not be terminated. Modify its "
        "'disableApiTermination' instance attribute and try again.",
    }
    modify(InstanceId=running, DisableApiTermination={"Value": False})
    modify(InstanceId=running, DisableApiStop={"Value": True})
    refused = error_of(ec2.stop_instances, InstanceIds=[running])
    assert refused == {
        "Code": "OperationNotPermitted",
        "Message": f"The instance '{running}' may not be stopped. Modify its 'disableApiStop' "
        "instance attribute and try again.",
    }
    refused = error_of(ec2.terminate_instances, InstanceIds=[running])
    assert "'disableApiStop'" in refused["Message"]
    modify(InstanceId=running, DisableApiStop={"Value": False})
    ec2.terminate_instances(InstanceIds=[running])


def test_options_that_were_set_at_launch_are_kept(front: Front, ec2: Any) -> None:
    [instance_id] = front.run(
        MetadataOptions={"HttpTokens": "required"}, Monitoring={"Enabled": True}
    )
    ec2.modify_instance_attribute(InstanceId=instance_id, DisableApiStop={"Value": True})
    [instance] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["Monitoring"]["State"] == "pending"


def test_the_shutdown_behavior_is_set_in_both_forms(ec2: Any, running: str) -> None:
    name = "instanceInitiatedShutdownBehavior"
    modify = ec2.modify_instance_attribute
    modify(InstanceId=running, InstanceInitiatedShutdownBehavior={"Value": "terminate"})
    assert attribute_of(ec2, running, name) == {"Value": "terminate"}
    modify(InstanceId=running, Attribute=name, Value="stop")
    assert attribute_of(ec2, running, name) == {"Value": "stop"}
    code = code_of(modify, InstanceId=running, Attribute=name, Value="explode")
    assert code == "InvalidParameterValue"


def test_user_data_of_a_stopped_instance(front: Front, ec2: Any, stopped: str) -> None:
    modify = ec2.modify_instance_attribute
    modify(InstanceId=stopped, UserData={"Value": b"#!/bin/sh\n\x00\xff"})
    shown = attribute_of(ec2, stopped, "userData")
    assert base64.b64decode(shown["Value"]) == b"#!/bin/sh\n\x00\xff"
    modify(InstanceId=stopped, Attribute="userData", Value=base64.b64encode(b"new" * 5000).decode())
    assert base64.b64decode(attribute_of(ec2, stopped, "userData")["Value"]) == b"new" * 5000
    modify(InstanceId=stopped, UserData={"Value": b""})
    assert attribute_of(ec2, stopped, "userData") == {}
    code = code_of(modify, InstanceId=stopped, UserData={"Value": b"x" * 16385})
    assert code == "InvalidParameterValue"
    code = code_of(modify, InstanceId=stopped, Attribute="userData", Value="%%%")
    assert code == "InvalidUserData.Malformed"


def test_user_data_is_in_no_log(
    front: Front, ec2: Any, stopped: str, caplog: pytest.LogCaptureFixture
) -> None:
    ec2.modify_instance_attribute(InstanceId=stopped, UserData={"Value": b"canary-4711"})
    said = repr(front.rows(schema.audit)) + repr(front.bus.casts) + caplog.text
    assert "userData" in said
    assert "canary-4711" not in said
    assert base64.b64encode(b"canary-4711").decode() not in said


@pytest.mark.parametrize(
    "change",
    [
        {"UserData": {"Value": b"x"}},
        {"InstanceType": {"Value": "t3.nano"}},
        {"Attribute": "instanceType", "Value": "t3.nano"},
    ],
)
def test_some_attributes_need_a_stopped_instance(untouched: Any, change: Any) -> None:
    assert refused_alike(untouched, change) == {
        "Code": "IncorrectInstanceState",
        "Message": f"The instance '{untouched[2]}' is not in the 'stopped' state.",
    }


def test_the_next_start_counts_by_the_new_type(front: Front, ec2: Any, stopped: str) -> None:
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [1, 0, 0]
    ec2.modify_instance_attribute(InstanceId=stopped, InstanceType={"Value": "m1.large"})
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [1, 0, 0]
    [instance] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert instance["InstanceType"] == "m1.large"
    assert instance["CpuOptions"]["CoreCount"] == 4
    ec2.start_instances(InstanceIds=[stopped])
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [1, 4, 8192]
    code = code_of(
        ec2.modify_instance_attribute, InstanceId=stopped, InstanceType={"Value": "m1.tiny"}
    )
    assert code == "IncorrectInstanceState"
    front.make_terminated([stopped])
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [0, 0, 0]


def test_a_type_without_credits_ends_what_was_asked_for_them(front: Front, ec2: Any) -> None:
    kept, ended = front.run(
        2, InstanceType="t3.micro", CreditSpecification={"CpuCredits": "unlimited"}
    )
    front.make_stopped([kept, ended])
    for instance_id, name in ((kept, "t3.small"), (ended, "m5.large")):
        ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": name})
    found = ec2.describe_instance_credit_specifications()["InstanceCreditSpecifications"]
    assert [each["InstanceId"] for each in found] == [kept]


def test_a_type_for_which_the_quota_is_too_small_does_not_start(
    front: Front, ec2: Any, stopped: str
) -> None:
    ec2.modify_instance_attribute(InstanceId=stopped, InstanceType={"Value": "c5.4xlarge"})
    table = schema.quotas
    front.change(
        lambda tx: tx.execute(table.update().where(table.c.resource == "vcpus").values(ceiling=4))
    )
    assert code_of(ec2.start_instances, InstanceIds=[stopped]) == "VcpuLimitExceeded"
    ec2.modify_instance_attribute(InstanceId=stopped, InstanceType={"Value": "m1.tiny"})
    ec2.start_instances(InstanceIds=[stopped])


def test_a_type_that_does_not_exist(ec2: Any, stopped: str) -> None:
    refused = error_of(
        ec2.modify_instance_attribute, InstanceId=stopped, InstanceType={"Value": "z9.huge"}
    )
    assert refused["Code"] == "InvalidInstanceAttributeValue"


def test_kernel_and_ramdisk_of_a_stopped_instance(front: Front, ec2: Any, stopped: str) -> None:
    kernel = front.make_image(kind="kernel", format="kernel", name="k").image_id
    ramdisk = front.make_image(kind="ramdisk", format="ramdisk", name="r").image_id
    modify = ec2.modify_instance_attribute
    modify(InstanceId=stopped, Kernel={"Value": kernel})
    modify(InstanceId=stopped, Attribute="ramdisk", Value=ramdisk)
    assert attribute_of(ec2, stopped, "kernel") == {"Value": kernel}
    assert attribute_of(ec2, stopped, "ramdisk") == {"Value": ramdisk}
    assert code_of(modify, InstanceId=stopped, Kernel={"Value": ramdisk}) == "InvalidAMIID.NotFound"
    assert code_of(modify, InstanceId=stopped, Kernel={"Value": "x"}) == "InvalidAMIID.Malformed"


def test_groups_change_at_once(front: Front, ec2: Any, running: str) -> None:
    ids = [ec2.create_security_group(GroupName=name, Description="d")["GroupId"] for name in "ab"]
    front.enforce_policy()
    front.bus.casts.clear()
    ec2.modify_instance_attribute(InstanceId=running, Groups=ids)
    [instance] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert {group["GroupId"] for group in instance["SecurityGroups"]} == set(ids)
    assert instance["NetworkInterfaces"][0]["Groups"] == instance["SecurityGroups"]
    told = [message for _, message in front.bus.casts if isinstance(message, PolicyChanged)]
    assert told
    front.bus.casts.clear()
    ec2.modify_instance_attribute(InstanceId=running, Groups=list(reversed(ids)))
    assert front.bus.casts == []
    ec2.modify_instance_attribute(InstanceId=running, Attribute="groupSet", Value=ids[0])
    assert attribute_of(ec2, running, "groupSet") == [{"GroupId": ids[0], "GroupName": "a"}]
    ec2.delete_security_group(GroupId=ids[1])
    assert code_of(ec2.delete_security_group, GroupId=ids[0]) == "DependencyViolation"


def test_groups_that_cannot_be(front: Front, ec2: Any, running: str) -> None:
    modify = ec2.modify_instance_attribute
    absent = "sg-0123456789abcdef0"
    assert code_of(modify, InstanceId=running, Groups=[absent]) == "InvalidGroup.NotFound"
    assert code_of(modify, InstanceId=running, Groups=["web"]) == "InvalidGroupId.Malformed"
    other = front.client(front.make_project("other"))
    foreign = other.create_security_group(GroupName="x", Description="d")["GroupId"]
    assert code_of(modify, InstanceId=running, Groups=[foreign]) == "InvalidGroup.NotFound"
    many = [
        ec2.create_security_group(GroupName=f"g{number}", Description="d")["GroupId"]
        for number in range(17)
    ]
    code = code_of(modify, InstanceId=running, Groups=many)
    assert code == "SecurityGroupsPerInterfaceLimitExceeded"
    assert [group["GroupName"] for group in attribute_of(ec2, running, "groupSet")] == ["default"]


@pytest.mark.parametrize(
    "change",
    [
        {"SourceDestCheck": {"Value": True}},
        {"Attribute": "sourceDestCheck", "Value": "true"},
        {"EbsOptimized": {"Value": False}},
        {"EnaSupport": {"Value": False}},
        {"EnclaveOptions": {"Enabled": False}},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/vda"}]},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/vda", "Ebs": {"DeleteOnTermination": True}}]},
    ],
)
def test_what_is_so_anyway_may_be_asked_for(untouched: Any, change: Any) -> None:
    front, ec2, instance_id = untouched
    before = front.rows(schema.instances)
    ec2.modify_instance_attribute(InstanceId=instance_id, **change)
    assert front.rows(schema.instances) == before


KEPT = [{"DeviceName": "/dev/vda", "Ebs": {"DeleteOnTermination": False}}]
OTHERS = [{"DeviceName": "/dev/vda", "Ebs": {"VolumeId": "vol-0123456789abcdef0"}}]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, "InvalidParameterCombination"),
        (
            {"DisableApiStop": {"Value": True}, "DisableApiTermination": {"Value": True}},
            "InvalidParameterCombination",
        ),
        (
            {"Attribute": "disableApiStop", "DisableApiTermination": {"Value": True}},
            "InvalidParameterCombination",
        ),
        ({"Attribute": "disableApiStop"}, "MissingParameter"),
        ({"Attribute": "disableApiStop", "Value": "maybe"}, "InvalidParameterValue"),
        ({"Attribute": "rootDeviceName", "Value": "/dev/vdb"}, "InvalidParameterValue"),
        ({"Attribute": "productCodes", "Value": "x"}, "InvalidParameterValue"),
        ({"Attribute": "colour", "Value": "red"}, "InvalidParameterValue"),
        ({"Attribute": "sourceDestCheck", "Value": "false"}, "UnsupportedOperation"),
        ({"SourceDestCheck": {"Value": False}}, "UnsupportedOperation"),
        ({"EbsOptimized": {"Value": True}}, "UnsupportedOperation"),
        ({"EnaSupport": {"Value": True}}, "UnsupportedOperation"),
        ({"SriovNetSupport": {"Value": "simple"}}, "UnsupportedOperation"),
        ({"EnclaveOptions": {"Enabled": True}}, "UnsupportedOperation"),
        ({"BlockDeviceMappings": KEPT}, "UnsupportedOperation"),
        (
            {"BlockDeviceMappings": [{"DeviceName": "/dev/vda", "NoDevice": ""}]},
            "UnsupportedOperation",
        ),
        (
            {"BlockDeviceMappings": [{"DeviceName": "/dev/vdz"}]},
            "InvalidInstanceAttributeValue",
        ),
        ({"BlockDeviceMappings": OTHERS}, "InvalidInstanceAttributeValue"),
        ({"Attribute": "blockDeviceMapping", "Value": "/dev/vda=true"}, "InvalidParameterValue"),
    ],
)
def test_what_cannot_be_is_refused(untouched: Any, change: Any, code: str) -> None:
    assert refused_alike(untouched, change)["Code"] == code


def test_an_instance_that_has_ended_or_is_anothers(front: Front, ec2: Any, running: str) -> None:
    wanted = {"InstanceId": running, "DisableApiStop": {"Value": True}}
    other = front.client(front.make_project("other"))
    assert code_of(other.modify_instance_attribute, **wanted) == "InvalidInstanceID.NotFound"
    missing = {**wanted, "InstanceId": MISSING}
    assert code_of(ec2.modify_instance_attribute, **missing) == "InvalidInstanceID.NotFound"
    malformed = {**wanted, "InstanceId": "i-x"}
    assert code_of(ec2.modify_instance_attribute, **malformed) == "InvalidInstanceID.Malformed"
    ec2.terminate_instances(InstanceIds=[running])
    assert code_of(ec2.modify_instance_attribute, **wanted) == "IncorrectInstanceState"
    front.make_terminated([running])
    assert code_of(ec2.modify_instance_attribute, **wanted) == "IncorrectInstanceState"
