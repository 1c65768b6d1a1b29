"""Where servers that speak EC2 have tripped before: each is a test of its name."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from appliance.access_levels import READER
from appliance.api import policy
from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.actions.instance_attributes import ELEMENTS
from appliance.instance_types import CATALOG
from appliance.model import HttpRequest, Identity
from appliance.store import schema
from tests.api.ec2.examples.instances import node_is
from tests.api.front import Front, error_of

SHORT_ID = "i-12345678"


class Stub:
    """Lets everybody in as one identity."""

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity

    def authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        return self.identity


def ask(front: Front, form: str, access_level: str = "member") -> tuple[int, ElementTree.Element]:
    """Send a form past the signature and return status and document."""
    from appliance.api.ec2.front_door import FrontDoor

    who = Identity(
        user_id="u",
        user_name="u",
        project_id=front.keys.project_id,
        access_level=access_level,
    )
    door = FrontDoor(front.parts, Stub(who))  # type: ignore[arg-type]
    request = HttpRequest(
        method="POST",
        target="/",
        headers=(("host", "n1:8773"),),
        body=form.encode(),
        source="127.0.0.1",
    )
    reply = door.answer(request)
    return reply.status, ElementTree.fromstring(reply.body)


def texts(root: ElementTree.Element, name: str) -> list[str]:
    """Return the texts of all elements of a name, whatever their name space."""
    return [each.text or "" for each in root.iter() if each.tag.rpartition("}")[2] == name]


def test_trap_1_describe_instance_attribute_always_returns_the_asked_element(
    front: Front,
) -> None:
    [instance_id] = front.run()
    for attribute, (member, _) in ELEMENTS.items():
        form = f"Action=DescribeInstanceAttribute&InstanceId={instance_id}&Attribute={attribute}"
        status, root = ask(front, form, "reader")
        assert status == 200
        tags = [each.tag.rpartition("}")[2] for each in root]
        assert sorted(tags) == sorted(["requestId", "instanceId", attribute]), member
    _, root = ask(
        front,
        f"Action=DescribeInstanceAttribute&InstanceId={instance_id}&Attribute=disableApiStop",
    )
    found = ElementTree.tostring(root, encoding="unicode")
    assert re.search(r"<\w+:disableApiStop><\w+:value>false</", found)


def test_trap_2_a_new_group_lets_everything_out(front: Front, ec2: Any) -> None:
    made = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    [group] = ec2.describe_security_groups(GroupIds=[made])["SecurityGroups"]
    assert group["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]


def test_trap_3_a_default_vpc_with_a_subnet_per_zone_is_found_by_either_name(ec2: Any) -> None:
    for name in ("isDefault", "is-default"):
        [vpc] = ec2.describe_vpcs(Filters=[{"Name": name, "Values": ["true"]}])["Vpcs"]
        assert vpc["IsDefault"] is True
    zones = {each["ZoneName"] for each in ec2.describe_availability_zones()["AvailabilityZones"]}
    for name in ("defaultForAz", "default-for-az"):
        wanted = [
            {"Name": name, "Values": ["true"]},
            {"Name": "vpc-id", "Values": [vpc["VpcId"]]},
        ]
        found = ec2.describe_subnets(Filters=wanted)["Subnets"]
        assert {each["AvailabilityZone"] for each in found} == zones
        assert all(each["DefaultForAz"] for each in found)


def test_trap_4_every_type_can_be_described_and_none_is_burstable(ec2: Any) -> None:
    for name in CATALOG:
        [kind] = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        assert kind["BurstablePerformanceSupported"] is False


def test_trap_4_terraform_need_not_ask_for_credits_and_gets_what_it_wanted(ec2: Any) -> None:
    for name in ("t2.nano", "t3.nano"):
        [kind] = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        assert kind["BurstablePerformanceSupported"] is False
    wanted = {"CpuCredits": "unlimited"}
    [image] = ec2.describe_images()["Images"]
    [instance] = ec2.run_instances(
        ImageId=image["ImageId"],
        InstanceType="t3.nano",
        MinCount=1,
        MaxCount=1,
        CreditSpecification=wanted,
    )["Instances"]
    [found] = ec2.describe_instance_credit_specifications(InstanceIds=[instance["InstanceId"]])[
        "InstanceCreditSpecifications"
    ]
    assert found == {"InstanceId": instance["InstanceId"], **wanted}


def test_trap_5_a_client_token_makes_a_launch_idempotent(front: Front, ec2: Any) -> None:
    wanted = {"ImageId": front.image.image_id, "MinCount": 1, "MaxCount": 1, "ClientToken": "t"}
    first, again = ec2.run_instances(**wanted), ec2.run_instances(**wanted)
    assert first["ReservationId"] == again["ReservationId"]
    assert len(front.rows(schema.instances)) == 1
    refused = error_of(ec2.run_instances, **wanted, InstanceType="t3.nano")
    assert refused["Code"] == "IdempotentParameterMismatch"


def age(front: Front, seconds: float) -> None:
    """Let all that is terminated have been so for some time more."""
    table = schema.instances
    earlier = table.update().values(terminated_at=table.c.terminated_at - seconds)
    front.change(lambda tx: tx.execute(earlier))


def test_trap_7_terminated_instances_stay_visible_for_an_hour(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    [change] = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "shutting-down"
    front.make_terminated([instance_id])

    def states() -> list[str]:
        found = ec2.describe_instances()["Reservations"]
        return [one["State"]["Name"] for group in found for one in group["Instances"]]

    age(front, 3590.0)
    assert states() == ["terminated"]
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance_id])
    age(front, 20.0)
    assert states() == []
    refused = error_of(ec2.describe_instances, InstanceIds=[instance_id])
    assert refused["Code"] == "InvalidInstanceID.NotFound"


def test_trap_9_a_silent_node_hides_no_instance_and_no_status(front: Front, ec2: Any) -> None:
    ids = front.run(2)
    front.make_running(ids)
    node_is(front, is_up=False)
    [reservation] = ec2.describe_instances()["Reservations"]
    assert {one["InstanceId"] for one in reservation["Instances"]} == set(ids)
    assert {one["State"]["Name"] for one in reservation["Instances"]} == {"running"}
    found = ec2.describe_instance_status()["InstanceStatuses"]
    assert {one["InstanceId"]: one["SystemStatus"]["Status"] for one in found} == dict.fromkeys(
        ids, "impaired"
    )


def test_trap_5_unknown_parameters_are_ignored(front: Front) -> None:
    status, _ = ask(front, "Action=DescribeInstances&Timestamp=x&Foo.1.Bar=2&SignatureMethod=y")
    assert status == 200


def test_trap_8_the_form_of_errors_and_replies(front: Front) -> None:
    status, root = ask(front, f"Action=DescribeInstances&InstanceId.1={SHORT_ID}")
    assert status == 400
    assert root.tag == "Response"
    assert [each.tag for each in root] == ["Errors", "RequestID"]
    assert [each.tag for each in root[0][0]] == ["Code", "Message"]
    _, root = ask(front, "Action=DescribeInstances&Version=2012-12-01")
    assert root.tag == "{http://ec2.amazonaws.com/doc/2012-12-01/}DescribeInstancesResponse"
    assert root[0].tag.endswith("requestId")


@pytest.mark.parametrize(
    "form",
    [
        "Action=RebootInstances&InstanceId.1={id}",
        "Action=DeleteKeyPair&KeyName=nobodys",
        "Action=DeleteSecurityGroup&GroupName=web",
        "Action=CreateSecurityGroup&GroupName=new&GroupDescription=d",
        (
            "Action=AuthorizeSecurityGroupIngress&GroupName=web&IpProtocol=tcp&FromPort=1&ToPort=1"
            "&CidrIp=0.0.0.0/0"
        ),
    ],
)
def test_return_true_where_ec2_documents_it(front: Front, ec2: Any, form: str) -> None:
    ec2.create_security_group(GroupName="web", Description="d")
    [instance_id] = front.run()
    front.make_running([instance_id])
    status, root = ask(front, form.format(id=instance_id))
    assert status == 200
    assert texts(root, "return") == ["true"]


def test_console_output_takes_a_numbered_id(front: Front) -> None:
    [instance_id] = front.run()
    status, root = ask(front, f"Action=GetConsoleOutput&InstanceId.1={instance_id}")
    assert status == 200
    assert texts(root, "instanceId") == [instance_id]


def test_group_names_and_base64_with_line_breaks_as_older_clients_send_them(front: Front) -> None:
    status, root = ask(
        front,
        f"Action=RunInstances&ImageId={front.image.image_id}&MinCount=1&MaxCount=1"
        "&InstanceType=m1.tiny&SecurityGroup.1=default&UserData=IyEvYmlu%0AL3No%0D%0A",
    )
    assert status == 200
    assert texts(root, "groupName")[0] == "default"
    [row] = front.rows(schema.instances)
    assert row.user_data_base64 == "IyEvYmluL3No"


@pytest.mark.parametrize("data", ["%%%", "YQ", "YQ===", "é", "-_-_"])
def test_user_data_that_is_no_base64_is_refused(front: Front, data: str) -> None:
    status, root = ask(
        front,
        f"Action=RunInstances&ImageId={front.image.image_id}&MinCount=1&MaxCount=1"
        f"&InstanceType=m1.tiny&UserData={data}",
    )
    assert status == 400
    assert root.findtext("Errors/Error/Code") == "InvalidUserData.Malformed"


def test_short_ids_are_understood_and_long_ones_are_made(front: Front, ec2: Any) -> None:
    refused = error_of(ec2.describe_instances, InstanceIds=[SHORT_ID])
    assert refused["Code"] == "InvalidInstanceID.NotFound"
    ids = [*front.run(), ec2.create_security_group(GroupName="a", Description="b")["GroupId"]]
    assert all(re.fullmatch(r"(i|sg)-[0-9a-f]{17}", each) for each in ids)


MINIMAL: dict[str, str] = {
    "AuthorizeSecurityGroupEgress": "GroupId=sg-12345678",
    "CreateKeyPair": "KeyName=k",
    "CreateSecurityGroup": "GroupName=g&GroupDescription=d",
    "CreateTags": f"ResourceId.1={SHORT_ID}&Tag.1.Key=k",
    "DeleteTags": f"ResourceId.1={SHORT_ID}",
    "DescribeImageAttribute": "ImageId=ami-12345678&Attribute=description",
    "DescribeInstanceAttribute": f"InstanceId={SHORT_ID}&Attribute=userData",
    "DescribeVpcAttribute": "VpcId=vpc-12345678&Attribute=enableDnsSupport",
    "GetConsoleOutput": f"InstanceId={SHORT_ID}",
    "GetPasswordData": f"InstanceId={SHORT_ID}",
    "ImportKeyPair": "KeyName=k&PublicKeyMaterial=YQ==",
    "ModifyImageAttribute": "ImageId=ami-12345678",
    "ModifyInstanceAttribute": f"InstanceId={SHORT_ID}",
    "ModifySecurityGroupRules": (
        "GroupId=sg-12345678&SecurityGroupRule.1.SecurityGroupRuleId=sgr-12345678"
    ),
    "MonitorInstances": f"InstanceId.1={SHORT_ID}",
    "RebootInstances": f"InstanceId.1={SHORT_ID}",
    "ResetImageAttribute": "ImageId=ami-12345678&Attribute=launchPermission",
    "RevokeSecurityGroupEgress": "GroupId=sg-12345678",
    "RunInstances": "MinCount=1&MaxCount=1",
    "StartInstances": f"InstanceId.1={SHORT_ID}",
    "StopInstances": f"InstanceId.1={SHORT_ID}",
    "TerminateInstances": f"InstanceId.1={SHORT_ID}",
    "UnmonitorInstances": f"InstanceId.1={SHORT_ID}",
}


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_dry_run_and_authorisation_work_for_every_action(front: Front, action: str) -> None:
    before = front.snapshot()
    form = f"Action={action}&{MINIMAL.get(action, '')}"
    status, root = ask(front, f"{form}&DryRun=true", policy.NEEDED[action])
    assert (status, root.findtext("Errors/Error/Code")) == (412, "DryRunOperation")
    status, root = ask(front, form, "nobody")
    assert (status, root.findtext("Errors/Error/Code")) == (403, "UnauthorizedOperation")
    if policy.NEEDED[action] != READER:
        status, root = ask(front, f"{form}&DryRun=true", "reader")
        assert (status, root.findtext("Errors/Error/Code")) == (403, "UnauthorizedOperation")
    assert front.snapshot() == before
