"""Instances from launch to trace, on a node that runs with fakes."""

from __future__ import annotations

import base64
import contextlib

import pytest
from sqlalchemy import select

from appliance import verify
from appliance.config import Config
from appliance.model import Finding
from appliance.store.schema import instances
from tests.cli.shell import Shell

STEPS = [
    *("accept", "place", "bind", "bind", "fetch-images", "attach-ports", "apply-firewall"),
    *("create-disks", "inject", "define", "start"),
]


@pytest.fixture
def cloud(running: Shell) -> Shell:
    """A running node with a key and an image."""
    running.give_key()
    running.import_image()
    return running


def squeezed(line: str) -> str:
    """Return a line with one space between its words."""
    return " ".join(line.split())


def launch(cloud: Shell, *words: str) -> str:
    image_id = cloud.json("image", "list")[0]["image_id"]
    (one,) = cloud.json("launch", "--image", image_id, "--wait", *words)
    return str(one["instance_id"])


def test_launch_waits_and_says_where(cloud: Shell) -> None:
    image_id = cloud.json("image", "list")[0]["image_id"]
    data = cloud.folder / "data"
    data.write_bytes(b"#!/bin/sh\n\xff\x00")
    printed = cloud.run(
        *("launch", "--image", image_id, "--wait", "--user-data", str(data), "--name", "[red]web")
    )
    launched, runs = printed.splitlines()
    instance_id = launched.split()[1].rstrip(".")
    (line,) = cloud.json("instances")
    assert line["instance_id"] == instance_id
    assert line["state"] == "running"
    assert line["name"] == "[red]web"
    assert runs == f"{instance_id} is running at {line['addresses'][0]}"
    with contextlib.closing(cloud.open_store()) as store:
        (kept,) = store.read(lambda tx: tx.execute(select(instances.c.user_data_base64)).all())
    assert base64.b64decode(kept.user_data_base64) == data.read_bytes()
    shown = cloud.run("instances").splitlines()
    assert shown[0].split() == [
        *("ID", "NAME", "PROJECT", "TYPE", "STATE", "ADDRESS", "NODE", "AGE", "REASON")
    ]
    assert shown[1].split()[:7] == [
        *(instance_id, "[red]web", "demo", "m1.tiny", "running", line["addresses"][0], "n1")
    ]


def test_image_of_the_env_file(cloud: Shell) -> None:
    assert "Say which --image" in cloud.fail("launch", status=2)
    image_id = cloud.json("image", "list")[0]["image_id"]
    with (cloud.folder / "anynode.env").open("a") as file:
        file.write(f"export ANYNODE_IMAGE={image_id}\n")
    assert cloud.json("launch", "--count", "2")[1]["instance_id"].startswith("i-")


def test_keys_of_the_environment_come_first(cloud: Shell) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "x" * 40}
    result = cloud.try_run("launch", "--image", "ami-1", environment=wrong)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: RunInstances was refused: ")


def test_somebody_elses_aws_settings_do_not_matter(cloud: Shell) -> None:
    settings = {
        "AWS_PROFILE": "none",
        "AWS_CONFIG_FILE": "/dev/null/none",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    instance_id = launch(cloud)
    result = cloud.try_run("console", instance_id, environment=settings)
    assert result.exit_code == 0, result.output


def test_refusal_of_the_api_is_a_sentence(cloud: Shell) -> None:
    said = cloud.fail("launch", "--image", "ami-0123456789abcdef0")
    assert said.startswith("error: RunInstances was refused: ")
    assert "ami-0123456789abcdef0" in said


def test_no_key(shell: Shell) -> None:
    assert "There is no access key" in shell.fail("launch", "--image", "ami-1")


def test_no_api(shell: Shell) -> None:
    shell.give_key()
    said = shell.fail("console", "i-1")
    assert "got no answer" in said
    assert "anynode status" in said


def test_trace(cloud: Shell) -> None:
    instance_id = launch(cloud)
    entries = cloud.json("trace", instance_id)
    assert [entry["name"] for entry in entries] == STEPS
    assert set(entries[0]) == {
        *("instance_id", "epoch", "request_id", "node", "role", "name", "started_at"),
        *("duration_ms", "outcome", "detail", "causes"),
    }
    printed = cloud.run("trace", instance_id[:12]).splitlines()
    assert printed[0].startswith("Request ")
    assert [line.split()[0] for line in printed[2:13]] == STEPS
    assert all("█" in line or any(c in line for c in "▏▎▍▌▋▊▉") for line in printed[2:13])
    assert printed[-1].startswith(f"{instance_id} is running on n1 at 10.64.0.")


def test_trace_follows_until_it_rests(cloud: Shell) -> None:
    image_id = cloud.json("image", "list")[0]["image_id"]
    (one,) = cloud.json("launch", "--image", image_id)
    printed = cloud.run("trace", one["instance_id"], "--follow").splitlines()
    assert [line.split()[4] for line in printed[:-1]] == STEPS
    assert "is running" in printed[-1]


def test_explain(cloud: Shell) -> None:
    instance_id = launch(cloud)
    (decision,) = cloud.json("explain", instance_id)
    assert decision["node_name"] == "n1"
    assert set(decision) == {
        *("instance_id", "epoch", "scheduler", "ranking", "node_id", "node_name"),
        *("claims_lost", "summary", "made_at"),
    }
    printed = cloud.run("explain", instance_id)
    assert "Chosen: n1" in printed
    assert "Placed on n1" in printed


def test_a_launch_that_fits_nowhere_is_explained(empty: Shell) -> None:
    with empty.config_path.open("a") as file:
        file.write("[plugins.compute.fake]\nmemory_mib = 1024\n")
    with empty.running():
        empty.give_key()
        image_id = empty.import_image()
        words = ("launch", "--image", image_id, "--type", "m1.small", "--wait")
        (line,) = empty.json(*words, status=1)
        assert line["state"] == "terminated"
        assert "capacity: 1 node has too little free memory" in line["reason"]
        printed = empty.run("explain", line["instance_id"]).splitlines()
        assert "Chosen: no node" in printed
        assert squeezed(printed[-2]) == "FILTER REFUSED BECAUSE A NODE FOR EXAMPLE"
        assert squeezed(printed[-1]) == "capacity 1 has too little free memory n1"
        assert "no instances" in empty.run("instances")
        shown = empty.run("instances", "--all")
        assert line["reason"] in shown
        assert "refused" in empty.run("trace", line["instance_id"])


def test_ids_are_matched_by_their_beginning(cloud: Shell) -> None:
    launch(cloud)
    launch(cloud)
    assert "may be i-" in cloud.fail("trace", "i-0")
    assert "There is no instance 'i-z'." in cloud.fail("trace", "i-z")
    assert "There is no instance '%'." in cloud.fail("explain", "%")


def test_console(cloud: Shell) -> None:
    instance_id = launch(cloud)
    assert "booting" in cloud.run("console", instance_id)
    assert set(cloud.json("console", instance_id)) == {"instance_id", "output"}
    assert "refused" in cloud.fail("console", "i-0123456789abcdef0")


def test_firewall(cloud: Shell) -> None:
    instance_id = launch(cloud)
    found = cloud.json("firewall", "list", "--instance", instance_id)
    assert set(found) == {"groups", "networks", "in_force"}
    (group,) = found["groups"]
    assert (group["name"], group["project_name"]) == ("default", "demo")
    assert group["members"][0][0] == instance_id
    printed = cloud.run("firewall", "list")
    assert f"default ({group['group_id']}) of project demo" in printed
    assert squeezed(printed.splitlines()[2]) == "WAY PROTOCOL PORTS PEER RULE DESCRIPTION"


def test_status(cloud: Shell) -> None:
    launch(cloud)
    found = cloud.json("status")
    assert (found["is_running"], found["is_up"]) == (True, True)
    assert found["instances"] == {"running": 1}
    assert found["queue"] == {"pending": 0, "dead": 0, "oldest_pending_at": None}
    (node,) = found["nodes"]
    assert (node["name"], node["is_up"], node["vcpus_claimed"]) == ("n1", True, 1)
    assert node["accelerator"] == "fake"
    printed = cloud.run("status")
    assert "The node is up: process" in printed
    assert "Instances  1 running" in printed
    assert "Messages   0 pending, 0 dead" in printed


def test_status_of_a_node_that_does_not_run(shell: Shell) -> None:
    printed = shell.run("status", status=1)
    assert printed.startswith("No node runs ")
    assert shell.json("status", status=1)["is_running"] is False


FINDINGS = [
    Finding(code="I2.DOMAIN_ORPHAN", level="error", message="It is nobody's.", subject="i-1"),
    Finding(code="N2.UNGUARDED", level="warning", message="Nothing guards.", fix="guard"),
]


def test_verify(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    left = list(FINDINGS)
    asked: list[object] = []

    def wait(config: Config, wait_s: float, *, of_cluster: bool) -> list[Finding]:
        assert not of_cluster
        asked.append(wait_s)
        return list(left)

    def fix(config: Config, findings: list[Finding]) -> list[str]:
        asked.append([one.code for one in findings])
        left.remove(FINDINGS[0])
        return ["removed i-1"]

    monkeypatch.setattr(verify, "CODES", {one.code: None for one in FINDINGS})
    monkeypatch.setattr(verify, "check", lambda config, **_: list(left))
    monkeypatch.setattr(verify, "wait", wait)
    monkeypatch.setattr(verify, "fix", fix)

    found = shell.json("verify", status=3)
    assert set(found) == {"findings", "fixed", "errors"}
    names = {"code", "level", "message", "subject", "fix"}
    assert [set(one) for one in found["findings"]] == [names, names]
    printed = shell.run("verify", "--wait", "7", status=3).splitlines()
    assert asked == [7.0]
    assert squeezed(printed[1]) == "error I2.DOMAIN_ORPHAN i-1 It is nobody's."
    assert "ORPHAN" not in shell.run("verify", "--ignore", "I2.DOMAIN_ORPHAN")
    assert "There is no code NONE" in shell.fail("verify", "--ignore", "NONE", status=2)
    fixed = shell.run("verify", "--fix", "--ignore", "N2.UNGUARDED")
    assert fixed == "fixed: removed i-1\nEverything is as it should be.\n"
    assert asked[-1] == ["I2.DOMAIN_ORPHAN"]


def test_verify_of_a_node_that_does_not_run(shell: Shell) -> None:
    assert [one["level"] for one in shell.json("verify")["findings"]].count("error") == 0
