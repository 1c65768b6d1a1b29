"""What becomes of a packet: the definition that every firewall plugin is held to.

The order is that of the checks on the way: what a tap may send, what a tap may receive, what
never depends on rules (address resolution, DHCP, DNS, metadata), flows that are known, and last
the rules of the groups: egress of the sender, ingress of the receiver.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from appliance.firewall.index import Direction, PolicyIndex, own_addresses
from appliance.firewall.packet import (
    ETHER_ARP,
    ETHER_IPV4,
    ETHER_IPV6,
    NODE,
    UPLINK,
    Packet,
    Verdict,
)
from appliance.firewall.rules import (
    DCCP,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    IPAddress,
    parse_address,
    service_number,
)
from appliance.model import FirewallPort, NetworkPolicy

METADATA_ADDRESS = "169.254.169.254"
_LIMITED_BROADCAST = "255.255.255.255"
_ROUTER_SOLICIT, _ROUTER_ADVERT, _SOLICIT, _ADVERT, _REDIRECT = 133, 134, 135, 136, 137
_MULTICAST_QUERY, _MULTICAST_REPORTS = 130, frozenset({131, 132, 143})
_ICMP_REDIRECT = 5
_OPENING_ICMP = {ICMP: frozenset({8, 13, 15, 17}), ICMPV6: frozenset({128, 139})}


def verdict(policies: Sequence[NetworkPolicy | PolicyIndex], packet: Packet) -> Verdict:
    """Return what becomes of a packet under the policies of all networks of a node.

    A pure function. A :class:`PolicyIndex` in place of a policy saves its preparation.
    """
    indexes = [p if isinstance(p, PolicyIndex) else PolicyIndex(p) for p in policies]
    sender, receiver = _side(indexes, packet.source), _side(indexes, packet.destination)
    for name, side in ((packet.source, sender), (packet.destination, receiver)):
        if side is None and name not in (NODE, UPLINK):
            return _drop(f"tap {name} is not known")
    if sender is None and receiver is None:
        return Verdict(is_allowed=True, why="no instance is concerned")
    is_routed = sender is not None and receiver is not None and sender[0] is not receiver[0]
    reason = ""
    if sender:
        reason = _sender_fault(sender[1], packet)
    if receiver and not reason:
        reason = _receiver_fault(receiver[1], packet, is_routed=is_routed)
    if reason:
        return _drop(reason)
    if packet.ether_type == ETHER_ARP:
        return Verdict(is_allowed=True, why="address resolution with own addresses")
    if packet.is_reply:
        return Verdict(is_allowed=True, why="belongs to a flow that was allowed")
    if sender and packet.destination == NODE:
        return _to_node(sender[0], packet)
    if receiver and packet.source == NODE and _is_dhcp_reply(packet):
        return Verdict(is_allowed=True, why="DHCP answer of the node")
    return _by_rules(sender, receiver, packet)


_Side = tuple[PolicyIndex, FirewallPort]


def _side(indexes: Sequence[PolicyIndex], name: str) -> _Side | None:
    for index in indexes:
        port = index.ports_by_tap.get(name)
        if port:
            return index, port
    return None


def _drop(why: str) -> Verdict:
    return Verdict(is_allowed=False, why=why)


def _frame_fault(packet: Packet) -> str:
    if packet.vlan_tags:
        return "tagged frames are dropped"
    if packet.is_snap or packet.ether_type not in (ETHER_IPV4, ETHER_ARP, ETHER_IPV6):
        return "only IPv4, IPv6 and ARP are carried"
    return ""


def _sender_fault(port: FirewallPort, packet: Packet) -> str:
    """Return why an instance may not send this; empty when it may."""
    if fault := _frame_fault(packet):
        return fault
    if packet.ether_src.lower() != port.mac.lower():
        return "the sender's MAC is not its own"
    own = own_addresses(port)
    if packet.ether_type == ETHER_ARP:
        return _sender_arp_fault(port, own, packet)
    source = parse_address(packet.ip_src)
    if source not in own and not _is_configuring(own, packet):
        return "the source address is not the sender's own"
    if packet.protocol == UDP and _is_from_dhcp_server(packet):
        return "instances are no DHCP servers"
    if packet.ether_type == ETHER_IPV4:
        if packet.protocol == ICMP and packet.icmp_type == _ICMP_REDIRECT:
            return "instances are no routers"
    elif packet.protocol == ICMPV6:
        if packet.icmp_type in (_MULTICAST_QUERY, _ROUTER_ADVERT, _REDIRECT):
            return "instances are no routers"
        if packet.icmp_type == _ADVERT and parse_address(packet.nd_target) not in own:
            return "the advertised address is not the sender's own"
    return ""


def _sender_arp_fault(port: FirewallPort, own: frozenset[IPAddress], packet: Packet) -> str:
    arp = packet.arp
    if arp is None or not arp.is_ethernet_ipv4 or arp.operation not in (1, 2):
        return "this is no ARP request or reply for IPv4"
    if arp.sender_mac.lower() != port.mac.lower():
        return "the ARP sender's MAC is not its own"
    is_probe = arp.operation == 1 and arp.sender_ip == "0.0.0.0"
    if parse_address(arp.target_ip if is_probe else arp.sender_ip) not in own:
        return "the ARP sender's address is not its own"
    return ""


def _is_configuring(own: frozenset[IPAddress], packet: Packet) -> bool:
    """Return whether a packet without source address is one that an address is got with."""
    if packet.is_fragment:
        return False
    if packet.ether_type == ETHER_IPV4:
        return (
            (packet.ip_src, packet.ip_dst) == ("0.0.0.0", _LIMITED_BROADCAST)
            and packet.protocol == UDP
            and (packet.source_port, packet.destination_port) == (68, 67)
        )
    if parse_address(packet.ip_src) != ipaddress.IPv6Address(0) or packet.protocol != ICMPV6:
        return False
    if packet.icmp_type in _MULTICAST_REPORTS:
        return True
    if packet.hop_limit != 255:
        return False
    return packet.icmp_type == _ROUTER_SOLICIT or (
        packet.icmp_type == _SOLICIT and parse_address(packet.nd_target) in own
    )


def _is_from_dhcp_server(packet: Packet) -> bool:
    return packet.source_port in (67, 547) or packet.destination_port in (68, 546)


def _is_dhcp_reply(packet: Packet) -> bool:
    ports = (67, 68) if packet.ether_type == ETHER_IPV4 else (547, 546)
    return packet.protocol == UDP and (packet.source_port, packet.destination_port) == ports


def _receiver_fault(port: FirewallPort, packet: Packet, *, is_routed: bool) -> str:
    """Return why an instance may not receive this; empty when it may."""
    if fault := _frame_fault(packet):
        return fault
    own = own_addresses(port)
    is_own_mac = is_routed or packet.ether_dst.lower() == port.mac.lower()
    if not is_own_mac and not int(packet.ether_dst[:2], 16) & 1:
        return "the frame is for another MAC"
    if packet.ether_type == ETHER_ARP:
        if is_routed or packet.arp is None or not packet.arp.is_ethernet_ipv4:
            return "this is no ARP message for IPv4"
        if parse_address(packet.arp.target_ip) not in own:
            return "the ARP target is not the receiver's own address"
        return ""
    if parse_address(packet.ip_dst) in own:
        return "" if is_own_mac else "a packet for one comes in a frame for many"
    if not is_routed and _is_for_all(own, packet):
        return ""
    return "the destination address is not the receiver's own"


def _is_for_all(own: frozenset[IPAddress], packet: Packet) -> bool:
    """Return whether this is one of the few broadcasts and multicasts that instances get."""
    if packet.ether_type == ETHER_IPV4:
        return packet.ip_dst == _LIMITED_BROADCAST and _is_dhcp_reply(packet)
    destination = parse_address(packet.ip_dst)
    if destination not in ipaddress.IPv6Network("ff02::/16") or packet.protocol != ICMPV6:
        return False
    if packet.icmp_type == _MULTICAST_QUERY:
        return True
    if packet.hop_limit != 255:
        return False
    if packet.icmp_type == _SOLICIT:
        return parse_address(packet.nd_target) in own
    return packet.icmp_type in (_ROUTER_ADVERT, _ADVERT)


def _to_node(index: PolicyIndex, packet: Packet) -> Verdict:
    """Return what becomes of a packet from an instance to its node: a few services, no more."""
    gateway = index.network.gateway if packet.ether_type == ETHER_IPV4 else index.network.gateway6
    is_to_gateway = bool(gateway) and parse_address(packet.ip_dst) == parse_address(gateway)
    ports = (packet.source_port, packet.destination_port)
    service = ""
    if packet.protocol == UDP and ports == (
        (68, 67) if packet.ether_type == ETHER_IPV4 else (546, 547)
    ):
        service = "DHCP"
    elif packet.protocol in (TCP, UDP) and packet.destination_port == 53 and is_to_gateway:
        service = "DNS"
    elif packet.protocol == TCP and packet.destination_port == 80:
        service = "metadata" if packet.ip_dst == METADATA_ADDRESS else ""
    elif packet.ether_type == ETHER_IPV4 and packet.protocol == ICMP:
        service = "echo" if packet.icmp_type == 8 and is_to_gateway else ""
    elif packet.ether_type == ETHER_IPV6 and packet.protocol == ICMPV6:
        if packet.icmp_type == 128 and is_to_gateway:
            service = "echo"
        elif packet.hop_limit == 255 and packet.icmp_type in (_ROUTER_SOLICIT, _SOLICIT, _ADVERT):
            service = "neighbour discovery"
    if service:
        return Verdict(is_allowed=True, why=f"{service} is a service of the node")
    return _drop("nothing else of the node may be reached from an instance")


def _by_rules(sender: _Side | None, receiver: _Side | None, packet: Packet) -> Verdict:
    source, destination = parse_address(packet.ip_src), parse_address(packet.ip_dst)
    if source is None or destination is None:
        return _drop("an address is malformed")
    outcome = Verdict(is_allowed=True, why="needs no rule")
    if sender and source in own_addresses(sender[1]):
        outcome = _judge(sender, "egress", destination, packet)
        if not outcome.is_allowed:
            return outcome
    if receiver and destination in own_addresses(receiver[1]):
        inward = _judge(receiver, "ingress", source, packet)
        if not inward.is_allowed or not sender:
            return inward
        outcome = Verdict(
            is_allowed=True,
            rule_id=inward.rule_id or outcome.rule_id,
            why=f"{outcome.why}; {inward.why}",
        )
    return outcome


def _judge(side: _Side, direction: Direction, peer: IPAddress, packet: Packet) -> Verdict:
    index, port = side
    if _needs_no_rule(direction, packet):
        return Verdict(is_allowed=True, why="neighbour discovery")
    if packet.protocol in (TCP, SCTP, DCCP) and not packet.is_syn:
        return _drop("belongs to no known flow and opens none")
    if packet.protocol == (ICMPV6 if packet.ether_type == ETHER_IPV4 else ICMP):
        return _drop("is ICMP of the other version of IP")
    if _is_icmp(packet) and packet.icmp_type not in _OPENING_ICMP[packet.protocol]:
        return _drop("answers nothing that was asked")
    service = service_number(
        packet.protocol, packet.destination_port, packet.icmp_type, packet.icmp_code
    )
    found = index.allowing_rule(port, direction, peer, service)
    if found is None:
        return _drop(f"no {direction} rule of the groups of {port.port_id} allows it")
    group_id, rule_id = found
    return Verdict(
        is_allowed=True, rule_id=rule_id, why=f"{direction} rule {rule_id} of {group_id}"
    )


def _is_icmp(packet: Packet) -> bool:
    own_family = ICMP if packet.ether_type == ETHER_IPV4 else ICMPV6
    return packet.protocol == own_family


def _needs_no_rule(direction: Direction, packet: Packet) -> bool:
    if packet.ether_type != ETHER_IPV6 or packet.protocol != ICMPV6:
        return False
    if direction == "egress" and packet.icmp_type in _MULTICAST_REPORTS:
        return True
    asks = _ROUTER_SOLICIT if direction == "egress" else _ROUTER_ADVERT
    return packet.hop_limit == 255 and packet.icmp_type in (asks, _SOLICIT, _ADVERT)
