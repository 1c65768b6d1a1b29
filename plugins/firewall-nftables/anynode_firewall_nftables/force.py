"""What is in force for one network, as parts, and how a policy or a difference changes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from anynode_firewall_nftables import render
from anynode_firewall_nftables.names import checked_network_id
from anynode_firewall_nftables.parts import EMPTY, Part
from appliance.model import FirewallGroup, FirewallPort, NetworkPolicy, NetworkSpec, PolicyDelta

PartKey = tuple[str, str]


@dataclass(frozen=True)
class InForce:
    """One network at one revision. Values are never changed in place: a change makes a copy."""

    network: NetworkSpec
    revision: int
    zone: int
    ports: dict[str, FirewallPort] = field(default_factory=dict)
    groups: dict[str, FirewallGroup] = field(default_factory=dict)
    profiles: dict[frozenset[str], int] = field(default_factory=dict)
    parts: dict[PartKey, Part] = field(default_factory=dict)

    def policy(self) -> NetworkPolicy:
        """Return the policy that this was made from."""
        return NetworkPolicy(
            network=self.network,
            revision=self.revision,
            ports=tuple(self.ports.values()),
            groups=tuple(self.groups.values()),
        )

    def mark(self) -> str:
        """Return the element that keeps id, revision and zone with the rules in the kernel."""
        comment = f"{self.network.network_id} {self.revision} {self.zone}"
        return f'"{self.network.bridge}" comment "{comment}"'


def compile_policy(policy: NetworkPolicy, zone: int) -> InForce:
    """Return a whole policy as parts.

    :raises InputError: the network itself is malformed; malformed rules, groups and ports only
        lose what they would have allowed.
    """
    checked_network_id(policy.network.network_id)
    empty = InForce(network=policy.network, revision=policy.revision, zone=zone)
    return _changed(
        replace(
            empty,
            ports={port.port_id: port for port in policy.ports},
            groups={group.group_id: group for group in policy.groups},
            parts={("network", ""): render.network_part(policy.network, zone)},
        ),
        touched_ports=[port.port_id for port in policy.ports],
        touched_groups=[group.group_id for group in policy.groups],
    )


def apply_delta(old: InForce, delta: PolicyDelta) -> InForce:
    """Return what is in force after the difference; only what it names is rendered again."""
    ports, groups = dict(old.ports), dict(old.groups)
    for port_id in delta.removed_port_ids:
        ports.pop(port_id, None)
    for group_id in delta.removed_group_ids:
        groups.pop(group_id, None)
    ports |= {port.port_id: port for port in delta.ports}
    groups |= {group.group_id: group for group in delta.groups}
    parts = dict(old.parts)
    if old.network != delta.network:
        parts["network", ""] = render.network_part(delta.network, old.zone)
    return _changed(
        replace(
            old,
            network=delta.network,
            revision=delta.to_revision,
            ports=ports,
            groups=groups,
            parts=parts,
        ),
        touched_ports=[*delta.removed_port_ids, *(port.port_id for port in delta.ports)],
        touched_groups=[*delta.removed_group_ids, *(group.group_id for group in delta.groups)],
    )


def _changed(
    state: InForce, touched_ports: Iterable[str], touched_groups: Iterable[str]
) -> InForce:
    """Return the state with the parts of the touched ports and groups rendered anew."""
    net = state.network.network_id
    parts = state.parts
    profiles = _profiles(state)
    for group_ids in state.profiles.keys() - profiles.keys():
        parts.pop(("profile", str(state.profiles[group_ids])), None)
    touched = set(touched_groups)
    for group_id in sorted(touched):
        group = state.groups.get(group_id)
        _put(parts, ("group", group_id), render.group_part(net, group) if group else EMPTY)
    _render_members(state, touched)
    _render_profiles(state, profiles, touched)
    for port_id in touched_ports:
        port = state.ports.get(port_id)
        part = EMPTY
        if port:
            part = render.port_part(net, port, profiles[frozenset(port.group_ids)])
        _put(parts, ("port", port_id), part)
    return replace(state, profiles=profiles)


def _put(parts: dict[PartKey, Part], key: PartKey, part: Part) -> None:
    if part == EMPTY:
        parts.pop(key, None)
    else:
        parts[key] = part


def _profiles(state: InForce) -> dict[frozenset[str], int]:
    """Return the numbers of the sets of groups in use; a set keeps its number while it is used."""
    used = {frozenset(port.group_ids) for port in state.ports.values()}
    kept = {groups: number for groups, number in state.profiles.items() if groups in used}
    number = max(state.profiles.values(), default=0)
    for groups in sorted(used - kept.keys(), key=sorted):
        number += 1
        kept[groups] = number
    return kept


def _render_members(state: InForce, touched: set[str]) -> None:
    """Make the member sets of every group that is known or named as a source."""
    named = {
        rule.source_group_id
        for group in state.groups.values()
        for rule in (*group.ingress, *group.egress)
        if rule.source_group_id
    }
    wanted = state.groups.keys() | named
    present = {name for kind, name in state.parts if kind == "members"}
    for group_id in present - wanted:
        del state.parts["members", group_id]
    for group_id in wanted & (touched | (wanted - present)):
        group = state.groups.get(group_id)
        state.parts["members", group_id] = render.members_part(
            state.network.network_id, group_id, group.members if group else ()
        )


def _render_profiles(
    state: InForce, profiles: dict[frozenset[str], int], touched: set[str]
) -> None:
    for group_ids, number in profiles.items():
        if group_ids not in state.profiles or group_ids & touched:
            known = [group_id for group_id in group_ids if group_id in state.groups]
            state.parts["profile", str(number)] = render.profile_part(state.network, known, number)
