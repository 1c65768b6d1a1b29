"""boto3 as its users write it: resources, waiters, paginators, and what they rely on in errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.clients.endpoint import Endpoint

QUICK = {"Delay": 1, "MaxAttempts": 40}


@pytest.fixture(scope="module")
def session(endpoint: Endpoint) -> Iterator[boto3.session.Session]:
    """A session that finds everything in its environment, as a user's does."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        for name, value in endpoint.environment().items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        yield boto3.session.Session()


@pytest.fixture(scope="module")
def ec2(session: boto3.session.Session) -> Any:
    """The resource interface, of which ``meta.client`` is the client."""
    return session.resource("ec2")


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_a_whole_life(ec2: Any, endpoint: Endpoint) -> None:
    key = ec2.create_key_pair(KeyName="boto3-life", KeyType="ed25519")
    assert key.key_material.startswith("-----BEGIN")
    vpc = next(iter(ec2.vpcs.filter(Filters=[{"Name": "is-default", "Values": ["true"]}])))
    group = vpc.create_security_group(GroupName="boto3-life", Description="A whole life")
    ec2.meta.client.get_waiter("security_group_exists").wait(GroupIds=[group.id])
    group.authorize_ingress(IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="192.0.2.0/24")
    group.reload()
    assert [rule["FromPort"] for rule in group.ip_permissions] == [22]
    assert [rule["IpProtocol"] for rule in group.ip_permissions_egress] == ["-1"]
    image = ec2.Image(endpoint.image_id)
    assert image.state == "available"

    tags = [{"Key": "Name", "Value": "boto3"}, {"Key": "stage", "Value": "test"}]
    instances = ec2.create_instances(
        ImageId=image.id,
        InstanceType="t3.micro",
        MinCount=2,
        MaxCount=2,
        KeyName=key.name,
        SecurityGroupIds=[group.id],
        UserData="#!/bin/sh\necho hello\n",
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    one, other = instances
    for instance in instances:
        instance.wait_until_exists(WaiterConfig=QUICK)
        instance.wait_until_running(WaiterConfig=QUICK)
        instance.reload()
        assert instance.state == {"Code": 16, "Name": "running"}
        assert instance.key_name == key.name
        assert instance.image_id == image.id
        assert instance.vpc_id == vpc.id
        assert instance.subnet in list(vpc.subnets.all())
        assert instance.security_groups == [{"GroupId": group.id, "GroupName": "boto3-life"}]
        assert {tag["Key"]: tag["Value"] for tag in instance.tags} == {
            "Name": "boto3",
            "stage": "test",
        }
        [card] = instance.network_interfaces
        assert card.private_ip_address == instance.private_ip_address
    assert one.private_ip_address != other.private_ip_address
    ec2.meta.client.get_waiter("instance_status_ok").wait(InstanceIds=[one.id], WaiterConfig=QUICK)

    assert one.console_output()["InstanceId"] == one.id
    one.create_tags(Tags=[{"Key": "stage", "Value": "boto3"}, {"Key": "team", "Value": ""}])
    one.reload()
    assert {"Key": "stage", "Value": "boto3"} in one.tags
    one.delete_tags(Tags=[{"Key": "team"}])
    live = ec2.instances.filter(Filters=[{"Name": "tag:stage", "Values": ["boto3"]}])
    assert [instance.id for instance in live] == [one.id]

    one.reboot()
    assert one.monitor()["InstanceMonitorings"][0]["InstanceId"] == one.id
    one.unmonitor()
    data = one.describe_attribute(Attribute="userData")["UserData"]["Value"]
    assert data == "IyEvYmluL3NoCmVjaG8gaGVsbG8K"

    one.stop()
    one.wait_until_stopped(WaiterConfig=QUICK)
    one.modify_attribute(InstanceType={"Value": "t3.small"})
    one.modify_attribute(DisableApiTermination={"Value": True})
    one.start()
    one.wait_until_running(WaiterConfig=QUICK)
    one.reload()
    assert one.instance_type == "t3.small"
    with pytest.raises(ClientError) as refused:
        one.terminate()
    assert code_of(refused) == "OperationNotPermitted"
    one.modify_attribute(DisableApiTermination={"Value": False})

    with pytest.raises(ClientError) as refused:
        group.delete()
    assert code_of(refused) == "DependencyViolation"
    ec2.instances.filter(InstanceIds=[one.id, other.id]).terminate()
    for instance in instances:
        instance.wait_until_terminated(WaiterConfig=QUICK)
    group.revoke_ingress(IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="192.0.2.0/24")
    group.delete()
    key.delete()
    with pytest.raises(ClientError) as refused:
        group.reload()
    assert code_of(refused) == "InvalidGroup.NotFound"
    assert not list(ec2.key_pairs.filter(Filters=[{"Name": "key-name", "Values": [key.name]}]))


def test_pages(ec2: Any, endpoint: Endpoint) -> None:
    made = ec2.create_instances(
        ImageId=endpoint.image_id, InstanceType="t2.nano", MinCount=12, MaxCount=12
    )
    ids = {instance.id for instance in made}
    reservation = [{"Name": "instance-id", "Values": sorted(ids)}]
    paginator = ec2.meta.client.get_paginator("describe_instances")
    pages = list(paginator.paginate(Filters=reservation, PaginationConfig={"PageSize": 5}))
    found = [
        [each["InstanceId"] for held in page["Reservations"] for each in held["Instances"]]
        for page in pages
    ]
    assert [len(page) for page in found] == [5, 5, 2]
    assert set().union(*found) == ids
    query = "Reservations[].Instances[].InstanceId"
    assert set(paginator.paginate(Filters=reservation).search(query)) == ids
    types = ec2.meta.client.get_paginator("describe_instance_types")
    named = [each["InstanceType"] for page in types.paginate() for each in page["InstanceTypes"]]
    assert len(named) == len(set(named)) > 0
    ec2.instances.filter(InstanceIds=sorted(ids)).terminate()


def test_waiters_end_with_what_they_saw(ec2: Any) -> None:
    client = ec2.meta.client
    client.get_waiter("instance_terminated")
    with pytest.raises(ClientError) as refused:
        client.describe_instances(InstanceIds=["i-00000000000000000"])
    assert code_of(refused) == "InvalidInstanceID.NotFound"
    with pytest.raises(ClientError) as refused:
        client.describe_key_pairs(KeyNames=["nobody"])
    assert code_of(refused) == "InvalidKeyPair.NotFound"


def test_a_dry_run_changes_nothing(ec2: Any, endpoint: Endpoint) -> None:
    with pytest.raises(ClientError) as refused:
        ec2.create_instances(
            ImageId=endpoint.image_id,
            InstanceType="t2.nano",
            MinCount=1,
            MaxCount=1,
            DryRun=True,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "dry", "Value": "run"}]}
            ],
        )
    assert code_of(refused) == "DryRunOperation"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert not list(ec2.instances.filter(Filters=[{"Name": "tag-key", "Values": ["dry"]}]))


def test_the_same_token_is_the_same_launch(ec2: Any, endpoint: Endpoint) -> None:
    wanted = {
        "ImageId": endpoint.image_id,
        "InstanceType": "t2.nano",
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": "boto3-once",
    }
    [first] = ec2.create_instances(**wanted)
    [again] = ec2.create_instances(**wanted)
    assert again.id == first.id
    with pytest.raises(ClientError) as refused:
        ec2.create_instances(**{**wanted, "InstanceType": "t2.micro"})
    assert code_of(refused) == "IdempotentParameterMismatch"
    first.terminate()
    first.wait_until_terminated(WaiterConfig=QUICK)


def test_who_calls(session: boto3.session.Session) -> None:
    who = session.client("sts").get_caller_identity()
    assert who["Account"].isdigit()
    assert len(who["Account"]) == 12
    assert who["Arn"].startswith("arn:aws:iam::")
    assert who["UserId"]
