"""Bridges and taps of this network namespace, through netlink.

Every function opens its own netlink socket, so they may be called from any thread. What we make
is marked in its link alias, and only what bears the mark is ever changed or removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import ipaddress
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.datapath.checks import Interface
from appliance.errors import ConfigError, Conflict
from appliance.firewall import METADATA_ADDRESS

TAP_NAME = re.compile(r"an[0-9a-f]{12}")

_MARK = "anynode"
_SYSCTL = Path("/proc/sys/net")
_SCOPE_HOST = 254
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFF_UP = 0x1
_FDB_MASTER, _FDB_STATIC = 0x04, 0x40
_RT_TABLE_LOCAL = 255


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Whose a link is: the network type that made it, its network, and for a tap its port."""

    type: str
    network_id: str
    port_id: str = ""

    def __str__(self) -> str:
        return ":".join((_MARK, self.type, self.network_id, self.port_id))


def read_mark(alias: str) -> Mark | None:
    """Return the mark in a link's alias; ``None`` when it bears none."""
    first, *rest = alias.split(":")
    if first != _MARK or len(rest) != 3:
        return None
    return Mark(type=rest[0], network_id=rest[1], port_id=rest[2])


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link as the kernel has it.

    ``mark`` is ``None`` when it is not ours, ``master`` when it is in no bridge.
    """

    index: int
    name: str
    kind: str
    mark: Mark | None
    is_up: bool
    master: int | None = None


@dataclass(frozen=True, kw_only=True)
class UsedRange:
    """A range that this node already reaches, and the link by which it does."""

    cidr: ipaddress.IPv4Network
    link_name: str


@contextmanager
def open_netlink(attempt: str) -> Iterator[Any]:
    """Open netlink; what the kernel refuses becomes a sentence that says what was attempted."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        reason = os.strerror(error.code)
        raise ConfigError(
            f"Could not {attempt}: {reason}.",
            hint="Networks need the capability CAP_NET_ADMIN."
            if error.code in (errno.EPERM, errno.EACCES)
            else "",
        ) from error


def links() -> dict[str, Link]:
    """Return all links of this namespace by name."""
    with open_netlink("list the links") as netlink:
        found = (_link(message) for message in netlink.get_links())
        return {one.name: one for one in found}


def link(name: str) -> Link | None:
    """Return the link of that name, ``None`` when there is none; costs the same with many links."""
    with open_netlink(f"look at link {name}") as netlink:
        return _find(netlink, name)


def _find(netlink: Any, name: str) -> Link | None:
    try:
        (message,) = netlink.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return _link(message)


def index_of(netlink: Any, name: str) -> int:
    """Return the index of a link that is there."""
    found = _find(netlink, name)
    if not found:
        raise NetlinkError(errno.ENODEV)
    return found.index


def _link(message: Any) -> Link:
    described = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(described.get_attr("IFLA_INFO_KIND") or "") if described else "",
        mark=read_mark(message.get_attr("IFLA_IFALIAS") or ""),
        is_up=bool(message["flags"] & _IFF_UP),
        master=message.get_attr("IFLA_MASTER"),
    )


def bridge_mac(network_id: str) -> str:
    """Return the MAC of a network's gateway: the same on every node, locally administered."""
    tail = hashlib.sha256(network_id.encode()).digest()[:5]
    return ":".join(f"{byte:02x}" for byte in (0x0E, *tail))


def check_bridge(name: str, mark: Mark, *, is_known: bool) -> None:
    """Raise ConfigError when a link of that name exists and is not that network's bridge.

    :param is_known: a bridge without any mark was left by our own crash.
    """
    found = link(name)
    if found and not _is_bridge_of(found, mark, is_known=is_known):
        raise ConfigError(
            f"Link {name!r}, wanted as the bridge of {mark.network_id}, exists and is not ours.",
            hint="Give the network another bridge name, or remove the link.",
        )


def _is_bridge_of(found: Link, mark: Mark, *, is_known: bool) -> bool:
    return found.kind == "bridge" and (found.mark == mark or (is_known and found.mark is None))


def ensure_bridge(
    name: str, mark: Mark, *, mtu: int, gateways: tuple[Interface, ...], is_known: bool
) -> None:
    """Make a network's bridge with the gateway's addresses and the metadata address, link up.

    Safe to repeat: an existing bridge of that network is put right without a gap.

    :param is_known: we meant to make it before: a bridge without any mark was left by a crash.
    :raises ConfigError: a link of that name exists and is not ours; nothing was changed.
    """
    check_bridge(name, mark, is_known=is_known)
    is_new = link(name) is None
    with open_netlink(f"make bridge {name}") as netlink:
        if is_new:
            netlink.link("add", ifname=name, kind="bridge")
        index = index_of(netlink, name)
        netlink.link(
            "set",
            index=index,
            kind="bridge",
            br_forward_delay=0,
            br_stp_state=0,
            br_mcast_snooping=0,
        )
        netlink.link(
            "set",
            index=index,
            address=bridge_mac(mark.network_id),
            mtu=mtu,
            ifalias=str(mark),
        )
        _protect_bridge(name, has_ipv6=any(gateway.version == 6 for gateway in gateways))
        _set_addresses(netlink, index, name, gateways)
        netlink.link("set", index=index, state="up")


def _protect_bridge(name: str, *, has_ipv6: bool) -> None:
    """Keep the bridge from answering for, or asking with, addresses of the node's other links."""
    write_sysctl(f"ipv4/conf/{name}/arp_ignore", "1")
    write_sysctl(f"ipv4/conf/{name}/arp_announce", "2")
    switch_ipv6(name, is_enabled=has_ipv6)
    if has_ipv6:
        write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
        write_sysctl(f"ipv6/conf/{name}/accept_dad", "0")


def switch_ipv6(name: str, *, is_enabled: bool) -> None:
    """Let a link have IPv6 or not; nothing to do where the kernel has none."""
    if (_SYSCTL / "ipv6").exists():
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "0" if is_enabled else "1")


def _set_addresses(netlink: Any, index: int, name: str, gateways: tuple[Interface, ...]) -> None:
    wanted = {str(gateway) for gateway in gateways} | {f"{METADATA_ADDRESS}/32"}
    present = {
        f"{ipaddress.ip_address(message.get_attr('IFA_ADDRESS'))}/{message['prefixlen']}"
        for message in netlink.get_addr(index=index)
        if not ipaddress.ip_address(message.get_attr("IFA_ADDRESS")).is_link_local
        or message.get_attr("IFA_ADDRESS") == METADATA_ADDRESS
    }
    for text in sorted(wanted - present):
        address = ipaddress.ip_interface(text)
        extra: dict[str, Any] = {}
        if str(address.ip) == METADATA_ADDRESS:
            # Scope host: the kernel never takes it as the source of a connection of its own. By
            # its label dnsmasq knows that it is not to listen there, where each network's would.
            extra = {"scope": _SCOPE_HOST, "label": f"{name}:md"}
        netlink.addr(
            "add",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            **extra,
        )
    for text in sorted(present - wanted):
        address = ipaddress.ip_interface(text)
        netlink.addr(
            "del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
        )


def ensure_tap(name: str, mark: Mark, *, bridge: str, mac: str, mtu: int) -> None:
    """Make a port's tap, link down, in its bridge; safe to repeat, also while it is in use.

    The tap belongs to root, so that no unprivileged user can open it. Frames for MACs that the
    bridge does not know are never sent to it, and what it sends teaches the bridge nothing: the
    only way to it is the entry for the port's own MAC.

    :raises Conflict: a link of that name exists and is not that port's; nothing was changed.
    """
    found, owner = link(name), link(bridge)
    if found and (found.kind != "tun" or found.mark not in (None, mark)):
        raise Conflict(
            f"Link {name!r}, wanted as the tap of {mark.port_id}, exists and is not its own."
        )
    if not owner:
        raise Conflict(f"Bridge {bridge!r} of port {mark.port_id} does not exist on this node.")
    if not found:
        _make_persistent_tap(name)
    try:
        with open_netlink(f"put tap {name} into bridge {bridge}") as netlink:
            _join_bridge(netlink, name, mark, owner.index, mac, mtu)
    except BaseException:
        if not found:
            remove_tap(name, port_id=mark.port_id)
        raise


def _make_persistent_tap(name: str) -> None:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(fd, _TUNSETOWNER, 0)
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"Could not make tap {name}: {error.strerror}.",
            hint="Taps need /dev/net/tun and the capability CAP_NET_ADMIN.",
        ) from error


def _join_bridge(netlink: Any, name: str, mark: Mark, bridge: int, mac: str, mtu: int) -> None:
    # Without IPv6 the node itself sends nothing (neighbour discovery) when the link comes up.
    switch_ipv6(name, is_enabled=False)
    index = index_of(netlink, name)
    own_mac = f"fe:{mac[3:]}" if not mac.startswith("fe") else f"fa:{mac[3:]}"
    netlink.link("set", index=index, ifalias=str(mark), mtu=mtu, address=own_mac)
    netlink.link("set", index=index, master=bridge)
    netlink.brport("set", index=index, unicast_flood=0, learning=0)
    netlink.fdb("replace", ifindex=index, lladdr=mac, flags=_FDB_MASTER, state=_FDB_STATIC)


def raise_tap(name: str, *, port_id: str) -> bool:
    """Set a port's link up; ``False`` when it has no tap."""
    found = link(name)
    if not found or found.kind != "tun" or not found.mark or found.mark.port_id != port_id:
        return False
    with open_netlink(f"set tap {name} up") as netlink:
        netlink.link("set", index=found.index, state="up")
    return True


def remove_tap(name: str, *, port_id: str) -> None:
    """Remove a port's tap; no error, and no change, when there is none of that port."""
    found = link(name)
    if not found or found.kind != "tun" or not TAP_NAME.fullmatch(name):
        return
    if found.mark is None or found.mark.port_id == port_id:
        delete(found)


def remove_bridge(name: str, mark: Mark, *, is_known: bool) -> None:
    """Remove a network's bridge; no error, and no change, when there is none of that network."""
    found = link(name)
    if found and _is_bridge_of(found, mark, is_known=is_known):
        delete(found)


def delete(found: Link) -> None:
    """Remove a link; no error when it went in the meantime."""
    with open_netlink(f"remove link {found.name}") as netlink:
        try:
            netlink.link("del", index=found.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # else it went in the meantime
                raise


def used_ranges() -> list[UsedRange]:
    """Return the IPv4 ranges that this node has addresses in or routes to, default routes aside."""
    with open_netlink("list the routes") as netlink:
        names = {item["index"]: item.get_attr("IFLA_IFNAME") for item in netlink.get_links()}
        used = [
            UsedRange(
                cidr=ipaddress.IPv4Network(
                    (message.get_attr("IFA_ADDRESS"), message["prefixlen"]), strict=False
                ),
                link_name=names.get(message["index"], "?"),
            )
            for message in netlink.get_addr(family=2)
        ]
        for message in netlink.get_routes(family=2):
            target = message.get_attr("RTA_DST")
            if target and message["table"] != _RT_TABLE_LOCAL:
                cidr = ipaddress.IPv4Network((target, message["dst_len"]))
                used.append(
                    UsedRange(
                        cidr=cidr, link_name=names.get(message.get_attr("RTA_OIF"), "a route")
                    )
                )
        return used


def check_range_is_free(cidr: str, *, network_id: str) -> None:
    """Raise ConfigError when the node reaches the range, or a part of it, already."""
    wanted = ipaddress.IPv4Network(cidr)
    for used in used_ranges():
        if used.cidr.overlaps(wanted):
            raise ConfigError(
                f"Range {cidr} of {network_id} overlaps {used.cidr}, which this node reaches by "
                f"{used.link_name}.",
                hint="Set network.cidr to a free range.",
            )


def read_sysctl(name: str) -> str:
    """Return a value below ``/proc/sys/net``."""
    return (_SYSCTL / name).read_text().strip()


def write_sysctl(name: str, value: str) -> None:
    """Set a value below ``/proc/sys/net`` unless it is set already.

    :raises ConfigError: the kernel or a sandbox refuses.
    """
    try:
        if read_sysctl(name) != value:
            (_SYSCTL / name).write_text(value)
    except OSError as error:
        raise ConfigError(
            f"Could not set net/{name} to {value}: {error.strerror}.",
            hint="Writing kernel settings must be allowed for the datapath role.",
        ) from error
