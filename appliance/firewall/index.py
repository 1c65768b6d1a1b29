"""A policy made ready for questions: who is behind an address, and which rule lets a flow in."""

from __future__ import annotations

import ipaddress
from functools import cached_property, lru_cache
from typing import Literal

from appliance.firewall.rules import IPAddress, Match, parse_address, parse_rule
from appliance.model import FirewallGroup, FirewallPort, FirewallRule, NetworkPolicy

Direction = Literal["ingress", "egress"]


def link_local(mac: str) -> ipaddress.IPv6Address | None:
    """Return the link-local address that a card with this MAC gives itself; ``None`` if bad."""
    try:
        octets = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        return None
    if len(octets) != 6:
        return None
    tail = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + tail)


@lru_cache(maxsize=1 << 16)
def own_addresses(port: FirewallPort) -> frozenset[IPAddress]:
    """Return what a port may send as, its link-local address included, malformed ones left out."""
    given = {parse_address(text) for text in port.addresses} | {link_local(port.mac)}
    return frozenset(address for address in given if address is not None)


class PolicyIndex:
    """One network's policy with look-up tables; made once and asked often."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self.policy = policy
        self.network = policy.network
        self.groups: dict[str, FirewallGroup] = {g.group_id: g for g in policy.groups}
        self._members: dict[str, frozenset[IPAddress | None]] = {}
        self._matches: dict[tuple[str, Direction], tuple[Match, ...]] = {}

    @cached_property
    def ports_by_tap(self) -> dict[str, FirewallPort]:
        """The ports here by the name of their tap."""
        return {port.tap: port for port in self.policy.ports}

    @cached_property
    def ports_by_address(self) -> dict[IPAddress, FirewallPort]:
        """The ports here by each address of their own."""
        return {address: port for port in self.policy.ports for address in own_addresses(port)}

    def members(self, group_id: str) -> frozenset[IPAddress | None]:
        """Return the addresses of a group's members; none when the group is unknown."""
        if group_id not in self._members:
            group = self.groups.get(group_id)
            self._members[group_id] = frozenset(map(parse_address, group.members if group else ()))
        return self._members[group_id]

    def is_member(self, group_id: str, address: IPAddress) -> bool:
        """Say whether an address is that of a member of a group."""
        return address in self.members(group_id)

    def allowing_rule(
        self, port: FirewallPort, direction: Direction, peer: IPAddress, service: int
    ) -> tuple[str, str] | None:
        """Return group and rule that allow a new flow of the port with a peer, else ``None``."""
        for group_id in port.group_ids:
            for match in self._rules(group_id, direction):
                low, high = match.span
                if match.family != peer.version or not low <= service <= high:
                    continue
                if match.cidr is None:
                    is_peer = self.is_member(match.source_group_id, peer)
                else:
                    is_peer = peer in match.cidr
                if is_peer:
                    return group_id, match.rule_id
        return None

    def _rules(self, group_id: str, direction: Direction) -> tuple[Match, ...]:
        key = (group_id, direction)
        if key not in self._matches:
            group = self.groups.get(group_id)
            rules: tuple[FirewallRule, ...] = getattr(group, direction) if group else ()
            self._matches[key] = tuple(match for rule in rules for match in parse_rule(rule))
        return self._matches[key]
