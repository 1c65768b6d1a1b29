"""An instance's whole life over HTTP: a node in memory, with boto3 and the aws cli as they are."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as ClientConfig

from appliance import seal
from appliance.messages import PolicyChanged
from appliance.store import identity, schema
from tests.api.front import free_port
from tests.chain.harness import ROLES, Chain, Machine, quicken

QUICK = {"Delay": 1, "MaxAttempts": 30}


class Life:
    """A node that is up with its front door open, and a key to it."""

    def __init__(self, chain: Chain, port: int) -> None:
        self.chain = chain
        self.url = f"http://127.0.0.1:{port}"
        keys = seal.load(seal.key_path(chain.config.state_dir))

        def make(tx: Any) -> tuple[str, str]:
            identity.create_user(tx, "ada")
            identity.join_project(tx, "ada", "alpha", "member")
            return identity.create_access_key(tx, keys, "ada", "alpha")

        self.key_id, self.secret = chain.node.store.transaction(make)

    def client(self, path: str = "") -> Any:
        """Return an unmodified boto3 client."""
        return boto3.client(
            "ec2",
            endpoint_url=self.url + path,
            region_name="local-1",
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            config=ClientConfig(retries={"max_attempts": 0}),
        )

    def aws(self, *arguments: str) -> Any:
        """Run the aws cli and return what it printed.

        :raises AssertionError: it failed, with its words.
        """
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "local-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_PAGER": "",
        }
        command = [str(Path(sys.executable).with_name("aws")), "--endpoint-url", self.url]
        done = subprocess.run(
            [*command, "--output", "json", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "{}")


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    quicken(monkeypatch)
    machine = Machine(memory_mib=16_384)
    machine.install(monkeypatch)
    port = free_port()
    chain = Chain(tmp_path, machine, node={"roles": (*ROLES, "api")}, api={"port": port})
    try:
        yield Life(chain, port)
    finally:
        chain.stop()


def test_a_life_with_boto3(life: Life) -> None:
    ec2 = life.client("/services/Cloud")
    ec2.create_key_pair(KeyName="mine", KeyType="ed25519")
    group_id = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    rule = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }
    ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
    reply = ec2.run_instances(
        ImageId=life.chain.image.image_id,
        InstanceType="t2.nano",
        MinCount=2,
        MaxCount=2,
        KeyName="mine",
        SecurityGroupIds=[group_id],
        UserData="#!/bin/sh\n",
    )
    ids = [each["InstanceId"] for each in reply["Instances"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
    [reservation] = ec2.describe_instances(InstanceIds=ids)["Reservations"]
    addresses = {each["PrivateIpAddress"] for each in reservation["Instances"]}
    assert len(addresses) == 2
    assert set(life.chain.machine.running()) == set(ids)
    assert "Output" in ec2.get_console_output(InstanceId=ids[0])

    ec2.reboot_instances(InstanceIds=ids[:1])
    ec2.stop_instances(InstanceIds=ids)
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids, WaiterConfig=QUICK)
    ec2.start_instances(InstanceIds=ids)
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
    [reservation] = ec2.describe_instances(InstanceIds=ids)["Reservations"]
    assert {each["PrivateIpAddress"] for each in reservation["Instances"]} == addresses

    ec2.terminate_instances(InstanceIds=ids)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=QUICK)
    assert life.chain.machine.running() == {}
    assert life.chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}
    ec2.delete_security_group(GroupId=group_id)
    life.chain.assert_clean()


def test_rules_reach_the_node_that_enforces_them(life: Life) -> None:
    ec2 = life.client()
    image_id = life.chain.image.image_id
    reply = ec2.run_instances(ImageId=image_id, InstanceType="t2.nano", MinCount=1, MaxCount=1)
    ids = [each["InstanceId"] for each in reply["Instances"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
    heard: list[Any] = []
    store = life.chain.node.store
    store.on_commit(lambda tx: heard.extend(tx.news.values()))
    rule = {
        "IpProtocol": "tcp",
        "FromPort": 80,
        "ToPort": 80,
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }
    ec2.authorize_security_group_ingress(GroupName="default", IpPermissions=[rule])
    [read] = heard
    assert [type(message) for _, message in store.read(read).messages] == [PolicyChanged]


def test_a_launch_that_fits_nowhere_says_why(life: Life) -> None:
    ec2 = life.client()
    reply = ec2.run_instances(
        ImageId=life.chain.image.image_id, InstanceType="r5.xlarge", MinCount=3, MaxCount=3
    )
    ids = [each["InstanceId"] for each in reply["Instances"]]
    life.chain.wait_for("terminated", *ids)
    [reservation] = ec2.describe_instances(InstanceIds=ids)["Reservations"]
    for instance in reservation["Instances"]:
        assert instance["StateReason"]["Code"] == "Server.InsufficientInstanceCapacity"
        assert instance["StateReason"]["Message"]
    assert life.chain.quota_used()["instances"] == 0


def test_a_life_with_the_aws_cli(life: Life) -> None:
    made = life.aws("ec2", "create-key-pair", "--key-name", "cli", "--key-type", "ed25519")
    assert "PRIVATE KEY" in made["KeyMaterial"]
    life.aws(
        *("ec2", "authorize-security-group-ingress", "--group-name", "default"),
        *("--protocol", "tcp", "--port", "22", "--cidr", "0.0.0.0/0"),
    )
    reply = life.aws(
        *("ec2", "run-instances", "--image-id", life.chain.image.image_id),
        *("--instance-type", "t2.nano", "--key-name", "cli", "--count", "1"),
        *("--user-data", "#!/bin/sh"),
        *("--tag-specifications", "ResourceType=instance,Tags=[{Key=Name,Value=cli}]"),
    )
    instance_id = reply["Instances"][0]["InstanceId"]
    [row] = life.chain.read(lambda tx: tx.execute(schema.instances.select()).all())
    assert base64.b64decode(row.user_data_base64) == b"#!/bin/sh"
    life.chain.wait_for("running", instance_id)
    found = life.aws(
        "ec2", "describe-instances", "--filters", "Name=tag:Name,Values=cli", "--page-size", "5"
    )
    [instance] = found["Reservations"][0]["Instances"]
    assert instance["State"]["Name"] == "running"
    life.aws("ec2", "terminate-instances", "--instance-ids", instance_id)
    life.chain.wait_for("terminated", instance_id)
    life.aws("ec2", "delete-key-pair", "--key-name", "cli")
    assert life.aws("sts", "get-caller-identity")["Account"] == life.chain.project_id
