"""Packets of the firewall model as bytes on the wire."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

from appliance.firewall import ETHER_ARP, ETHER_IPV6, Arp, Packet
from appliance.firewall.rules import ICMP, ICMPV6, TCP, UDP

_SYN, _ACK = 0x02, 0x10
_SOLICIT, _ADVERT = 135, 136
_FRAGMENT_HEADER = 44


def encode(packet: Packet, payload: bytes = b"anynode") -> list[bytes]:
    """Return the frames of a packet: one, or the two halves of a fragmented one."""
    if packet.ether_type == ETHER_ARP:
        bodies = [_arp(packet.arp)] if packet.arp else [bytes(28)]
    elif not packet.ip_src:
        bodies = [payload]
    else:
        segment = _segment(packet, payload)
        whole = _ipv6 if packet.ether_type == ETHER_IPV6 else _ipv4
        bodies = list(whole(packet, segment))
    return [_frame(packet, body) for body in bodies]


def _frame(packet: Packet, body: bytes) -> bytes:
    head = mac_bytes(packet.ether_dst) + mac_bytes(packet.ether_src)
    for tag in packet.vlan_tags:
        head += struct.pack(">HH", 0x8100, tag)
    if packet.is_snap:
        inner = b"\xaa\xaa\x03\0\0\0" + struct.pack(">H", packet.ether_type) + body
        return head + struct.pack(">H", len(inner)) + inner
    return head + struct.pack(">H", packet.ether_type) + body


def mac_bytes(text: str) -> bytes:
    """Return a MAC address as six bytes."""
    return bytes.fromhex(text.replace(":", ""))


def _arp(arp: Arp) -> bytes:
    kind = (1, 0x0800, 6, 4) if arp.is_ethernet_ipv4 else (6, 0x0800, 6, 4)
    return (
        struct.pack(">HHBBH", *kind, arp.operation)
        + mac_bytes(arp.sender_mac)
        + ipaddress.IPv4Address(arp.sender_ip).packed
        + mac_bytes(arp.target_mac)
        + ipaddress.IPv4Address(arp.target_ip).packed
    )


def checksum(content: bytes) -> int:
    """Return the Internet checksum."""
    content += bytes(len(content) % 2)
    total: int = sum(struct.unpack(f">{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment(packet: Packet, payload: bytes) -> bytes:
    """Return what follows the IP header, checksums right."""
    if packet.protocol == UDP:
        length = 8 + len(payload)
        head = struct.pack(">HHHH", packet.source_port, packet.destination_port, length, 0)
        return _sealed(packet, head + payload, 6) if packet.ip_src else head + payload
    if packet.protocol == TCP:
        flags = 5 << 12 | (_SYN if packet.is_syn else _ACK)
        ports = (packet.source_port, packet.destination_port)
        head = struct.pack(">HHIIHHHH", *ports, 1, 0 if packet.is_syn else 1, flags, 65535, 0, 0)
        return _sealed(packet, head + payload, 16)
    if packet.protocol == ICMP and packet.ether_type != ETHER_IPV6:
        rest = struct.pack(">HH", packet.source_port, 1) + payload
        head = bytes([packet.icmp_type, packet.icmp_code])
        return head + struct.pack(">H", checksum(head + b"\0\0" + rest)) + rest
    if packet.protocol == ICMPV6 and packet.ether_type == ETHER_IPV6:
        head = bytes([packet.icmp_type, packet.icmp_code, 0, 0])
        if packet.icmp_type in (_SOLICIT, _ADVERT):
            target = ipaddress.IPv6Address(packet.nd_target or "::").packed
            return _sealed(packet, head + bytes(4) + target, 2)
        return _sealed(packet, head + struct.pack(">HH", packet.source_port, 1) + payload, 2)
    return struct.pack(">HH", packet.source_port, packet.destination_port) + payload


def _sealed(packet: Packet, segment: bytes, offset: int) -> bytes:
    source, destination = (
        ipaddress.ip_address(text).packed for text in (packet.ip_src, packet.ip_dst)
    )
    pseudo = source + destination + struct.pack(">II", len(segment), packet.protocol)
    value = checksum(pseudo + segment) or 0xFFFF
    return segment[:offset] + struct.pack(">H", value) + segment[offset + 2 :]


def _ipv4(packet: Packet, segment: bytes) -> Iterator[bytes]:
    for offset, more, part in _pieces(packet, segment):
        head = struct.pack(
            ">BBHHHBBH",
            0x45,
            0,
            20 + len(part),
            packet.source_port or 1,
            more << 13 | offset,
            packet.hop_limit,
            packet.protocol,
            0,
        )
        head += ipaddress.IPv4Address(packet.ip_src).packed
        head += ipaddress.IPv4Address(packet.ip_dst).packed
        yield head[:10] + struct.pack(">H", checksum(head)) + head[12:] + part


def _ipv6(packet: Packet, segment: bytes) -> Iterator[bytes]:
    for offset, more, part in _pieces(packet, segment):
        following = packet.protocol
        if packet.is_fragment:
            identity = packet.source_port or 1
            part = struct.pack(">BBHI", packet.protocol, 0, offset << 3 | more, identity) + part
            following = _FRAGMENT_HEADER
        head = struct.pack(">IHBB", 6 << 28, len(part), following, packet.hop_limit)
        yield (
            head
            + ipaddress.IPv6Address(packet.ip_src).packed
            + ipaddress.IPv6Address(packet.ip_dst).packed
            + part
        )


def _pieces(packet: Packet, segment: bytes) -> list[tuple[int, int, bytes]]:
    """Return (offset in units of 8 bytes, more to come, bytes); a fragmented packet has two."""
    if not packet.is_fragment:
        return [(0, 0, segment)]
    # Kernels drop an IPv6 fragment that does not hold the whole transport header.
    cut = 24 if packet.protocol == TCP else 8
    return [(0, 1, segment[:cut]), (cut // 8, 0, segment[cut:])]
