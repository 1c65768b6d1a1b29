"""Policies of many instances, and labs in which the firewall plugin nftables enforces them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anynode_firewall_nftables.driver import NftablesFirewall

from appliance.firewall import Packet
from appliance.model import FirewallPort, NetworkPolicy, tap_name
from appliance.testing.firewall import allow, make_group, make_network
from appliance.testing.firewall_lab import FirewallLab
from appliance.testing.frames import encode


@contextmanager
def lab() -> Iterator[FirewallLab]:
    """Give a node on a bench, with the plugin, in a network namespace of its own."""
    with tempfile.TemporaryDirectory() as directory:
        made = FirewallLab(NftablesFirewall(Path(directory)))
        try:
            yield made
        finally:
            made.close()


def port_number(number: int) -> FirewallPort:
    """Return one of up to 60,000 ports of a network 10.0.0.0/16."""
    port_id = f"eni-{number:012x}00000"
    return FirewallPort(
        port_id=port_id,
        tap=tap_name(port_id),
        mac=f"06:a0:00:00:{number >> 8:02x}:{number & 0xFF:02x}",
        addresses=(f"10.0.{number >> 8}.{number & 0xFF}", f"fd00:1::{number:x}"),
        group_ids=("sg-default", f"sg-{number % 20}"),
    )


def policy_of(size: int, revision: int = 1, *, extra_rules: int = 0) -> NetworkPolicy:
    """Return a policy of so many instances, all in one group and each in one of twenty more."""
    network = make_network(1, cidr="10.0.0.0/16", gateway="10.0.0.1")
    ports = tuple(port_number(number) for number in range(2, 2 + size))
    members = tuple(address for port in ports for address in port.addresses)
    rules = [allow(peer="sg-default"), allow(6, 22, 22, peer="0.0.0.0/0")]
    rules += [allow(6, 8000 + i, 8000 + i, peer="10.0.0.0/8") for i in range(extra_rules)]
    groups = [make_group("sg-default", rules, members)]
    groups += [
        make_group(f"sg-{i}", [allow(17, 100 + i, 200 + i, peer="192.0.2.0/24")]) for i in range(20)
    ]
    return NetworkPolicy(network=network, revision=revision, ports=ports, groups=tuple(groups))


def open_flows(bench: FirewallLab, policy: NetworkPolicy, count: int) -> None:
    """Let the first instance open flows of UDP to the second one, whose rules allow them."""
    a, b = policy.ports[:2]
    bench.add_ports(policy.network, [a, b])
    for number in range(count):
        there = Packet(
            source=a.tap,
            destination=b.tap,
            ether_src=a.mac,
            ether_dst=b.mac,
            ip_src=a.addresses[0],
            ip_dst=b.addresses[0],
            protocol=17,
            source_port=10_000 + number,
            destination_port=6000,
        )
        bench.send(a.tap, encode(there, bytes(64))[0])
    passed = len(bench.received(b.tap))
    assert passed == count, f"{passed} of {count} flows were opened"
