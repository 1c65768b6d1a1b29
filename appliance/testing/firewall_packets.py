"""What a firewall plugin must do to packets: subclass it and give it your plugin.

Needs root. Override ``make_plugin``. The pure model says what must happen; the tables here say it
once more, so that the model is held to something, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from appliance.firewall import (
    BROADCAST_MAC,
    ETHER_ARP,
    ETHER_IPV6,
    NODE,
    UPLINK,
    Arp,
    Packet,
    apply_delta,
    diff,
    link_local,
    verdict,
)
from appliance.firewall.rules import ICMP, ICMPV6, TCP, UDP
from appliance.model import MemberChange, NetworkPolicy, NetworkSpec, PolicyDelta
from appliance.testing.firewall import BAD_RULES, allow, make_group, make_network, make_port
from appliance.testing.firewall_draws import UPLINK_MAC, openers, packets, policies
from appliance.testing.firewall_lab import FirewallLab

_PATIENCE_S = 2.0
STRANGER, STRANGER6 = "10.64.1.200", "fd00:1::c8"
ALL_NODES_MAC, ALL_NODES = "33:33:00:00:00:01", "ff02::1"


class Bench:
    """Two instances of one network on a lab: ``a`` in sg-a, ``b`` in sg-b."""

    def __init__(self, lab: FirewallLab, network: NetworkSpec) -> None:
        self.lab = lab
        self.network = network
        lab.add_network(network)
        self.a = make_port(self.network, 2, "sg-a")
        self.b = make_port(self.network, 3, "sg-b")
        lab.add_ports(self.network, [self.a, self.b])
        self.policy = NetworkPolicy(network=self.network, revision=0)
        self._ports = iter(range(20000, 60000))

    def sync(self, *ingress_of_b: Any, egress_of_a: Any = None, **members: Any) -> None:
        """Put a policy in force in which ``b`` has the given ingress rules and ``a`` none."""
        egress = {} if egress_of_a is None else {"egress": egress_of_a}
        self.policy = NetworkPolicy(
            network=self.network,
            revision=self.policy.revision + 1,
            ports=(self.a, self.b),
            groups=(
                make_group("sg-a", members=members.get("of_a", self.a.addresses), **egress),
                make_group("sg-b", ingress_of_b, self.b.addresses),
            ),
        )
        self.lab.firewall.guard()
        self.lab.firewall.sync(self.policy)

    def update(self, **changes: Any) -> None:
        """Put a changed policy in force as a difference."""
        changes.setdefault("revision", self.policy.revision + 1)
        new = msgspec.structs.replace(self.policy, **changes)
        self.lab.firewall.update(diff(self.policy, new))
        self.policy = new

    def packet(self, **changes: Any) -> Packet:
        """Return a packet from ``a`` to ``b`` over UDP to port 7, changed as told."""
        fields: dict[str, Any] = {
            "source": self.a.tap,
            "destination": self.b.tap,
            "ether_src": self.a.mac,
            "ether_dst": self.b.mac,
            "ip_src": self.a.addresses[0],
            "ip_dst": self.b.addresses[0],
            "protocol": UDP,
            "source_port": next(self._ports),
            "destination_port": 7,
        }
        return Packet(**fields | changes)

    def packet6(self, **changes: Any) -> Packet:
        """Return the same over IPv6."""
        fields: dict[str, Any] = {
            "ether_type": ETHER_IPV6,
            "ip_src": self.a.addresses[1],
            "ip_dst": self.b.addresses[1],
        }
        return self.packet(**fields | changes)

    def numbered(self, packet: Packet) -> Packet:
        """Return the packet with a source port, or identifier, that none before it had."""
        if packet.source_port in (67, 68, 546, 547):
            return packet
        return msgspec.structs.replace(packet, source_port=next(self._ports))

    def check(self, packet: Packet, *, passes: bool, what: str = "") -> None:
        """Assert that model and plugin both let a packet through, or both do not."""
        judged = verdict([self.policy], packet)
        assert judged.is_allowed == passes, f"{what}: the model says: {judged.why}"
        assert self.does_pass(packet, wanted=passes) == passes, f"{what}: {judged.why}"

    def does_pass(self, packet: Packet, *, wanted: bool = True) -> bool:
        """Send a packet and say whether it comes out; one that is wanted is waited for."""
        return self.lab.passes(self.network, packet, wait_s=_PATIENCE_S if wanted else 0.0)


def arp(bench: Bench, **changes: Any) -> Packet:
    """Return an ARP request of ``a`` for ``b``; ``ether_`` changes go to the frame."""
    frame = {key: changes.pop(key) for key in list(changes) if key.startswith("ether_")}
    message: dict[str, Any] = {
        "operation": 1,
        "sender_mac": bench.a.mac,
        "sender_ip": bench.a.addresses[0],
        "target_ip": bench.b.addresses[0],
    }
    fields: dict[str, Any] = {
        "ether_type": ETHER_ARP,
        "ether_dst": BROADCAST_MAC,
        "ip_src": "",
        "ip_dst": "",
        "protocol": 0,
        "arp": Arp(**message | changes),
    }
    return bench.packet(**fields | frame)


def discovery(bench: Bench, kind: int, **changes: Any) -> Packet:
    """Return a neighbour discovery message of ``a`` to ``b``."""
    fields: dict[str, Any] = {
        "protocol": ICMPV6,
        "icmp_type": kind,
        "hop_limit": 255,
        "nd_target": bench.a.addresses[1] if kind == 136 else bench.b.addresses[1],
        "source_port": 0,
    }
    if kind not in (135, 136):
        fields["nd_target"] = ""
    return bench.packet6(**fields | changes)


def frame_table(b: Bench) -> Iterator[tuple[str, Packet, bool]]:
    """Yield name, packet and whether it passes, under rules that allow everything."""
    a, other, network = b.a, b.b, b.network
    own_link_local, gateway = str(link_local(a.mac)), network.gateway
    yield "plain", b.packet(), True
    yield "plain IPv6", b.packet6(), True
    yield "link-local", b.packet6(ip_src=own_link_local, ip_dst=str(link_local(other.mac))), True
    yield "spoofed MAC", b.packet(ether_src="06:a0:00:01:00:99"), False
    yield "MAC of the other", b.packet(ether_src=other.mac), False
    yield "broadcast MAC as source", b.packet(ether_src=BROADCAST_MAC), False
    yield "spoofed address", b.packet(ip_src=STRANGER), False
    yield "gateway's address", b.packet(ip_src=gateway), False
    yield "no address", b.packet(ip_src="0.0.0.0"), False
    yield "spoofed IPv6", b.packet6(ip_src=STRANGER6), False
    yield "spoofed link-local", b.packet6(ip_src="fe80::1"), False
    yield "no IPv6 address", b.packet6(ip_src="::"), False
    yield "tagged", b.packet(vlan_tags=(5,)), False
    yield "tag 0", b.packet(vlan_tags=(0,)), False
    yield "two tags", b.packet(vlan_tags=(0, 7)), False
    yield "tagged ARP", msgspec.structs.replace(arp(b), vlan_tags=(0,)), False
    yield "SNAP", b.packet(is_snap=True), False
    yield "SNAP ARP", msgspec.structs.replace(arp(b), is_snap=True), False
    yield "other ethertype", b.packet(ether_type=0x88CC, ip_src="", ip_dst=""), False
    yield "PPPoE", b.packet(ether_type=0x8864, ip_src="", ip_dst=""), False
    yield "fragmented", b.packet(is_fragment=True), True
    yield "fragmented IPv6", b.packet6(is_fragment=True), True
    yield "another's address", b.packet(ip_dst=STRANGER), False
    yield "IP broadcast", b.packet(ip_dst="10.64.1.255", ether_dst=BROADCAST_MAC), False
    yield "IP multicast", b.packet(ip_dst="224.0.0.251", ether_dst="01:00:5e:00:00:fb"), False
    yield "unicast in a broadcast frame", b.packet(ether_dst=BROADCAST_MAC), False
    yield "ARP request", arp(b), True
    yield "ARP reply", arp(b, operation=2, ether_dst=other.mac), True
    yield "ARP probe", arp(b, sender_ip="0.0.0.0", target_ip=a.addresses[0]), False
    yield "RARP", arp(b, operation=3), False
    yield "ARP sender MAC", arp(b, sender_mac=other.mac), False
    yield "ARP sender address", arp(b, sender_ip=gateway), False
    yield "ARP reply for the gateway", arp(b, operation=2, sender_ip=gateway), False
    yield "ARP frame MAC", arp(b, ether_src=other.mac), False
    yield "ARP for another", arp(b, target_ip=STRANGER), False
    yield "ARP of another medium", arp(b, is_ethernet_ipv4=False), False
    reply = {"source_port": 67, "destination_port": 68}
    yield "DHCP server", b.packet(**reply), False
    everyone = {"ether_dst": BROADCAST_MAC, "ip_dst": "255.255.255.255"}
    yield "DHCP server to all", b.packet(**reply, **everyone), False
    yield "DHCPv6 server", b.packet6(source_port=547, destination_port=546), False
    yield "DHCP server, fragmented", b.packet(**reply, is_fragment=True), False
    discover = {"ip_src": "0.0.0.0", "source_port": 68, "destination_port": 67, **everyone}
    yield "DHCP discover to another instance", b.packet(**discover), False
    yield "solicitation", discovery(b, 135), True
    group_mac, group = "33:33:ff:00:00:03", "ff02::1:ff00:3"
    yield "solicitation to all", discovery(b, 135, ip_dst=group, ether_dst=group_mac), True
    not_own = {"ip_dst": group, "ether_dst": group_mac, "nd_target": STRANGER6}
    yield "solicitation of another", discovery(b, 135, **not_own), False
    yield "solicitation from afar", discovery(b, 135, hop_limit=64), False
    yield "spoofed solicitation", discovery(b, 135, ip_src=STRANGER6), False
    yield "advertisement", discovery(b, 136), True
    yield "advertisement to all", discovery(b, 136, ip_dst=ALL_NODES, ether_dst=ALL_NODES_MAC), True
    yield "advertisement of another", discovery(b, 136, nd_target=STRANGER6), False
    yield "advertisement of the receiver", discovery(b, 136, nd_target=other.addresses[1]), False
    yield "the same, fragmented", discovery(b, 136, nd_target=STRANGER6, is_fragment=True), False
    yield "router advertisement", discovery(b, 134), False
    yield "the same to all", discovery(b, 134, ip_dst=ALL_NODES, ether_dst=ALL_NODES_MAC), False
    yield "the same, fragmented", discovery(b, 134, is_fragment=True), False
    yield "IPv6 redirect", discovery(b, 137), False
    yield "multicast query", discovery(b, 130, ip_dst=ALL_NODES, ether_dst=ALL_NODES_MAC), False
    yield "redirect", b.packet(protocol=ICMP, icmp_type=5), False
    yield "echo", b.packet(protocol=ICMP, icmp_type=8), True
    yield "echo IPv6", b.packet6(protocol=ICMPV6, icmp_type=128), True
    yield "answer to nothing", b.packet(protocol=ICMP, icmp_type=0), False
    yield "middle of a connection", b.packet(protocol=TCP, is_syn=False), False
    yield "other protocol", b.packet(protocol=112), True
    outward = {"destination": UPLINK, "ether_dst": UPLINK_MAC}
    yield "to the world", b.packet(**outward, ip_dst="192.0.2.7"), True
    yield "spoofed to the world", b.packet(**outward, ip_dst="192.0.2.7", ip_src=STRANGER), False
    yield "discover to the world", b.packet(**discover | {"destination": UPLINK}), True
    tagged = discover | {"destination": UPLINK, "vlan_tags": (0,)}
    yield "tagged discover to the world", b.packet(**tagged), False
    duplicate = {"ip_src": "::", "nd_target": a.addresses[1], "destination": UPLINK}
    to_group = {"ether_dst": "33:33:ff:00:00:02", "ip_dst": "ff02::1:ff00:2"}
    yield "duplicate address detection", discovery(b, 135, **duplicate, **to_group), True
    stolen = duplicate | {"nd_target": STRANGER6}
    yield "the same for another", discovery(b, 135, **stolen, **to_group), False
    inward = {"source": UPLINK, "ether_src": UPLINK_MAC, "ip_src": STRANGER}
    yield "from the world", b.packet(**inward), True
    to_all = {"ip_dst": ALL_NODES, "ether_dst": ALL_NODES_MAC}
    router = {"source": UPLINK, "ether_src": UPLINK_MAC, "ip_src": "fe80::1"}
    yield "router advertisement of the world", discovery(b, 134, **router, **to_all), True
    yield "the same from afar", discovery(b, 134, **router, **to_all, hop_limit=64), False
    yield "DHCP answer of the world", b.packet(**inward | everyone | reply), True
    yield "tagged from the world", b.packet(**inward, vlan_tags=(3,)), False
    from_node = {"source": NODE, "ether_src": b.lab.gateway_mac(network), "ip_src": gateway}
    yield "from the node", b.packet(**from_node), True


def node_table(b: Bench) -> Iterator[tuple[str, Packet, bool]]:
    """Yield name, packet to the node and whether it passes, whatever the rules."""
    gateway, gateway6 = b.network.gateway, b.network.gateway6
    here: dict[str, Any] = {"destination": NODE, "ether_dst": b.lab.gateway_mac(b.network)}
    here4, here6 = here | {"ip_dst": gateway}, here | {"ip_dst": gateway6}
    everyone = {"ether_dst": BROADCAST_MAC, "ip_dst": "255.255.255.255"}
    dhcp = {"source_port": 68, "destination_port": 67}
    yield "DHCP discover", b.packet(**here | dhcp | everyone | {"ip_src": "0.0.0.0"}), True
    yield "DHCP renewal", b.packet(**here4 | dhcp), True
    yield "DNS", b.packet(**here4 | {"destination_port": 53}), True
    yield "DNS over TCP", b.packet(**here4 | {"destination_port": 53, "protocol": TCP}), True
    yield "DNS over IPv6", b.packet6(**here6 | {"destination_port": 53}), True
    metadata = here | {"ip_dst": "169.254.169.254", "protocol": TCP}
    yield "metadata", b.packet(**metadata | {"destination_port": 80}), True
    yield "metadata's other port", b.packet(**metadata | {"destination_port": 81}), False
    yield (
        "the gateway's port 80",
        b.packet(**here4 | {"protocol": TCP, "destination_port": 80}),
        False,
    )
    yield "ssh", b.packet(**here4 | {"protocol": TCP, "destination_port": 22}), False
    yield "the API", b.packet(**here4 | {"protocol": TCP, "destination_port": 8773}), False
    yield "UDP", b.packet(**here4), False
    yield "ssh over IPv6", b.packet6(**here6 | {"protocol": TCP, "destination_port": 22}), False
    yield "echo", b.packet(**here4 | {"protocol": ICMP, "icmp_type": 8}), True
    yield "timestamp", b.packet(**here4 | {"protocol": ICMP, "icmp_type": 13}), False
    yield "echo IPv6", b.packet6(**here6 | {"protocol": ICMPV6, "icmp_type": 128}), True
    yield "solicitation", discovery(b, 135, **here6 | {"nd_target": gateway6}), True
    yield "spoofed DNS", b.packet(**here4 | {"destination_port": 53, "ip_src": STRANGER}), False


class FirewallPacketContract:
    """What every firewall plugin does to packets.

    ``differential_examples`` is how many policies the differential test draws, each with twenty
    packets. ``flow_examples`` is how many chains of policies the one about flows draws.
    """

    differential_examples: ClassVar[int] = 60
    flow_examples: ClassVar[int] = 25

    @pytest.fixture
    def make_plugin(self) -> Callable[[], object]:
        """Return a maker of fresh plugins; override it."""
        raise NotImplementedError

    @pytest.fixture
    def lab(self, make_plugin: Callable[[], object]) -> Iterator[FirewallLab]:
        """Return a node with the plugin's firewall and nothing in force."""
        lab = FirewallLab(make_plugin())
        yield lab
        lab.close()

    @pytest.fixture
    def bench(self, lab: FirewallLab) -> Bench:
        """Return two instances without rules."""
        return Bench(lab, make_network(1))

    def test_everything_is_denied_by_default(self, bench: Bench) -> None:
        bench.sync()
        for protocol in (TCP, UDP, 112):
            bench.check(bench.packet(protocol=protocol), passes=False)
            bench.check(bench.packet6(protocol=protocol), passes=False)
        bench.check(bench.packet(protocol=ICMP, icmp_type=8), passes=False)
        bench.check(bench.packet6(protocol=ICMPV6, icmp_type=128), passes=False)
        from_node = {"source": NODE, "ether_src": bench.lab.gateway_mac(bench.network)}
        bench.check(bench.packet(**from_node, ip_src=bench.network.gateway), passes=False)
        bench.check(bench.packet6(**from_node, ip_src=bench.network.gateway6), passes=False)

    def test_the_table_of_frames(self, bench: Bench) -> None:
        bench.sync(allow(peer="0.0.0.0/0"), allow(peer="::/0"))
        for what, packet, passes in frame_table(bench):
            bench.check(packet, passes=passes, what=what)

    def test_the_services_of_the_node(self, bench: Bench) -> None:
        bench.sync(egress_of_a=())
        for what, packet, passes in node_table(bench):
            bench.check(packet, passes=passes, what=what)

    def test_rules_of_ports_types_and_ranges(self, bench: Bench) -> None:
        bench.sync(
            allow(TCP, 20, 30, peer="10.64.0.0/16"),
            allow(TCP, 22, 22, peer="0.0.0.0/0"),
            allow(TCP, 30, 40, peer="10.64.1.0/24"),
            allow(ICMP, 8, 0, peer="10.64.1.2/32"),
            allow(112, peer="0.0.0.0/0"),
            *BAD_RULES,
        )
        for port, passes in ((19, False), (20, True), (35, True), (40, True), (41, False)):
            packet = bench.packet(protocol=TCP, destination_port=port)
            bench.check(packet, passes=passes, what=f"port {port}")
        for code, passes in ((0, True), (1, False)):
            packet = bench.packet(protocol=ICMP, icmp_type=8, icmp_code=code)
            bench.check(packet, passes=passes, what=f"code {code}")
        bench.check(bench.packet(protocol=112), passes=True)
        bench.check(bench.packet(protocol=113), passes=False)
        bench.check(bench.packet6(protocol=TCP, destination_port=22), passes=False)

    def test_egress_rules_hold(self, bench: Bench) -> None:
        bench.sync(
            allow(peer="0.0.0.0/0"),
            allow(peer="::/0"),
            egress_of_a=(allow(UDP, 7, 7, peer="0.0.0.0/0"),),
        )
        bench.check(bench.packet(), passes=True)
        bench.check(bench.packet(destination_port=8), passes=False)
        bench.check(bench.packet6(), passes=False)
        outward = {"destination": UPLINK, "ether_dst": UPLINK_MAC, "ip_dst": "192.0.2.7"}
        bench.check(bench.packet(**outward), passes=True)
        bench.check(bench.packet(**outward, protocol=TCP), passes=False)

    def test_members_come_and_go(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="sg-a"), of_a=())
        bench.check(bench.packet(), passes=False)
        group_a, group_b = bench.policy.groups
        with_a = msgspec.structs.replace(group_a, members=bench.a.addresses)
        bench.update(groups=(with_a, group_b))
        bench.check(bench.packet(), passes=True)
        bench.check(bench.packet6(), passes=True)
        bench.check(bench.packet(destination_port=8), passes=False)
        bench.update(groups=(group_a, group_b))
        bench.check(bench.packet(), passes=False)

    def test_single_members_join_and_leave(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="sg-a"), of_a=())
        flow = bench.packet()
        for revision, added, removed in (
            (2, bench.a.addresses, ()),
            (3, (), bench.a.addresses),
            (4, bench.a.addresses[:1], ("10.64.1.99",)),
        ):
            change = MemberChange(group_id="sg-a", added=added, removed=removed)
            delta = PolicyDelta(
                network=bench.network,
                from_revision=revision - 1,
                to_revision=revision,
                member_changes=(change,),
            )
            bench.lab.firewall.update(delta)
            bench.policy = apply_delta(bench.policy, delta)
            bench.check(flow, passes=bool(added), what=f"revision {revision}")
        bench.check(bench.packet6(), passes=False)

    def test_answers_pass_and_a_revoked_rule_cuts(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 9, peer="0.0.0.0/0"), allow(TCP, 22, 22, peer="0.0.0.0/0"))
        kept, cut = bench.packet(destination_port=9), bench.packet(destination_port=7)
        for packet in (kept, cut):
            assert bench.does_pass(packet)
            assert bench.does_pass(answer_to(packet)), "an answer passes"
        group_a, group_b = bench.policy.groups
        narrower = make_group("sg-b", [allow(UDP, 9, 9, peer="0.0.0.0/0")], group_b.members)
        bench.update(groups=(group_a, narrower))
        for packet in (cut, answer_to(cut)):
            assert not bench.does_pass(packet, wanted=False), "the flow is cut in both directions"
        for packet in (kept, answer_to(kept)):
            assert bench.does_pass(packet), "a flow that is allowed goes on"

    def test_a_member_that_leaves_is_cut(self, bench: Bench) -> None:
        bench.sync(allow(peer="sg-a"))
        packet = bench.packet()
        assert bench.does_pass(packet)
        group_a, group_b = bench.policy.groups
        bench.update(groups=(msgspec.structs.replace(group_a, members=()), group_b))
        assert not bench.does_pass(packet, wanted=False)
        assert not bench.does_pass(answer_to(packet), wanted=False)

    def test_a_sync_cuts_too(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        packet = bench.packet()
        assert bench.does_pass(packet)
        bench.sync()
        assert not bench.does_pass(packet, wanted=False)
        assert not bench.does_pass(answer_to(packet), wanted=False)

    def test_an_address_that_moves_takes_no_flow_along(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        packet = bench.packet()
        assert bench.does_pass(packet)
        closed = msgspec.structs.replace(bench.b, group_ids=("sg-a",))
        bench.update(ports=(bench.a,))
        bench.update(ports=(bench.a, closed))
        assert not bench.does_pass(packet, wanted=False)

    def test_an_address_that_is_given_away_takes_no_flow_along(self, bench: Bench) -> None:
        """What the world goes on sending to an address does not reach its next owner."""
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        asked, asked6 = (one(bench) for one in (outward, outward6))
        received = bench.packet()
        for packet in (asked, asked6, received):
            assert bench.does_pass(packet)
            assert bench.does_pass(answer_to(packet))
        for number, revision in ((11, "update"), (12, "one update"), (13, "sync")):
            new = msgspec.structs.replace(
                make_port(bench.network, number, "sg-a"), addresses=bench.a.addresses
            )
            bench.lab.add_ports(bench.network, [new])
            if revision == "update":
                bench.update(ports=(bench.b,))
                bench.update(ports=(bench.b, new))
            elif revision == "one update":
                bench.update(ports=(bench.b, new))
            else:
                bench.policy = msgspec.structs.replace(
                    bench.policy, revision=bench.policy.revision + 1, ports=(bench.b, new)
                )
                bench.lab.firewall.sync(bench.policy)
            own = {"source": new.tap, "ether_src": new.mac}
            for old in (asked, asked6):
                mine = msgspec.structs.replace(old, **own)
                assert not bench.does_pass(answer_to(mine), wanted=False), revision
                assert bench.does_pass(mine), f"{revision}: what the new one asks for is its own"
                assert bench.does_pass(answer_to(mine)), f"{revision}: and so is the answer"
            mine = msgspec.structs.replace(received, **own)
            assert not bench.does_pass(answer_to(mine), wanted=False), revision
            bench.update(groups=bench.policy.groups)
            for old in (asked, asked6):
                assert bench.does_pass(answer_to(msgspec.structs.replace(old, **own))), revision

    def test_answers_alone_keep_a_flow_through_changes(self, bench: Bench) -> None:
        """A flow of which only the far end speaks is judged by who opened it, not by who speaks."""
        rules = [allow(UDP, 7, 7, peer="0.0.0.0/0"), allow(ICMP, 8, -1, peer="sg-a")]
        bench.sync(*rules, allow(UDP, 1, 1, peer="0.0.0.0/0"))
        node = {"source": NODE, "ether_src": bench.lab.gateway_mac(bench.network)}
        flows = [
            bench.packet(),
            bench.packet(protocol=ICMP, icmp_type=8),
            outward(bench),
            outward6(bench),
            bench.packet(source=UPLINK, ether_src=UPLINK_MAC, ip_src=STRANGER),
            bench.packet(**node, ip_src=bench.network.gateway),
        ]
        for packet in flows:
            assert bench.does_pass(packet)
        group_a, group_b = bench.policy.groups
        fewer = msgspec.structs.replace(group_b, ingress=tuple(rules))
        closed = msgspec.structs.replace(group_b, ingress=())
        for group in (fewer, fewer):
            bench.update(groups=(group_a, group))
            for packet in flows:
                assert bench.does_pass(answer_to(packet)), packet
        bench.lab.firewall.sync(bench.policy)
        for packet in flows:
            assert bench.does_pass(answer_to(packet)), packet
        bench.update(groups=(group_a, closed))
        for packet in flows:
            is_asked = packet.destination == UPLINK
            assert bench.does_pass(answer_to(packet), wanted=is_asked) == is_asked, packet

    def test_a_rule_that_comes_back_opens_flows_anew(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        packet = bench.packet()
        assert bench.does_pass(packet)
        group_a, group_b = bench.policy.groups
        closed = msgspec.structs.replace(group_b, ingress=())
        bench.update(groups=(group_a, closed))
        assert not bench.does_pass(packet, wanted=False)
        bench.update(groups=(group_a, group_b))
        assert not bench.does_pass(answer_to(packet), wanted=False), "it has ended"
        assert bench.does_pass(packet), "and may be opened again"
        assert bench.does_pass(answer_to(packet))

    def test_nothing_blinks_while_rules_change(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        done = threading.Event()
        lost, sent = [], 0

        def change() -> None:
            for number in range(20):
                group = make_group(f"sg-{number}", [allow(TCP, number, peer="0.0.0.0/0")])
                bench.update(groups=(*bench.policy.groups[:2], group))
                if number % 5 == 0:
                    bench.lab.firewall.sync(bench.policy)
            done.set()

        changing = threading.Thread(target=change)
        changing.start()
        while not done.is_set() or sent < 100:
            packet = bench.packet()
            sent += 1
            if not bench.does_pass(packet):
                lost.append(packet)
            assert sent < 30000
        changing.join()
        assert not lost, f"{len(lost)} of {sent} lost"

    def test_a_tap_without_rules_carries_nothing(self, bench: Bench) -> None:
        bench.sync(allow(peer="0.0.0.0/0"), allow(peer="::/0"))
        stray = make_port(bench.network, 9)
        bench.lab.add_ports(bench.network, [stray])
        address = {"ip_src": stray.addresses[0], "ether_src": stray.mac, "source": stray.tap}
        bench.check(bench.packet(**address), passes=False)
        assert not bench.does_pass(arp(bench, ether_src=stray.mac), wanted=False)
        for destination in (UPLINK, NODE):
            mac = UPLINK_MAC if destination == UPLINK else bench.lab.gateway_mac(bench.network)
            end = STRANGER if destination == UPLINK else bench.network.gateway
            where = {"destination": destination, "ether_dst": mac, "ip_dst": end}
            bench.check(bench.packet(**address | where, destination_port=53), passes=False)
        back = {"destination": stray.tap, "ether_dst": stray.mac, "ip_dst": stray.addresses[0]}
        bench.check(bench.packet(**back), passes=False)
        inward = {"source": UPLINK, "ether_src": UPLINK_MAC, "ip_src": STRANGER}
        bench.check(bench.packet(**back | inward), passes=False)

    def test_equal_ranges_of_two_networks_do_not_meet(self, bench: Bench) -> None:
        bench.sync(allow(UDP, 7, 7, peer="0.0.0.0/0"))
        twin = make_network(2, bench.network.cidr, gateway="", gateway6="")
        other = Bench(bench.lab, msgspec.structs.replace(twin, cidr6=bench.network.cidr6))
        other.sync(of_a=())
        packet = bench.packet()
        assert bench.does_pass(packet)
        same = other.packet(source_port=packet.source_port)
        other.check(same, passes=False, what="no rule of the second network allows it")
        other.check(answer_to(same), passes=False, what="nor is it an answer there")
        assert bench.does_pass(answer_to(packet)), "the first flow is untouched"

    def test_clients_without_an_address_do_not_meet(self, bench: Bench) -> None:
        """Their requests look the same in every network; each must reach the node all the same."""
        bench.sync(of_a=())
        other = Bench(bench.lab, make_network(2, "10.65.0.0/24", gateway="10.65.0.1"))
        other.sync(of_a=())
        for one in (bench, other, bench):
            request = one.packet(
                destination=NODE,
                ether_dst=BROADCAST_MAC,
                ip_src="0.0.0.0",
                ip_dst="255.255.255.255",
                source_port=68,
                destination_port=67,
            )
            assert one.does_pass(request), one.network.network_id

    def test_model_and_kernel_agree(self, bench: Bench) -> None:
        """Whatever the rules and the packet: both let it through, or both do not."""
        both = make_port(bench.network, 4, "sg-a", "sg-b")
        bench.lab.add_ports(bench.network, [both])
        ports, mac = (bench.a, bench.b, both), bench.lab.gateway_mac(bench.network)
        drawn = packets(bench.network, ports, mac)
        bench.lab.firewall.guard()

        @settings(
            max_examples=self.differential_examples,
            # No shrinking: a packet that is lost costs a wait, and the text says enough.
            phases=(Phase.generate,),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            policy=policies(bench.network, ports),
            several=st.lists(drawn, min_size=20, max_size=20),
        )
        def agree(policy: NetworkPolicy, several: list[Packet]) -> None:
            bench.lab.firewall.sync(policy)
            for packet in several:
                bench.lab.forget_flows()
                packet = bench.numbered(packet)
                judged = verdict([policy], packet)
                found = bench.does_pass(packet, wanted=judged.is_allowed)
                assert found == judged.is_allowed, f"{judged.why}: {packet}"

        agree()

    def test_model_and_kernel_agree_on_flows(self, bench: Bench) -> None:
        """Flows that were let through meet other rules, answers first: both judge them alike."""
        both = make_port(bench.network, 4, "sg-a", "sg-b")
        bench.lab.add_ports(bench.network, [both])
        ports, mac = (bench.a, bench.b, both), bench.lab.gateway_mac(bench.network)
        bench.lab.firewall.guard()
        revisions = iter(range(1, 10**6))

        @settings(
            max_examples=self.flow_examples,
            phases=(Phase.generate,),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            chain=st.lists(policies(bench.network, ports), min_size=4, max_size=4),
            drawn=st.lists(openers(bench.network, ports, mac), min_size=10, max_size=10),
        )
        def agree(chain: list[NetworkPolicy], drawn: list[Packet]) -> None:
            bench.lab.forget_flows()
            flows = [bench.numbered(packet) for packet in drawn]
            opened: set[Packet] = set()
            for number, policy in enumerate(chain):
                new = msgspec.structs.replace(policy, revision=next(revisions))
                if number:
                    bench.lab.firewall.update(diff(bench.policy, new))
                else:
                    bench.lab.firewall.sync(new)
                bench.policy = new
                # What an answer may open by itself says nothing about the flow that it is of.
                flows = [one for one in flows if not verdict([new], answer_to(one)).is_allowed]
                for packet in flows:
                    opened = self._agree_on(bench, packet, opened)

        agree()

    @staticmethod
    def _agree_on(bench: Bench, packet: Packet, opened: set[Packet]) -> set[Packet]:
        judged, answer = verdict([bench.policy], packet), answer_to(packet)
        wanted = judged.is_allowed
        if packet in opened:
            assert bench.does_pass(answer, wanted=wanted) == wanted, f"{judged.why}: {answer}"
        assert bench.does_pass(packet, wanted=wanted) == wanted, f"{judged.why}: {packet}"
        if not wanted:
            return opened - {packet}
        assert bench.does_pass(answer), f"{judged.why}: {answer}"
        return opened | {packet}


def outward(bench: Bench) -> Packet:
    """Return a packet from ``a`` to the world."""
    return bench.packet(destination=UPLINK, ether_dst=UPLINK_MAC, ip_dst="192.0.2.7")


def outward6(bench: Bench) -> Packet:
    """Return the same over IPv6."""
    return bench.packet6(destination=UPLINK, ether_dst=UPLINK_MAC, ip_dst="2001:db8::7")


def answer_to(packet: Packet) -> Packet:
    """Return the packet that answers another one."""
    is_echo = packet.protocol in (ICMP, ICMPV6)
    ports = (packet.source_port, packet.destination_port)
    back = ports if is_echo else ports[::-1]
    return msgspec.structs.replace(
        packet,
        source=packet.destination,
        destination=packet.source,
        ether_src=packet.ether_dst,
        ether_dst=packet.ether_src,
        ip_src=packet.ip_dst,
        ip_dst=packet.ip_src,
        source_port=back[0],
        destination_port=back[1],
        icmp_type={8: 0, 128: 129}[packet.icmp_type] if is_echo else 0,
    )
