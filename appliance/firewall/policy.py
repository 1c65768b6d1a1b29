"""Changing policies: the difference of two, and a policy with a difference applied."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from appliance.errors import Stale
from appliance.model import FirewallGroup, NetworkPolicy, PolicyDelta


def apply_delta(policy: NetworkPolicy, delta: PolicyDelta) -> NetworkPolicy:
    """Return the policy with the difference applied.

    :raises Stale: the policy is of another network or not at ``delta.from_revision``.
    """
    if policy.network.network_id != delta.network.network_id:
        raise Stale(
            f"The difference is for network {delta.network.network_id}, "
            f"not {policy.network.network_id}."
        )
    if policy.revision != delta.from_revision:
        raise Stale(
            f"Network {policy.network.network_id} is at policy revision {policy.revision}, "
            f"the difference starts at {delta.from_revision}."
        )
    ports = {port.port_id: port for port in policy.ports}
    groups = {group.group_id: group for group in policy.groups}
    for port_id in delta.removed_port_ids:
        ports.pop(port_id, None)
    for group_id in delta.removed_group_ids:
        groups.pop(group_id, None)
    ports |= {port.port_id: port for port in delta.ports}
    groups |= changed_groups(groups, delta)
    return msgspec.structs.replace(
        policy,
        network=delta.network,
        revision=delta.to_revision,
        ports=tuple(ports.values()),
        groups=tuple(groups.values()),
    )


def without_unused_groups(policy: NetworkPolicy, delta: PolicyDelta) -> PolicyDelta:
    """Return the difference with the removal of all groups that no port needs after it.

    A port needs its own groups and those that their rules name as a source.
    """
    if not (delta.ports or delta.removed_port_ids or delta.groups):
        return delta
    after = apply_delta(policy, delta)
    rules = {group.group_id: (*group.ingress, *group.egress) for group in after.groups}
    needed = {group_id for port in after.ports for group_id in port.group_ids}
    needed |= {rule.source_group_id for own in needed for rule in rules.get(own, ())}
    unused = rules.keys() - needed
    if not unused:
        return delta
    return msgspec.structs.replace(
        delta,
        groups=tuple(group for group in delta.groups if group.group_id not in unused),
        removed_group_ids=tuple(sorted({*delta.removed_group_ids, *unused})),
    )


def changed_groups(
    known: Mapping[str, FirewallGroup], delta: PolicyDelta
) -> dict[str, FirewallGroup]:
    """Return the groups that a difference replaces or gives other members, as they are then.

    A change of members of a group that is not known, or that comes whole, says nothing new.
    """
    whole = {group.group_id: group for group in delta.groups}
    changed: dict[str, FirewallGroup] = {}
    for change in delta.member_changes:
        group = changed.get(change.group_id) or known.get(change.group_id)
        if group is None or change.group_id in whole:
            continue
        members = dict.fromkeys(group.members)
        for address in change.removed:
            members.pop(address, None)
        members |= dict.fromkeys(change.added)
        changed[change.group_id] = msgspec.structs.replace(group, members=tuple(members))
    return changed | whole


def diff(old: NetworkPolicy, new: NetworkPolicy) -> PolicyDelta:
    """Return what turns the first policy into the second; both are of one network."""
    old_ports = {port.port_id: port for port in old.ports}
    old_groups = {group.group_id: group for group in old.groups}
    new_ports = {port.port_id: port for port in new.ports}
    new_groups = {group.group_id: group for group in new.groups}
    return PolicyDelta(
        network=new.network,
        from_revision=old.revision,
        to_revision=new.revision,
        ports=tuple(p for key, p in new_ports.items() if old_ports.get(key) != p),
        removed_port_ids=tuple(key for key in old_ports if key not in new_ports),
        groups=tuple(g for key, g in new_groups.items() if old_groups.get(key) != g),
        removed_group_ids=tuple(key for key in old_groups if key not in new_groups),
    )
