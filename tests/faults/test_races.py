"""Users who do the same thing at the same moment: the outcome is exact, every time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select, update

from appliance.config import Config
from appliance.firewall import Packet
from appliance.firewall.packet import UPLINK
from appliance.model import NetworkPolicy
from appliance.node import Node
from appliance.scheduler import role as scheduler_role
from appliance.scheduler.plan import Placing
from appliance.store import policy, schema
from appliance.world import World
from tests.chain.conftest import quiet_deaths  # noqa: F401
from tests.chain.harness import wait_until
from tests.faults.open_node import MakeOpenNode, OpenNode, open_nodes
from tests.faults.rounds import answers, at_once, codes, rounds, rounds_on_both

NOTHING_USED = {"instances": 0, "vcpus": 0, "memory_mib": 0}
SETTLED = ("running", "terminated")


@pytest.fixture
def open_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_url: str
) -> Iterator[MakeOpenNode]:
    """A function that starts a node with a store of each kind."""
    yield from open_nodes(tmp_path, monkeypatch, store_url)


def settled(node: OpenNode, ids: list[str], seconds: float = 60) -> Counter[str]:
    """Wait until instances run or are terminated; return how many are what, with their codes."""

    def ended() -> Counter[str]:
        return Counter(
            f"{one.state.value}: {one.reason.code}" if one.reason else one.state.value
            for one in map(node.get, ids)
        )

    wait_until(
        lambda: all(node.get(one).state.value in SETTLED for one in ids),
        lambda: f"{ended()}",
        seconds,
    )
    return ended()


def pool(node: OpenNode) -> Counter[str]:
    """Count the addresses of the network; those that a port has twice are one too many."""

    def count(tx: Any) -> Counter[str]:
        rows = tx.execute(select(schema.addresses)).all()
        owners = [row.port_id for row in rows if row.port_id]
        return Counter(
            all=len(rows),
            reserved=sum(row.is_reserved for row in rows),
            used=len(owners),
            doubled=len(owners) - len(set(owners)),
        )

    found: Counter[str] = node.read(count)
    return found


@rounds_on_both("races: same client token", is_server_quick=True)
def test_the_same_client_token_from_twenty_threads(
    open_node: MakeOpenNode,
    number: int,
) -> None:
    node = open_node()
    may_go_on = threading.Event()

    def hold() -> None:
        may_go_on.wait(30)

    node.faults.at("bus.before.Place", hold)
    launch = partial(
        node.ec2.run_instances,
        ImageId=node.image.image_id,
        InstanceType="t2.nano",
        MinCount=3,
        MaxCount=3,
        ClientToken="the-same",
    )
    replies = answers(at_once([launch] * 20))
    for reply in replies:
        del reply["ResponseMetadata"]
    assert all(reply == replies[0] for reply in replies)
    ids = [one["InstanceId"] for one in replies[0]["Instances"]]
    assert len(set(ids)) == 3
    may_go_on.set()
    node.wait_for("running", *ids)
    stored = node.read(lambda tx: tx.execute(select(schema.instances.c.id)).scalars().all())
    assert sorted(stored) == sorted(ids)
    made = node.read(lambda tx: tx.execute(select(schema.reservations.c.id)).scalars().all())
    assert list(made) == [replies[0]["ReservationId"]]
    assert sorted(node.machine.running()) == sorted(ids)
    assert node.quota_used()["instances"] == 3
    node.assert_clean()


@rounds_on_both("races: places", 10, is_quick=False)
def test_a_hundred_launches_for_sixty_places(open_node: MakeOpenNode, number: int) -> None:
    node = open_node(capacity={"memory_mib": 60 * 512}, compute={"reserved_memory_mib": 0})
    launches = answers(at_once([partial(node.launch)] * 25 + [partial(node.launch, 5)] * 15))
    ids = [instance_id for launched in launches for instance_id in launched]
    assert len(ids) == 100
    # A launch of several is all or nothing: the places of sixty are filled by what fits.
    ended = settled(node, ids)
    assert set(ended) <= {"running", "terminated: Server.InsufficientInstanceCapacity"}
    assert 56 <= ended["running"] <= 60
    more = [one for _ in range(60 - ended["running"]) for one in node.launch()]
    assert settled(node, more) == Counter(running=len(more))
    over = node.launch()
    assert settled(node, over) == {"terminated: Server.InsufficientInstanceCapacity": 1}
    assert len(node.machine.running()) == 60
    assert node.quota_used()["instances"] == 60
    assert pool(node)["used"] == 60
    node.assert_clean()


@rounds_on_both("races: places", 10, is_server_quick=True)
def test_a_hundred_single_launches_for_sixty_places(
    open_node: MakeOpenNode,
    number: int,
) -> None:
    node = open_node(capacity={"memory_mib": 60 * 512}, compute={"reserved_memory_mib": 0})
    launches = answers(at_once([node.launch] * 100))
    ended = settled(node, [one for launched in launches for one in launched])
    assert ended == {"running": 60, "terminated: Server.InsufficientInstanceCapacity": 40}
    assert len(node.machine.running()) == 60
    assert node.quota_used()["instances"] == 60
    node.assert_clean()


@rounds("races: places, two schedulers", 10, is_quick=False)
def test_two_schedulers_place_a_hundred_on_sixty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql_url: str, number: int
) -> None:
    placed: Counter[str] = Counter()
    place = scheduler_role.place

    def count(placing: Placing, *rest: Any) -> None:
        place(placing, *rest)
        placed[placing.parts.node_id] += 1

    monkeypatch.setattr(scheduler_role, "place", count)
    with contextmanager(open_nodes)(tmp_path, monkeypatch, postgresql_url) as make:
        node = make(capacity={"memory_mib": 60 * 512}, compute={"reserved_memory_mib": 0})
        second = Node(_beside(node.config, tmp_path / "second"), World())
        second.start()
        try:
            launches = answers(at_once([node.launch] * 100))
            ended = settled(node, [one for launched in launches for one in launched])
        finally:
            second.stop(10.0)
        assert ended == {"running": 60, "terminated: Server.InsufficientInstanceCapacity": 40}
        assert len(placed) == 2, "both schedulers took part"
        assert len(node.machine.running()) == 60
        assert node.quota_used()["instances"] == 60
        node.assert_clean()


def _beside(config: Config, folder: Path) -> Config:
    """Return the settings of a node that has only a scheduler, on the same store."""
    places = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
    own = replace(config.node, name="n2", roles=("scheduler",), **places)
    return replace(config, node=own)


def _leave_free(node: OpenNode, count: int) -> None:
    """Reserve addresses of the network until so many are left for instances."""

    def reserve(tx: Any) -> None:
        table = schema.addresses
        free = select(table.c.address).where(table.c.is_reserved.is_(False))
        surplus = tx.execute(free.order_by(table.c.position)).scalars().all()[count:]
        tx.execute(update(table).where(table.c.address.in_(surplus)).values(is_reserved=True))

    node.node.store.transaction(reserve)


def _assert_sound(node: OpenNode, free_at_first: int) -> None:
    found = pool(node)
    assert found["doubled"] == 0
    assert found["used"] <= free_at_first
    assert found["all"] - found["reserved"] == free_at_first


@rounds_on_both("races: addresses", 5)
def test_t40_three_hundred_ask_for_two_hundred_addresses(
    open_node: MakeOpenNode,
    number: int,
) -> None:
    node = open_node()
    _leave_free(node, 200)
    launches = answers(at_once([partial(node.launch, 5)] * 60))
    ids = [one for launched in launches for one in launched]
    ended = settled(node, ids, 120)
    assert ended == {
        "running": 200,
        "terminated: Server.InsufficientFreeAddressesInSubnet": 100,
    }
    assert pool(node) == {"all": 256, "reserved": 56, "used": 200, "doubled": 0}
    assert len({one["PrivateIpAddress"] for one in node.describe(*node.machine.running()).values()})
    node.assert_clean()


@rounds_on_both("races: addresses", 10, is_server_quick=True)
def test_t40_addresses_with_random_terminates(open_node: MakeOpenNode, number: int) -> None:
    chance = random.Random(number)
    node = open_node()
    _leave_free(node, 20)
    is_over = threading.Event()
    unsound: list[Exception] = []

    def look() -> None:
        while not is_over.wait(0.02):
            try:
                _assert_sound(node, 20)
            except Exception as error:
                unsound.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    lock, mine = threading.Lock(), random.Random(chance.random())
    ids: list[str] = []

    def come_and_go() -> None:
        for _ in range(3):
            launched = node.launch(2)
            with lock:
                ids.extend(launched)
                victim = mine.choice(ids)
                pause_s = mine.random() / 20
            time.sleep(pause_s)
            node.ec2.terminate_instances(InstanceIds=[victim])

    try:
        answers(at_once([come_and_go] * 8))
        ended = settled(node, ids)
    finally:
        is_over.set()
        watcher.join(30)
    assert unsound == []
    assert set(ended) <= {
        "running",
        "terminated: Client.UserInitiatedShutdown",
        "terminated: Server.InsufficientFreeAddressesInSubnet",
    }
    wait_until(lambda: pool(node)["used"] == ended["running"], lambda: f"{pool(node)} {ended}")
    assert len(node.machine.running()) == ended["running"]
    # Nothing has leaked: all twenty can be had, and not one more.
    more = [one for _ in range(20 - ended["running"]) for one in node.launch()]
    assert settled(node, more) == Counter(running=len(more))
    over = node.launch()
    assert settled(node, over) == {"terminated: Server.InsufficientFreeAddressesInSubnet": 1}
    node.terminate(*node.machine.running())
    wait_until(lambda: pool(node)["used"] == 0, lambda: f"{pool(node)}")
    node.assert_clean()
    assert node.quota_used() == NOTHING_USED


@rounds_on_both("races: quota", is_server_quick=True)
def test_a_quota_of_ten_under_forty_calls(open_node: MakeOpenNode, number: int) -> None:
    node = open_node(quota={"vcpus": 4000, "memory_mib": 10_000_000, "instances": 10})
    results = at_once([node.launch] * 40)
    assert codes(results) == ["InstanceLimitExceeded"] * 30
    ids = [one for launched in results if isinstance(launched, list) for one in launched]
    assert len(set(ids)) == 10
    node.wait_for("running", *ids)
    assert sorted(node.machine.running()) == sorted(ids)
    assert node.quota_used()["instances"] == 10
    node.assert_clean()


@rounds_on_both("races: two terminates")
def test_two_terminates_at_once(open_node: MakeOpenNode, number: int) -> None:
    node = open_node()
    ids = node.launch(4)
    if number % 2:
        node.wait_for("running", *ids)
    end = partial(node.ec2.terminate_instances, InstanceIds=ids)
    for reply in answers(at_once([end] * 2 + [partial(end, InstanceIds=ids[:1])] * 2)):
        states = {one["CurrentState"]["Name"] for one in reply["TerminatingInstances"]}
        assert states <= {"shutting-down", "terminated"}
    for instance in node.wait_for("terminated", *ids):
        assert instance.reason
        assert instance.reason.code == "Client.UserInitiatedShutdown"
    wait_until(lambda: pool(node)["used"] == 0, "the addresses are free")
    assert node.quota_used() == NOTHING_USED
    assert node.machine.compute.compute_list() == []
    node.assert_clean()


@rounds_on_both("races: terminate and launch")
def test_terminates_that_overtake_their_launches(open_node: MakeOpenNode, number: int) -> None:
    node = open_node()
    chance = random.Random(number)
    pauses = [chance.choice((0, 0, 0.01, 0.03, 0.1)) for _ in range(12)]

    def launch_and_end(pause_s: float) -> str:
        (instance_id,) = node.launch()
        time.sleep(pause_s)
        node.ec2.terminate_instances(InstanceIds=[instance_id])
        return instance_id

    ids = answers(at_once([partial(launch_and_end, pause_s) for pause_s in pauses]))
    for instance in node.wait_for("terminated", *ids):
        assert instance.reason
        assert instance.reason.code == "Client.UserInitiatedShutdown"
    wait_until(lambda: node.machine.compute.compute_list() == [], "nothing is on the hypervisor")
    node.assert_clean()
    assert node.machine.network.network_list().ports == ()
    assert node.machine.firewall.firewall_state().taps == ()
    assert list((node.config.state_dir / "instances").iterdir()) == []
    assert pool(node)["used"] == 0
    assert node.quota_used() == NOTHING_USED


@rounds_on_both("races: stop, start and terminate")
def test_stop_start_and_terminate_at_once(open_node: MakeOpenNode, number: int) -> None:
    node = open_node()
    ids = node.launch(3)
    node.wait_for("running", *ids)
    wishes = [
        partial(node.ec2.stop_instances, InstanceIds=ids),
        partial(node.ec2.start_instances, InstanceIds=ids),
        partial(node.ec2.stop_instances, InstanceIds=ids, Force=True),
        partial(node.ec2.reboot_instances, InstanceIds=ids),
        partial(node.ec2.terminate_instances, InstanceIds=ids[:1]),
    ]
    assert set(codes(at_once(wishes))) <= {"IncorrectInstanceState"}
    node.wait_for("terminated", ids[0])
    for instance_id in ids[1:]:
        wait_until(
            lambda one=instance_id: node.get(one).state.value in ("running", "stopped"),  # type: ignore[misc]
            lambda: f"{[node.get(one) for one in ids]}",
        )
        instance = node.get(instance_id)
        assert instance.state.value == instance.desired.value
    node.assert_clean()
    node.ec2.terminate_instances(InstanceIds=ids)
    node.wait_for("terminated", *ids)
    node.assert_clean()
    assert node.quota_used() == NOTHING_USED


def _sorted(found: NetworkPolicy) -> NetworkPolicy:
    """Return a policy in one order, so that two may be compared."""
    groups = [
        replace(
            group,
            ingress=tuple(sorted(group.ingress, key=repr)),
            egress=tuple(sorted(group.egress, key=repr)),
            members=tuple(sorted(group.members)),
        )
        for group in found.groups
    ]
    ports = [replace(port, group_ids=tuple(sorted(port.group_ids))) for port in found.ports]
    return replace(
        found,
        ports=tuple(sorted(ports, key=lambda port: port.port_id)),
        groups=tuple(sorted(groups, key=lambda group: group.group_id)),
    )


def _rule(port: int, **source: Any) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **source}


def _from_world(port: int) -> dict[str, Any]:
    return _rule(port, IpRanges=[{"CidrIp": "192.0.2.0/24"}])


@rounds_on_both("races: rules and launches", 10)
def test_rules_that_change_during_launches(open_node: MakeOpenNode, number: int) -> None:
    node = open_node()
    chance = random.Random(number)
    web, db = (
        node.ec2.create_security_group(GroupName=name, Description=name)["GroupId"]
        for name in ("web", "db")
    )
    open_ports: dict[str, set[int]] = {web: set(), db: set()}

    def change(group_id: str, ports: list[int]) -> None:
        is_open = open_ports[group_id]
        for port in ports:
            call = (
                node.ec2.revoke_security_group_ingress
                if port in is_open
                else node.ec2.authorize_security_group_ingress
            )
            call(GroupId=group_id, IpPermissions=[_from_world(port)])
            is_open.symmetric_difference_update({port})

    def trust(group_id: str, other: str) -> None:
        pairs = [{"GroupId": other}]
        for _ in range(3):
            rule = _rule(5432, UserIdGroupPairs=pairs)
            node.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
            node.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
        node.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])

    drawn = {group: [chance.choice((22, 80, 443, 8080)) for _ in range(10)] for group in (web, db)}
    launches: list[Any] = [partial(node.launch, 3, SecurityGroupIds=[web])] * 2
    launches += [partial(node.launch, 3, SecurityGroupIds=[db])] * 2
    launches += [partial(node.launch, 2, SecurityGroupIds=[web, db])]
    changes: list[Any] = [partial(change, group, ports) for group, ports in drawn.items()]
    changes.append(partial(trust, db, web))
    launched = answers(at_once([*launches, *changes]))[: len(launches)]
    ids = [one for each in launched for one in each]
    node.wait_for("running", *ids)

    def wanted() -> NetworkPolicy:
        return _sorted(node.read(lambda tx: policy.whole(tx, node.network_id, node.node.node_id)))

    def in_force() -> NetworkPolicy:
        return _sorted(node.machine.firewall._rules.policies[node.network_id])

    wait_until(lambda: in_force() == wanted(), lambda: f"{in_force()}\nis not\n{wanted()}")
    ports = {port.addresses[0]: port for port in in_force().ports}
    assert len(ports) == len(ids)
    for instance in node.describe(*ids).values():
        address = instance["PrivateIpAddress"]
        groups = {group["GroupId"] for group in instance["SecurityGroups"]}
        for tcp_port in (22, 80, 443, 8080, 25):
            packet = Packet(
                source=UPLINK,
                destination=ports[address].tap,
                network_id=node.network_id,
                ether_src="06:a0:00:00:00:01",
                ether_dst=ports[address].mac,
                ip_src="192.0.2.7",
                ip_dst=address,
                protocol=6,
                source_port=40_000,
                destination_port=tcp_port,
            )
            expected = any(tcp_port in open_ports[group] for group in groups)
            assert node.machine.firewall.verdict(packet).is_allowed == expected, (tcp_port, groups)
    node.assert_clean()
