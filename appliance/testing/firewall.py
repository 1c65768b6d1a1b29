"""The contract of ``appliance.firewall``: subclass it and give it your plugin.

Override ``driver``, the facade around a fresh plugin on a node without rules. What the rules do
to packets is the subject of :mod:`appliance.testing.firewall_packets`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import pytest

from appliance.errors import Stale
from appliance.firewall import apply_delta, diff
from appliance.hooks import Firewall
from appliance.model import (
    FirewallGroup,
    FirewallPort,
    FirewallRule,
    NetworkPolicy,
    NetworkSpec,
    PolicyDelta,
    tap_name,
)
from appliance.testing.namespaces import Namespace

R = TypeVar("R")


class FirewallInside(Firewall):
    """The facade of a firewall plugin whose hooks run in a network namespace."""

    def __init__(self, name: str, plugin: object, namespace: Namespace) -> None:
        super().__init__(name, plugin)
        self._namespace = namespace

    def call(self, hook: str, answer: type[R], **arguments: Any) -> R:
        """Call a hook inside."""
        return self._namespace.call(lambda: Firewall.call(self, hook, answer, **arguments))

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call a hook inside."""
        self._namespace.call(lambda: Firewall.tell(self, hook, **arguments))


def make_network(number: int = 1, cidr: str = "", **changes: Any) -> NetworkSpec:
    """Return a network whose id, bridge and ranges follow from its number."""
    cidr = cidr or f"10.64.{number}.0/24"
    return msgspec.structs.replace(
        NetworkSpec(
            network_id=f"subnet-{number:017x}",
            vpc_id="vpc-00000000000000001",
            type="fake",
            cidr=cidr,
            gateway=cidr.replace(".0/24", ".1"),
            cidr6=f"fd00:{number}::/64",
            gateway6=f"fd00:{number}::1",
            bridge=f"anbrf{number}",
        ),
        **changes,
    )


def make_port(network: NetworkSpec, number: int, *group_ids: str) -> FirewallPort:
    """Return a port whose id, MAC and addresses follow from its number, 2 to 250."""
    net = int(network.network_id[-2:], 16)
    port_id = f"eni-{net:02x}{number:08x}0000000"
    prefix, prefix6 = network.cidr.rpartition(".")[0], network.cidr6.partition("/")[0]
    return FirewallPort(
        port_id=port_id,
        tap=tap_name(port_id),
        mac=f"06:a0:00:{net:02x}:{number >> 8:02x}:{number & 0xFF:02x}",
        addresses=(f"{prefix}.{number}", f"{prefix6}{number:x}"),
        group_ids=group_ids or ("sg-default",),
    )


def allow(protocol: int = -1, low: int = -1, high: int = -1, *, peer: str) -> FirewallRule:
    """Return a rule for a peer: a range, or the id of a group."""
    is_range = "/" in peer
    return FirewallRule(
        rule_id=f"sgr-{protocol}-{low}-{high}-{peer}",
        protocol=protocol,
        from_port=low,
        to_port=high,
        cidr=peer if is_range else "",
        source_group_id="" if is_range else peer,
    )


OUTWARD = (allow(peer="0.0.0.0/0"), allow(peer="::/0"))


def make_group(
    group_id: str,
    ingress: Iterable[FirewallRule] = (),
    members: Iterable[str] = (),
    egress: Iterable[FirewallRule] = OUTWARD,
) -> FirewallGroup:
    """Return a group that lets everything out unless told otherwise."""
    return FirewallGroup(
        group_id=group_id,
        ingress=tuple(ingress),
        egress=tuple(egress),
        members=tuple(members),
    )


def make_policy(network: NetworkSpec, revision: int = 1, ports: int = 2) -> NetworkPolicy:
    """Return a policy of one group whose members may do everything with each other."""
    made = tuple(make_port(network, number) for number in range(2, 2 + ports))
    members = [address for port in made for address in port.addresses]
    group = make_group("sg-default", [allow(peer="sg-default")], members)
    return NetworkPolicy(network=network, revision=revision, ports=made, groups=(group,))


def without(policy: NetworkPolicy, port: FirewallPort, revision: int) -> PolicyDelta:
    """Return the difference that removes a port."""
    return PolicyDelta(
        network=policy.network,
        from_revision=policy.revision,
        to_revision=revision,
        removed_port_ids=(port.port_id,),
    )


class FirewallContract:
    """What every firewall plugin keeps to, whatever it does to packets."""

    @pytest.fixture
    def driver(self) -> Firewall:
        """Return the facade around a fresh plugin; override it."""
        raise NotImplementedError

    def test_a_fresh_node_has_nothing(self, driver: Firewall) -> None:
        state = driver.state()
        assert (state.is_guarded, state.revisions, state.taps) == (False, {}, ())

    def test_the_guard_is_safe_to_repeat(self, driver: Firewall) -> None:
        driver.guard()
        driver.guard()
        assert driver.state().is_guarded
        assert not driver.state().warnings

    def test_sync_puts_revision_and_taps_in_force(self, driver: Firewall) -> None:
        policy = make_policy(make_network())
        driver.guard()
        driver.sync(policy)
        state = driver.state()
        assert state.revisions == {policy.network.network_id: 1}
        assert state.taps == tuple(sorted(port.tap for port in policy.ports))
        assert not state.warnings

    def test_sync_replaces_what_there_was(self, driver: Firewall) -> None:
        network = make_network()
        driver.guard()
        driver.sync(make_policy(network, 1, ports=3))
        smaller = make_policy(network, 2, ports=1)
        driver.sync(smaller)
        driver.sync(smaller)
        state = driver.state()
        assert state.revisions == {network.network_id: 2}
        assert state.taps == (smaller.ports[0].tap,)

    def test_the_guard_keeps_rules(self, driver: Firewall) -> None:
        policy = make_policy(make_network())
        driver.guard()
        driver.sync(policy)
        before = driver.state()
        driver.guard()
        assert driver.state() == before

    def test_update_adds_changes_and_removes(self, driver: Firewall) -> None:
        policy = make_policy(make_network(), ports=3)
        driver.guard()
        driver.sync(policy)
        gone, stays = policy.ports[0], policy.ports[1]
        moved = msgspec.structs.replace(stays, addresses=("10.64.1.77",))
        fresh = make_port(policy.network, 9)
        delta = PolicyDelta(
            network=policy.network,
            from_revision=1,
            to_revision=2,
            ports=(moved, fresh),
            removed_port_ids=(gone.port_id,),
            groups=(make_group("sg-other", [allow(6, 22, 22, peer="0.0.0.0/0")]),),
        )
        driver.update(delta)
        state = driver.state()
        assert state.revisions == {policy.network.network_id: 2}
        assert state.taps == tuple(sorted(p.tap for p in apply_delta(policy, delta).ports))

    def test_update_within_a_revision(self, driver: Firewall) -> None:
        policy = make_policy(make_network())
        driver.guard()
        driver.sync(policy)
        driver.update(without(policy, policy.ports[0], revision=1))
        assert driver.state().taps == (policy.ports[1].tap,)

    def test_update_from_another_revision_is_stale(self, driver: Firewall) -> None:
        policy = make_policy(make_network(), revision=4)
        driver.guard()
        driver.sync(policy)
        before = driver.state()
        late = msgspec.structs.replace(without(policy, policy.ports[0], 6), from_revision=5)
        with pytest.raises(Stale):
            driver.update(late)
        assert driver.state() == before

    def test_update_of_an_unknown_network_is_stale(self, driver: Firewall) -> None:
        policy = make_policy(make_network())
        driver.guard()
        with pytest.raises(Stale):
            driver.update(without(policy, policy.ports[0], 2))
        assert driver.state().revisions == {}

    def test_a_chain_of_updates_equals_a_sync(self, driver: Firewall) -> None:
        network = make_network()
        driver.guard()
        old = make_policy(network, 1)
        driver.sync(old)
        for revision, ports in ((2, 5), (3, 1), (4, 4)):
            new = make_policy(network, revision, ports=ports)
            driver.update(diff(old, new))
            old = new
        updated = driver.state()
        driver.sync(old)
        assert driver.state() == updated

    def test_forget_removes_one_network(self, driver: Firewall) -> None:
        first, second = make_policy(make_network(1)), make_policy(make_network(2))
        driver.guard()
        driver.sync(first)
        driver.sync(second)
        driver.forget(first.network.network_id)
        driver.forget(first.network.network_id)
        state = driver.state()
        assert state.revisions == {second.network.network_id: 1}
        assert state.taps == tuple(sorted(port.tap for port in second.ports))

    def test_malformed_rules_do_not_disturb_others(self, driver: Firewall) -> None:
        policy = make_policy(make_network())
        driver.guard()
        driver.sync(
            msgspec.structs.replace(
                policy, groups=(*policy.groups, make_group("sg-bad", BAD_RULES, ["nonsense"]))
            )
        )
        assert driver.state().revisions == {policy.network.network_id: 1}

    def test_withdraw_leaves_nothing_and_is_safe_to_repeat(self, driver: Firewall) -> None:
        driver.guard()
        driver.sync(make_policy(make_network()))
        driver.withdraw()
        driver.withdraw()
        state = driver.state()
        assert (state.is_guarded, state.revisions, state.taps) == (False, {}, ())


BAD_RULES = (
    allow(6, 443, 80, peer="0.0.0.0/0"),
    allow(6, -1, 80, peer="0.0.0.0/0"),
    allow(6, 0, 70000, peer="0.0.0.0/0"),
    allow(112, 80, 80, peer="0.0.0.0/0"),
    allow(300, peer="0.0.0.0/0"),
    allow(-7, peer="0.0.0.0/0"),
    allow(1, 300, 0, peer="0.0.0.0/0"),
    allow(58, peer="0.0.0.0/0"),
    allow(1, peer="::/0"),
    allow(6, 22, 22, peer="10.0.0.1/33"),
    allow(6, 22, 22, peer="1.2.3.4/24"),
    allow(6, 22, 22, peer='0.0.0.0/0 } accept; "'),
    FirewallRule(rule_id="sgr-none", protocol=6),
    FirewallRule(rule_id="sgr-both", protocol=6, cidr="0.0.0.0/0", source_group_id="sg-default"),
)
"""Rules that a careless front door let through; none of them matches any packet."""
