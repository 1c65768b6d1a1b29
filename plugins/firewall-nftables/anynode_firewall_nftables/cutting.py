"""Which tracked flows end when a policy changes: those that it would not let begin any more."""

from __future__ import annotations

from collections.abc import Iterable

from anynode_firewall_nftables.force import InForce
from anynode_firewall_nftables.netfilter import Flow
from appliance.firewall import METADATA_ADDRESS, PolicyIndex, own_addresses
from appliance.firewall.rules import IPAddress, parse_address, service_number
from appliance.model import FirewallGroup, FirewallPort, FirewallRule


def lost_addresses(old: InForce, new: InForce) -> frozenset[IPAddress]:
    """Return addresses that were of a port here and are no more, or of another port now."""
    lost: set[IPAddress] = set()
    for port_id, port in old.ports.items():
        kept = new.ports.get(port_id)
        if kept is not port:
            lost |= own_addresses(port) - (own_addresses(kept) if kept else frozenset())
    return frozenset(lost)


def narrowed_ports(old: InForce, new: InForce) -> list[FirewallPort]:
    """Return the ports to which the change may forbid a flow that was allowed."""
    narrowed = _narrowed_groups(old, new)
    return [
        port
        for port_id, port in new.ports.items()
        if not narrowed.isdisjoint(port.group_ids)
        or not set(_former(old, port_id)) <= set(port.group_ids)
    ]


def _former(old: InForce, port_id: str) -> Iterable[str]:
    port = old.ports.get(port_id)
    return port.group_ids if port else ()


def _narrowed_groups(old: InForce, new: InForce) -> set[str]:
    changed = {
        group_id for group_id in old.groups if old.groups[group_id] is not new.groups.get(group_id)
    }
    shrunk = {
        group_id
        for group_id in changed
        if set(old.groups[group_id].members) - set(_members(new.groups.get(group_id)))
    }
    narrowed = set()
    for group_id, group in old.groups.items():
        after = new.groups.get(group_id)
        lost_rules = group_id in changed and _has_fewer_rules(group, after)
        if lost_rules or shrunk & {rule.source_group_id for rule in _rules(group)}:
            narrowed.add(group_id)
    return narrowed


def _rules(group: FirewallGroup) -> tuple[FirewallRule, ...]:
    return (*group.ingress, *group.egress)


def _members(group: FirewallGroup | None) -> tuple[str, ...]:
    return group.members if group else ()


def _has_fewer_rules(before: FirewallGroup, after: FirewallGroup | None) -> bool:
    if after is None:
        return bool(before.ingress or before.egress)
    return bool(set(before.ingress) - set(after.ingress) or set(before.egress) - set(after.egress))


class FlowJudge:
    """Says of tracked flows whether a network's policy lets them go on."""

    def __init__(
        self, state: InForce, judged: Iterable[FirewallPort], lost: frozenset[IPAddress]
    ) -> None:
        self._index = PolicyIndex(state.policy())
        self._zone = state.zone
        self._lost = lost
        self._judged = {address: port for port in judged for address in own_addresses(port)}
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
