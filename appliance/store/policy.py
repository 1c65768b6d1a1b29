"""The policy of networks: revisions, what changed at which, and what a node must enforce.

A change of rules or of members bumps the revision of every network of the VPC and leaves one row
per change, so that a node gets the difference at a cost of what changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import bindparam, delete, exists, insert, or_, select, update

from appliance.messages import GetPolicy, PolicyAnswer, PolicyChanged, node_topic
from appliance.model import (
    FirewallGroup,
    FirewallPort,
    FirewallRule,
    MemberChange,
    NetworkPolicy,
    NetworkSpec,
    PolicyDelta,
    tap_name,
)
from appliance.store import Announcement, Transaction, reach
from appliance.store import networks as network_rows
from appliance.store.confirmations import Standing
from appliance.store.schema import (
    addresses,
    networks,
    nodes,
    placements,
    policy_changes,
    policy_confirmations,
    port_groups,
    ports,
    security_group_rules,
    security_groups,
)

KEPT_CHANGES = 2000
"""Revisions after which a node that missed them gets the whole policy instead."""

REST_S = 1.0
"""Seconds for which news of a policy waits after news before it, and a node after its question."""

ASKED_PER_S = 25
"""Nodes that may ask about a network within a second, while its news goes on: more rest longer."""

_BUMP = (
    update(networks)
    .where(networks.c.vpc_id == bindparam("of_vpc"))
    .values(policy_revision=networks.c.policy_revision + 1)
    .returning(networks.c.id, networks.c.policy_revision)
)
_WRITE_CHANGES = insert(policy_changes)
_CHANGES_SINCE = (
    select(policy_changes)
    .where(
        policy_changes.c.network_id == bindparam("network_id"),
        policy_changes.c.revision > bindparam("revision"),
    )
    .order_by(policy_changes.c.id)
)
_PORTS_ON_NODE = (
    select(ports.c.id, ports.c.mac)
    .join(placements, placements.c.instance_id == ports.c.instance_id)
    .where(
        ports.c.network_id == bindparam("network_id"),
        ports.c.is_bound.is_(True),
        placements.c.node_id == bindparam("node_id"),
        placements.c.phase == "committed",
    )
    .distinct()
)
_THESE_ON_NODE = _PORTS_ON_NODE.where(ports.c.id.in_(bindparam("port_ids", expanding=True)))
# By nodes, and not by ports, of which there may be a thousand times as many. One whose last port
# has just gone still has the policy in force, and must learn that.
_HOLDERS = (
    select(networks.c.policy_revision, nodes.c.id)
    .select_from(networks.join(nodes, nodes.c.removed_at.is_(None)))
    .where(
        networks.c.id == bindparam("network_id"),
        or_(
            exists()
            .where(
                policy_confirmations.c.network_id == networks.c.id,
                policy_confirmations.c.node_id == nodes.c.id,
            )
            .correlate(networks, nodes),
            exists()
            .where(
                placements.c.node_id == nodes.c.id,
                placements.c.phase == "committed",
                ports.c.instance_id == placements.c.instance_id,
                ports.c.network_id == networks.c.id,
                ports.c.is_bound.is_(True),
            )
            .correlate(networks, nodes),
        ),
    )
)
_GROUPS_OF = (
    select(port_groups)
    .where(port_groups.c.port_id.in_(bindparam("port_ids", expanding=True)))
    .order_by(port_groups.c.group_id)
)
_SOURCES_OF = (
    select(security_group_rules.c.source_group_id)
    .where(
        security_group_rules.c.group_id.in_(bindparam("group_ids", expanding=True)),
        security_group_rules.c.source_group_id != "",
    )
    .distinct()
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change: of ``rules`` of a group, of a ``port``, or a member ``joined`` or ``left``."""

    kind: str
    subject: str
    address: str = ""


def changed(tx: Transaction, vpc_id: str, changes: Iterable[Change]) -> dict[str, int]:
    """Write changes under a new revision of the VPC's networks; return the new revisions.

    The nodes that hold ports of these networks are told after COMMIT; see :func:`news`.
    """
    rows = list(changes)
    if not rows:
        return {}
    bumped = tx.execute(_BUMP, {"of_vpc": vpc_id}).all()
    revisions = {row.id: row.policy_revision for row in bumped}
    tx.execute(
        _WRITE_CHANGES,
        [
            {
                "network_id": network_id,
                "revision": revision,
                "kind": change.kind,
                "subject": change.subject,
                "address": change.address,
            }
            for network_id, revision in revisions.items()
            for change in rows
        ],
    )
    for network_id, revision in revisions.items():
        if revision % 100 == 0:
            _forget_old(tx, network_id, revision - KEPT_CHANGES)
        if any(change.kind == "rules" for change in rows):
            about, read = "rules", rules_news
        else:
            about, read = "members", members_news
        tx.announce_later(f"{about} of {network_id}", partial(read, network_id=network_id))
    return revisions


def rules_news(tx: Transaction, network_id: str) -> Announcement:
    """Return what the nodes that hold ports of a network are told when rules have changed.

    Somebody has asked for just that, and may have to rely on it.
    """
    return Announcement(_to_holders(tx, network_id, is_urgent=True))


def members_news(tx: Transaction, network_id: str) -> Announcement:
    """Return what they are told when instances have come or gone.

    Each launch is news to all of them, and each of them asks: the more there are, the more of it
    comes as one.
    """
    told = _to_holders(tx, network_id, is_urgent=False)
    # Less than the nodes rest: who has rested waits for no news that rests itself.
    return Announcement(told, _rest_s(len(told)) - REST_S / 2)


def _rest_s(holders: int) -> float:
    return max(REST_S, holders / ASKED_PER_S)


def _to_holders(
    tx: Transaction, network_id: str, *, is_urgent: bool
) -> list[tuple[str, PolicyChanged]]:
    holders = tx.execute(_HOLDERS, {"network_id": network_id}).all()
    rest_s = 0.0 if is_urgent else _rest_s(len(holders))
    return [
        (
            node_topic("datapath", row.id),
            PolicyChanged(network_id=network_id, revision=row.policy_revision, rest_s=rest_s),
        )
        for row in holders
    ]


def _forget_old(tx: Transaction, network_id: str, revision: int) -> None:
    tx.execute(
        delete(policy_changes).where(
            policy_changes.c.network_id == network_id, policy_changes.c.revision <= revision
        )
    )


def group_changed(tx: Transaction, vpc_id: str, group_id: str) -> None:
    """Note that the rules of a group have changed."""
    changed(tx, vpc_id, [Change(kind="rules", subject=group_id)])


def node_moved(tx: Transaction, node_id: str) -> None:
    """Tell the other nodes that a node is reached at another address than before."""
    for vpc_id, port_ids in reach.ports_of_node(tx, node_id).items():
        changed(tx, vpc_id, [Change(kind="port", subject=port_id) for port_id in port_ids])


def answer(tx: Transaction, question: GetPolicy, found: Standing) -> PolicyAnswer:
    """Return what a node must change to enforce the policy of today; only reads."""
    network, revision, node_id = found.network, found.revision, question.node_id
    known, reached = question.known_revision, question.reach_revision
    policy = delta = remotes = None
    changes: list[Change] = []
    if known != revision:
        if _is_too_old(known, revision):
            policy = _whole(tx, network, revision, node_id)
        else:
            changes = _changes_since(tx, network.network_id, known)
            delta = _difference(tx, network, revision, question, changes)
    if reached is not None and reached != revision:
        if _is_too_old(reached, revision):
            remotes = reach.whole(tx, network.network_id, revision, node_id)
        else:
            if reached != known:
                changes = _changes_since(tx, network.network_id, reached)
            moved = {change.subject for change in changes if change.kind == "port"}
            remotes = reach.difference(tx, network.network_id, moved, revision, node_id)
    return PolicyAnswer(policy=policy, delta=delta, reach=remotes)


def _is_too_old(known: int, revision: int) -> bool:
    """Say whether what has changed since is not known any more, or never was."""
    return known < max(revision - KEPT_CHANGES + 100, 0) or known > revision


def whole(tx: Transaction, network_id: str, node_id: str) -> NetworkPolicy:
    """Return all that a node must enforce of a network.

    :raises NotFound: there is no such network.
    """
    network, revision = network_rows.with_revision(tx, network_id)
    return _whole(tx, network, revision, node_id)


def _whole(tx: Transaction, network: NetworkSpec, revision: int, node_id: str) -> NetworkPolicy:
    here = _ports_on_node(tx, network.network_id, node_id, None)
    groups = _groups(tx, _with_sources(tx, {g for port in here for g in port.group_ids}))
    return NetworkPolicy(network=network, revision=revision, ports=here, groups=groups)


def _difference(
    tx: Transaction,
    network: NetworkSpec,
    revision: int,
    question: GetPolicy,
    rows: Iterable[Change],
) -> PolicyDelta:
    port_ids = {row.subject for row in rows if row.kind == "port"}
    touched = _ports_on_node(tx, network.network_id, question.node_id, port_ids)
    known = set(question.known_group_ids)
    needed = _with_sources(tx, {group for port in touched for group in port.group_ids})
    rewritten = {row.subject for row in rows if row.kind == "rules"} & known
    # A rule that was added may name a group that this node has not heard of.
    fresh = (needed | _with_sources(tx, rewritten)) - (known - rewritten)
    return PolicyDelta(
        network=network,
        from_revision=question.known_revision,
        to_revision=revision,
        ports=touched,
        removed_port_ids=tuple(sorted(port_ids - {port.port_id for port in touched})),
        groups=_groups(tx, fresh),
        member_changes=_member_changes(rows, known - fresh),
    )


def _changes_since(tx: Transaction, network_id: str, revision: int) -> list[Change]:
    rows = tx.execute(_CHANGES_SINCE, {"network_id": network_id, "revision": revision})
    return [Change(kind=row.kind, subject=row.subject, address=row.address) for row in rows]


def _member_changes(rows: Iterable[Change], group_ids: set[str]) -> tuple[MemberChange, ...]:
    last: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.kind in ("joined", "left") and row.subject in group_ids:
            last.setdefault(row.subject, {})[row.address] = row.kind
    return tuple(
        MemberChange(
            group_id=group_id,
            added=tuple(address for address, kind in kinds.items() if kind == "joined"),
            removed=tuple(address for address, kind in kinds.items() if kind == "left"),
        )
        for group_id, kinds in last.items()
    )


def _ports_on_node(
    tx: Transaction, network_id: str, node_id: str, port_ids: set[str] | None
) -> tuple[FirewallPort, ...]:
    """Return bound ports whose instance has an active placement on the node."""
    of_node = {"network_id": network_id, "node_id": node_id}
    if port_ids is None:
        rows = tx.execute(_PORTS_ON_NODE, of_node).all()
    else:
        rows = tx.execute(_THESE_ON_NODE, {**of_node, "port_ids": list(port_ids)}).all()
    ids = [row.id for row in rows]
    if not ids:
        return ()
    owned = network_rows.of_ports(tx, ids)
    groups: dict[str, list[str]] = {}
    for row in tx.execute(_GROUPS_OF, {"port_ids": ids}):
        groups.setdefault(row.port_id, []).append(row.group_id)
    return tuple(
        FirewallPort(
            port_id=row.id,
            tap=tap_name(row.id),
            mac=row.mac,
            addresses=owned.get(row.id, ()),
            group_ids=tuple(groups.get(row.id, ())),
        )
        for row in rows
    )


def _with_sources(tx: Transaction, group_ids: set[str]) -> set[str]:
    if not group_ids:
        return set()
    return group_ids | set(tx.execute(_SOURCES_OF, {"group_ids": list(group_ids)}).scalars())


def _groups(tx: Transaction, group_ids: set[str]) -> tuple[FirewallGroup, ...]:
    if not group_ids:
        return ()
    rules: dict[tuple[str, bool], list[FirewallRule]] = {}
    table = security_group_rules
    for row in tx.execute(
        select(table).where(table.c.group_id.in_(group_ids)).order_by(table.c.id)
    ):
        rules.setdefault((row.group_id, row.is_egress), []).append(
            FirewallRule(
                rule_id=row.id,
                protocol=row.protocol,
                from_port=row.from_port,
                to_port=row.to_port,
                cidr=row.cidr,
                source_group_id=row.source_group_id,
            )
        )
    members: dict[str, list[str]] = {}
    query = (
        select(port_groups.c.group_id, addresses.c.address)
        .join(addresses, addresses.c.port_id == port_groups.c.port_id)
        .where(port_groups.c.group_id.in_(group_ids))
        .order_by(addresses.c.position)
    )
    for row in tx.execute(query):
        members.setdefault(row.group_id, []).append(row.address)
    alive = tx.execute(
        select(security_groups.c.id).where(security_groups.c.id.in_(group_ids))
    ).scalars()
    return tuple(
        FirewallGroup(
            group_id=group_id,
            ingress=tuple(rules.get((group_id, False), ())),
            egress=tuple(rules.get((group_id, True), ())),
            members=tuple(members.get(group_id, ())),
        )
        for group_id in sorted(alive)
    )
