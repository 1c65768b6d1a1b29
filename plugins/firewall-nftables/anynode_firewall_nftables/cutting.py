"""What a change means for flows: whether it allows less, and which addresses get a new owner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from anynode_firewall_nftables.epochs import SHIFT
from anynode_firewall_nftables.force import InForce
from anynode_firewall_nftables.netfilter import Flow
from anynode_firewall_nftables.parts import BRIDGE
from appliance.firewall import own_addresses
from appliance.firewall.rules import IPAddress, parse_address
from appliance.model import FirewallGroup, FirewallRule

_OWN = (f"{BRIDGE} own4", f"{BRIDGE} own6")


Owner = tuple[str, IPAddress]
"""A tap, as text of nft, and an address that it may have."""


def gained_addresses(old: InForce, new: InForce) -> frozenset[IPAddress]:
    """Return addresses that a port here has and had not before."""
    return frozenset(
        address for before, after in _changed_ports(old, new) for address in after - before
    )


def lost_addresses(old: InForce, new: InForce) -> frozenset[IPAddress]:
    """Return addresses that a port here had and no changed one has now."""
    changed = _changed_ports(old, new)
    lost = {address for before, after in changed for address in before - after}
    return frozenset(lost.difference(*(after for _, after in changed)))


def _changed_ports(
    old: InForce, new: InForce
) -> list[tuple[frozenset[IPAddress], frozenset[IPAddress]]]:
    """Return the addresses, before and after, of each port that a change concerns."""
    return [
        (_addresses_of(old, port_id), _addresses_of(new, port_id))
        for port_id in _touched(new, "port")
    ]


def _addresses_of(state: InForce, port_id: str) -> frozenset[IPAddress]:
    port = state.ports.get(port_id)
    return frozenset(own_addresses(port)) if port else frozenset()


def owners(elements: Mapping[str, Iterable[str]]) -> frozenset[Owner]:
    """Return who has which address, by the elements that are in the kernel."""
    found = set()
    for key in chain.from_iterable(elements.get(name, ()) for name in _OWN):
        tap, _, rest = key.partition(" . ")
        if address := parse_address(rest.rpartition(" . ")[2]):
            found.add((tap, address))
    return frozenset(found)


def owners_in(state: InForce) -> frozenset[Owner]:
    """Return who has which address, by what is in force."""
    return frozenset().union(*(owners(part.elements) for part in state.parts.values()))


def allows_less(old: InForce, new: InForce) -> bool:
    """Return whether a change may forbid a flow that was allowed."""
    if old.network != new.network or old.ports.keys() - new.ports.keys():
        return True
    kept = [one for one in _touched(new, "port") if one in new.ports and one in old.ports]
    has_left = any(
        set(old.ports[one].group_ids) - set(new.ports[one].group_ids)
        or own_addresses(old.ports[one]) - own_addresses(new.ports[one])
        for one in kept
    )
    return has_left or _is_a_rule_gone(old, new) or _is_a_source_smaller(old, new)


def _touched(state: InForce, kind: str) -> list[str]:
    return [name for touched, name in state.touched if touched == kind]


def _is_a_rule_gone(old: InForce, new: InForce) -> bool:
    changed = set(_touched(new, "group")) & old.groups.keys()
    return any(
        set(before.ingress) - set(after.ingress if after else ())
        or set(before.egress) - set(after.egress if after else ())
        for before, after in ((old.groups[one], new.groups.get(one)) for one in changed)
    )


def _is_a_source_smaller(old: InForce, new: InForce) -> bool:
    shrunk = {group_id for group_id in _touched(new, "members") if _has_lost(old, new, group_id)}
    return bool(shrunk) and any(
        rule.source_group_id in shrunk for group in old.groups.values() for rule in _rules(group)
    )


def _has_lost(old: InForce, new: InForce, group_id: str) -> bool:
    """Return whether a group has lost a member."""
    before, after = old.member_sets(group_id), new.member_sets(group_id)
    return any(not keys <= after.get(name, frozenset()) for name, keys in before.items())


def _rules(group: FirewallGroup) -> tuple[FirewallRule, ...]:
    return (*group.ingress, *group.egress)


class FormerOwners:
    """Says which flows are of one who had an address before its present owner."""

    def __init__(self, by_zone: Mapping[int, Mapping[IPAddress, int]]) -> None:
        """Take addresses by conntrack zone, with the last epoch of those who had them."""
        self._by_zone = by_zone
        self._anywhere: dict[IPAddress, int] = {}
        for addresses in by_zone.values():
            for address, bound in addresses.items():
                self._anywhere[address] = max(bound, self._anywhere.get(address, 0))

    def had(self, flow: Flow) -> bool:
        """Return whether a flow is of a former owner."""
        own = self._by_zone.get(flow.zone, {})
        bounds = [own.get(flow.source, -1), own.get(flow.destination, -1)]
        if not flow.has_both:
            bounds.append(self._anywhere.get(flow.destination, -1))
        return flow.mark >> SHIFT <= max(bounds)
