"""The model's verdicts: what names a rule, what needs none, and what nothing can allow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.firewall import (
    NODE,
    UPLINK,
    Packet,
    PolicyIndex,
    Verdict,
    link_local,
    own_addresses,
    verdict,
)
from appliance.model import FirewallPort, NetworkPolicy
from appliance.testing.firewall import allow, make_group, make_network, make_policy, make_port
from appliance.testing.firewall_draws import packets, policies

NETWORK = make_network(1)
PORTS = tuple(make_port(NETWORK, n, f"sg-{'ab'[n % 2]}") for n in (2, 3, 4))
GATEWAY_MAC = "0e:00:00:00:00:01"


def packet(**changes: Any) -> Packet:
    a, b = PORTS[:2]
    fields: dict[str, Any] = {
        "source": a.tap,
        "destination": b.tap,
        "ether_src": a.mac,
        "ether_dst": b.mac,
        "ip_src": a.addresses[0],
        "ip_dst": b.addresses[0],
        "protocol": 6,
        "source_port": 40000,
        "destination_port": 22,
    }
    return Packet(**fields | changes)


def policy(*ingress: Any, **changes: Any) -> NetworkPolicy:
    groups = (
        make_group("sg-a", members=PORTS[0].addresses),
        make_group("sg-b", ingress, PORTS[1].addresses),
    )
    made = NetworkPolicy(network=NETWORK, revision=1, ports=PORTS, groups=groups)
    return msgspec.structs.replace(made, **changes)


def test_the_verdict_names_the_rule_that_decided() -> None:
    found = verdict([policy(allow(6, 22, 22, peer="sg-a"))], packet())
    assert found.is_allowed
    assert found.rule_id == "sgr-6-22-22-sg-a"
    assert "egress rule" in found.why
    assert "of sg-b" in found.why


def test_a_drop_says_why() -> None:
    found = verdict([policy()], packet())
    assert found == Verdict(
        is_allowed=False, why=f"no ingress rule of the groups of {PORTS[1].port_id} allows it"
    )


def test_what_answers_an_allowed_flow_needs_no_rule_but_the_sender_must_be_itself() -> None:
    assert verdict([policy()], packet(is_reply=True)).is_allowed
    assert not verdict([policy()], packet(is_reply=True, ip_src="10.64.1.99")).is_allowed
    assert not verdict([policy()], packet(is_reply=True, ether_src="06:00:00:00:00:01")).is_allowed


def test_a_port_of_two_groups_has_the_rules_of_both() -> None:
    both = msgspec.structs.replace(PORTS[1], group_ids=("sg-a", "sg-b"))
    wide = policy(allow(6, 22, 22, peer="0.0.0.0/0"), ports=(PORTS[0], both))
    assert verdict([wide], packet()).is_allowed


def test_a_group_that_is_not_there_allows_nothing() -> None:
    lonely = msgspec.structs.replace(PORTS[1], group_ids=("sg-missing",))
    assert not verdict([policy(ports=(PORTS[0], lonely))], packet()).is_allowed
    assert not verdict([policy(allow(peer="sg-missing"))], packet()).is_allowed


def test_a_tap_that_no_policy_knows_is_dropped() -> None:
    assert verdict([policy()], packet(source="an0000000000ff")).why.endswith("is not known")
    assert not verdict([], packet(source=UPLINK)).is_allowed


def test_what_concerns_no_instance_is_not_judged() -> None:
    assert verdict([policy()], packet(source=UPLINK, destination=NODE)).is_allowed


def test_routed_packets_pass_both_networks_rules() -> None:
    other = make_network(2)
    there = make_port(other, 5, "sg-c")
    address = f"{PORTS[0].addresses[0]}/32"
    open_there = NetworkPolicy(
        network=other,
        revision=1,
        ports=(there,),
        groups=(make_group("sg-c", [allow(6, 22, 22, peer=address)]),),
    )
    routed = packet(destination=there.tap, ip_dst=there.addresses[0], ether_dst=GATEWAY_MAC)
    assert verdict([policy(), open_there], routed).is_allowed
    closed = msgspec.structs.replace(open_there, groups=())
    assert not verdict([policy(), closed], routed).is_allowed


def test_the_link_local_address_comes_from_the_mac() -> None:
    assert str(link_local("06:a0:00:01:00:02")) == "fe80::4a0:ff:fe01:2"
    assert link_local("nonsense") is None
    port = FirewallPort(
        port_id="eni-1", tap="an1", mac="bad", addresses=("10.0.0.1", "bad"), group_ids=()
    )
    assert {str(address) for address in own_addresses(port)} == {"10.0.0.1"}


def test_an_index_in_place_of_a_policy_gives_the_same_verdict() -> None:
    made = policy(allow(6, 22, 22, peer="sg-a"))
    assert verdict([PolicyIndex(made)], packet()) == verdict([made], packet())


@given(policies(NETWORK, PORTS), packets(NETWORK, PORTS, GATEWAY_MAC))
def test_whatever_is_allowed_is_explained(made: NetworkPolicy, drawn: Packet) -> None:
    found = verdict([made], drawn)
    assert found.why
    if found.rule_id:
        rules = [rule for group in made.groups for rule in (*group.ingress, *group.egress)]
        assert found.rule_id in {rule.rule_id for rule in rules}


@given(policies(NETWORK, PORTS), packets(NETWORK, PORTS, GATEWAY_MAC))
def test_no_rule_lets_an_instance_speak_for_another(made: NetworkPolicy, drawn: Packet) -> None:
    sender = next((port for port in PORTS if port.tap == drawn.source), None)
    if sender is None or not verdict([made], drawn).is_allowed:
        return
    own = {str(address) for address in own_addresses(sender)}
    assert drawn.ether_src == sender.mac
    assert not drawn.vlan_tags
    assert not drawn.is_snap
    if drawn.arp:
        assert drawn.arp.sender_mac == sender.mac
        assert drawn.arp.sender_ip in own | {"0.0.0.0"}
    else:
        assert drawn.ip_src in own | {"0.0.0.0", "::"}


@given(policies(NETWORK, PORTS), packets(NETWORK, PORTS, GATEWAY_MAC), st.data())
@settings(max_examples=60)
def test_a_rule_more_never_forbids_anything(
    made: NetworkPolicy, drawn: Packet, data: st.DataObject
) -> None:
    if not verdict([made], drawn).is_allowed:
        return
    group = data.draw(st.sampled_from(made.groups))
    wider = msgspec.structs.replace(
        group, ingress=(*group.ingress, allow(6, 22, 22, peer="0.0.0.0/0"))
    )
    groups = tuple(wider if one is group else one for one in made.groups)
    assert verdict([msgspec.structs.replace(made, groups=groups)], drawn).is_allowed


@pytest.mark.parametrize("port", [22, 80, 8773, 8775])
def test_the_node_is_closed_to_instances(port: int) -> None:
    open_to_all = policy(allow(peer="0.0.0.0/0"))
    to_node = packet(destination=NODE, ip_dst=NETWORK.gateway, destination_port=port)
    assert not verdict([open_to_all], to_node).is_allowed


def test_policies_of_many_groups_are_judged_fast_enough_to_explain() -> None:
    made = make_policy(NETWORK, ports=200)
    one, two = made.ports[5], made.ports[6]
    between = packet(
        source=one.tap,
        destination=two.tap,
        ether_src=one.mac,
        ether_dst=two.mac,
        ip_src=one.addresses[0],
        ip_dst=two.addresses[0],
    )
    assert verdict([made], between).is_allowed
