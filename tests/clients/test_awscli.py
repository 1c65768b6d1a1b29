"""The aws cli as people type it: its own waiters, queries, dry runs, JSON and text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.endpoint import AWS, Endpoint


class Cli:
    """The aws cli in an environment that holds nothing but the endpoint and a key."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def json(self, *words: str) -> Any:
        """Run a command of EC2 and return what it printed."""
        return json.loads(self._run("json", words) or "{}")

    def text(self, *words: str) -> str:
        """Run a command of EC2 and return the one line that it printed."""
        return self._run("text", words).strip()

    def _run(self, output: str, words: tuple[str, ...]) -> str:
        return self.endpoint.run([AWS, "--output", output, "ec2", *words])

    def refused(self, *words: str) -> str:
        """Run a command of EC2 that must fail and return what it said."""
        done = self.endpoint.try_run([AWS, "ec2", *words])
        assert done.returncode in (254, 255), done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def aws(endpoint: Endpoint) -> Cli:
    """The cli."""
    return Cli(endpoint)


def test_a_whole_life(aws: Cli, endpoint: Endpoint) -> None:
    key_file = endpoint.home / "awscli.pem"
    made = aws.text("create-key-pair", "--key-name", "cli", "--query", "KeyMaterial")
    assert made.startswith("-----BEGIN")
    key_file.write_text(made)
    group = aws.text(
        *("create-security-group", "--group-name", "cli", "--description", "A whole life"),
        *("--query", "GroupId"),
    )
    aws.json(
        *("authorize-security-group-ingress", "--group-name", "cli", "--protocol", "tcp"),
        *("--port", "22", "--cidr", "192.0.2.0/24"),
    )
    query = "SecurityGroups[0].IpPermissions[0].[FromPort,IpRanges[0].CidrIp]"
    found = aws.text("describe-security-groups", "--group-ids", group, "--query", query)
    assert found == "22\t192.0.2.0/24"

    user_data = endpoint.home / "awscli.sh"
    user_data.write_text("#!/bin/sh\necho hello\n")
    launch = (
        *("run-instances", "--image-id", endpoint.image_id, "--instance-type", "t3.micro"),
        *("--count", "2", "--key-name", "cli", "--security-group-ids", group),
        *("--user-data", f"file://{user_data}"),
        *("--tag-specifications", "ResourceType=instance,Tags=[{Key=Name,Value=cli}]"),
    )
    assert "DryRunOperation" in aws.refused(*launch, "--dry-run")
    ids = aws.text(*launch, "--query", "Instances[].InstanceId").split()
    assert len(ids) == 2
    one, other = ids
    aws.text("wait", "instance-running", "--instance-ids", *ids)
    query = "Reservations[].Instances[].[InstanceId,State.Name,KeyName]"
    table = aws.text(
        "describe-instances", "--filters", "Name=tag:Name,Values=cli", "--query", query
    )
    assert sorted(table.splitlines()) == sorted(f"{each}\trunning\tcli" for each in ids)

    assert aws.json("get-console-output", "--instance-id", one)["InstanceId"] == one
    aws.text("create-tags", "--resources", one, "--tags", "Key=stage,Value=live", "Key=team,Value=")
    tags = ("describe-tags", "--filters", f"Name=resource-id,Values={one}", "--query", "Tags[].Key")
    assert sorted(aws.text(*tags).split()) == ["Name", "stage", "team"]
    aws.text("delete-tags", "--resources", one, "--tags", "Key=team")
    assert sorted(aws.text(*tags).split()) == ["Name", "stage"]

    aws.text("reboot-instances", "--instance-ids", one)
    query = "StoppingInstances[0].[PreviousState.Name,CurrentState.Name]"
    moved = aws.text("stop-instances", "--instance-ids", one, "--query", query)
    assert moved == "running\tstopping"
    aws.text("wait", "instance-stopped", "--instance-ids", one)
    aws.text("modify-instance-attribute", "--instance-id", one, "--instance-type", "t3.small")
    attribute = ("describe-instance-attribute", "--instance-id", one, "--attribute")
    assert aws.json(*attribute, "instanceType")["InstanceType"] == {"Value": "t3.small"}
    aws.text("start-instances", "--instance-ids", one)
    aws.text("wait", "instance-running", "--instance-ids", one)

    aws.text("wait", "instance-status-ok", "--instance-ids", other)
    aws.text("modify-instance-attribute", "--instance-id", one, "--disable-api-termination")
    assert "OperationNotPermitted" in aws.refused("terminate-instances", "--instance-ids", one)
    aws.text("modify-instance-attribute", "--instance-id", one, "--no-disable-api-termination")
    query = "TerminatingInstances[].CurrentState.Name"
    terminated = aws.text("terminate-instances", "--instance-ids", one, other, "--query", query)
    assert terminated == "shutting-down\tshutting-down"
    aws.text("wait", "instance-terminated", "--instance-ids", *ids)
    aws.json("delete-security-group", "--group-id", group)
    aws.json("delete-key-pair", "--key-name", "cli")
    gone = aws.refused("describe-key-pairs", "--key-names", "cli")
    assert "(InvalidKeyPair.NotFound)" in gone


def test_pages_by_its_own_options(aws: Cli, endpoint: Endpoint) -> None:
    launch = (
        *("run-instances", "--image-id", endpoint.image_id, "--instance-type", "t2.nano"),
        *("--query", "Instances[].InstanceId", "--count"),
    )
    ids = [*aws.text(*launch, "4").split(), *aws.text(*launch, "3").split()]
    listing = ("describe-instances", "--filters", f"Name=instance-id,Values={','.join(ids)}")
    query = "Reservations[].Instances[].InstanceId"
    whole = aws.text(*listing, "--page-size", "5", "--query", query)
    assert sorted(whole.split()) == sorted(ids)
    first = aws.json(*listing, "--max-items", "1")
    rest = aws.json(*listing, "--starting-token", first["NextToken"])
    assert "NextToken" not in rest
    assert sorted(
        instance["InstanceId"]
        for page in (first, rest)
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ) == sorted(ids)
    aws.text("terminate-instances", "--instance-ids", *ids)


def test_who_calls(endpoint: Endpoint) -> None:
    who = json.loads(endpoint.run([AWS, "--output", "json", "sts", "get-caller-identity"]))
    assert set(who) == {"UserId", "Account", "Arn"}
