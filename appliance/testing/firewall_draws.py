"""Rules and packets for Hypothesis to draw: few values, so that they meet, some of them odd."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from appliance.firewall import (
    BROADCAST_MAC,
    ETHER_ARP,
    ETHER_IPV4,
    ETHER_IPV6,
    NODE,
    UPLINK,
    Arp,
    Packet,
    link_local,
)
from appliance.firewall.rules import ICMP, ICMPV6, TCP, UDP
from appliance.model import FirewallGroup, FirewallPort, FirewallRule, NetworkPolicy, NetworkSpec

UPLINK_MAC = "0a:00:00:00:00:aa"
STRANGER_MAC = "06:a0:00:00:00:99"

_PROTOCOLS = (TCP, UDP, ICMP, ICMPV6, 50, 89, 112, 253)
_PORTS = (7, 22, 23, 53, 67, 68, 80, 443, 546, 547, 8080, 65535)
_RANGES = (
    "0.0.0.0/0",
    "10.64.0.0/15",
    "10.64.1.0/24",
    "10.64.1.0/29",
    "10.64.1.2/32",
    "192.0.2.0/24",
    "::/0",
    "fd00:1::/64",
    "fd00:1::2/128",
    "fe80::/10",
    "10.64.1.3/24",
    "nonsense",
)
_GROUPS = ("sg-a", "sg-b", "sg-c", "sg-unknown")
_OUTWARD = tuple(
    FirewallRule(rule_id=f"sgr-{cidr}", protocol=-1, cidr=cidr) for cidr in ("0.0.0.0/0", "::/0")
)
_ICMP_TYPES = (0, 3, 5, 8, 8, 8, 11, 13)
_ICMPV6_TYPES = (1, 3, 128, 128, 128, 129, 130, 131, 133, 134, 135, 136, 137, 139, 143)


@st.composite
def rules(draw: st.DrawFn) -> FirewallRule:
    """Draw a rule, now and then a malformed one."""
    protocol = draw(st.sampled_from((-1, -1, -1, *_PROTOCOLS, 300)))
    low, high = -1, -1
    if protocol in (TCP, UDP) and draw(st.booleans()):
        low = draw(st.sampled_from(_PORTS))
        high = draw(st.sampled_from((low, *_PORTS, 70000)))
    elif protocol in (ICMP, ICMPV6) and draw(st.booleans()):
        low = draw(st.sampled_from((*_ICMP_TYPES, *_ICMPV6_TYPES, 400)))
        high = draw(st.sampled_from((-1, 0, 1)))
    elif protocol == 112 and draw(st.booleans()):
        low = high = 80
    is_range = draw(st.booleans())
    return FirewallRule(
        rule_id=f"sgr-{draw(st.integers(0, 99))}",
        protocol=protocol,
        from_port=low,
        to_port=high,
        cidr=draw(st.sampled_from(_RANGES)) if is_range else "",
        source_group_id="" if is_range else draw(st.sampled_from(_GROUPS)),
    )


@st.composite
def policies(draw: st.DrawFn, network: NetworkSpec, ports: tuple[FirewallPort, ...]) -> Any:
    """Draw a policy of the first ports in sg-a, sg-b and both, and a third group of strangers."""
    some = st.lists(rules(), min_size=1, max_size=6).map(tuple)
    groups = []
    for group_id in ("sg-a", "sg-b", "sg-c"):
        members = [
            address for port in ports if group_id in port.group_ids for address in port.addresses
        ]
        if group_id == "sg-c":
            members = draw(st.lists(st.sampled_from(("10.64.1.200", "fd00:1::c8", "bad"))))
        groups.append(
            FirewallGroup(
                group_id=group_id,
                ingress=draw(some),
                egress=draw(some) + draw(st.sampled_from((_OUTWARD, _OUTWARD, ()))),
                members=tuple(members),
            )
        )
    return NetworkPolicy(network=network, revision=1, ports=ports, groups=tuple(groups))


@st.composite
def packets(
    draw: st.DrawFn, network: NetworkSpec, ports: tuple[FirewallPort, ...], gateway_mac: str
) -> Packet:
    """Draw a packet of an instance, to one, or between two, mostly as it should be."""
    sides = st.sampled_from(("between", "to node", "from node", "outward", "inward"))
    way = draw(sides)
    a, b = draw(st.permutations(ports))[:2]
    source = {"from node": NODE, "inward": UPLINK}.get(way, a.tap)
    destination = {"to node": NODE, "outward": UPLINK}.get(way, b.tap)
    family = draw(st.sampled_from((4, 6)))
    fields: dict[str, Any] = {
        "source": source,
        "destination": destination,
        "ether_src": {NODE: gateway_mac, UPLINK: UPLINK_MAC}.get(source, a.mac),
        "ether_dst": {NODE: gateway_mac, UPLINK: UPLINK_MAC}.get(destination, b.mac),
        "ether_type": ETHER_IPV4 if family == 4 else ETHER_IPV6,
        "ip_src": _address(network, family, source, a),
        "ip_dst": _address(network, family, destination, b),
    }
    fields |= draw(_transport(family, a, b))
    if way not in ("to node", "from node"):
        fields |= draw(_mutations(network, family, a, b, way))
    elif way == "to node" and draw(st.booleans()):
        fields["ip_dst"] = _address(network, family, NODE, a)
    return Packet(**fields)


@st.composite
def openers(
    draw: st.DrawFn, network: NetworkSpec, ports: tuple[FirewallPort, ...], gateway_mac: str
) -> Packet:
    """Draw a packet that may open a flow of UDP or an echo, with nothing odd about it."""
    way = draw(st.sampled_from(("between", "from node", "outward", "inward")))
    a, b = draw(st.permutations(ports))[:2]
    source = {"from node": NODE, "inward": UPLINK}.get(way, a.tap)
    destination = UPLINK if way == "outward" else b.tap
    family = draw(st.sampled_from((4, 6)))
    echo = {4: (ICMP, 8), 6: (ICMPV6, 128)}[family]
    protocol, kind = draw(st.sampled_from(((UDP, 0), (UDP, 0), echo)))
    return Packet(
        source=source,
        destination=destination,
        ether_src={NODE: gateway_mac, UPLINK: UPLINK_MAC}.get(source, a.mac),
        ether_dst=UPLINK_MAC if destination == UPLINK else b.mac,
        ether_type=ETHER_IPV4 if family == 4 else ETHER_IPV6,
        ip_src=_address(network, family, source, a),
        ip_dst=_address(network, family, destination, b),
        protocol=protocol,
        icmp_type=kind,
        destination_port=draw(st.sampled_from((7, 22, 80, 443))) if protocol == UDP else 0,
    )


def _address(network: NetworkSpec, family: int, side: str, port: FirewallPort) -> str:
    if side == NODE:
        return network.gateway if family == 4 else network.gateway6
    if side == UPLINK:
        return "10.64.1.200" if family == 4 else "fd00:1::c8"
    return port.addresses[family == 6]


@st.composite
def _transport(draw: st.DrawFn, family: int, a: FirewallPort, b: FirewallPort) -> dict[str, Any]:
    protocol = draw(st.sampled_from(_PROTOCOLS))
    fields: dict[str, Any] = {"protocol": protocol, "hop_limit": draw(st.sampled_from((255, 64)))}
    if protocol == (ICMP if family == 4 else ICMPV6):
        kind = draw(st.sampled_from(_ICMP_TYPES if family == 4 else _ICMPV6_TYPES))
        fields |= {"icmp_type": kind, "icmp_code": draw(st.sampled_from((0, 1)))}
        if kind in (135, 136) and family == 6:
            own = (a.addresses[1], b.addresses[1], str(link_local(a.mac)), "fd00:1::99")
            fields |= {"nd_target": draw(st.sampled_from(own)), "icmp_code": 0}
    elif protocol in (TCP, UDP):
        fields["destination_port"] = draw(st.sampled_from(_PORTS))
        if protocol == TCP:
            fields["is_syn"] = draw(st.sampled_from((True, True, False)))
        elif draw(st.integers(0, 4)) == 0:
            fields["source_port"] = draw(st.sampled_from((67, 68, 546, 547)))
    return fields


@st.composite
def _mutations(
    draw: st.DrawFn, network: NetworkSpec, family: int, a: FirewallPort, b: FirewallPort, way: str
) -> dict[str, Any]:
    """Draw up to two things that are not as they should be."""
    is_in, is_out = way == "inward", way == "outward"
    other4, other6 = ("10.64.1.77", "fd00:1::77")
    kinds: dict[str, dict[str, Any]] = {
        "tag": {"vlan_tags": draw(st.sampled_from(((0,), (5,), (0, 5))))},
        "snap": {"is_snap": True},
        "fragment": {"is_fragment": True},
        "type": {"ether_type": 0x88CC, "ip_src": "", "ip_dst": "", "protocol": 0, "nd_target": ""},
        "no source": {"ip_src": "0.0.0.0" if family == 4 else "::"},
        "arp": _arp(draw, a, b, network),
    }
    if not is_in:
        kinds["mac"] = {"ether_src": draw(st.sampled_from((b.mac, STRANGER_MAC)))}
        source = other4 if family == 4 else draw(st.sampled_from((other6, "fe80::1")))
        kinds["source"] = {"ip_src": source}
    if not is_out:
        kinds["other mac"] = {"ether_dst": draw(st.sampled_from((STRANGER_MAC, BROADCAST_MAC)))}
        kinds["other end"] = {"ip_dst": other4 if family == 4 else other6}
    kinds["all"] = (
        {"ether_dst": BROADCAST_MAC, "ip_dst": "255.255.255.255"}
        if family == 4
        else {"ether_dst": "33:33:00:00:00:01", "ip_dst": "ff02::1"}
    )
    if family == 6:
        kinds["link-local"] = {"ip_src": "fe80::7" if is_in else str(link_local(a.mac))}
    wrong = draw(st.sampled_from((0, 0, 1, 2)))
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=wrong, max_size=wrong))
    if is_in and "no source" in chosen:
        # The kernel itself does not put fragments without a source together.
        chosen = [name for name in chosen if name != "fragment"]
    found: dict[str, Any] = {}
    for name in chosen:
        found |= kinds[name]
    if "arp" in chosen:
        return found | kinds["type"] | {"ether_type": ETHER_ARP, "is_fragment": False}
    if "type" in chosen:
        return found | kinds["type"] | {"is_fragment": False}
    return found


def _arp(draw: st.DrawFn, a: FirewallPort, b: FirewallPort, network: NetworkSpec) -> dict[str, Any]:
    addresses = (a.addresses[0], b.addresses[0], network.gateway, "0.0.0.0")
    return {
        "arp": Arp(
            operation=draw(st.sampled_from((1, 1, 2, 3))),
            sender_mac=draw(st.sampled_from((a.mac, a.mac, b.mac))),
            sender_ip=draw(st.sampled_from(addresses)),
            target_ip=draw(st.sampled_from(addresses)),
        )
    }
