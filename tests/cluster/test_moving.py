"""All messages move to another broker while launches go on, and back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from appliance.bus.urls import without_login
from appliance.cluster import settings
from appliance.cluster.carrier import PREFIX
from appliance.messages import Wanted, encode
from appliance.store import nodes
from tests.cluster.fakes import (
    ALL_ROLES,
    HYPERVISOR_ROLES,
    FakeCluster,
    FakeNode,
    running,
    wait_until,
)
from tests.services import rabbitmq as brokers_of_tests
from tests.services.postgresql import PostgreSQL, free_port
from tests.services.rabbitmq import Broker, VirtualHost

pytestmark = pytest.mark.timeout(240)

MOVED = "bus: moved to another broker"
VERIFY = ("verify", "--cluster", "--wait", "60")

KEPT = 3
"""Instances of each node's launches that are not terminated yet."""

POINTS = ("move.hear", "move.send", "move.leave", "move.carry")


@pytest.fixture(scope="module")
def other() -> Iterator[Broker]:
    """A second broker."""
    with brokers_of_tests.running() as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[FakeCluster]:
    folder = tmp_path_factory.mktemp("moving")
    with running(folder, postgresql, rabbitmq.new_vhost()) as made:
        made.add("n1", roles=ALL_ROLES)
        made.add("n2", roles=ALL_ROLES)
        made.add("n3", roles=HYPERVISOR_ROLES)
        made.start()
        yield made


@pytest.fixture(scope="module")
def elsewhere(other: Broker) -> VirtualHost:
    """Where messages are moved to."""
    return other.new_vhost()


def plain(vhost: VirtualHost) -> str:
    return without_login(vhost.url)


def move(node: FakeNode, vhost: VirtualHost | None, *more: str, **environment: str) -> str:
    """Run the command; return what it says when it succeeds."""
    where = (plain(vhost), "--admin-url", vhost.access.urls[0]) if vhost else ()
    done = node.run_cli("messages", "move", *where, "--yes", *more, seconds=200, **environment)
    killed = bool(environment)
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stdout + done.stderr
    return done.stdout


def at(cluster: FakeCluster) -> set[tuple[str, ...]]:
    """Return the brokers that nodes which are up are connected to, as they say."""
    return {one.condition.buses for one in cluster.read(nodes.status) if one.is_up}


class Launches:
    """Launches at all nodes, one after the other, until they are ended."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.ids: list[str] = []
        self.refused: list[str] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._launch, args=(node,)) for node in cluster.nodes.values()
        ]

    def _launch(self, node: FakeNode) -> None:
        own: list[str] = []
        while not self._is_over.wait(0.2):
            if node.process is None or node.process.poll() is not None:
                continue
            try:
                own += self._cluster.launch(via=node)
                self.ids.append(own[-1])
                if len(own) > KEPT:
                    node.client().terminate_instances(InstanceIds=[own.pop(0)])
            except (ClientError, EndpointConnectionError) as error:
                # Without a broker nothing ends, and the quota is full after a while.
                if "InstanceLimitExceeded" not in str(error):
                    self.refused.append(str(error))

    def __enter__(self) -> Launches:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def launching(cluster: FakeCluster) -> Iterator[Launches]:
    """Launch all the time; see in the end that each launch was done, and all is clean."""
    with Launches(cluster) as launches:
        yield launches
        before = len(launches.ids)
        wait_until(lambda: len(launches.ids) > before + 2, "launches go on afterwards")
    via = cluster["n1"]
    assert launches.refused == []
    ended = {"running", "terminated"}
    wait_until(
        lambda: {*cluster.states(*launches.ids, via=via).values()} <= ended,
        lambda: f"{cluster.states(*launches.ids, via=via)}\n{cluster.logs()}",
        60,
    )
    told = via.client().describe_instances(InstanceIds=launches.ids)["Reservations"]
    why = [
        one["StateReason"]["Message"]
        for each in told
        for one in each["Instances"]
        if one["State"]["Name"] == "terminated"
    ]
    assert {*why} <= {"Client.UserInitiatedShutdown: User initiated shutdown"}, why
    via.client().terminate_instances(InstanceIds=launches.ids)
    cluster.wait_state("terminated", *launches.ids, via=via)
    done = via.run_cli(*VERIFY, seconds=120, PYTHONFAULTHANDLER="1")
    assert done.returncode == 0, done.stdout + done.stderr


def assert_nothing_left(cluster: FakeCluster, vhost: VirtualHost) -> None:
    """See that a broker has nothing of the cluster's any more."""
    management = vhost.broker.management(vhost.name)
    ids = {one.node_id for one in cluster.nodes.values()}
    assert [one for one in management.users() if one[2:] in ids or one.startswith(PREFIX)] == []
    assert management.queues() == []


def assert_at(cluster: FakeCluster, vhost: VirtualHost) -> None:
    """See that all nodes go by a broker alone, and write that down."""
    assert at(cluster) == {(plain(vhost),)}
    for node in cluster.nodes.values():
        told = settings.read(settings.folder_of(node.folder / "state"))
        assert (without_login(told.bus_url), told.also_url) == (plain(vhost), "")


@pytest.mark.faults(MOVED, quick=True)
def test_messages_move(cluster: FakeCluster, elsewhere: VirtualHost) -> None:
    move(cluster["n1"], elsewhere)
    assert_at(cluster, elsewhere)
    assert_nothing_left(cluster, cluster.vhost)
    (instance_id,) = cluster.launch(via=cluster["n3"])
    cluster.wait_state("running", instance_id, via=cluster["n2"])
    cluster["n3"].client().terminate_instances(InstanceIds=[instance_id])
    move(cluster["n2"], None, "--back")
    assert_at(cluster, cluster.vhost)


@pytest.mark.faults(MOVED)
def test_no_launch_is_lost_on_the_way(cluster: FakeCluster, elsewhere: VirtualHost) -> None:
    pids = {one.process.pid for one in cluster.nodes.values() if one.process}
    with launching(cluster):
        said = move(cluster["n1"], elsewhere)
    assert "all nodes that are up have left the old one" in said
    assert_at(cluster, elsewhere)
    assert_nothing_left(cluster, cluster.vhost)
    assert {one.process.pid for one in cluster.nodes.values() if one.process} == pids
    assert all("begin anew" not in one.log for one in cluster.nodes.values())
    with launching(cluster):
        move(cluster["n2"], None, "--back")
    assert_at(cluster, cluster.vhost)
    assert_nothing_left(cluster, elsewhere)


@pytest.mark.faults(MOVED)
@pytest.mark.parametrize("point", POINTS)
def test_killed_on_the_way_and_repeated(
    cluster: FakeCluster, elsewhere: VirtualHost, point: str
) -> None:
    if point == "move.carry":
        leave_something(cluster)
    with launching(cluster):
        move(cluster["n1"], elsewhere, ANYNODE_CRASH_AT=point)
        # On another node, and without being told where to.
        move(cluster["n2"], None)
    assert_at(cluster, elsewhere)
    assert_nothing_left(cluster, cluster.vhost)
    with launching(cluster):
        move(cluster["n2"], None, "--back", ANYNODE_CRASH_AT=point)
        move(cluster["n1"], None, "--back")
    assert_at(cluster, cluster.vhost)
    assert_nothing_left(cluster, elsewhere)


@pytest.mark.faults(MOVED)
@pytest.mark.parametrize("point", ["move.hear", "move.send"])
def test_turned_around_on_the_way(cluster: FakeCluster, elsewhere: VirtualHost, point: str) -> None:
    with launching(cluster):
        move(cluster["n1"], elsewhere, ANYNODE_CRASH_AT=point)
        move(cluster["n1"], None, "--back")
    assert_at(cluster, cluster.vhost)
    assert_nothing_left(cluster, elsewhere)


@pytest.mark.faults(MOVED)
def test_a_node_that_was_away_finds_the_way(cluster: FakeCluster, elsewhere: VirtualHost) -> None:
    """What lay in its queue came along; it asks at a door, since its login is gone."""
    n3 = cluster["n3"]
    n3.kill()
    cluster.wait_known("n3", is_up=False, seconds=60)
    moved = f"move-{n3.node_id}"
    with cluster.vhost.channel() as channel:
        channel.confirm_delivery()
        key = f"cast.compute.{n3.node_id}"
        properties = pika.BasicProperties(
            type="Wanted", message_id=moved, delivery_mode=2, headers={"lane": "i-1"}
        )
        channel.basic_publish("anynode", key, encode(Wanted(instance_id="i-1")), properties)
    said = move(cluster["n1"], elsewhere)
    assert "n3: down" in said
    assert elsewhere.depth(f"node.{n3.node_id}") == 1
    n3.spawn()
    n3.wait_up()
    cluster.wait_known("n3", seconds=60)
    with launching(cluster):
        pass
    assert_at(cluster, elsewhere)
    assert elsewhere.depth(f"node.{n3.node_id}") == 0
    n3.kill()
    move(cluster["n1"], None, "--back", ANYNODE_CRASH_AT="move.send")
    n3.start()
    cluster.wait_known("n3", seconds=60)
    move(cluster["n1"], None)
    with launching(cluster):
        pass
    assert_at(cluster, cluster.vhost)


@pytest.mark.faults(MOVED)
def test_from_a_broker_that_is_lost(cluster: FakeCluster, postgresql: PostgreSQL) -> None:
    """It is killed for good while launches go on."""
    with brokers_of_tests.running() as mortal, launching(cluster):
        move(cluster["n1"], mortal.new_vhost())
        mortal.kill()
        refused = cluster["n1"].run_cli("messages", "move", "--back", "--yes", seconds=120)
        assert "The broker in use does not answer" in refused.stderr
        assert "--lost" in refused.stderr
        move(cluster["n1"], None, "--back", "--lost")
    assert_at(cluster, cluster.vhost)


@pytest.mark.faults(MOVED)
def test_a_login_goes_by_what_each_broker_holds(
    cluster: FakeCluster, elsewhere: VirtualHost
) -> None:
    """A node that is removed in the middle of a move is at neither broker afterwards."""
    node = cluster.add("n4", roles=HYPERVISOR_ROLES)
    node.start()
    cluster.wait_known("n4")
    move(cluster["n1"], elsewhere, ANYNODE_CRASH_AT="move.send")
    done = cluster["n1"].run_cli("node", "remove", "n4", "--yes")
    assert done.returncode == 0, done.stderr
    node.stop()
    del cluster.nodes["n4"]
    for vhost in (cluster.vhost, elsewhere):
        management = vhost.broker.management(vhost.name)
        assert f"h-{node.node_id}" not in management.users()
        assert f"node.{node.node_id}" not in management.queues()
    move(cluster["n1"], None, "--back")
    assert_at(cluster, cluster.vhost)


@pytest.mark.faults(MOVED)
def test_what_cannot_be_is_refused(
    cluster: FakeCluster, elsewhere: VirtualHost, rabbitmq: Broker
) -> None:
    admin = elsewhere.access.urls[0]
    strange = rabbitmq.new_vhost()

    def refusal(*words: str) -> str:
        done = cluster["n1"].run_cli("messages", "move", *words, "--yes")
        assert done.returncode == 1, done.stdout
        return done.stderr

    assert "No move is under way" in refusal()
    assert "takes no URL" in refusal("--back", plain(elsewhere))
    assert "in the clear" in refusal("amqp://192.0.2.1/x", "--admin-url", admin)
    assert "Messages cannot go over" in refusal("http://x/y", "--admin-url", admin)
    assert "Name its management API" in refusal("amqps://broker.example/x")
    assert "already, under another name" in refusal(
        plain(strange), "--admin-url", strange.access.urls[0]
    )
    wrong = admin.replace(elsewhere.broker.password, "wrong")
    assert "does not let this login administer" in refusal(plain(elsewhere), "--admin-url", wrong)
    silent = f"amqp://127.0.0.1:{free_port()}/{elsewhere.name}"
    assert "cannot be reached" in refusal(silent, "--admin-url", admin)
    elsewhere.admit("0" * 8, is_control=False)
    try:
        assert "nodes that are not of this cluster" in refusal(
            plain(elsewhere), "--admin-url", admin
        )
    finally:
        elsewhere.logins.remove("0" * 8)
        for queue in elsewhere.broker.management(elsewhere.name).queues():
            elsewhere.broker.management(elsewhere.name).remove_queue(queue)
    assert_at(cluster, cluster.vhost)


def leave_something(cluster: FakeCluster) -> None:
    """Put a message where nobody hears it, so that it is carried."""
    with cluster.vhost.channel() as channel:
        channel.confirm_delivery()
        properties = pika.BasicProperties(type="Wanted", message_id="m-x", delivery_mode=2)
        channel.basic_publish("anynode.dead", "cast.compute.x", b"{}", properties)
