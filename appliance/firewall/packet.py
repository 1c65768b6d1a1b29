"""A packet and what becomes of it, as values of the firewall model."""

from __future__ import annotations

from appliance.model import Value

NODE = "node"
"""The side of a packet that the node itself sends or receives."""

UPLINK = "uplink"
"""The side of everything beyond: other ports of the bridge, other nodes, what the node routes."""

ETHER_IPV4, ETHER_ARP, ETHER_IPV6 = 0x0800, 0x0806, 0x86DD
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


class Arp(Value, frozen=True, kw_only=True):
    """The fields of an ARP message for Ethernet and IPv4."""

    operation: int
    sender_mac: str
    sender_ip: str
    target_mac: str = "00:00:00:00:00:00"
    target_ip: str
    is_ethernet_ipv4: bool = True


class Packet(Value, frozen=True, kw_only=True):
    """A frame on its way from one side to another.

    ``source`` and ``destination`` are the name of a tap, :data:`NODE` or :data:`UPLINK`.
    ``network_id`` says in which network the frame was seen where no tap tells.
    ``ether_type`` is that behind all ``vlan_tags``; ``is_snap`` marks an LLC/SNAP frame.
    Addresses are those that the sender wrote. ``nd_target`` is the target of a neighbour
    solicitation or advertisement. ``is_reply`` marks what answers a flow that was allowed, or
    reports an error of it. ``is_syn`` says whether a TCP packet opens a connection. Ports and
    types of a fragmented packet are those of the whole.
    """

    source: str
    destination: str
    network_id: str = ""
    ether_src: str
    ether_dst: str
    ether_type: int = ETHER_IPV4
    vlan_tags: tuple[int, ...] = ()
    is_snap: bool = False
    arp: Arp | None = None
    ip_src: str = ""
    ip_dst: str = ""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    nd_target: str = ""
    hop_limit: int = 64
    is_reply: bool = False
    is_syn: bool = True
    is_fragment: bool = False


class Verdict(Value, frozen=True, kw_only=True):
    """What becomes of a packet: allowed by which rule, or dropped, and why.

    ``rule_id`` is empty where no rule of a group decided.
    """

    is_allowed: bool
    rule_id: str = ""
    why: str
