"""What an operator changes about a cluster's nodes: first whether it can be, then that it is.

Each change is written to the store; the node concerned follows by itself.
"""

from __future__ import annotations

from appliance.errors import Conflict, InputError, NotFound
from appliance.role import STORE_ROLES
from appliance.store import Transaction, members, node_changes, nodes, placements
from appliance.store.nodes import NodeStatus

ROLES = (*sorted(STORE_ROLES), "compute", "datapath")
"""Roles that are given and taken; the rest runs by itself where it is needed."""

_NEEDED_BY = {"datapath": "compute"}


def add_role(tx: Transaction, name: str, role: str) -> NodeStatus:
    """Give a node a role; nothing changes when it has it.

    :raises NotFound: there is no such node.
    :raises InputError: there is no such role to give.
    :raises Conflict: the node is down, or lacks what the role needs.
    """
    node = _find(tx, name, role)
    if role in node.roles:
        return node
    _check_up(node, f"take on {role}")
    needed = next((one for one, user in _NEEDED_BY.items() if user == role), "")
    if needed and needed not in node.roles:
        raise Conflict(
            f"{role} needs {needed} on its node, and {node.name} does not have it.",
            hint=f"`anynode role add {needed} --node {node.name}` first.",
        )
    _write_roles(tx, node, (*node.roles, role))
    return node


def remove_role(tx: Transaction, name: str, role: str) -> NodeStatus:
    """Take a role from a node; nothing changes when it does not have it.

    :raises NotFound: there is no such node.
    :raises InputError: there is no such role to take.
    :raises Conflict: the node is down, the role is the last of its kind, or something needs it.
    """
    node = _find(tx, name, role)
    if role not in node.roles:
        return node
    _check_up(node, f"give up {role}")
    user = _NEEDED_BY.get(role, "")
    if user in node.roles:
        raise Conflict(
            f"{user} on {node.name} needs {role}.",
            hint=f"`anynode role remove {user} --node {node.name}` first.",
        )
    if role in STORE_ROLES:
        _check_not_last(tx, node, [role])
    if role == "compute":
        _check_empty(tx, node, "give up compute")
    _write_roles(tx, node, tuple(one for one in node.roles if one != role))
    return node


def drain(tx: Transaction, name: str, *, is_drained: bool) -> NodeStatus:
    """Let a node take no new instances, or take them again; those that it has stay.

    :raises NotFound: there is no such node.
    """
    node = nodes.match(tx, name)
    if node.accepts_instances is is_drained:
        node_changes.set_accepts(tx, node.node_id, accepts_instances=not is_drained)
    return node


def approve(
    tx: Transaction,
    name: str,
    *,
    vcpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
) -> NodeStatus:
    """Set the most that a node may offer to instances; ``None`` is no limit.

    It counts from the node's next heartbeat on.

    :raises NotFound: there is no such node.
    """
    node = nodes.match(tx, name)
    node_changes.set_approved(
        tx, node.node_id, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib
    )
    return node


def remove(tx: Transaction, name: str) -> str:
    """Remove a node from the cluster: no member answers it from now on. Return its id.

    Its login at the broker is not the store's to end: that is for the caller, afterwards. Safe to
    repeat.

    :raises NotFound: there is no such node, and was none.
    :raises Conflict: it has instances, or the last of a role that reaches the store.
    """
    try:
        node = nodes.match(tx, name)
    except NotFound:
        removed = node_changes.find_removed(tx, name)
        if removed is None:
            raise
        return removed
    _check_empty(tx, node, "leave")
    _check_not_last(tx, node, [role for role in node.roles if role in STORE_ROLES])
    members.expel(tx, node.node_id)
    node_changes.remove(tx, node.node_id)
    members.changed(tx)
    return node.node_id


def _find(tx: Transaction, name: str, role: str) -> NodeStatus:
    if role not in ROLES:
        raise InputError(
            f"There is no role {role!r} to give or take.",
            hint=f"There are {', '.join(ROLES)}. proxy runs wherever api does not.",
        )
    return nodes.match(tx, name)


def _check_up(node: NodeStatus, deed: str) -> None:
    if not node.is_up:
        raise Conflict(
            f"{node.name} is down: it cannot {deed} now.",
            hint="Start it first; `anynode node list` says since when it is down.",
        )


def _check_not_last(tx: Transaction, node: NodeStatus, roles: list[str]) -> None:
    """Refuse to leave the cluster without a role: without those that are up it stands still."""
    others = [one for one in nodes.status(tx) if one.node_id != node.node_id and one.is_up]
    last = [role for role in roles if not any(role in other.roles for other in others)]
    if last:
        raise Conflict(
            f"{node.name} is the last node with {' and '.join(last)}.",
            hint=f"`anynode role add {last[0]} --node OTHER` first; other nodes that are down do "
            "not count.",
        )


def _check_empty(tx: Transaction, node: NodeStatus, deed: str) -> None:
    held = sorted(one.instance_id for one in placements.on_node(tx, node.node_id))
    if held:
        shown = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
        raise Conflict(
            f"{node.name} cannot {deed}: it has instances, {shown}.",
            hint=f"`anynode node drain {node.name}` keeps new ones away; terminate these. Those "
            "of a dead node are placed anew with `anynode evacuate`.",
        )


def _write_roles(tx: Transaction, node: NodeStatus, roles: tuple[str, ...]) -> None:
    node_changes.set_roles(tx, node.node_id, roles)
    members.changed(tx)
