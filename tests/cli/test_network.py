"""``anynode network`` and ``anynode address``, as operators use them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from appliance.ec2_client import Ec2Client, find_credentials
from appliance.store import Store, networks, nodes
from tests.cli.shell import Shell

FLAT = ("--type", "flatdhcp")


@pytest.fixture
def cloud(running: Shell) -> Shell:
    """A running node with a key and an image."""
    running.give_key()
    running.import_image()
    return running


def with_store(shell: Shell, work: Any) -> Any:
    store: Store
    with contextlib.closing(shell.open_store()) as store:
        return store.transaction(work)


def launch(shell: Shell, network_id: str) -> str:
    client = Ec2Client(find_credentials(shell.config, shell.folder / "anynode.env"))
    image_id = shell.json("image", "list")[0]["image_id"]
    reply = client.call(
        "run_instances", ImageId=image_id, MinCount=1, MaxCount=1, SubnetId=network_id
    )
    return str(reply["Instances"][0]["InstanceId"])


def test_made_listed_and_removed(shell: Shell) -> None:
    (default,) = shell.json("network", "list")
    assert default["is_default"]
    assert (default["cidr"], default["used"], default["free"]) == ("10.64.0.0/24", 0, 251)
    made = shell.json("network", "create", *FLAT)
    assert (made["cidr"], made["zone"], made["node"], made["is_default"]) == (
        "10.64.1.0/24",
        default["zone"],
        "n1",
        False,
    )
    assert made["bridge"] != default["bridge"]
    lines = shell.run("network", "list").splitlines()
    assert lines[0].split()[:6] == ["NETWORK", "TYPE", "ZONE", "NODE", "RANGE", "USED"]
    assert lines[2].split()[:5] == [
        made["network_id"],
        "flatdhcp",
        default["zone"],
        "n1",
        made["cidr"],
    ]
    assert "is no network" in shell.run("network", "remove", made["network_id"])
    assert shell.json("network", "list") == [default]
    audited = shell.run("audit")
    assert "CreateNetwork" in audited
    assert "RemoveNetwork" in audited


def test_vxlan_is_on_all_nodes(shell: Shell) -> None:
    said = shell.run("network", "create", "--type", "vxlan", "--cidr", "10.64.8.0/22")
    assert "of type vxlan" in said
    made = shell.json("network", "list")[1]
    assert (made["node"], made["segment"], made["mtu"], made["cidr"]) == (
        "",
        10001,
        1450,
        "10.64.8.0/22",
    )
    assert " all " in shell.run("network", "list")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--zone", "nowhere"), "No node is in a zone 'nowhere'"),
        (("--type", "none-such"), "none-such"),
        (("--node", "n9"), "There is no node 'n9'"),
        (("--type", "vxlan", "--node", "n1"), "takes no --node"),
        (("--cidr", "10.64.0.128/25"), "which meets 10.64.0.128/25"),
        (("--cidr", "192.0.2.0/24"), "not inside the default VPC"),
        (("--cidr", "10.64.3.0/30"), "too small"),
        (("--cidr", "10.64.3.1/24"), "is no range"),
        (("--cidr", "lots"), "is no range"),
    ],
)
def test_what_cannot_be_is_refused(shell: Shell, words: tuple[str, ...], why: str) -> None:
    assert why in shell.fail("network", "create", *words)
    assert len(shell.json("network", "list")) == 1


def test_a_type_that_ends_at_a_node_needs_one_of_its_zone(shell: Shell) -> None:
    zone = shell.config.node.zone
    for name, where in (("n2", zone), ("n3", "other")):
        row = nodes.Node(node_id=f"node-{name}", name=name, zone=where, roles=("compute",))
        with_store(shell, lambda tx, row=row: nodes.join(tx, row))
    refused = shell.fail("network", "create", *FLAT)
    assert "say which one has it" in refused
    assert "n1, n2" in refused
    assert "n3 is in zone other" in shell.fail("network", "create", *FLAT, "--node", "n3")
    assert shell.json("network", "create", *FLAT, "--node", "n2")["node"] == "n2"
    assert shell.json("network", "create", *FLAT, "--zone", "other")["node"] == "n3"


def test_instances_are_in_it_and_hold_it(cloud: Shell) -> None:
    made = cloud.json("network", "create", "--cidr", "10.64.7.0/28")
    instance_id = launch(cloud, made["network_id"])
    cloud.run("verify", "--wait", "20")
    (held,) = cloud.json("address", "list")
    assert (held["address"], held["instance_id"], held["epoch"], held["node"]) == (
        "10.64.7.4",
        instance_id,
        1,
        "n1",
    )
    assert (held["state"], held["network_id"]) == ("used", made["network_id"])
    assert cloud.json("network", "list")[1]["used"] == 1
    shown = cloud.run("address", "list").splitlines()
    assert shown[1].split()[:5] == ["10.64.7.4", made["network_id"], "used", instance_id, "1"]
    everything = cloud.json("address", "list", "--all", "--network", made["network_id"])
    assert [one["state"] for one in everything].count("reserved") == 5
    assert len(everything) == 16
    refused = cloud.fail("network", "remove", made["network_id"])
    assert instance_id in refused


def test_a_network_that_nodes_may_remember_stays(shell: Shell) -> None:
    made = shell.json("network", "create")
    with_store(
        shell,
        lambda tx: networks.allocate(tx, made["network_id"], "eni-1", quarantine_s=600.0),
    )
    with_store(shell, lambda tx: networks.free(tx, ["eni-1"], {made["network_id"]: 7}))
    (freed,) = shell.json("address", "list")
    assert (freed["state"], freed["instance_id"]) == ("freed", "")
    assert "were freed a moment ago" in shell.fail("network", "remove", made["network_id"])
    assert shell.json("network", "list")[1]["freed"] == 1


def test_what_is_not_there(shell: Shell, empty: Shell) -> None:
    (default,) = shell.json("network", "list")
    assert "is the default network" in shell.fail("network", "remove", default["network_id"])
    for words in (("network", "remove", "subnet-1"), ("address", "list", "--network", "subnet-1")):
        assert f"There are {default['network_id']}" in shell.fail(*words)
    assert shell.run("address", "list") == "No address is in use.\n"


def test_without_a_node(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.config_path.write_text(f'[node]\nstate_dir = "{tmp_path}/state"\n')
    assert "No node has been set up" in shell.fail("network", "list")
