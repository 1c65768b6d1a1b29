"""DescribeInstances: everything that EC2 shows, filters, pages, and what it costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event

from appliance.config import Config, QuotaSettings
from appliance.store import Transaction, schema
from tests.api.front import Front, code_of, error_of

MISSING = ["i-0123456789abcdef0", "i-0123456789abcdef1"]


def ids_of(reply: Any) -> list[str]:
    return [each["InstanceId"] for group in reply["Reservations"] for each in group["Instances"]]


def test_a_running_instance_with_all_its_members(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    [reservation] = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    [instance] = reservation["Instances"]
    assert reservation["OwnerId"] == front.keys.project_id
    assert instance["State"] == {"Code": 16, "Name": "running"}
    assert instance["PrivateIpAddress"] == "10.64.0.4"
    assert instance["PrivateDnsName"] == "ip-10-64-0-4.anynode.internal"
    assert instance["SubnetId"].startswith("subnet-")
    assert instance["VpcId"].startswith("vpc-")
    assert instance["Monitoring"] == {"State": "disabled"}
    assert instance["RootDeviceName"] == "/dev/vda"
    [disk] = instance["BlockDeviceMappings"]
    assert disk["Ebs"]["VolumeId"].startswith("vol-")
    [card] = instance["NetworkInterfaces"]
    assert card["PrivateIpAddresses"][0]["PrivateIpAddress"] == "10.64.0.4"
    assert card["PrivateIpAddresses"][0]["Primary"] is True
    assert card["Groups"] == instance["SecurityGroups"]
    assert card["Attachment"]["DeviceIndex"] == 0
    assert len(card["MacAddress"]) == 17


def test_ids_that_do_not_exist_are_listed(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    refused = error_of(ec2.describe_instances, InstanceIds=[MISSING[0]])
    assert refused == {
        "Code": "InvalidInstanceID.NotFound",
        "Message": f"The instance ID '{MISSING[0]}' does not exist",
    }
    refused = error_of(ec2.describe_instances, InstanceIds=[instance_id, *MISSING])
    assert refused["Message"] == f"The instance IDs '{MISSING[0]}, {MISSING[1]}' do not exist"


@pytest.mark.parametrize(
    "bad", ["", "i-", "i-xyz", "i-0123456789ABCDEF0", "ami-0123456789abcdef0", "i-012' OR 1=1"]
)
def test_malformed_ids_are_refused(ec2: Any, bad: str) -> None:
    assert code_of(ec2.describe_instances, InstanceIds=[bad]) == "InvalidInstanceID.Malformed"


def test_another_projects_instances_do_not_exist(front: Front) -> None:
    [instance_id] = front.run()
    other = front.client(front.make_project("other"))
    assert other.describe_instances()["Reservations"] == []
    by_filter = [{"Name": "instance-id", "Values": [instance_id, "*"]}]
    assert other.describe_instances(Filters=by_filter)["Reservations"] == []
    real = error_of(other.describe_instances, InstanceIds=[instance_id])
    made_up = error_of(other.describe_instances, InstanceIds=[MISSING[0]])
    assert real["Message"].replace(instance_id, "") == made_up["Message"].replace(MISSING[0], "")


def test_a_terminated_instance_is_listed_for_its_time(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    ec2.terminate_instances(InstanceIds=[instance_id])
    front.make_terminated([instance_id])
    [reservation] = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    [instance] = reservation["Instances"]
    assert instance["State"] == {"Code": 48, "Name": "terminated"}
    assert instance["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert instance["StateTransitionReason"].startswith("User initiated (20")
    assert instance["NetworkInterfaces"] == []
    assert "PrivateIpAddress" not in instance

    def age(tx: Transaction) -> None:
        table = schema.instances
        tx.execute(table.update().values(terminated_at=table.c.terminated_at - 3601))

    front.change(age)
    assert ec2.describe_instances()["Reservations"] == []
    before = front.snapshot()
    for action, named in (
        (ec2.describe_instances, {"InstanceIds": [instance_id]}),
        (ec2.terminate_instances, {"InstanceIds": [instance_id]}),
        (ec2.stop_instances, {"InstanceIds": [instance_id]}),
        (ec2.start_instances, {"InstanceIds": [instance_id]}),
        (ec2.reboot_instances, {"InstanceIds": [instance_id]}),
        (ec2.get_console_output, {"InstanceId": instance_id}),
    ):
        assert code_of(action, **named) == "InvalidInstanceID.NotFound"
    assert front.snapshot() == before


def test_a_silent_node_hides_nothing(front: Front, ec2: Any) -> None:
    ids = front.run(2)
    front.make_running(ids)
    front.change(lambda tx: tx.execute(schema.node_status.update().values(is_up=False)))
    assert sorted(ids_of(ec2.describe_instances())) == sorted(ids)


def test_the_reason_of_a_failed_launch_is_told(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()

    def fail(tx: Transaction) -> None:
        tx.execute(
            schema.instances.update().values(
                reason_code="Server.InsufficientInstanceCapacity", reason_message="No room <here>."
            )
        )

    front.change(fail)
    front.make_terminated([instance_id])
    [instance] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert instance["StateReason"] == {
        "Code": "Server.InsufficientInstanceCapacity",
        "Message": "No room <here>.",
    }


def test_filters(front: Front, ec2: Any) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web 1"}]}]
    ec2.create_key_pair(KeyName="mine", KeyType="ed25519")
    group_id = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    [one] = front.run(TagSpecifications=tags, KeyName="mine", SecurityGroupIds=[group_id])
    [two] = front.run(InstanceType="t3.nano", ClientToken="tok")
    front.make_running([one])
    [first] = ec2.describe_instances(InstanceIds=[one])["Reservations"]
    shown = first["Instances"][0]
    both = sorted([one, two])
    zone = "local-1a"
    expected: list[tuple[str, list[str], list[str]]] = [
        ("instance-id", [one], [one]),
        ("instance-id", ["i-*"], both),
        ("instance-state-name", ["running"], [one]),
        ("instance-state-name", ["running", "pending"], both),
        ("instance-state-code", ["0"], [two]),
        ("instance-state-code", ["1x"], []),
        ("image-id", [front.image.image_id], both),
        ("instance-type", ["t3.*"], [two]),
        ("instance-type", ["T3.*"], []),
        ("key-name", ["mine"], [one]),
        ("availability-zone", [zone], both),
        ("vpc-id", [shown["VpcId"]], both),
        ("subnet-id", [shown["SubnetId"]], both),
        ("private-ip-address", [shown["PrivateIpAddress"]], [one]),
        ("private-ip-address", ["10.64.*"], [one]),
        ("private-dns-name", [shown["PrivateDnsName"]], [one]),
        ("reservation-id", [first["ReservationId"]], [one]),
        ("tag:Name", ["web 1"], [one]),
        ("tag:Name", ["web\\*"], []),
        ("tag:name", ["web 1"], []),
        ("tag-key", ["Name"], [one]),
        ("tag-value", ["web?1"], [one]),
        ("instance.group-id", [group_id], [one]),
        ("instance.group-name", ["default"], [two]),
        ("group-id", [group_id], [one]),
        ("group-name", ["web"], [one]),
        ("client-token", ["tok"], [two]),
        ("owner-id", [front.keys.project_id], both),
        ("owner-id", ["000000000000"], []),
        ("launch-index", ["0"], both),
        ("launch-index", ["1", "x"], []),
        ("launch-time", [time.strftime("%Y-%m-*", time.gmtime())], both),
        ("launch-time", ["1999-*"], []),
        ("launch-time", ["nonsense"], []),
        ("network-interface.mac-address", [shown["NetworkInterfaces"][0]["MacAddress"]], [one]),
        ("network-interface.addresses.private-ip-address", ["10.64.0.4"], [one]),
        ("block-device-mapping.device-name", ["/dev/vda"], both),
        ("architecture", ["x86_64"], both),
        ("architecture", ["arm64"], []),
        ("ip-address", ["*"], []),
    ]
    for name, values, ids in expected:
        reply = ec2.describe_instances(Filters=[{"Name": name, "Values": values}])
        assert sorted(ids_of(reply)) == ids, (name, values)
    reply = ec2.describe_instances(
        Filters=[
            {"Name": "instance-state-name", "Values": ["running"]},
            {"Name": "instance-type", "Values": ["t3.*"]},
        ]
    )
    assert ids_of(reply) == []


@pytest.mark.parametrize(
    ("filters", "code"),
    [
        ([{"Name": "colour", "Values": ["red"]}], "InvalidParameterValue"),
        ([{"Name": "tag:", "Values": ["red"]}], "InvalidParameterValue"),
        ([{"Name": "instance-id' OR '1'='1", "Values": ["x"]}], "InvalidParameterValue"),
        ([{"Name": "instance-id"}], "MissingParameter"),
        ([{"Values": ["x"]}], "MissingParameter"),
        ([{"Name": "instance-id", "Values": [str(n) for n in range(201)]}], "FilterLimitExceeded"),
    ],
)
def test_bad_filters_are_refused(ec2: Any, filters: Any, code: str) -> None:
    assert code_of(ec2.describe_instances, Filters=filters) == code


def test_an_unknown_filter_is_named(ec2: Any) -> None:
    refused = error_of(ec2.describe_instances, Filters=[{"Name": "colour", "Values": ["red"]}])
    assert refused["Message"] == "The filter 'colour' is invalid"


def test_special_characters_of_patterns_mean_themselves(front: Front, ec2: Any) -> None:
    names = ["a%b", "a_b", "a[b]", "a*b", "a\\b", "axb"]
    for name in names:
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}]
        front.run(TagSpecifications=tags)

    def found(value: str) -> list[str]:
        reply = ec2.describe_instances(Filters=[{"Name": "tag:Name", "Values": [value]}])
        return sorted(
            each["Tags"][0]["Value"]
            for group in reply["Reservations"]
            for each in group["Instances"]
        )

    assert found("a%b*") == ["a%b"]
    assert found("a_b*") == ["a_b"]
    assert found("a[b]*") == ["a[b]"]
    assert found("a\\*b") == ["a*b"]
    assert found("a\\*b*") == ["a*b"]
    assert found("a\\\\b") == ["a\\b"]
    assert found("a?b") == sorted(name for name in names if len(name) == 3)
    assert found("*") == sorted(names)


def test_pages_show_each_instance_once(front: Front, ec2: Any) -> None:
    ids = [each for _ in range(3) for each in front.run(4)]
    pages = list(ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(ids_of(page)) for page in pages] == [5, 5, 2]
    assert sorted(each for page in pages for each in ids_of(page)) == sorted(ids)
    assert "NextToken" not in pages[-1]
    whole = ec2.describe_instances(MaxResults=12)
    assert "NextToken" not in whole
    assert len(ids_of(whole)) == 12


def test_a_page_goes_on_although_its_rows_are_gone(front: Front, ec2: Any) -> None:
    ids = front.run(7)
    first = ec2.describe_instances(MaxResults=5)
    front.make_terminated(ids_of(first))
    front.change(lambda tx: tx.execute(schema.instances.update().values(terminated_at=1.0)))
    rest = ec2.describe_instances(MaxResults=5, NextToken=first["NextToken"])
    assert sorted(ids_of(first) + ids_of(rest)) == sorted(ids)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"MaxResults": 4}, "InvalidParameterValue"),
        ({"MaxResults": -1}, "InvalidParameterValue"),
        ({"NextToken": "nonsense"}, "InvalidParameterValue"),
        ({"NextToken": "é"}, "InvalidParameterValue"),
        ({"NextToken": "WzEsMl0"}, "InvalidParameterValue"),
        ({"NextToken": "W10"}, "InvalidParameterValue"),
        ({"MaxResults": 5, "InstanceIds": ["i-0123456789abcdef0"]}, "InvalidParameterCombination"),
    ],
)
def test_bad_pages_are_refused(ec2: Any, params: Any, code: str) -> None:
    assert code_of(ec2.describe_instances, **params) == code


@pytest.fixture
def crowd(tmp_path: Path) -> Any:
    quota = QuotaSettings(instances=2000, vcpus=9999, memory_mib=10**8)
    network = msgspec.structs.replace(Config().network, cidr="10.64.0.0/20")
    front = Front(tmp_path, msgspec.structs.replace(Config(), quota=quota, network=network))
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}]
    ids = front.run(1000, TagSpecifications=tags)
    front.make_running(ids)
    yield front
    front.close()


def test_a_thousand_instances_cost_a_handful_of_selects_and_little_time(crowd: Front) -> None:
    statements: list[str] = []

    def listen(*arguments: Any) -> None:
        statements.append(arguments[2])

    ec2 = crowd.client()
    ec2.describe_instances()
    event.listen(crowd.store.engine, "before_cursor_execute", listen)
    assert len(ids_of(ec2.describe_instances())) == 1000
    event.remove(crowd.store.engine, "before_cursor_execute", listen)
    assert len([each for each in statements if each.startswith("SELECT")]) <= 10
