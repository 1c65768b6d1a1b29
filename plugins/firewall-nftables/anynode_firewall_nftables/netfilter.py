"""Connection tracking over netlink: list flows, end some of them, clear marks.

Nothing of it is on the way of an ordinary change: the kernel takes one lock for each hash bucket
to list its flows, 10 ms on a large machine, however few there are.

pyroute2 decodes every attribute of every entry, which takes tens of microseconds each; here only
addresses, mark and zone are looked at, and the kernel gets back for deletion the bytes it sent.
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
from appliance.firewall.rules import IPAddress

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_CHANGE, _GET, _DELETE = _CTNETLINK, _CTNETLINK | 1, _CTNETLINK | 2
_NFTABLES_GET_GENERATION = 10 << 8 | 16
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIGINAL, _TUPLE_REPLY, _MARK, _ID, _ZONE, _MARK_MASK = 1, 2, 8, 12, 18, 21
_TUPLE_IP, _TUPLE_ZONE = 1, 3
_RECEIVE_BYTES = 1 << 20
_ENOENT = 2


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow: who opened it with whom, as seen behind address translation.

    ``destination`` is where its packets really go. ``has_both`` says whether the zone counts for
    answers too. ``handle`` is what the kernel needs to find it again.
    """

    source: IPAddress
    destination: IPAddress
    zone: int
    has_both: bool
    mark: int
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

    def flows(self) -> list[Flow]:
        """Return every tracked flow of this network namespace, IPv4 and IPv6."""
        self._send(_GET, _REQUEST | _DUMP, socket.AF_UNSPEC)
        return [flow for _, body in self._messages() if (flow := _flow(body))]

    def end(self, flows: Iterable[Flow]) -> int:
        """Make the kernel forget flows and return how many; one that is gone already is no error.

        :raises CommandFailed: the kernel refused; some may be forgotten.
        """
        return sum(self._change(_DELETE, flow) for flow in flows)

    def unmark(self, flows: Iterable[Flow], mask: int) -> int:
        """Clear bits of the marks of flows and return how many; one that is gone is no error.

        :raises CommandFailed: the kernel refused; some may be cleared.
        """
        bits = _attribute(_MARK, bytes(4)) + _attribute(_MARK_MASK, mask.to_bytes(4, "big"))
        return sum(self._change(_CHANGE, flow, bits) for flow in flows)

    def _change(self, kind: int, flow: Flow, more: bytes = b"") -> bool:
        family = socket.AF_INET if flow.source.version == 4 else socket.AF_INET6
        try:
            self._send(kind, _REQUEST | _ACK, family, flow.handle + more)
            for _ in self._messages():
                continue
        except OSError as error:
            if error.errno == _ENOENT:
                return False
            raise CommandFailed(f"The kernel refused to change flow {flow}.") from error
        return True


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
    zone = found.get(_ZONE) or first.get(_TUPLE_ZONE) or b"\0\0"
    handle = _attribute(_TUPLE_ORIGINAL | 0x8000, original)
    handle += b"".join(_attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Flow(
        source=_source(first),
        destination=_source(second),
        zone=int.from_bytes(zone, "big"),
        has_both=_ZONE in found,
        mark=int.from_bytes(found.get(_MARK, b""), "big"),
        handle=handle,
    )


def _source(part: dict[int, bytes]) -> IPAddress:
    found = dict(_attributes(part[_TUPLE_IP], 0))
    return ipaddress.ip_address(found[1] if 1 in found else found[3])
