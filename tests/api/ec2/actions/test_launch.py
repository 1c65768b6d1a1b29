"""RunInstances: one transaction, all or nothing, and the same answer to the same question."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event

from appliance.config import Config, QuotaSettings
from appliance.messages import Place
from appliance.store import Transaction, images, schema
from tests.api.front import GIB, Front, code_of, error_of


def wanted(front: Front, **more: Any) -> dict[str, Any]:
    return {
        "ImageId": front.image.image_id,
        "InstanceType": "m1.tiny",
        "MinCount": 1,
        "MaxCount": 1,
        **more,
    }


def small(tmp_path: Path, **quota: int) -> Front:
    config = msgspec.structs.replace(Config(), quota=QuotaSettings(**quota))
    return Front(tmp_path, config)


def test_a_launch_is_accepted_with_everything_that_was_asked(front: Front, ec2: Any) -> None:
    ec2.create_key_pair(KeyName="mine", KeyType="ed25519")
    group_id = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    reply = ec2.run_instances(
        **wanted(
            front,
            MinCount=2,
            MaxCount=3,
            KeyName="mine",
            SecurityGroupIds=[group_id],
            UserData="#!/bin/sh\necho hello\n",
            Placement={"AvailabilityZone": "local-1a"},
            InstanceInitiatedShutdownBehavior="stop",
            MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
            BlockDeviceMappings=[{"DeviceName": "/dev/vda", "Ebs": {"VolumeSize": 3}}],
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]},
                {"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "web"}]},
            ],
        )
    )
    assert len(reply["Instances"]) == 3
    assert [each["AmiLaunchIndex"] for each in reply["Instances"]] == [0, 1, 2]
    first = reply["Instances"][0]
    assert first["State"] == {"Code": 0, "Name": "pending"}
    assert first["KeyName"] == "mine"
    assert first["SecurityGroups"] == [{"GroupId": group_id, "GroupName": "web"}]
    assert first["Placement"]["AvailabilityZone"] == "local-1a"
    assert first["Tags"] == [{"Key": "Name", "Value": "web"}]
    assert first["MetadataOptions"]["HttpTokens"] == "required"
    assert len({each["NetworkInterfaces"][0]["MacAddress"] for each in reply["Instances"]}) == 3
    [reservation] = ec2.describe_instances()["Reservations"]
    assert reservation["ReservationId"] == reply["ReservationId"]
    assert (
        sorted(reservation["Instances"], key=lambda each: each["AmiLaunchIndex"])
        == (reply["Instances"])
    )
    rows = front.rows(schema.instances)
    assert {row.disk_gib for row in rows} == {3}
    assert {base64.b64decode(row.user_data_base64) for row in rows} == {b"#!/bin/sh\necho hello\n"}
    assert len([row for row in front.rows(schema.tags) if row.resource_type == "volume"]) == 3


def test_one_message_goes_to_the_scheduler(front: Front) -> None:
    ids = front.run(3)
    [(topic, message)] = [cast for cast in front.bus.casts if isinstance(cast[1], Place)]
    assert topic == "scheduler"
    assert isinstance(message, Place)
    assert sorted(message.instance_ids) == sorted(ids)
    assert message.min_count == 3
    [reservation] = front.rows(schema.reservations)
    assert message.reservation_id == reservation.id
    assert message.request_id == reservation.request_id


def test_a_launch_leaves_its_line_in_timeline_and_audit(front: Front) -> None:
    [instance_id] = front.run()
    [entry] = front.rows(schema.timeline)
    assert (entry.instance_id, entry.role, entry.node) == (instance_id, "api", "n1")
    line = front.rows(schema.audit)[-1]
    assert (line.action, line.actor, line.result) == ("RunInstances", "demo-user", "ok")
    assert line.request_id == entry.request_id


def test_the_number_of_statements_does_not_grow_with_the_instances(tmp_path: Path) -> None:
    front = small(tmp_path, instances=1000, vcpus=1000, memory_mib=10**7)
    try:
        front.run(1)
        counts = []
        for count in (2, 200):
            statements: list[str] = []

            def listener(*arguments: Any, seen: list[str] = statements) -> None:
                seen.append(arguments[2])

            event.listen(front.store.engine, "before_cursor_execute", listener)
            front.run(count)
            event.remove(front.store.engine, "before_cursor_execute", listener)
            counts.append(len(statements))
        assert counts[0] == counts[1]
    finally:
        front.close()


def test_without_a_group_it_is_the_default_group(front: Front, ec2: Any) -> None:
    [instance] = ec2.run_instances(**wanted(front))["Instances"]
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["default"]


def test_groups_are_taken_by_name_and_by_id_together(front: Front, ec2: Any) -> None:
    one = ec2.create_security_group(GroupName="one", Description="d")["GroupId"]
    ec2.create_security_group(GroupName="two", Description="d")
    [instance] = ec2.run_instances(
        **wanted(front, SecurityGroupIds=[one], SecurityGroups=["two", "default"])
    )["Instances"]
    names = [group["GroupName"] for group in instance["SecurityGroups"]]
    assert names == ["default", "one", "two"]


def test_the_only_network_interface_may_be_spelled_out(front: Front, ec2: Any) -> None:
    [network] = front.rows(schema.networks)
    group_id = ec2.create_security_group(GroupName="one", Description="d")["GroupId"]
    card = {"DeviceIndex": 0, "SubnetId": network.id, "Groups": [group_id]}
    [instance] = ec2.run_instances(**wanted(front, NetworkInterfaces=[card]))["Instances"]
    assert instance["SubnetId"] == network.id
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [group_id]


def test_the_same_token_is_the_same_launch(front: Front, ec2: Any) -> None:
    first = ec2.run_instances(**wanted(front, ClientToken="t-1", MinCount=2, MaxCount=2))
    again = ec2.run_instances(**wanted(front, ClientToken="t-1", MinCount=2, MaxCount=2))
    assert again["ReservationId"] == first["ReservationId"]
    assert again["Instances"] == first["Instances"]
    assert front.quota("instances") == 2
    assert len([cast for cast in front.bus.casts if isinstance(cast[1], Place)]) == 1
    assert first["Instances"][0]["ClientToken"] == "t-1"


def test_the_same_token_for_something_else_is_refused(front: Front, ec2: Any) -> None:
    ec2.run_instances(**wanted(front, ClientToken="t-1"))
    before = front.snapshot()
    for more in ({"MaxCount": 2}, {"InstanceType": "t3.nano"}, {"UserData": "x"}):
        code = code_of(ec2.run_instances, **wanted(front, ClientToken="t-1", **more))
        assert code == "IdempotentParameterMismatch"
    assert front.snapshot() == before


def test_a_token_belongs_to_its_project(front: Front, ec2: Any) -> None:
    first = ec2.run_instances(**wanted(front, ClientToken="t-1"))
    other = front.client(front.make_project("other"))
    second = other.run_instances(**wanted(front, ClientToken="t-1"))
    assert first["ReservationId"] != second["ReservationId"]


def test_the_same_token_from_many_at_once_is_one_launch(front: Front) -> None:
    clients = [front.client() for _ in range(6)]
    found: list[str] = []

    def run(client: Any) -> None:
        found.append(client.run_instances(**wanted(front, ClientToken="t-1"))["ReservationId"])

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert front.quota("instances") == 1


@pytest.mark.parametrize("token", ["x" * 65, "é", "signed:0123"])
def test_a_token_that_is_none_is_refused(front: Front, ec2: Any, token: str) -> None:
    assert code_of(ec2.run_instances, **wanted(front, ClientToken=token)) == (
        "InvalidParameterValue"
    )


def test_as_many_as_fit_are_launched(tmp_path: Path) -> None:
    front = small(tmp_path, instances=3)
    try:
        ec2 = front.client()
        reply = ec2.run_instances(**wanted(front, MinCount=1, MaxCount=5))
        assert len(reply["Instances"]) == 3
        refused = error_of(ec2.run_instances, **wanted(front))
        assert refused["Code"] == "InstanceLimitExceeded"
        assert front.quota("instances") == 3
        front.make_terminated([each["InstanceId"] for each in reply["Instances"]])
        assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [0, 0, 0]
    finally:
        front.close()


@pytest.mark.parametrize(
    ("quota", "code"),
    [
        ({"instances": 2}, "InstanceLimitExceeded"),
        ({"vcpus": 2}, "VcpuLimitExceeded"),
        ({"memory_mib": 1024}, "InstanceLimitExceeded"),
    ],
)
def test_fewer_than_the_least_number_are_none(
    tmp_path: Path, quota: dict[str, int], code: str
) -> None:
    front = small(tmp_path, **quota)
    try:
        ec2 = front.client()
        before = front.snapshot()
        assert code_of(ec2.run_instances, **wanted(front, MinCount=3, MaxCount=5)) == code
        assert front.snapshot() == before
        reply = ec2.run_instances(**wanted(front, MinCount=2, MaxCount=5))
        assert len(reply["Instances"]) == 2
    finally:
        front.close()


def test_a_quota_is_not_overrun_by_many_at_once(tmp_path: Path) -> None:
    front = small(tmp_path, instances=4)
    try:
        outcomes: list[str] = []

        def run(client: Any) -> None:
            try:
                client.run_instances(**wanted(front))
                outcomes.append("ok")
            except client.exceptions.ClientError as error:
                outcomes.append(error.response["Error"]["Code"])

        threads = [
            threading.Thread(target=run, args=(client,))
            for client in [front.client() for _ in range(8)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(outcomes) == ["InstanceLimitExceeded"] * 4 + ["ok"] * 4
        assert len(front.rows(schema.instances)) == 4
    finally:
        front.close()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"ImageId": ""}, "MissingParameter"),
    "image id": ({"ImageId": "ami-1; ls"}, "InvalidAMIID.Malformed"),
    "unknown image": ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
    "type": ({"InstanceType": "m1.huge"}, "InvalidParameterValue"),
    "min 0": ({"MinCount": 0}, "InvalidParameterValue"),
    "min over max": ({"MinCount": 2}, "InvalidParameterValue"),
    "negative": ({"MinCount": -1, "MaxCount": -1}, "InvalidParameterValue"),
    "too many": ({"MinCount": 100000, "MaxCount": 100000}, "InvalidParameterValue"),
    "key": ({"KeyName": "nobodys"}, "InvalidKeyPair.NotFound"),
    "group": ({"SecurityGroups": ["nobodys"]}, "InvalidGroup.NotFound"),
    "group id": ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
    "bad group id": ({"SecurityGroupIds": ["sg-x"]}, "InvalidGroupId.Malformed"),
    "zone": ({"Placement": {"AvailabilityZone": "mars"}}, "InvalidParameterValue"),
    "subnet": ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
    "bad subnet": ({"SubnetId": "../x"}, "InvalidSubnetID.Malformed"),
    "kernel": ({"KernelId": "aki-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
    "bad kernel": ({"KernelId": "vmlinuz"}, "InvalidAMIID.Malformed"),
    "user data": ({"UserData": "x" * 16385}, "InvalidParameterValue"),
    "disk": (
        {"BlockDeviceMappings": [{"DeviceName": "/dev/vda", "Ebs": {"VolumeSize": 0}}]},
        "InvalidParameterValue",
    ),
    "huge disk": (
        {"BlockDeviceMappings": [{"DeviceName": "/dev/vda", "Ebs": {"VolumeSize": 9999999}}]},
        "InvalidParameterValue",
    ),
    "second disk": (
        {"BlockDeviceMappings": [{"DeviceName": "/dev/vdb", "Ebs": {"VolumeSize": 1}}]},
        "UnsupportedOperation",
    ),
    "kept disk": (
        {
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/vda", "Ebs": {"DeleteOnTermination": False}}
            ]
        },
        "UnsupportedOperation",
    ),
    "spot": ({"InstanceMarketOptions": {"MarketType": "spot"}}, "UnsupportedOperation"),
    "profile": ({"IamInstanceProfile": {"Name": "x"}}, "UnsupportedOperation"),
    "address": ({"PrivateIpAddress": "10.64.0.9"}, "UnsupportedOperation"),
    "no metadata": ({"MetadataOptions": {"HttpEndpoint": "disabled"}}, "UnsupportedOperation"),
    "metadata over IPv6": (
        {"MetadataOptions": {"HttpProtocolIpv6": "enabled"}},
        "UnsupportedOperation",
    ),
    "fewer cores": ({"CpuOptions": {"CoreCount": 2}}, "UnsupportedOperation"),
    "threads": ({"CpuOptions": {"ThreadsPerCore": 2}}, "UnsupportedOperation"),
    "names of ids": (
        {"PrivateDnsNameOptions": {"HostnameType": "resource-name"}},
        "UnsupportedOperation",
    ),
    "licence": (
        {"LicenseSpecifications": [{"LicenseConfigurationArn": "arn:x"}]},
        "UnsupportedOperation",
    ),
    "two zones": (
        {"Placement": {"AvailabilityZone": "local-1a", "AvailabilityZoneId": "local-1a"}},
        "InvalidParameterCombination",
    ),
    "zone id": ({"Placement": {"AvailabilityZoneId": "mars"}}, "InvalidParameterValue"),
    "no hop": ({"MetadataOptions": {"HttpPutResponseHopLimit": 0}}, "InvalidParameterValue"),
    "many hops": ({"MetadataOptions": {"HttpPutResponseHopLimit": 65}}, "InvalidParameterValue"),
    "two cards": (
        {"NetworkInterfaces": [{"DeviceIndex": 0}, {"DeviceIndex": 1}]},
        "UnsupportedOperation",
    ),
    "tags of others": (
        {"TagSpecifications": [{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}]},
        "InvalidParameterValue",
    ),
    "reserved tag": (
        {
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "aws:x", "Value": ""}]}
            ]
        },
        "InvalidParameterValue",
    ),
    "long tag": (
        {
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "x" * 129, "Value": ""}]}
            ]
        },
        "InvalidParameterValue",
    ),
    "many tags": (
        {
            "TagSpecifications": [
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": f"k{n}", "Value": ""} for n in range(51)],
                }
            ]
        },
        "TagLimitExceeded",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_launch_leaves_nothing(front: Front, ec2: Any, name: str) -> None:
    more, code = BAD[name]
    before = front.snapshot()
    assert code_of(ec2.run_instances, **wanted(front, **more)) == code
    assert front.snapshot() == before
    assert front.bus.casts == []


@pytest.mark.parametrize("hops", [1, 64])
def test_what_is_so_anyway_may_be_asked_for(front: Front, ec2: Any, hops: int) -> None:
    options = {"HttpEndpoint": "enabled", "HttpPutResponseHopLimit": hops}
    more = {
        "MetadataOptions": options,
        "InstanceInitiatedShutdownBehavior": "stop",
        "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 1},
        "PrivateDnsNameOptions": {"HostnameType": "ip-name"},
        "CapacityReservationSpecification": {"CapacityReservationPreference": "open"},
        "Placement": {"AvailabilityZoneId": "local-1a", "Tenancy": "default"},
    }
    [instance] = ec2.run_instances(**wanted(front, **more))["Instances"]
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == hops


def test_user_data_of_16_kib_is_taken(front: Front, ec2: Any) -> None:
    ec2.run_instances(**wanted(front, UserData="x" * 16384))
    [row] = front.rows(schema.instances)
    assert len(base64.b64decode(row.user_data_base64)) == 16384


def test_user_data_is_in_no_message(front: Front, ec2: Any) -> None:
    ec2.run_instances(**wanted(front, UserData="canary-0815"))
    text = repr(front.bus.casts) + repr(front.rows(schema.outbox)) + repr(front.rows(schema.audit))
    assert "canary-0815" not in text
    assert base64.b64encode(b"canary-0815").decode() not in text


def test_an_image_must_fit_on_the_disk(front: Front, ec2: Any) -> None:
    large = front.make_image(name="large", virtual_size_bytes=30 * GIB)
    code = code_of(
        ec2.run_instances,
        **wanted(front, ImageId=large.image_id, InstanceType="m1.small"),
    )
    assert code == "InvalidBlockDeviceMapping"
    mapping = [{"DeviceName": "/dev/vda", "Ebs": {"VolumeSize": 30}}]
    ec2.run_instances(
        **wanted(
            front, ImageId=large.image_id, InstanceType="m1.small", BlockDeviceMappings=mapping
        )
    )
    ec2.run_instances(**wanted(front, ImageId=large.image_id))
    assert {row.disk_gib for row in front.rows(schema.instances)} == {30}


def test_an_image_that_is_not_ready_is_not_launched(front: Front, ec2: Any) -> None:
    front.change(lambda tx: images.set_state(tx, front.image.image_id, "pending"))
    assert code_of(ec2.run_instances, **wanted(front)) == "InvalidAMIID.Unavailable"
    front.change(lambda tx: images.delete(tx, front.image.image_id))
    assert code_of(ec2.run_instances, **wanted(front)) == "InvalidAMIID.NotFound"


def test_anothers_private_image_does_not_exist(front: Front, ec2: Any) -> None:
    other = front.make_project("other")
    private = front.make_image(project_id=other.project_id, is_public=False)
    code = code_of(ec2.run_instances, **wanted(front, ImageId=private.image_id))
    assert code == "InvalidAMIID.NotFound"
    front.client(other).run_instances(**wanted(front, ImageId=private.image_id))


def test_kernel_and_ramdisk_come_from_the_image_or_the_request(front: Front, ec2: Any) -> None:
    kernel = front.make_image(kind="kernel", format="kernel", name="k1")
    second = front.make_image(kind="kernel", format="kernel", name="k2")
    ramdisk = front.make_image(kind="ramdisk", format="ramdisk", name="r1")
    image = front.make_image(kernel_id=kernel.image_id, ramdisk_id=ramdisk.image_id)
    [one] = ec2.run_instances(**wanted(front, ImageId=image.image_id))["Instances"]
    assert (one["KernelId"], one["RamdiskId"]) == (kernel.image_id, ramdisk.image_id)
    [two] = ec2.run_instances(**wanted(front, ImageId=image.image_id, KernelId=second.image_id))[
        "Instances"
    ]
    assert two["KernelId"] == second.image_id
    code = code_of(ec2.run_instances, **wanted(front, KernelId=ramdisk.image_id))
    assert code == "InvalidAMIID.NotFound"
    assert code_of(ec2.run_instances, **wanted(front, ImageId=kernel.image_id)) == (
        "InvalidAMIID.NotFound"
    )


def test_a_shared_default_network_serves_every_zone(front: Front, ec2: Any) -> None:
    def share(tx: Transaction) -> None:
        tx.execute(schema.networks.update().values(zone=""))

    front.change(share)
    [instance] = ec2.run_instances(**wanted(front, Placement={"AvailabilityZone": "local-1a"}))[
        "Instances"
    ]
    assert instance["Placement"]["AvailabilityZone"] == "local-1a"


def test_without_a_default_network_a_subnet_is_asked_for(front: Front, ec2: Any) -> None:
    front.change(lambda tx: tx.execute(schema.networks.update().values(is_default=False)))
    assert code_of(ec2.run_instances, **wanted(front)) == "MissingInput"
    [network] = front.rows(schema.networks)
    ec2.run_instances(**wanted(front, SubnetId=network.id))


def test_dry_run_says_that_it_would_have_worked(front: Front, ec2: Any) -> None:
    before = front.snapshot()
    refused = error_of(ec2.run_instances, **wanted(front, DryRun=True))
    assert refused["Code"] == "DryRunOperation"
    assert front.snapshot() == before
