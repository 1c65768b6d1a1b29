"""Changing policies: the difference of two, and a policy with a difference applied."""

from __future__ import annotations

import msgspec

from appliance.errors import Stale
from appliance.model import NetworkPolicy, PolicyDelta


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
    groups |= {group.group_id: group for group in delta.groups}
    return msgspec.structs.replace(
        policy,
        network=delta.network,
        revision=delta.to_revision,
        ports=tuple(ports.values()),
        groups=tuple(groups.values()),
    )


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
