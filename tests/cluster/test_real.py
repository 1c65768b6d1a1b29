"""Three real nodes with real instances: what they reach, and what nothing in them notices."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.machine import Machine
from tests.cluster.region import Region
from tests.node.conftest import DEMO_IMAGE, NEEDED
from tests.rig import ROOT, wait_for
from tests.rig.fixtures import require
from tests.services.own import require_services

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

OnEach = dict[str, dict[str, Any]]
STORE_ROLES = ("api", "controller", "scheduler", "network")
DOWN_S = 75
"""A node is down after 30 seconds of silence; the rest is for a slow machine."""


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """A cluster of n1, n2 and n3, with a project."""
    require(*NEEDED)
    require_services()
    if not (DEMO_IMAGE / "root.qcow2").exists():
        subprocess.run([sys.executable, ROOT / "image/demo/build.py"], check=True)
    with Cluster() as cluster:
        cluster.form()
        yield Region(cluster, tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def first_on_each(region: Region) -> OnEach:
    made = region.launch_on_each()
    region.ping_all(made)
    return made


@pytest.fixture
def on_each(region: Region, first_on_each: OnEach) -> Iterator[OnEach]:
    """An instance on each node, by the node's name; they are up and reach each other.

    A test leaves the cluster well. What it has moved away from a node is replaced.
    """
    for name in [*first_on_each]:
        if region.home(first_on_each[name]["InstanceId"]).name != name:
            region.call("TerminateInstances", InstanceIds=[first_on_each.pop(name)["InstanceId"]])
            with region.only(name):
                (first_on_each[name],) = region.launch()
            region.ping_all(first_on_each)
    yield first_on_each
    region.cluster.first.verify()


def listed(region: Region, name: str) -> dict[str, Any]:
    """Return what ``anynode node list`` says of a node."""
    found = region.cluster.first.cli_json("node", "list")
    return next(one for one in found if one["name"] == name)


def wait_up(region: Region, name: str, *, is_up: bool = True, deadline_s: float = DOWN_S) -> None:
    wait_for(
        lambda: listed(region, name)["is_up"] is is_up,
        deadline_s,
        f"{name} to be {'up' if is_up else 'down'}",
    )


class Pings:
    """Pings from one instance to another, once a second, while the block runs."""

    def __init__(self, region: Region, machine: Machine, source: dict[str, Any], to: str) -> None:
        self._ask: Callable[..., str] = partial(region.ssh, machine, source)
        self._to = to
        self.answer = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        # It is ended from within: nobody knows how long the block takes.
        self.answer = self._ask(
            f"rm -f /tmp/end; ping {self._to} > /tmp/pings & pid=$!; "
            "while [ ! -e /tmp/end ]; do sleep 0.2; done; kill -INT $pid; wait $pid; "
            "cat /tmp/pings",
            deadline_s=400,
        )

    def __enter__(self) -> Pings:
        self._thread.start()
        wait_for(lambda: "bytes from" in self._ask("cat /tmp/pings"), 30, "the first ping")
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("touch /tmp/end")
        self._thread.join(60)

    def check(self) -> None:
        """See that each was answered, and by one."""
        assert " 0% packet loss" in self.answer, self.answer[-600:]
        assert "DUP" not in self.answer, self.answer[-600:]


def test_every_node_answers(region: Region, on_each: OnEach) -> None:
    wanted = {one["InstanceId"] for one in on_each.values()}
    for machine in region.cluster.machines:
        seen = {
            one["InstanceId"]
            for one in region.instances(via=machine)
            if one["State"]["Name"] == "running"
        }
        assert seen == wanted, machine.name


def test_a_rule_reaches_all_nodes(region: Region, on_each: OnEach) -> None:
    to_n2, to_n3 = (on_each[name]["PrivateIpAddress"] for name in ("n2", "n3"))
    first = region.cluster.first
    assert all(region.pings(first, on_each["n1"], one) for one in (to_n2, to_n3))
    region.permit("icmp", -1, is_revoked=True)
    try:
        for address in (to_n2, to_n3):
            wait_for(
                lambda address=address: not region.pings(first, on_each["n1"], address),  # type: ignore[misc]
                15,
                f"{address} to answer no more",
            )
    finally:
        region.permit("icmp", -1)
    for address in (to_n2, to_n3):
        wait_for(partial(region.pings, first, on_each["n1"], address), 15, f"{address} to answer")


@pytest.mark.faults("cluster: running instances", quick=True)
def test_instances_do_not_notice_that_nodes_are_killed(region: Region, on_each: OnEach) -> None:
    """All three processes, the one of the first node with the roles of the store, too."""
    machines = region.cluster.machines
    before = {
        machine.name: machine.qemu_pid(on_each[machine.name]["InstanceId"]) for machine in machines
    }
    n2, n3 = region.cluster.machine("n2"), region.cluster.machine("n3")
    with Pings(region, n2, on_each["n2"], on_each["n3"]["PrivateIpAddress"]) as pings:
        for machine in (n3, n2, region.cluster.first):
            machine.kill()
        for machine in machines:
            machine.start()
        wait_up(region, "n3")
    pings.check()
    assert before == {
        machine.name: machine.qemu_pid(on_each[machine.name]["InstanceId"]) for machine in machines
    }
    assert n3.is_running


def test_roles_move_beside_instances(region: Region, on_each: OnEach) -> None:
    """Another node takes the roles of the store, and serves while the first one is dead."""
    first, n2 = region.cluster.first, region.cluster.machine("n2")
    pid = first.qemu_pid(on_each["n1"]["InstanceId"])
    for role in STORE_ROLES:
        first.cli("role", "add", role, "--node", "n2", deadline_s=90)
    wait_for(
        lambda: {*STORE_ROLES} <= {*listed(region, "n2")["running_roles"]}, 60, "the roles to run"
    )
    try:
        first.kill()
        (one,) = region.launch(via=n2)
        assert region.home(one["InstanceId"]).name != "n1"
        region.call("TerminateInstances", via=n2, InstanceIds=[one["InstanceId"]])
        wait_for(
            lambda: region.state(one["InstanceId"], via=n2) == "terminated",
            60,
            "the instance to end",
        )
    finally:
        first.start()
        wait_up(region, "n1")
        for role in STORE_ROLES:
            first.cli("role", "remove", role, "--node", "n2", deadline_s=90)
    wait_for(
        lambda: not {*STORE_ROLES} & {*listed(region, "n2")["running_roles"]},
        60,
        "the roles to end",
    )
    assert first.qemu_pid(on_each["n1"]["InstanceId"]) == pid
    assert {one["InstanceId"] for one in region.instances(via=n2)} >= {
        one["InstanceId"] for one in on_each.values()
    }


def test_a_drained_node_keeps_what_it_has(region: Region, on_each: OnEach) -> None:
    with region.only("n3"):
        (one,) = region.launch()
        assert region.home(one["InstanceId"]).name == "n3"
        region.call("TerminateInstances", InstanceIds=[one["InstanceId"]])
        for name, instance in on_each.items():
            assert region.home(instance["InstanceId"]).name == name
    wait_for(lambda: region.state(one["InstanceId"]) == "terminated", 60, "the instance to end")


# -- a node that is lost --------------------------------------------------------------------------


@contextmanager
def cut_off(machine: Machine, _instance_id: str) -> Iterator[None]:
    machine.cut()
    try:
        yield
    finally:
        machine.heal()


@contextmanager
def frozen(machine: Machine, _instance_id: str) -> Iterator[None]:
    """Freeze the node's process; its instances go on, on the network, too."""
    machine.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        machine.signal(signal.SIGCONT)


@contextmanager
def frozen_with_instance(machine: Machine, instance_id: str) -> Iterator[None]:
    """Freeze both; the instance thaws first, and has the network before anybody looks at it."""
    qemu = machine.qemu_pid(instance_id)
    assert qemu is not None
    machine.signal(signal.SIGSTOP, qemu)
    machine.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        machine.signal(signal.SIGCONT, qemu)
        machine.signal(signal.SIGCONT)


@pytest.mark.faults("cluster: lost node")
@pytest.mark.parametrize("lose", [cut_off, frozen, frozen_with_instance])
def test_t47_a_lost_node_is_evacuated_and_comes_back(
    region: Region, on_each: OnEach, lose: Callable[[Machine, str], Any]
) -> None:
    first, n1, n3 = region.cluster.first, on_each["n1"], region.cluster.machine("n3")
    instance = on_each["n3"]
    instance_id, address = instance["InstanceId"], instance["PrivateIpAddress"]
    with lose(n3, instance_id):
        wait_up(region, "n3", is_up=False)
        assert region.state(instance_id) == "running", "it is on record, and nobody knows better"
        (status,) = region.call("DescribeInstanceStatus", InstanceIds=[instance_id])[
            "InstanceStatuses"
        ]
        assert status["SystemStatus"]["Status"] == "impaired"
        (other,) = region.launch()
        assert region.home(other["InstanceId"]).name != "n3"
        region.call("TerminateInstances", InstanceIds=[other["InstanceId"]])
        with pytest.raises(AssertionError, match="add --confirm-dead"):
            first.cli("evacuate", "n3", "--lose-disk")
        first.cli("evacuate", "n3", "--confirm-dead", "--lose-disk")
        moved = wait_for(lambda: moved_to(region, instance_id, ("n1", "n2")), 120, "a new copy")
        wait_for(lambda: region.state(instance_id) == "running", 60, "it to run")
        (again,) = region.instances(instance_id)
        for name in ("PrivateIpAddress", "InstanceId"):
            assert again[name] == instance[name]
        assert mac_of(again) == mac_of(instance)
        region.wait_pings(first, n1, address)
        pings = Pings(region, first, n1, address)
        pings.__enter__()
    try:
        wait_up(region, "n3")
        wait_for(lambda: n3.qemu_pid(instance_id) is None, 90, "the stale copy to end")
        wait_for(lambda: [*(n3.state_dir / "attic").iterdir()], 30, "it to be set aside")
    finally:
        pings.__exit__()
    pings.check()
    assert region.home(instance_id).name == moved


def moved_to(region: Region, instance_id: str, names: tuple[str, ...]) -> str:
    """Return the one of these machines that has an instance's process; empty when none has."""
    found = [name for name in names if region.cluster.machine(name).qemu_pid(instance_id)]
    assert len(found) < 2, found
    return found[0] if found else ""


def mac_of(instance: dict[str, Any]) -> str:
    return str(instance["NetworkInterfaces"][0]["MacAddress"])
