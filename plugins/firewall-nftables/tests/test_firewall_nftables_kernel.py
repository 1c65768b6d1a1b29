"""What only this plugin promises of the kernel: leftovers, failures, foreign rules, restarts."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from anynode_firewall_nftables import bridging, render
from anynode_firewall_nftables.driver import NftablesFirewall
from anynode_firewall_nftables.parts import Part

from appliance.errors import CommandFailed, ConfigError, Conflict, Stale
from appliance.firewall import diff
from appliance.model import FirewallGroup
from appliance.run import run
from appliance.testing.firewall import (
    FirewallInside,
    allow,
    make_group,
    make_network,
    make_policy,
    without,
)
from appliance.testing.firewall_lab import FirewallLab, join
from appliance.testing.firewall_packets import Bench, arp
from appliance.testing.namespaces import Namespace

pytestmark = pytest.mark.node

SWITCH = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
NETWORKS = ("inet", "anynode", "networks")
EVERYTHING = (allow(peer="0.0.0.0/0"), allow(peer="::/0"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FirewallLab]:
    lab = FirewallLab(NftablesFirewall(tmp_path))
    yield lab
    lab.close()


@pytest.fixture
def bench(lab: FirewallLab) -> Bench:
    return Bench(lab, make_network(1))


def nft(lab: FirewallLab, *words: str) -> str:
    return lab.namespace.call(run, ["nft", *words], deadline_s=30)


_OF_AN_EPOCH = re.compile(r"\t(set (epoch|former[46])|chain (known|accepted)) \{.*?\n\t\}\n", re.S)


def ruleset(lab: FirewallLab) -> str:
    """Return all rules but those that say which epoch it is."""
    return _OF_AN_EPOCH.sub("", nft(lab, "list", "ruleset"))


@contextmanager
def restarted(lab: FirewallLab, tmp_path: Path) -> Iterator[FirewallLab]:
    """Give the node a plugin that knows nothing, as after a crash of the daemon."""
    known = lab.firewall
    lab.install(NftablesFirewall(tmp_path))
    yield lab
    lab.firewall = known


def test_withdraw_leaves_the_machine_as_it_was(lab: FirewallLab) -> None:
    lab.namespace.call(SWITCH.write_text, "0")
    nft(lab, "add table inet operator; add chain inet operator mine")
    nft(lab, "add table bridge operator { set anynode { type mark; }; }")
    before = nft(lab, "list", "ruleset")
    lab.firewall.guard()
    assert lab.namespace.call(SWITCH.read_text).strip() == "1"
    for number in (1, 2, 3):
        lab.firewall.sync(make_policy(make_network(number), ports=5))
    lab.firewall.forget(make_network(2).network_id)
    lab.firewall.withdraw()
    assert nft(lab, "list", "ruleset") == before
    assert lab.namespace.call(SWITCH.read_text).strip() == "0"


def test_foreign_rules_are_never_touched(lab: FirewallLab) -> None:
    hook = "{ type filter hook input priority 5; }"
    nft(lab, f"add table inet operator; add chain inet operator mine {hook}")
    nft(lab, "add rule inet operator mine tcp dport 9 counter drop")
    before = nft(lab, "list", "table", "inet", "operator")
    lab.firewall.guard()
    policy = make_policy(make_network())
    lab.firewall.sync(policy)
    lab.firewall.update(without(policy, policy.ports[0], 2))
    lab.firewall.guard()
    lab.firewall.forget(policy.network.network_id)
    assert nft(lab, "list", "table", "inet", "operator") == before
    lab.firewall.withdraw()
    assert nft(lab, "list", "table", "inet", "operator") == before


def test_instances_that_come_and_go_leave_nothing(lab: FirewallLab) -> None:
    network = make_network()
    small = make_policy(network, 1, ports=1)
    lab.firewall.guard()
    lab.firewall.sync(small)
    before = ruleset(lab)
    policy = small
    for revision in range(2, 42):
        bigger = make_policy(network, revision, ports=1 + revision % 7)
        extra = make_group(f"sg-{revision % 3}", [allow(6, revision, revision, peer="sg-other")])
        bigger = msgspec.structs.replace(bigger, groups=(*bigger.groups, extra))
        lab.firewall.update(diff(policy, bigger))
        policy = bigger
    last = msgspec.structs.replace(small, revision=99)
    lab.firewall.update(diff(policy, last))
    lab.firewall.sync(small)
    assert ruleset(lab) == before


def test_a_chain_of_updates_equals_a_sync_rule_by_rule(lab: FirewallLab) -> None:
    network = make_network()
    lab.firewall.guard()
    old = make_policy(network, 1)
    lab.firewall.sync(old)
    for revision in range(2, 12):
        new = make_policy(network, revision, ports=1 + revision % 4)
        rules = [allow(6, 20, 20 + revision, peer="10.0.0.0/8"), allow(17, peer=f"sg-{revision}")]
        new = msgspec.structs.replace(new, groups=(*new.groups, make_group("sg-x", rules)))
        lab.firewall.update(diff(old, new))
        old = new
    updated = sorted(ruleset(lab).split())
    lab.firewall.sync(old)
    assert sorted(ruleset(lab).split()) == updated


def test_a_refused_change_keeps_the_last_good_rules(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    before, rules = bench.lab.firewall.state(), nft(bench.lab, "list", "ruleset")
    real = render.group_part

    def refused(network_id: str, group: FirewallGroup) -> Part:
        part = real(network_id, group)
        chains = {name: (*rules, "jump nowhere") for name, rules in part.chains.items()}
        return dataclasses.replace(part, chains=chains)

    monkeypatch.setattr(render, "group_part", refused)
    wider = make_group("sg-b", EVERYTHING, bench.b.addresses)
    old = bench.policy
    with pytest.raises(CommandFailed, match="refused a change"):
        bench.update(groups=(old.groups[0], wider))
    with pytest.raises(CommandFailed):
        bench.lab.firewall.sync(msgspec.structs.replace(old, revision=9))
    monkeypatch.undo()
    assert bench.lab.firewall.state() == before
    assert nft(bench.lab, "list", "ruleset") == rules
    bench.check(bench.packet(), passes=True)
    bench.check(bench.packet(destination_port=8), passes=False)
    bench.policy = old
    bench.update(groups=(old.groups[0], wider))
    bench.check(bench.packet(destination_port=8), passes=True)


def test_rules_stay_when_the_daemon_is_gone(bench: Bench, tmp_path: Path) -> None:
    bench.sync(allow(17, 7, 7, peer="0.0.0.0/0"))
    rules = ruleset(bench.lab)
    with restarted(bench.lab, tmp_path) as lab:
        assert lab.firewall.state().revisions == {bench.network.network_id: 1}
        assert lab.firewall.state().taps == tuple(sorted((bench.a.tap, bench.b.tap)))
        lab.firewall.guard()
        assert ruleset(lab) == rules
        bench.check(bench.packet(), passes=True)
        with pytest.raises(Stale):
            lab.firewall.update(without(bench.policy, bench.b, 2))
        lab.firewall.sync(bench.policy)
        assert ruleset(lab) == rules
        lab.firewall.update(without(bench.policy, bench.b, 2))
        assert not bench.does_pass(bench.packet(), wanted=False)


def test_what_a_dead_daemon_left_is_removed(bench: Bench, tmp_path: Path) -> None:
    bench.lab.firewall.guard()
    before = ruleset(bench.lab)
    bench.sync(*EVERYTHING)
    with restarted(bench.lab, tmp_path) as lab:
        smaller = make_policy(bench.network, 5, ports=1)
        lab.firewall.sync(smaller)
        assert lab.firewall.state().taps == (smaller.ports[0].tap,)
    with restarted(bench.lab, tmp_path) as lab:
        lab.firewall.forget(bench.network.network_id)
        assert ruleset(lab) == before


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table bridge anynode",
        "flush chain bridge anynode prerouting",
        "flush chain inet anynode ingress",
        "flush chain inet anynode in.{net}",
        "flush set bridge anynode own4",
        "flush map inet anynode a4.{net}",
        "flush map inet anynode ingress",
        "flush set inet anynode m4.{net}.sg-a",
        "flush chain inet anynode known",
        "flush chain inet anynode accepted",
        "flush set inet anynode epoch",
    ],
)
def test_damage_by_hand_is_seen_and_repaired(bench: Bench, damage: str) -> None:
    bench.sync(allow(17, 7, 7, peer="sg-a"))
    good = sorted(ruleset(bench.lab).split())
    sound = bench.lab.firewall.state()
    nft(bench.lab, damage.format(net=bench.network.network_id))
    state = bench.lab.firewall.state()
    assert not state.is_guarded or bench.network.network_id not in state.revisions
    assert state.warnings
    bench.lab.firewall.guard()
    bench.lab.firewall.sync(bench.policy)
    assert bench.lab.firewall.state() == sound
    assert sorted(ruleset(bench.lab).split()) == good
    bench.check(bench.packet(), passes=True)
    bench.check(bench.packet(destination_port=8), passes=False)


def test_a_sync_alone_brings_the_guard_along(lab: FirewallLab) -> None:
    lab.firewall.sync(make_policy(make_network()))
    assert lab.firewall.state().is_guarded


def test_tables_of_another_release_are_replaced(lab: FirewallLab) -> None:
    nft(lab, "add table inet anynode; add set inet anynode networks { type mark; }")
    nft(lab, "add table bridge anynode; add chain bridge anynode old")
    assert not lab.firewall.state().is_guarded
    lab.firewall.guard()
    assert "chain old" not in nft(lab, "list", "ruleset")
    lab.firewall.sync(make_policy(make_network()))
    assert lab.firewall.state().is_guarded
    lab.firewall.withdraw()
    assert nft(lab, "list", "ruleset") == ""


def test_foreign_changes_alone_are_no_damage(lab: FirewallLab) -> None:
    lab.firewall.guard()
    policy = make_policy(make_network())
    lab.firewall.sync(policy)
    sound = lab.firewall.state()
    nft(lab, "add table inet operator")
    assert lab.firewall.state() == sound
    lab.firewall.update(without(policy, policy.ports[0], 2))
    assert not lab.firewall.state().warnings


def test_without_br_netfilter_nothing_is_carried(bench: Bench) -> None:
    bench.sync(*EVERYTHING)
    bench.check(bench.packet(), passes=True)
    bench.lab.namespace.call(SWITCH.write_text, "0")
    try:
        assert not bench.does_pass(bench.packet(), wanted=False)
        assert bench.does_pass(bench.packet6()), "the other family goes on"
        assert bench.does_pass(arp(bench))
        assert any("iptables" in line for line in bench.lab.firewall.state().warnings)
    finally:
        bench.lab.firewall.guard()
    assert not bench.lab.firewall.state().warnings
    bench.check(bench.packet(), passes=True)


def test_a_kernel_without_br_netfilter_is_refused(
    lab: FirewallLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridging, "_SWITCHES", Path("/proc/sys/net/no-such-thing"))
    with pytest.raises(ConfigError, match="br_netfilter"):
        lab.firewall.guard()
    assert nft(lab, "list", "ruleset") == ""
    assert any("dropped" in line for line in lab.firewall.state().warnings)


def test_two_networks_cannot_share_a_bridge(lab: FirewallLab) -> None:
    lab.firewall.guard()
    first = make_policy(make_network(1))
    lab.firewall.sync(first)
    thief = make_policy(make_network(2, bridge=first.network.bridge))
    with pytest.raises(Conflict, match="carries network"):
        lab.firewall.sync(thief)
    assert lab.firewall.state().revisions == {first.network.network_id: 1}


def test_syncs_of_two_threads_and_two_processes_do_not_mix(tmp_path: Path) -> None:
    """Two drivers of one node, each with two threads: every network ends at its last policy."""
    errors: list[BaseException] = []
    with Namespace() as node:
        driver = FirewallInside("nftables", NftablesFirewall(tmp_path), node)
        driver.guard()

        def work(plugin: NftablesFirewall, number: int) -> None:
            join(node)
            network = make_network(number)
            try:
                for revision in range(1, 9):
                    plugin.firewall_sync(make_policy(network, revision, ports=revision))
            except BaseException as error:
                errors.append(error)

        plugins = [NftablesFirewall(tmp_path), NftablesFirewall(tmp_path)]
        threads = [
            threading.Thread(target=work, args=(plugins[number % 2], number))
            for number in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        state = driver.state()
        assert state.revisions == {make_network(n).network_id: 8 for n in range(1, 5)}
        assert len(state.taps) == 4 * 8
        listed = node.call(run, ["nft", "list", "set", *NETWORKS], deadline_s=30)
        marks = [text for text in listed.split('"') if text.startswith("subnet-")]
        assert len({mark.split()[2] for mark in marks}) == 4, "each network has a zone of its own"


def test_a_tap_outside_every_bridge_reaches_nothing(lab: FirewallLab) -> None:
    """A frame to a reserved group address goes past the bridge, to the tap's own stack."""
    bench = Bench(lab, make_network(1))
    bench.sync(*EVERYTHING)
    aside = {"destination": "node", "ip_dst": bench.network.gateway, "destination_port": 53}
    reserved = bench.packet(**aside, ether_dst="01:80:c2:00:00:0e")
    assert not bench.does_pass(reserved, wanted=False)
    lab.add_tap("an00000000beef")
    stray = bench.packet(**aside | {"source": "an00000000beef"}, ether_dst="ff:ff:ff:ff:ff:ff")
    assert not bench.does_pass(stray, wanted=False)
