"""Connection tracking over netlink: list flows and end some of them.

pyroute2 decodes every attribute of every entry, which takes tens of microseconds each; here only
addresses, ports and zone are looked at, and the kernel gets back for deletion the bytes it sent.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.errors import CommandFailed
from appliance.firewall.rules import ICMP, ICMPV6, IPAddress

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_GET, _DELETE = _CTNETLINK | 1, _CTNETLINK | 2
_NFTABLES_GET_GENERATION = 10 << 8 | 16
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18
_TUPLE_IP, _TUPLE_PROTOCOL, _TUPLE_ZONE = 1, 2, 3
_RECEIVE_BYTES = 1 << 20
_ENOENT = 2


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow: who opened it with whom, as seen behind address translation.

    ``destination`` and ``port`` are where its packets really go; ``asked`` is where the opener
    sent them. ``has_both`` says whether the zone counts for answers too. ``handle`` is what the
    kernel needs to find it again.
    """

    source: IPAddress
    asked: IPAddress
    destination: IPAddress
    protocol: int
    port: int
    icmp_type: int
    icmp_code: int
    zone: int
    has_both: bool
    handle: bytes


class Netfilter:
    """A netlink socket in the network namespace of the calling thread, kept for each thread.

    Closing one makes the kernel wait until it has cleaned up after the last transaction of
    nftables, several milliseconds.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._sequences = itertools.count(1)
        self._sequence = 0

    @property
    def _socket(self) -> socket.socket:
        if not hasattr(self._local, "socket"):
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            made.bind((0, 0))
            self._local.socket = made
        found: socket.socket = self._local.socket
        return found

    def _send(self, kind: int, flags: int, family: int, attributes: bytes = b"") -> None:
        self._sequence = next(self._sequences)
        body = struct.pack("=BBH", family, 0, 0) + attributes
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of one answer, ended by an acknowledgement or the end of a dump."""
        while True:
            received = memoryview(self._socket.recv(_RECEIVE_BYTES))
            while received:
                length, kind, _, sequence, _ = struct.unpack_from("=IHHII", received)
                if sequence == self._sequence:
                    if kind == _DONE:
                        return
                    if kind == _ERROR:
                        code = -struct.unpack_from("=i", received, 16)[0]
                        if code:
                            raise OSError(code, "netfilter refused a request")
                        return
                    yield kind, bytes(received[16:length])
                received = received[(length + 3) & ~3 :]

    def generation(self) -> int:
        """Return the number of the transaction that nftables' rules are at."""
        self._send(_NFTABLES_GET_GENERATION, _REQUEST | _ACK, 0)
        found = 0
        for _, body in self._messages():
            for kind, value in _attributes(body, 4):
                if kind == 1:
                    found = struct.unpack(">I", value)[0]
        return found

    def flows(self) -> Iterator[Flow]:
        """Yield every tracked flow of this network namespace, IPv4 and IPv6."""
        self._send(_GET, _REQUEST | _DUMP, socket.AF_UNSPEC)
        for _, body in self._messages():
            if flow := _flow(body):
                yield flow

    def end(self, flows: Iterable[Flow]) -> int:
        """Make the kernel forget flows and return how many; one that is gone already is no error.

        :raises CommandFailed: the kernel refused; some may be forgotten.
        """
        count = 0
        for flow in flows:
            family = socket.AF_INET if flow.source.version == 4 else socket.AF_INET6
            try:
                self._send(_DELETE, _REQUEST | _ACK, family, flow.handle)
                for _ in self._messages():
                    continue
                count += 1
            except OSError as error:
                if error.errno != _ENOENT:
                    raise CommandFailed(f"Could not end flow {flow}.") from error
        return count


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    end = len(body)
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _flow(body: bytes) -> Flow | None:
    found = dict(_attributes(body, 4))
    original, reply = found.get(_TUPLE_ORIGINAL), found.get(_TUPLE_REPLY)
    if original is None or reply is None:
        return None
    first, second = dict(_attributes(original, 0)), dict(_attributes(reply, 0))
    source, asked = _addresses(first)
    destination, _ = _addresses(second)
    there, back = _protocol(first), _protocol(second)
    protocol = there.get(1, b"\0")[0]
    is_icmp = protocol in (ICMP, ICMPV6)
    shift = 0 if protocol == ICMP else 3
    zone = found.get(_ZONE) or first.get(_TUPLE_ZONE) or b"\0\0"
    handle = _attribute(_TUPLE_ORIGINAL | 0x8000, original)
    handle += b"".join(_attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Flow(
        source=source,
        asked=asked,
        destination=destination,
        protocol=protocol,
        port=0 if is_icmp else int.from_bytes(back.get(2, b"\0\0"), "big"),
        icmp_type=there.get(5 + shift, b"\0")[0] if is_icmp else 0,
        icmp_code=there.get(6 + shift, b"\0")[0] if is_icmp else 0,
        zone=int.from_bytes(zone, "big"),
        has_both=_ZONE in found,
        handle=handle,
    )


def _addresses(part: dict[int, bytes]) -> tuple[IPAddress, IPAddress]:
    found = dict(_attributes(part[_TUPLE_IP], 0))
    first, second = (found[1], found[2]) if 1 in found else (found[3], found[4])
    return ipaddress.ip_address(first), ipaddress.ip_address(second)


def _protocol(part: dict[int, bytes]) -> dict[int, bytes]:
    return dict(_attributes(part[_TUPLE_PROTOCOL], 0))
