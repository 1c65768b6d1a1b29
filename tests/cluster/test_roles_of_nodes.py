"""Three nodes on fakes: every port answers, roles move while they work, a role's node dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from appliance.cluster import settings
from appliance.store import nodes
from tests.cluster.fakes import ALL_ROLES, HYPERVISOR_ROLES, FakeCluster, running, wait_until
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[FakeCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running(folder, postgresql, rabbitmq.new_vhost()) as made:
        made.add("n1", roles=ALL_ROLES)
        made.add("n2", roles=("controller", "scheduler", "network", *HYPERVISOR_ROLES))
        made.add("n3", roles=HYPERVISOR_ROLES, zone="local-1b")
        made.start()
        yield made


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_every_port_launches_and_describes(cluster: FakeCluster, name: str) -> None:
    node = cluster[name]
    ids = cluster.launch(2, via=node)
    cluster.wait_state("running", *ids, via=node)
    node.client().terminate_instances(InstanceIds=ids)
    cluster.wait_state("terminated", *ids, via=node)


def launched_s(cluster: FakeCluster, via: str) -> float:
    """Launch through a node's port; return after how many seconds the instance ran."""
    began = time.monotonic()
    ids = cluster.launch(via=cluster[via])
    cluster.wait_state("running", *ids, via=cluster[via])
    took_s = time.monotonic() - began
    cluster[via].client().terminate_instances(InstanceIds=ids)
    return took_s


def running_roles(cluster: FakeCluster, name: str) -> tuple[str, ...]:
    return next(one for one in cluster.read(nodes.status) if one.name == name).condition.roles


def test_an_instance_is_told_its_own_zone(cluster: FakeCluster) -> None:
    (instance_id,) = cluster.launch(via=cluster["n2"], Placement={"AvailabilityZone": "local-1b"})
    cluster.wait_state("running", instance_id, via=cluster["n2"])
    reply = cluster["n2"].client().describe_instances(InstanceIds=[instance_id])
    (found,) = reply["Reservations"][0]["Instances"]
    assert found["Placement"]["AvailabilityZone"] == "local-1b"
    cluster["n2"].client().terminate_instances(InstanceIds=[instance_id])


def test_roles_move_while_they_work(cluster: FakeCluster) -> None:
    added = cluster["n1"].run_cli("role", "add", "api", "--node", "n2", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["took_s"] < 3
    assert "api" in running_roles(cluster, "n2")
    assert "proxy" not in running_roles(cluster, "n2")
    assert launched_s(cluster, "n2") < 5
    for role in ("scheduler", "api"):
        taken = cluster["n2"].run_cli("role", "remove", role, "--node", "n1")
        assert taken.returncode == 0, taken.stderr
        assert role not in running_roles(cluster, "n1")
    for via in ("n1", "n2", "n3"):
        assert launched_s(cluster, via) < 5
    for role in ("scheduler", "api"):
        assert cluster["n2"].run_cli("role", "add", role, "--node", "n1").returncode == 0
    assert cluster["n2"].run_cli("role", "remove", "api", "--node", "n2").returncode == 0
    for via in ("n1", "n2", "n3"):
        assert launched_s(cluster, via) < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("role", "remove", "api", "--node", "n1"), "n1 is the last node with api."),
        (("role", "add", "cook", "--node", "n1"), "There is no role 'cook'"),
        (("role", "add", "api", "--node", "n9"), "There is no node 'n9'"),
        (("role", "remove", "datapath", "--node", "n3"), "compute on n3 needs datapath."),
        (("node", "drain", "n9"), "There is no node 'n9'"),
    ],
)
def test_what_cannot_be_is_refused(
    cluster: FakeCluster, arguments: tuple[str, ...], words: str
) -> None:
    done = cluster["n1"].run_cli(*arguments)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_drained_node_takes_no_instances(cluster: FakeCluster) -> None:
    for name in ("n1", "n2"):
        assert cluster["n1"].run_cli("node", "drain", name).returncode == 0
    ids = cluster.launch(4, via=cluster["n1"])
    cluster.wait_state("running", *ids, via=cluster["n1"])
    known = json.loads(cluster["n1"].run_cli("node", "list", "--json").stdout)
    assert {one["name"]: one["instances"] for one in known}["n3"] >= 4
    refused = cluster["n1"].run_cli("role", "remove", "compute", "--node", "n3")
    assert "n3 cannot give up compute: it has instances" in refused.stderr
    cluster["n1"].client().terminate_instances(InstanceIds=ids)
    for name in ("n1", "n2"):
        assert cluster["n1"].run_cli("node", "undrain", name).returncode == 0


def test_approved_capacity_is_the_most_that_counts(cluster: FakeCluster) -> None:
    def vcpus() -> int:
        known = json.loads(cluster["n1"].run_cli("node", "list", "--json").stdout)
        return {one["name"]: int(one["vcpus"]) for one in known}["n3"]

    whole = vcpus()
    assert cluster["n1"].run_cli("node", "approve", "n3", "--vcpus", "3").returncode == 0
    wait_until(lambda: vcpus() == 3, "no more than approved is offered")
    assert cluster["n1"].run_cli("node", "approve", "n3").returncode == 0
    wait_until(lambda: vcpus() == whole, "all of it is offered again")


@pytest.mark.parametrize("name", ["n1", "n3"])
def test_status_works_on_any_node(cluster: FakeCluster, name: str) -> None:
    done = cluster[name].run_cli("status", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["name"]: one["is_up"] for one in found["nodes"]} == {
        "n1": True,
        "n2": True,
        "n3": True,
    }
    shown = cluster[name].run_cli("status").stdout
    assert "n1" in shown
    assert ("on n1 or n2." in shown) is (name == "n3")
    assert ("\nLoad " in shown) is (name == "n3")


def test_a_hypervisor_tells_of_its_own_instances(cluster: FakeCluster) -> None:
    for name in ("n1", "n2"):
        assert cluster["n1"].run_cli("node", "drain", name).returncode == 0
    ids = cluster.launch(2, via=cluster["n1"])
    cluster.wait_state("running", *ids, via=cluster["n1"])
    here = json.loads(cluster["n3"].run_cli("status", "--json").stdout)["here"]
    assert here["instances"]["running"] >= 2
    assert here["vcpus_held"] >= 2
    assert f"{here['instances']['running']} running" in cluster["n3"].run_cli("status").stdout
    cluster["n1"].client().terminate_instances(InstanceIds=ids)
    for name in ("n1", "n2"):
        assert cluster["n1"].run_cli("node", "undrain", name).returncode == 0


def test_a_hypervisor_becomes_a_control_node_and_back(cluster: FakeCluster) -> None:
    """Its first role that reaches the store brings another certificate, login and settings."""
    node, ids = cluster["n3"], []
    cluster["n1"].run_cli("node", "drain", "n1")
    cluster["n1"].run_cli("node", "drain", "n2")
    ids = cluster.launch(via=node)
    cluster.wait_state("running", *ids, via=node)
    added = cluster["n1"].run_cli("role", "add", "scheduler", "--node", "n3")
    assert added.returncode == 0, added.stderr + node.log[-3000:]
    told = settings.read(settings.folder_of(node.folder / "state"))
    assert told.is_control
    assert told.store_url
    assert f"c-{node.node_id}" in told.bus_url
    cluster.wait_state("running", *ids, via=node)
    assert launched_s(cluster, "n3") < 5
    added = cluster["n1"].run_cli("role", "add", "api", "--node", "n3")
    assert added.returncode == 0, added.stderr + node.log[-3000:]
    assert launched_s(cluster, "n3") < 5
    for role in ("api", "scheduler"):
        taken = cluster["n1"].run_cli("role", "remove", role, "--node", "n3")
        assert taken.returncode == 0, taken.stderr + node.log[-3000:]

    def is_hypervisor() -> bool:
        told = settings.read(settings.folder_of(node.folder / "state"))
        return not told.is_control and not told.store_url and f"h-{node.node_id}" in told.bus_url

    wait_until(is_hypervisor, lambda: f"n3 is a hypervisor again\n{node.log[-3000:]}")
    cluster.wait_state("running", *ids, via=node)
    assert launched_s(cluster, "n3") < 5
    node.client().terminate_instances(InstanceIds=ids)
    for name in ("n1", "n2"):
        cluster["n1"].run_cli("node", "undrain", name)


@pytest.mark.faults("access: at another node", quick=True)
def test_t29_what_one_node_forbids_another_refuses(cluster: FakeCluster) -> None:
    """The key works at each node, and at none within five seconds of a change at any."""

    def cli(via: str, *words: str) -> str:
        done = cluster[via].run_cli(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli("n1", "user", "create", "guest")
    cli("n1", "project", "add-user", "demo", "guest")
    made = json.loads(cli("n1", "key", "create", "guest", "demo", "--json"))
    key = (made["access_key_id"], made["secret_access_key"])

    def refused_by(via: str) -> str:
        try:
            cluster[via].client(key=key).describe_instances()
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    cli("n1", "role", "add", "api", "--node", "n2")
    assert [refused_by(via) for via in ("n1", "n2", "n3")] == ["", "", ""]
    for words in (("user", "disable", "guest"), ("key", "delete", key[0])):
        cli("n2", *words)
        changed_at = time.monotonic()
        for via in ("n1", "n2", "n3"):
            wait_until(lambda via=via: refused_by(via) == "AuthFailure", f"{via} refuses the key")  # type: ignore[misc]
        assert time.monotonic() - changed_at < 5
        if words[0] == "user":
            cli("n1", "user", "enable", "guest")
            assert [refused_by(via) for via in ("n1", "n2", "n3")] == ["", "", ""]


@pytest.mark.parametrize("dead", ["n1", "n2"])
def test_another_node_serves_when_one_dies(cluster: FakeCluster, dead: str) -> None:
    """Its only process is killed in the middle of work: the next launch is another's."""
    other = "n2" if dead == "n1" else "n1"
    added = cluster["n1"].run_cli("role", "add", "api", "--node", "n2")
    assert added.returncode == 0, added.stderr
    cluster["n1"].run_cli("node", "drain", dead)
    cluster[dead].kill()
    assert launched_s(cluster, "n3") < 5
    assert launched_s(cluster, other) < 5
    cluster[dead].start()
    cluster.wait_known(dead)
    cluster[other].run_cli("node", "undrain", dead)
    assert launched_s(cluster, dead) < 5


def test_a_removed_node_is_answered_by_nobody(cluster: FakeCluster) -> None:
    node = cluster.add("n4", roles=HYPERVISOR_ROLES)
    node.start()
    cluster.wait_known("n4")
    assert launched_s(cluster, "n4") < 5
    for name in ("n1", "n2", "n3"):
        cluster["n1"].run_cli("node", "drain", name)
    ids = cluster.launch(via=cluster["n1"])
    cluster.wait_state("running", *ids, via=cluster["n1"])
    refused = cluster["n1"].run_cli("node", "remove", "n4", "--yes")
    assert "n4 cannot leave: it has instances" in refused.stderr
    cluster["n1"].client().terminate_instances(InstanceIds=ids)
    cluster.wait_state("terminated", *ids, via=cluster["n1"])

    def is_gone() -> bool:
        return cluster["n1"].run_cli("node", "remove", "n4", "--yes").returncode == 0

    wait_until(is_gone, "n4 is removed")
    assert is_gone(), "it is safe to repeat"
    assert "n4" not in cluster["n1"].run_cli("status").stdout
    with pytest.raises((ClientError, EndpointConnectionError), match=r"Unavailable|not connect"):
        node.client().describe_instances()
    for name in ("n1", "n2", "n3"):
        cluster["n1"].run_cli("node", "undrain", name)
    assert launched_s(cluster, "n1") < 5
    node.stop()
    del cluster.nodes["n4"]
