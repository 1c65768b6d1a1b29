"""Monitoring and CPU credits: what owners ask for is kept and shown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.front import Front, code_of

MISSING = "i-0123456789abcdef0"


def shown(ec2: Any) -> dict[str, str]:
    return {
        one["InstanceId"]: one["Monitoring"]["State"]
        for group in ec2.describe_instances()["Reservations"]
        for one in group["Instances"]
    }


def answered(reply: Any) -> dict[str, str]:
    return {one["InstanceId"]: one["Monitoring"]["State"] for one in reply["InstanceMonitorings"]}


def test_monitoring_is_kept_and_shown(front: Front, ec2: Any) -> None:
    ids = front.run(2)
    front.make_running(ids)
    assert set(shown(ec2).values()) == {"disabled"}
    assert answered(ec2.monitor_instances(InstanceIds=ids[:1])) == {ids[0]: "pending"}
    assert shown(ec2) == {ids[0]: "enabled", ids[1]: "disabled"}
    again = answered(ec2.monitor_instances(InstanceIds=ids))
    assert again == {ids[0]: "enabled", ids[1]: "pending"}
    assert answered(ec2.unmonitor_instances(InstanceIds=ids[:1])) == {ids[0]: "disabling"}
    assert answered(ec2.unmonitor_instances(InstanceIds=ids[:1])) == {ids[0]: "disabled"}
    assert shown(ec2) == {ids[0]: "disabled", ids[1]: "enabled"}


def test_monitoring_from_the_launch_on(front: Front, ec2: Any) -> None:
    reply = ec2.run_instances(
        ImageId=front.image.image_id,
        InstanceType="m1.tiny",
        MinCount=1,
        MaxCount=1,
        Monitoring={"Enabled": True},
    )
    [instance] = reply["Instances"]
    assert instance["Monitoring"] == {"State": "pending"}
    front.make_running([instance["InstanceId"]])
    assert set(shown(ec2).values()) == {"enabled"}


def test_bad_requests_about_monitoring(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_terminated([instance_id])
    for change in (ec2.monitor_instances, ec2.unmonitor_instances):
        assert code_of(change, InstanceIds=[MISSING]) == "InvalidInstanceID.NotFound"
        assert code_of(change, InstanceIds=["x"]) == "InvalidInstanceID.Malformed"
        assert code_of(change, InstanceIds=[instance_id]) == "IncorrectInstanceState"


def credit_options(reply: Any) -> dict[str, str]:
    return {one["InstanceId"]: one["CpuCredits"] for one in reply["InstanceCreditSpecifications"]}


def test_the_credit_option_that_was_asked_for(front: Front, ec2: Any) -> None:
    [plain] = front.run()
    [quiet] = front.run(InstanceType="t3.nano", CreditSpecification={"CpuCredits": "standard"})
    [eager] = front.run(InstanceType="t3.nano", CreditSpecification={"CpuCredits": "unlimited"})
    describe = ec2.describe_instance_credit_specifications
    assert credit_options(describe()) == {eager: "unlimited"}
    asked = credit_options(describe(InstanceIds=[plain, quiet, eager]))
    assert asked == {plain: "standard", quiet: "standard", eager: "unlimited"}
    by_filter = describe(Filters=[{"Name": "instance-id", "Values": [quiet]}])
    assert credit_options(by_filter) == {}
    code = code_of(describe, Filters=[{"Name": "tag:Name", "Values": ["x"]}])
    assert code == "InvalidParameterValue"


def test_pages_of_credit_options(front: Front, ec2: Any) -> None:
    ids = front.run(7, InstanceType="t2.nano", CreditSpecification={"CpuCredits": "unlimited"})
    describe = ec2.describe_instance_credit_specifications
    first = describe(MaxResults=5)
    rest = describe(MaxResults=5, NextToken=first["NextToken"])
    assert "NextToken" not in rest
    assert sorted([*credit_options(first), *credit_options(rest)]) == sorted(ids)
    code = code_of(describe, MaxResults=5, InstanceIds=ids)
    assert code == "InvalidParameterCombination"
    assert code_of(describe, InstanceIds=[MISSING]) == "InvalidInstanceID.NotFound"


@pytest.mark.parametrize(
    ("instance_type", "option", "code"),
    [
        ("t3.nano", "plenty", "InvalidParameterValue"),
        ("m1.tiny", "unlimited", "InvalidParameterCombination"),
    ],
)
def test_credits_that_cannot_be(
    front: Front, ec2: Any, instance_type: str, option: str, code: str
) -> None:
    wanted = {
        "ImageId": front.image.image_id,
        "InstanceType": instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "CreditSpecification": {"CpuCredits": option},
    }
    assert code_of(ec2.run_instances, **wanted) == code


def test_there_is_no_password(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    found = ec2.get_password_data(InstanceId=instance_id)
    assert (found["InstanceId"], found["PasswordData"]) == (instance_id, "")
    assert found["Timestamp"].tzinfo
    assert code_of(ec2.get_password_data, InstanceId=MISSING) == "InvalidInstanceID.NotFound"
    assert code_of(ec2.get_password_data, InstanceId="x") == "InvalidInstanceID.Malformed"
