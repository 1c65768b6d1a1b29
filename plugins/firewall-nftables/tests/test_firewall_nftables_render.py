"""The rendered commands: golden files, and what never gets into them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from anynode_firewall_nftables.base import render_base
from anynode_firewall_nftables.change import choose_zone, difference, replacement
from anynode_firewall_nftables.force import apply_delta, compile_policy
from anynode_firewall_nftables.kernel import Leftover, Stored
from anynode_firewall_nftables.names import canonical_mac, token

from appliance.errors import Conflict, InputError
from appliance.firewall import diff
from appliance.model import FirewallPort, NetworkPolicy
from appliance.testing.firewall import (
    BAD_RULES,
    allow,
    make_group,
    make_network,
    make_policy,
    make_port,
)

GOLDEN = Path(__file__).parent / "golden"


def rules_policy(revision: int = 1) -> NetworkPolicy:
    """Return a policy with every kind of rule."""
    network = make_network(1)
    ports = (make_port(network, 2, "sg-web"), make_port(network, 3, "sg-web", "sg-db"))
    web = [
        allow(6, 80, 80, peer="0.0.0.0/0"),
        allow(6, 80, 80, peer="::/0"),
        allow(6, 22, 30, peer="10.0.0.0/8"),
        allow(6, 25, 40, peer="10.64.0.0/16"),
        allow(1, 8, -1, peer="0.0.0.0/0"),
        allow(1, 3, 4, peer="0.0.0.0/0"),
        allow(58, peer="::/0"),
        allow(peer="192.0.2.0/24"),
    ]
    database = [allow(6, 5432, 5433, peer="sg-web"), allow(112, peer="sg-db"), allow(peer="sg-x")]
    groups = (
        make_group("sg-web", web, [a for port in ports for a in port.addresses]),
        make_group("sg-db", database, ports[1].addresses, [allow(17, 53, 53, peer="10.0.0.0/8")]),
    )
    return NetworkPolicy(network=network, revision=revision, ports=ports, groups=groups)


def sync_text(policy: NetworkPolicy) -> str:
    return "\n".join(replacement(Leftover(), None, compile_policy(policy, 7))) + "\n"


def update_text() -> str:
    old = make_policy(make_network(1), 1, ports=2)
    new = make_policy(make_network(1), 2, ports=3)
    new = msgspec.structs.replace(new, ports=new.ports[1:])
    before = compile_policy(old, 7)
    return "\n".join(difference(before, apply_delta(before, diff(old, new)))) + "\n"


def base_text() -> str:
    """Return the base without the long list of patterns."""
    return "\n".join(line for line in render_base() if "add element" not in line) + "\n"


CASES = {
    "base": base_text,
    "empty": lambda: sync_text(NetworkPolicy(network=make_network(1), revision=1)),
    "plain": lambda: sync_text(make_policy(make_network(1))),
    "rules": lambda: sync_text(rules_policy()),
    "bad-rules": lambda: sync_text(
        NetworkPolicy(
            network=make_network(1), revision=1, groups=(make_group("sg-bad", BAD_RULES),)
        )
    ),
    "update": update_text,
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_commands_are_those_of_the_golden_file(case: str, is_regenerating: bool) -> None:
    made = CASES[case]()
    path = GOLDEN / f"{case}.nft"
    if is_regenerating:
        path.write_text(made)
    assert made == path.read_text(), "look at the difference, then run with --regenerate"


def test_an_update_names_only_what_changed() -> None:
    text = update_text()
    assert "10.64.1.3" not in text
    assert text.count("\n") < 30


def test_updates_arrive_where_a_sync_does() -> None:
    state = compile_policy(make_policy(make_network(1), 1), 7)
    old = make_policy(make_network(1), 1)
    for revision, new in enumerate([rules_policy(), make_policy(make_network(1), ports=5)], 2):
        new = msgspec.structs.replace(new, revision=revision)
        state = apply_delta(state, diff(old, new))
        old = new
    fresh = compile_policy(old, 7)
    assert (state.ports, state.groups, state.users) == (fresh.ports, fresh.groups, fresh.users)
    assert {key for key in state.parts if key[0] != "profile"} == {
        key for key in fresh.parts if key[0] != "profile"
    }
    assert all(
        state.parts[key] == fresh.parts[key]
        for key in fresh.parts
        if key[0] in ("network", "group", "members")
    )


def test_a_member_in_two_spellings_stays_until_both_are_gone() -> None:
    network = make_network(1)
    spelled = [["fd00::1"], ["fd00::1", "fd00:0::1"], ["fd00:0::1"], ["bad", "fd00::1"], []]
    policies = [
        NetworkPolicy(network=network, revision=n, groups=(make_group("sg-a", members=members),))
        for n, members in enumerate(spelled)
    ]
    state = compile_policy(policies[0], 7)
    for old, new in pairwise(policies):
        state = apply_delta(state, diff(old, new))
        wanted = {"fd00::1"} if new.revision < 4 else set()
        assert state.members("sg-a") == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network_id", 'x" }'),
        ("network_id", ""),
        ("network_id", "a.b"),
        ("bridge", "br0; flush ruleset"),
        ("bridge", "a-name-that-is-too-long"),
        ("cidr", "10.0.0.0/33"),
        ("cidr", "fd00::/64"),
        ("cidr6", "10.0.0.0/24"),
    ],
)
def test_a_malformed_network_is_refused(field: str, value: str) -> None:
    policy = NetworkPolicy(network=make_network(1, **{field: value}), revision=1)
    with pytest.raises(InputError):
        compile_policy(policy, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mac", "zz:a0"),
        ("mac", "01:00:5e:00:00:01"),
        ("mac", '06:a0:00:01:00:02 } "'),
        ("tap", 'an0" accept'),
        ("tap", "an0\nflush ruleset"),
        ("tap", ""),
    ],
)
def test_a_malformed_port_gets_nothing_and_disturbs_nobody(field: str, value: str) -> None:
    policy = make_policy(make_network(1), ports=2)
    bad = msgspec.structs.replace(policy.ports[0], **{field: value})
    text = sync_text(msgspec.structs.replace(policy, ports=(bad, policy.ports[1])))
    assert policy.ports[1].tap in text
    assert f'"{policy.ports[0].tap}"' not in text
    assert value not in text or not value


def test_a_malformed_address_of_a_port_is_left_out() -> None:
    policy = make_policy(make_network(1), ports=1)
    addresses = ("10.64.1.2", "10.64.1.3/24", "}", "fd00::1%eth0 accept")
    port: FirewallPort = msgspec.structs.replace(policy.ports[0], addresses=addresses)
    text = sync_text(msgspec.structs.replace(policy, ports=(port,)))
    own = next(line for line in text.splitlines() if "own4 {" in line)
    assert own.count(" . 10.64.1.") == 1
    assert "accept }" not in text


def test_an_id_that_nft_cannot_read_becomes_a_digest() -> None:
    hostile = 'sg-1 { } ; flush ruleset "'
    assert token("sg-0123456789abcdef0") == "sg-0123456789abcdef0"
    assert token(hostile).isalnum()
    assert token(hostile) != token(hostile + " ")
    network = make_network(1)
    port = make_port(network, 2, hostile)
    group = make_group(hostile, [allow(peer=hostile)], port.addresses)
    policy = NetworkPolicy(network=network, revision=1, ports=(port,), groups=(group,))
    assert "flush ruleset" not in sync_text(policy)


def test_zones_are_kept_and_never_shared() -> None:
    stored: dict[str, Stored] = {}
    for number in range(300):
        policy = NetworkPolicy(network=make_network(number), revision=1)
        zone = choose_zone(policy, stored)
        assert 1 <= zone <= 65535
        stored[policy.network.network_id] = Stored(
            bridge=policy.network.bridge, revision=1, zone=zone
        )
        assert choose_zone(policy, stored) == zone
    assert len({item.zone for item in stored.values()}) == 300


def test_a_bridge_belongs_to_one_network() -> None:
    stored = {"subnet-x": Stored(bridge="anbrf1", revision=1, zone=3)}
    with pytest.raises(Conflict):
        choose_zone(NetworkPolicy(network=make_network(1), revision=1), stored)


def test_only_unicast_macs_are_macs() -> None:
    assert canonical_mac("06:A0:00:00:00:01") == "06:a0:00:00:00:01"
    for bad in ("", "06-a0-00-00-00-01", "07:a0:00:00:00:01", "06:a0:00:00:00:01:02", "ff" * 6):
        assert canonical_mac(bad) is None
