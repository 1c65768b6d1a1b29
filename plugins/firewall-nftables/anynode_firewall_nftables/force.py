"""What is in force for one network, as parts, and how a policy or a difference changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from anynode_firewall_nftables import render
from anynode_firewall_nftables.names import checked_network_id
from anynode_firewall_nftables.parts import EMPTY, Part
from appliance.firewall import changed_groups
from appliance.model import (
    FirewallGroup,
    FirewallPort,
    FirewallRule,
    NetworkPolicy,
    NetworkSpec,
    PolicyDelta,
)

PartKey = tuple[str, str]


@dataclass(frozen=True)
class InForce:
    """One network at one revision. Values are never changed in place: a change makes a copy.

    ``profiles`` numbers the sets of groups that ports are in, ``users`` counts those ports.
    ``touched`` are the parts that the last change may have made different.
    """

    network: NetworkSpec
    revision: int
    zone: int
    ports: dict[str, FirewallPort] = field(default_factory=dict)
    groups: dict[str, FirewallGroup] = field(default_factory=dict)
    profiles: dict[frozenset[str], int] = field(default_factory=dict)
    users: Counter[frozenset[str]] = field(default_factory=Counter)
    parts: dict[PartKey, Part] = field(default_factory=dict)
    touched: frozenset[PartKey] = frozenset()

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

    def members(self, group_id: str) -> frozenset[str]:
        """Return the well-formed addresses of a group's members."""
        return frozenset().union(*self.member_sets(group_id).values())

    def member_sets(self, group_id: str) -> Mapping[str, frozenset[str]]:
        """Return the well-formed addresses of a group's members by the set that they are in."""
        return self.parts.get(("members", group_id), EMPTY).elements


def compile_policy(policy: NetworkPolicy, zone: int) -> InForce:
    """Return a whole policy as parts.

    :raises InputError: the network itself is malformed; malformed rules, groups and ports only
        lose what they would have allowed.
    """
    checked_network_id(policy.network.network_id)
    nothing = InForce(network=policy.network, revision=policy.revision, zone=zone)
    return _Change(nothing, policy.network).apply(policy.revision, policy.ports, policy.groups)


def apply_delta(old: InForce, delta: PolicyDelta) -> InForce:
    """Return what is in force after the difference; only what it names is rendered again."""
    gone = set(delta.removed_group_ids)
    kept = {name: group for name, group in old.groups.items() if name not in gone}
    return _Change(old, delta.network).apply(
        delta.to_revision,
        delta.ports,
        changed_groups(kept, delta).values(),
        delta.removed_port_ids,
        delta.removed_group_ids,
    )


class _Change:
    """A change on the way: copies of what was, and which parts are to be rendered."""

    def __init__(self, old: InForce, network: NetworkSpec) -> None:
        self._old = old
        self._network = network
        self._net = network.network_id
        self._ports, self._groups = dict(old.ports), dict(old.groups)
        self._parts = dict(old.parts)
        self._profiles, self._users = dict(old.profiles), Counter(old.users)
        self._touched: set[PartKey] = set()

    def apply(
        self,
        revision: int,
        ports: Iterable[FirewallPort],
        groups: Iterable[FirewallGroup],
        removed_ports: Iterable[str] = (),
        removed_groups: Iterable[str] = (),
    ) -> InForce:
        if ("network", "") not in self._parts or self._network != self._old.network:
            self._put("network", "", render.network_part(self._network, self._old.zone))
        new_ports = {port.port_id: port for port in ports}
        new_groups = {group.group_id: group for group in groups}
        gone_groups = set(removed_groups) - new_groups.keys()
        for group_id in gone_groups:
            self._groups.pop(group_id, None)
        self._groups |= new_groups
        self._replace_ports(new_ports, set(removed_ports) - new_ports.keys())
        changed = gone_groups | new_groups.keys()
        for group_id in sorted(changed):
            before, group = self._old.groups.get(group_id), self._groups.get(group_id)
            if before is None or group is None or _rules(before) != _rules(group):
                part = render.group_part(self._net, group) if group else EMPTY
                self._put("group", group_id, part)
        if changed:
            self._render_members(changed)
        self._render_profiles(changed)
        for port_id, port in new_ports.items():
            profile = self._profiles[frozenset(port.group_ids)]
            self._put("port", port_id, render.port_part(self._net, port, profile))
        return replace(
            self._old,
            network=self._network,
            revision=revision,
            ports=self._ports,
            groups=self._groups,
            profiles=self._profiles,
            users=self._users,
            parts=self._parts,
            touched=frozenset(self._touched),
        )

    def _put(self, kind: str, name: str, part: Part) -> None:
        key = (kind, name)
        self._touched.add(key)
        if part == EMPTY:
            self._parts.pop(key, None)
        else:
            self._parts[key] = part

    def _replace_ports(self, new: dict[str, FirewallPort], removed: set[str]) -> None:
        for port_id in (*removed, *new):
            if before := self._ports.pop(port_id, None):
                self._users[frozenset(before.group_ids)] -= 1
        for port_id in sorted(removed):
            self._put("port", port_id, EMPTY)
        for port_id, port in new.items():
            self._ports[port_id] = port
            self._users[frozenset(port.group_ids)] += 1

    def _render_members(self, changed: set[str]) -> None:
        """Make the member sets of every group that is known or named as a source."""
        named = {
            rule.source_group_id
            for group in self._groups.values()
            for rule in (*group.ingress, *group.egress)
            if rule.source_group_id
        }
        wanted = self._groups.keys() | named
        present = {name for kind, name in self._parts if kind == "members"}
        for group_id in sorted(present - wanted):
            self._put("members", group_id, EMPTY)
        for group_id in sorted(wanted & (changed | (wanted - present))):
            before, after = self._old.groups.get(group_id), self._groups.get(group_id)
            had, has = before.members if before else (), after.members if after else ()
            part = self._parts.get(("members", group_id))
            if part and had == has:
                continue
            new = part and render.changed_members(part, frozenset(had), frozenset(has))
            new = new or render.members_part(self._net, group_id, has)
            self._put("members", group_id, new)

    def _render_profiles(self, changed: set[str]) -> None:
        """Number the sets of groups in use; a set keeps its number while it is used."""
        for groups in [groups for groups, count in self._users.items() if count <= 0]:
            del self._users[groups]
            self._put("profile", str(self._profiles.pop(groups)), EMPTY)
        number = max(self._profiles.values(), default=0)
        for groups in sorted(self._users.keys() - self._profiles.keys(), key=sorted):
            number += 1
            self._profiles[groups] = number
        appeared = {one for one in changed if (one in self._groups) != (one in self._old.groups)}
        for groups, number in self._profiles.items():
            if groups not in self._old.profiles or groups & appeared:
                known = [group_id for group_id in groups if group_id in self._groups]
                part = render.profile_part(self._network, known, number)
                if part != self._parts.get(("profile", str(number))):
                    self._put("profile", str(number), part)


def _rules(group: FirewallGroup) -> tuple[tuple[FirewallRule, ...], ...]:
    return group.ingress, group.egress
