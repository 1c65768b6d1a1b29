"""Which tracked flows end when a policy changes: those that it would not let begin any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from anynode_firewall_nftables.force import InForce
from anynode_firewall_nftables.netfilter import Flow
from anynode_firewall_nftables.render import canonical_address
from appliance.firewall import METADATA_ADDRESS, PolicyIndex, own_addresses
from appliance.firewall.rules import IPAddress, parse_address, service_number
from appliance.model import FirewallGroup, FirewallPort, FirewallRule


def lost_addresses(old: InForce, new: InForce) -> frozenset[IPAddress]:
    """Return addresses that were of a port here and are no more, or of another port now."""
    lost: set[IPAddress] = set()
    for port_id in {*_touched(new, "port"), *(old.ports.keys() - new.ports.keys())}:
        before, after = old.ports.get(port_id), new.ports.get(port_id)
        if before:
            lost |= own_addresses(before) - (own_addresses(after) if after else frozenset())
    return frozenset(lost)


def narrowed_ports(old: InForce, new: InForce) -> list[FirewallPort]:
    """Return the ports of which the change may forbid a flow that was allowed."""
    narrowed = _narrowed_groups(old, new)
    found = {
        port_id: new.ports[port_id]
        for port_id in _touched(new, "port")
        if port_id in new.ports and port_id in old.ports
        if not set(old.ports[port_id].group_ids) <= set(new.ports[port_id].group_ids)
    }
    if narrowed:
        found |= {
            port_id: port
            for port_id, port in new.ports.items()
            if not narrowed.isdisjoint(port.group_ids)
        }
    return list(found.values())


def _touched(state: InForce, kind: str) -> list[str]:
    return [name for touched, name in state.touched if touched == kind]


def _narrowed_groups(old: InForce, new: InForce) -> set[str]:
    """Return groups that allow less: a rule is gone, or a member of a source."""
    shrunk = {group_id for group_id in _touched(new, "members") if _has_lost(old, new, group_id)}
    changed = set(_touched(new, "group"))
    narrowed = {
        group_id
        for group_id in changed & old.groups.keys()
        if _has_fewer_rules(old.groups[group_id], new.groups.get(group_id))
    }
    if shrunk:
        narrowed |= {
            group_id
            for group_id, before in old.groups.items()
            if any(rule.source_group_id in shrunk for rule in _rules(before))
        }
    return narrowed


def _has_lost(old: InForce, new: InForce, group_id: str) -> bool:
    """Return whether a group has lost a member."""
    before, after = old.member_sets(group_id), new.member_sets(group_id)
    return any(not keys <= after.get(name, frozenset()) for name, keys in before.items())


def _rules(group: FirewallGroup) -> tuple[FirewallRule, ...]:
    return (*group.ingress, *group.egress)


def _has_fewer_rules(before: FirewallGroup, after: FirewallGroup | None) -> bool:
    if after is None:
        return bool(_rules(before))
    return bool(set(before.ingress) - set(after.ingress) or set(before.egress) - set(after.egress))


def _owners(
    ports: Iterable[FirewallPort], addresses: Collection[IPAddress]
) -> Iterable[FirewallPort]:
    """Return the ports that may have one of the addresses, cheaply, and perhaps some more."""
    if any(address.is_link_local for address in addresses):
        return ports
    texts = frozenset(map(str, addresses))
    return [port for port in ports if not texts.isdisjoint(map(canonical_address, port.addresses))]


class _Index(PolicyIndex):
    """Finds members in the sets that are in force: a large group is not parsed for a few flows."""

    def __init__(self, state: InForce) -> None:
        super().__init__(state.policy())
        self._state = state

    def is_member(self, group_id: str, address: IPAddress) -> bool:
        """Say whether an address is that of a member of a group."""
        text = str(address)
        return any(text in keys for keys in self._state.member_sets(group_id).values())


class FlowJudge:
    """Says of tracked flows whether a network's policy lets them go on."""

    def __init__(
        self,
        state: InForce,
        judged: Iterable[FirewallPort],
        lost: frozenset[IPAddress],
        flows: Iterable[Flow],
    ) -> None:
        """Look up what is needed to judge these flows: they are few, and ports may be many."""
        seen = {address for flow in flows for address in (flow.source, flow.destination)}
        self._index = _Index(state)
        self._zone = state.zone
        self._lost = lost
        self._judged = {
            address: port
            for port in _owners(judged, seen)
            for address in own_addresses(port)
            if address in seen
        }
        self._node = {
            parse_address(text)
            for text in (state.network.gateway, state.network.gateway6, METADATA_ADDRESS)
        }

    def ends(self, flow: Flow) -> bool:
        """Return whether the flow must end."""
        is_mine = flow.zone == self._zone
        if flow.has_both and not is_mine:
            return False
        if (is_mine and flow.source in self._lost) or flow.destination in self._lost:
            return True
        service = service_number(flow.protocol, flow.port, flow.icmp_type, flow.icmp_code)
        sender = self._judged.get(flow.source) if is_mine else None
        if sender and not self._is_of_node(flow):
            found = self._index.allowing_rule(sender, "egress", flow.destination, service)
            if not found:
                return True
        receiver = self._judged.get(flow.destination)
        return receiver is not None and not self._index.allowing_rule(
            receiver, "ingress", flow.source, service
        )

    def _is_of_node(self, flow: Flow) -> bool:
        return flow.asked in self._node or flow.asked.is_multicast or flow.destination in self._node
