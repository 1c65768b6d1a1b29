"""Tunnels of this node and what they forward, through netlink.

A network's tunnel is a port of its bridge that floods nothing and learns nothing: a frame enters
it only when its MAC was told to be on another node, and the bridge answers for the addresses of
these ports itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from anynode_network_vxlan import neighbours
from anynode_network_vxlan.rules import PORT
from appliance.datapath import links
from appliance.errors import ConfigError
from appliance.model import NetworkSpec

OVERHEAD = 50
"""Bytes that a tunnel adds to a packet: Ethernet 14, VXLAN 8, UDP 8, IPv4 20."""

_SELF, _MASTER = 0x02, 0x04
_STATIC, _PERMANENT = 0x42, 0x80
_QUIET = {
    "learning": 0,
    "unicast_flood": 0,
    "mcast_flood": 0,
    "bcast_flood": 0,
    "neigh_suppress": 1,
}


def device_name(network: NetworkSpec) -> str:
    """Return the name of a network's tunnel; no tap and no bridge of ours bears such a name."""
    return f"anvx{network.segment}"


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What a tunnel forwards: the node of each MAC, and the MAC of each address.

    ``bridged`` are the MACs that the bridge sends into the tunnel.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    bridged: frozenset[str] = frozenset()
    neighbours: Mapping[str, str] = field(default_factory=dict)


def underlay_mtu(address: str) -> int | None:
    """Return the MTU of the link that has an address; ``None`` when no link has it."""
    with links.open_netlink(f"look for {address}") as netlink:
        for message in netlink.get_addr(family=socket.AF_INET):
            if message.get_attr("IFA_LOCAL") == address:
                (found,) = netlink.get_links(message["index"])
                return int(found.get_attr("IFLA_MTU"))
    return None


def ensure(network: NetworkSpec, mark: links.Mark, local_address: str) -> None:
    """Make a network's tunnel in its bridge, link up; safe to repeat while it is in use.

    :raises ConfigError: a link of that name exists and is not ours, or a foreign tunnel has the
        number of the network.
    """
    name = device_name(network)
    found = links.link(name)
    if found and (found.kind != "vxlan" or found.mark not in (None, mark)):
        raise ConfigError(
            f"Link {name!r}, wanted as the tunnel of {network.network_id}, exists and is not ours.",
            hint="Remove the link, or set network.first_segment beyond its number.",
        )
    with links.open_netlink(f"make tunnel {name}") as netlink:
        if found and _ends(netlink, name) != (network.segment, local_address, PORT):
            links.delete(found)
            found = None
        if not found:
            netlink.link(
                "add",
                ifname=name,
                kind="vxlan",
                vxlan_id=network.segment,
                vxlan_local=local_address,
                vxlan_port=PORT,
                vxlan_learning=False,
            )
        index = links.index_of(netlink, name)
        bridge = links.index_of(netlink, network.bridge)
        # Without IPv6 the node itself sends nothing into it when the link comes up.
        links.switch_ipv6(name, is_enabled=False)
        netlink.link("set", index=index, ifalias=str(mark), mtu=network.mtu)
        netlink.link("set", index=index, master=bridge)
        netlink.brport("set", index=index, **_QUIET)
        netlink.link("set", index=index, state="up")


def _ends(netlink: Any, name: str) -> tuple[int, str, int]:
    (message,) = netlink.link("get", ifname=name)
    values = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return (
        values.get_attr("IFLA_VXLAN_ID"),
        values.get_attr("IFLA_VXLAN_LOCAL") or "",
        values.get_attr("IFLA_VXLAN_PORT"),
    )


def is_quiet(name: str) -> bool:
    """Say whether a tunnel floods and learns nothing."""
    with links.open_netlink(f"look at tunnel {name}") as netlink:
        (message,) = netlink.link("get", ifname=name)
        described = message.get_attr("IFLA_LINKINFO")
        port = described.get_attr("IFLA_INFO_SLAVE_DATA") if described else None
        if port is None:
            return False
        return all(
            port.get_attr(f"IFLA_BRPORT_{key.upper()}") == value for key, value in _QUIET.items()
        )


def remove(name: str, mark: links.Mark) -> None:
    """Remove a network's tunnel; no error, and no change, when there is none of that network."""
    found = links.link(name)
    if found and found.kind == "vxlan" and found.mark in (None, mark):
        links.delete(found)


def entries(network: NetworkSpec) -> Entries:
    """Return what the kernel has; nothing where tunnel or bridge are missing."""
    tunnel, bridge = links.link(device_name(network)), links.link(network.bridge)
    if not tunnel or not bridge:
        return Entries()
    nodes, bridged = {}, set()
    for one in neighbours.dump(socket.AF_BRIDGE, tunnel.index):
        if one.flags & _SELF and one.address:
            nodes[one.mac] = one.address
        elif one.master and not one.state & _PERMANENT:
            bridged.add(one.mac)
    known = {
        one.address: one.mac
        for family in (socket.AF_INET, socket.AF_INET6)
        for one in neighbours.dump(family, bridge.index)
        if one.state & _PERMANENT
    }
    return Entries(nodes=nodes, bridged=frozenset(bridged), neighbours=known)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be forwarded from now on, and what no more."""

    nodes: Mapping[str, str]
    neighbours: Mapping[str, str]
    gone_nodes: Mapping[str, str]
    gone_neighbours: Sequence[str]

    @property
    def size(self) -> int:
        """How many entries differ."""
        parts = (self.nodes, self.neighbours, self.gone_nodes, self.gone_neighbours)
        return sum(map(len, parts))


def difference(have: Entries, want: Entries) -> Change:
    """Return what makes the one of the other."""
    return Change(
        nodes={
            mac: node
            for mac, node in want.nodes.items()
            if have.nodes.get(mac) != node or mac not in have.bridged
        },
        neighbours={
            address: mac
            for address, mac in want.neighbours.items()
            if have.neighbours.get(address) != mac
        },
        gone_nodes={
            mac: have.nodes.get(mac, "")
            for mac in {*have.nodes, *have.bridged}
            if mac not in want.nodes
        },
        gone_neighbours=[one for one in have.neighbours if one not in want.neighbours],
    )


def apply(network: NetworkSpec, change: Change) -> None:
    """Make a change; safe to repeat, costs what changes."""
    attempt = f"say what {device_name(network)} forwards"
    with links.open_netlink(attempt) as netlink:
        tunnel = links.index_of(netlink, device_name(network))
        bridge = links.index_of(netlink, network.bridge)
        for mac, node in change.gone_nodes.items():
            _forget(netlink.fdb, ifindex=tunnel, lladdr=mac, flags=_MASTER)
            if node:
                _forget(netlink.fdb, ifindex=tunnel, lladdr=mac, flags=_SELF, dst=node)
        for address in change.gone_neighbours:
            _forget(netlink.neigh, ifindex=bridge, dst=address)
        for mac, node in change.nodes.items():
            netlink.fdb(
                "replace",
                ifindex=tunnel,
                lladdr=mac,
                dst=node,
                flags=_SELF | _MASTER,
                state=_STATIC,
            )
        for address, mac in change.neighbours.items():
            netlink.neigh(
                "replace",
                ifindex=bridge,
                dst=address,
                lladdr=mac,
                state=_PERMANENT,
                family=_family(address),
            )


def _family(address: str) -> int:
    return socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6


def _forget(table: Any, **entry: Any) -> None:
    """Delete an entry; a MAC that has become another port's on this node is not there."""
    if "lladdr" not in entry:
        entry["family"] = _family(entry["dst"])
    try:
        table("del", **entry)
    except NetlinkError as error:
        if error.code not in (2, 6):  # ENOENT, ENXIO
            raise
