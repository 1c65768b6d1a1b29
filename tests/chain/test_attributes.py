"""What owners change of their instances reaches the node."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from appliance.firewall import Packet
from appliance.firewall.packet import UPLINK
from appliance.instance_types import CATALOG
from appliance.model import tap_name
from appliance.store import Transaction, attributes, groups, quotas
from appliance.store.groups import Match
from appliance.store.schema import ports
from tests.chain.harness import Chain, wait_until

TERMINATES = {attributes.SHUTDOWN_BEHAVIOR: attributes.TERMINATES}


def change(chain: Chain, work: Any) -> Any:
    return chain.node.store.transaction(work)


def run(chain: Chain) -> str:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    return instance_id


def set_type(chain: Chain, instance_id: str, name: str) -> None:
    kind = CATALOG[name]
    wanted: dict[str, str | int] = {
        "instance_type": kind.name,
        "vcpus": kind.vcpus,
        "memory_mib": kind.memory_mib,
    }
    assert change(chain, lambda tx: attributes.set_while_stopped(tx, instance_id, wanted))


def set_options(chain: Chain, instance_id: str, options: dict[str, Any]) -> None:
    change(chain, lambda tx: attributes.set_options(tx, [instance_id], options))


def test_an_instance_that_shuts_itself_down_is_terminated_where_that_is_wanted(
    chain: Chain,
) -> None:
    instance_id = run(chain)
    set_options(chain, instance_id, {**TERMINATES, "disable_api_termination": True})
    chain.machine.compute.compute_shut_down(instance_id)
    (instance,) = chain.wait_for("terminated", instance_id)
    assert instance.reason
    assert instance.reason.code == "Client.InstanceInitiatedShutdown"
    assert chain.quota_used() == {"instances": 0, "vcpus": 0, "memory_mib": 0}
    wait_until(lambda: not chain.directory(instance_id).exists(), "its files are gone")
    chain.assert_clean()


def test_an_instance_that_crashes_is_stopped_all_the_same(chain: Chain) -> None:
    instance_id = run(chain)
    set_options(chain, instance_id, TERMINATES)
    chain.machine.compute.crash(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    chain.assert_clean()


def test_an_instance_whose_power_was_taken_away_is_stopped_all_the_same(chain: Chain) -> None:
    instance_id = run(chain)
    set_options(chain, instance_id, TERMINATES)
    chain.machine.compute.compute_power_off(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert instance.reason.code == "Server.InternalError"
    assert "power was taken away" in instance.reason.message
    chain.assert_clean()


def test_an_instance_that_its_owner_stops_is_stopped(chain: Chain) -> None:
    instance_id = run(chain)
    set_options(chain, instance_id, TERMINATES)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    chain.assert_clean()


def test_a_shutdown_while_the_node_is_away_ends_the_instance_when_it_is_back(chain: Chain) -> None:
    instance_id = run(chain)
    set_options(chain, instance_id, TERMINATES)
    chain.stop()
    chain.machine.compute.compute_shut_down(instance_id)
    chain.start()
    chain.wait_for("terminated", instance_id)
    chain.assert_clean()


def test_a_start_is_placed_and_built_by_the_new_type(chain: Chain) -> None:
    instance_id = run(chain)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    set_type(chain, instance_id, "t2.medium")
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    assert chain.quota_used() == {"instances": 1, "vcpus": 2, "memory_mib": 4096}
    defined = chain.machine.compute._instances[instance_id].definition
    assert (defined.vcpus, defined.memory_mib) == (2, 4096)
    chain.assert_clean()


def test_a_type_for_which_there_is_no_room_leaves_the_instance_stopped(make_chain: Any) -> None:
    chain = make_chain(
        capacity={"vcpus": 2, "memory_mib": 4096},
        compute={"memory_ratio": 1.0, "vcpu_ratio": 1.0, "reserved_memory_mib": 0},
    )
    instance_id = run(chain)
    chain.stop_instances(instance_id)
    chain.wait_for("stopped", instance_id)
    set_type(chain, instance_id, "t2.xlarge")
    chain.start_instances(instance_id)
    (instance,) = chain.wait_for("stopped", instance_id)
    assert instance.reason
    assert "Insufficient" in instance.reason.code
    assert chain.quota_used() == {"instances": 1, "vcpus": 0, "memory_mib": 0}
    set_type(chain, instance_id, "t2.nano")
    chain.start_instances(instance_id)
    chain.wait_for("running", instance_id)
    chain.assert_clean()


@pytest.fixture
def closed_group(chain: Chain) -> str:
    """A group that lets port 80 in."""

    def make(tx: Transaction) -> str:
        vpc_id = groups.find(tx, chain.project_id, ids=[chain.group_id])[0].vpc_id
        quotas.take(tx, chain.project_id, "security_groups", 1)
        made = groups.create(tx, chain.project_id, vpc_id, "web", "lets port 80 in")
        match = Match(protocol=6, from_port=80, to_port=80, cidr="0.0.0.0/0")
        groups.add_rules(tx, made, is_egress=False, rules=[(match, "")])
        return made.group_id

    made: str = change(chain, make)
    return made


def test_new_groups_are_in_force_on_a_running_instance_at_once(
    chain: Chain, closed_group: str
) -> None:
    instance_id = run(chain)
    query = select(ports.c.id, ports.c.mac).where(ports.c.instance_id == instance_id)
    port = chain.read(lambda tx: tx.execute(query).one())
    (address,) = chain.addresses(instance_id)

    def lets_in() -> bool:
        packet = Packet(
            source=UPLINK,
            destination=tap_name(port.id),
            network_id=chain.network_id,
            ether_src="02:00:00:00:00:01",
            ether_dst=port.mac,
            ip_src="192.0.2.1",
            ip_dst=address,
            protocol=6,
            source_port=40000,
            destination_port=80,
        )
        return bool(chain.machine.firewall.verdict(packet).is_allowed)

    assert not lets_in()
    change(chain, lambda tx: attributes.set_groups(tx, instance_id, [closed_group]))
    wait_until(lets_in, "port 80 is open")
    change(chain, lambda tx: attributes.set_groups(tx, instance_id, [chain.group_id]))
    wait_until(lambda: not lets_in(), "port 80 is closed again")
    chain.assert_clean()
