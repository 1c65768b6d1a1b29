"""What may come out of a tunnel and what may go in: nft tables of our own.

The ``inet`` table looks at datagrams before the kernel unwraps them: one of a network of ours
passes when the node that sent it has a port with the MAC that the frame in it bears. The
``bridge`` table keeps what belongs to one node on it: all that the node itself says and hears on a
bridge (gateway, DHCP, router advertisements, metadata), address resolution, and whatever is for
more than one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence, Set
from typing import Any

from appliance.errors import CommandFailed
from appliance.model import RemotePort
from appliance.run import run

TABLE = "anynode_vxlan"
PORT = 4789
"""The UDP port that IANA has given to VXLAN; the same on all nodes."""

_DEADLINE_S = 30.0
_VNI = "@th,96,24"
_MAC = "@th,176,48"
_TUNNELS = '"anvx*"'
_TO_ALL6 = "ether daddr set 33:33:00:00:00:01"
_DISCOVERY = (
    "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }"
)
_SETS = {
    "inet": {"set vnis": f"typeof {_VNI};", "map networks": f"typeof {_VNI} : verdict;"},
    "bridge": {"set elsewhere": "type ether_addr;"},
}
_CHAINS: dict[str, dict[str, tuple[str, ...]]] = {
    "inet": {
        "prerouting": (
            "type filter hook prerouting priority raw; policy accept;",
            # Each flow in a tunnel has a port of its own, and would fill the table of flows.
            f"udp dport {PORT} {_VNI} @vnis notrack",
        ),
        "output": (
            "type filter hook output priority raw; policy accept;",
            f"udp dport {PORT} {_VNI} @vnis notrack",
        ),
        "input": (
            "type filter hook input priority -10; policy accept;",
            f"udp dport {PORT} {_VNI} vmap @networks",
        ),
    },
    "bridge": {
        "prerouting": (
            "type filter hook prerouting priority -290; policy accept;",
            # The bridge answers only what is asked of all; who knows a MAC asks it alone, again
            # and again, whether it is still there.
            "arp operation request ether daddr @elsewhere ether daddr set ff:ff:ff:ff:ff:ff",
            f"icmpv6 type nd-neighbor-solicit ether daddr @elsewhere {_TO_ALL6}",
        ),
        "crossing": (
            "",
            "ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop",
            "ether type != { ip, ip6 } drop",
            "udp dport { 67, 68, 546, 547 } drop",
            f"icmpv6 type {_DISCOVERY} drop",
        ),
        "forward": (
            "type filter hook forward priority -10; policy accept;",
            f"oifname {_TUNNELS} goto crossing",
            f"iifname {_TUNNELS} goto crossing",
        ),
        "input": (
            "type filter hook input priority -10; policy accept;",
            f"iifname {_TUNNELS} drop",
        ),
        "output": (
            "type filter hook output priority -10; policy accept;",
            f"oifname {_TUNNELS} drop",
        ),
    },
}


def render_base() -> list[str]:
    """Return commands that put in place what all networks need; repeatable."""
    lines = [f"add table {family} {TABLE}" for family in _CHAINS]
    for family, things in _SETS.items():
        for thing, kind in things.items():
            sort, _, name = thing.partition(" ")
            lines.append(f"add {sort} {family} {TABLE} {name} {{ {kind} }}")
    for family, chains in _CHAINS.items():
        for name, (hook, *rules) in chains.items():
            chain = f"{family} {TABLE} {name}"
            lines.append(f"add chain {chain}" + (f" {{ {hook} }}" if hook else ""))
            lines.append(f"flush chain {chain}")
            lines += [f"add rule {chain} {rule}" for rule in rules]
    return lines


def render_network(vni: int) -> list[str]:
    """Return commands that let members of a network through, and nobody else; repeatable."""
    table = f"inet {TABLE}"
    return [
        f"add set {table} members-{vni} {{ typeof ip saddr . {_MAC}; }}",
        f"add chain {table} network-{vni}",
        f"flush chain {table} network-{vni}",
        f"add rule {table} network-{vni} ip saddr . {_MAC} @members-{vni} accept",
        f"add rule {table} network-{vni} drop",
        f"add element {table} networks {{ {vni} : goto network-{vni} }}",
        f"add element {table} vnis {{ {vni} }}",
    ]


def render_removal(vni: int, left: Set[Member], *, is_last: bool) -> list[str]:
    """Return commands that remove a network, or everything with the last; repeatable.

    :param left: the members that it still has.
    """
    if is_last:
        return [
            line
            for family in _CHAINS
            for line in (f"add table {family} {TABLE}", f"delete table {family} {TABLE}")
        ]
    table = f"inet {TABLE}"
    # What is made first can be deleted whether it was there or not.
    return [
        *render_base(),
        *render_network(vni),
        *render_members(vni, set(), left),
        f"delete element {table} networks {{ {vni} : goto network-{vni} }}",
        f"delete element {table} vnis {{ {vni} }}",
        f"delete chain {table} network-{vni}",
        f"delete set {table} members-{vni}",
    ]


Member = tuple[str, str]
"""The address of a node, and the MAC of a port there."""


def member_of(remote: RemotePort) -> Member:
    """Return what a frame of a port elsewhere is known by."""
    return remote.node_address, remote.mac


def render_members(vni: int, added: Set[Member], removed: Set[Member]) -> list[str]:
    """Return commands that let frames of some ports through, and of others no more."""
    members, elsewhere = f"inet {TABLE} members-{vni}", f"bridge {TABLE} elsewhere"
    stay = {mac for _, mac in added}
    macs_gone = ", ".join(sorted({mac for _, mac in removed} - stay))
    lines = []
    for where, gone in ((members, _elements(removed)), (elsewhere, macs_gone)):
        if gone:
            # One that is not there cannot be deleted; one that is can be added.
            lines += [f"{verb} element {where} {{ {gone} }}" for verb in ("add", "delete")]
    for where, come in ((members, _elements(added)), (elsewhere, ", ".join(sorted(stay)))):
        if come:
            lines.append(f"add element {where} {{ {come} }}")
    return lines


def _elements(members: Set[Member]) -> str:
    return ", ".join(f"{address} . 0x{mac.replace(':', '')}" for address, mac in sorted(members))


def apply(lines: list[str]) -> None:
    """Put commands in force as one transaction.

    :raises CommandFailed: nft refused; what was in force still is.
    """
    if lines:
        run(["nft", "-f", "-"], stdin="\n".join(lines) + "\n", deadline_s=_DEADLINE_S)


def members(vni: int) -> set[Member]:
    """Return the members of a network that are in force; none when it has no rules."""
    found = set()
    for entry in _listed(["set", "inet", TABLE, f"members-{vni}"]):
        for element in entry.get("set", {}).get("elem", ()):
            address, number = element["concat"]
            digits = f"{number:012x}"
            found.add((address, ":".join(re.findall("..", digits))))
    return found


def macs_elsewhere() -> set[str]:
    """Return the MACs of ports elsewhere, of all networks, as they are in force."""
    return {
        mac
        for entry in _listed(["set", "bridge", TABLE, "elsewhere"])
        for mac in entry.get("set", {}).get("elem", ())
    }


def missing(vnis: Sequence[int]) -> list[str]:
    """Return what is missing of the rules that all networks need, and of each network's."""
    found: dict[str, dict[str, int]] = {}
    targets: dict[int, object] = {}
    for family in _CHAINS:
        rules = found.setdefault(family, {})
        for entry in _listed(["-t", "table", family, TABLE]):
            if "rule" in entry:
                chain = entry["rule"]["chain"]
                rules[chain] = rules.get(chain, 0) + 1
    for entry in _listed(["map", "inet", TABLE, "networks"]):
        for vni, verdict in entry.get("map", {}).get("elem", ()):
            targets[vni] = verdict
    wanted = [
        (family, name, len(rules) - 1)
        for family, chains in _CHAINS.items()
        for name, rules in chains.items()
    ]
    wanted += [("inet", f"network-{vni}", 2) for vni in vnis]
    gone = [
        f"{family} chain {name}"
        for family, name, count in wanted
        if found[family].get(name, 0) != count
    ]
    return gone + [f"element {vni} of networks" for vni in vnis if vni not in targets]


def _listed(what: list[str]) -> list[dict[str, Any]]:
    """Return what nft lists; nothing when it is not there."""
    options = [word for word in what if word.startswith("-")]
    words = [word for word in what if not word.startswith("-")]
    try:
        printed = run(["nft", "-j", *options, "list", *words], deadline_s=_DEADLINE_S)
    except CommandFailed:
        return []
    listing: list[dict[str, Any]] = json.loads(printed)["nftables"]
    return listing
