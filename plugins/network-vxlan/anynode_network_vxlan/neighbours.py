"""The kernel's tables of forwarding entries and neighbours, read at once and by link.

A tunnel has three entries for each port elsewhere, and a network may have ten thousand of these:
what a general reader of netlink spends on each message would be seconds.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from appliance.errors import CommandFailed

_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
_ERROR, _DONE, _GETNEIGH = 2, 3, 30
_REQUEST, _DUMP, _WAS_DISTURBED = 0x1, 0x300, 0x10
_DST, _LLADDR, _IFINDEX, _MASTER = 1, 2, 8, 9
_HEAD, _ENTRY, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBHiHBB"), struct.Struct("=HH")
_BUFFER = 1 << 18
_ATTEMPTS = 5
_DEADLINE_S = 30.0


class Neighbour(NamedTuple):
    """One entry. ``address`` is empty where it has none, and ``master`` 0."""

    mac: str
    address: str
    master: int
    state: int
    flags: int


def dump(family: int, link_index: int) -> list[Neighbour]:
    """Return the entries of a family that belong to one link.

    :raises CommandFailed: the kernel refused.
    """
    found: list[Neighbour] = []
    for _ in range(_ATTEMPTS):
        found, is_whole = _dumped(family, link_index)
        if is_whole:
            break
    return found


def _dumped(family: int, link_index: int) -> tuple[list[Neighbour], bool]:
    """Return the entries, and whether none changed meanwhile."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(_DEADLINE_S)
            netlink.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
            netlink.send(_question(family, link_index))
            return _received(netlink)
    except OSError as error:
        raise CommandFailed(
            f"Could not list the neighbours of link {link_index}: {error.strerror or error}."
        ) from error


def _question(family: int, link_index: int) -> bytes:
    is_bridge = family == socket.AF_BRIDGE
    body = _ENTRY.pack(family, 0, 0, link_index if is_bridge else 0, 0, 0, 0)
    if not is_bridge:
        body += _ATTRIBUTE.pack(8, _IFINDEX) + struct.pack("=i", link_index)
    return _HEAD.pack(_HEAD.size + len(body), _GETNEIGH, _REQUEST | _DUMP, 1, 0) + body


def _received(netlink: socket.socket) -> tuple[list[Neighbour], bool]:
    found: list[Neighbour] = []
    is_whole = True
    while True:
        text = netlink.recv(_BUFFER)
        offset = 0
        while offset < len(text):
            length, kind, flags, _, _ = _HEAD.unpack_from(text, offset)
            is_whole = is_whole and not flags & _WAS_DISTURBED
            body = text[offset + _HEAD.size : offset + length]
            offset += -(-length // 4) * 4
            if kind in (_ERROR, _DONE):
                code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                if code:
                    raise OSError(code, os.strerror(code))
                return found, is_whole
            found.append(_entry(body))


def _entry(body: bytes) -> Neighbour:
    _, _, _, _, state, flags, _ = _ENTRY.unpack_from(body)
    values = dict(_attributes(body))
    address, master = values.get(_DST, b""), values.get(_MASTER, b"")
    return Neighbour(
        mac=values.get(_LLADDR, b"").hex(":"),
        address=_text(address),
        master=int.from_bytes(master, "little"),
        state=state,
        flags=flags,
    )


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _ENTRY.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += -(-length // 4) * 4


def _text(address: bytes) -> str:
    if not address:
        return ""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
