"""A real node that becomes a cluster with its instances on it, and one that comes and goes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.machine import Machine
from tests.cluster.region import BOOTED_S, Region
from tests.node.conftest import DEMO_IMAGE, NEEDED
from tests.rig import ROOT, wait_for
from tests.rig.fixtures import require
from tests.services.own import require_services

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """A lone node with a project, and a machine beside it that nobody has set up."""
    require(*NEEDED)
    require_services()
    if not (DEMO_IMAGE / "root.qcow2").exists():
        subprocess.run([sys.executable, ROOT / "image/demo/build.py"], check=True)
    with Cluster(("alone", "later")) as cluster:
        cluster.first.start()
        yield Region(cluster, tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def instance(region: Region) -> dict[str, Any]:
    """An instance that runs on the first node and answers it."""
    (made,) = region.launch()
    first = region.cluster.first
    wait_for(lambda: answers(first, made["PrivateIpAddress"]), BOOTED_S, "an answer")
    return made


def answers(machine: Machine, address: str) -> bool:
    words = ["ping", "-n", "-q", "-c", "1", "-W", "1", address]
    return " 1 received" in machine.rig.run(words, is_checked=False)


def is_member(machine: Machine) -> bool:
    """Say whether a node is in a cluster, as far as it knows."""
    folder = machine.state_dir / "cluster"
    return folder.is_dir() and not (folder / "removal.json").exists()


def networks(machine: Machine) -> list[dict[str, Any]]:
    """Return each network's id, type, zone and range; not how full it is."""
    kept = ("network_id", "type", "zone", "node", "cidr")
    found = machine.cli_json("network", "list")
    return [{name: one.get(name) for name in kept} for one in found]


@pytest.mark.faults("cluster: lone node grows")
def test_a_lone_node_grows_under_its_instance(region: Region, instance: dict[str, Any]) -> None:
    first, instance_id = region.cluster.first, instance["InstanceId"]
    assert not is_member(first)
    pid, before = first.qemu_pid(instance_id), networks(first)
    words = ["ping", "-n", "-i", "0.2", "-W", "1", instance["PrivateIpAddress"]]
    watch = first.rig.popen(words, stdout=subprocess.PIPE)
    first.cli("init", "--yes", deadline_s=240)
    first.rig.signal(watch, signal.SIGINT)
    said, _ = watch.communicate(timeout=10)
    counted = re.search(rb"(\d+) packets transmitted, (\d+) received", said)
    assert counted is not None, said
    assert int(counted[1]) > 20
    assert int(counted[1]) - int(counted[2]) <= 1
    assert is_member(first)
    assert first.qemu_pid(instance_id) == pid
    assert [one["type"] for one in before] == ["flatdhcp"]
    after = networks(first)
    assert [one for one in after if one["network_id"] == before[0]["network_id"]] == before
    assert [one["type"] for one in after if one not in before] == ["vxlan"]
    (found,) = region.instances(instance_id)
    for name in ("PrivateIpAddress", "ImageId", "LaunchTime", "SubnetId"):
        assert found[name] == instance[name]
    assert found["State"]["Name"] == "running"
    first.verify()
    # It obeys its owner as before.
    region.call("RebootInstances", InstanceIds=[instance_id])
    wait_for(lambda: answers(first, instance["PrivateIpAddress"]), BOOTED_S, "an answer")
    (newer,) = region.launch()
    assert region.home(newer["InstanceId"]) is first
    end(region, newer["InstanceId"])
    first.verify()


def end(region: Region, instance_id: str) -> None:
    region.call("TerminateInstances", InstanceIds=[instance_id])
    wait_for(lambda: region.state(instance_id) == "terminated", 60, f"{instance_id} to end")


@pytest.mark.faults("cluster: node removed")
def test_f24_a_removed_node_is_nobody_at_once(region: Region) -> None:
    first, later = region.cluster.first, region.cluster.machine("later")
    if not is_member(first):
        first.cli("init", "--yes", deadline_s=240)
    region.cluster.join(later)
    wait_for(lambda: is_up(first, "later"), 60, "it to be up")
    assert settings_status(first, later) == "200"
    assert lines_to_broker(first, later)
    first.cli("node", "remove", "later", "--yes", deadline_s=90)
    assert settings_status(first, later) == "403"
    wait_for(lambda: not lines_to_broker(first, later), 5, "its connections to end")
    assert not is_listed(first, "later")
    wait_for(lambda: not is_member(later), 90, "it to hear so")
    assert not lines_to_broker(first, later)
    first.verify()
    region.cluster.join(later)
    wait_for(lambda: is_up(first, "later"), 60, "it to be up again")
    first.verify()
    first.cli("node", "remove", "later", "--yes", deadline_s=90)
    wait_for(lambda: not is_member(later), 90, "it to hear so")
    later.stop()


def is_listed(first: Machine, name: str) -> bool:
    return name in [one["name"] for one in first.cli_json("node", "list")]


def is_up(first: Machine, name: str) -> bool:
    return name in [one["name"] for one in first.cli_json("node", "list") if one["is_up"]]


def settings_status(first: Machine, machine: Machine) -> str:
    """Return the HTTP status with which the first machine answers a node's certificate."""
    folder = machine.state_dir / "cluster"
    listed = first.cli_json("node", "list")
    server = next(f"{one['node_id']}.node" for one in listed if one["name"] == first.name)
    words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]
    words += ["--noproxy", "*", "--cacert", str(folder / "authority.pem")]
    words += ["--cert", str(folder / "node.pem"), "--key", str(folder / "node.key")]
    words += ["--resolve", f"{server}:8774:{first.address}"]
    return machine.rig.run([*words, f"https://{server}:8774/settings"], is_checked=False)


def lines_to_broker(first: Machine, machine: Machine) -> list[str]:
    """Return the connections of a machine at the broker of the first one."""
    shown = first.rig.run(["ss", "-tnH", "state", "established", "sport", "=", ":5671"])
    return [line for line in shown.splitlines() if machine.address in line.split()[-1]]
