"""What owners change of their instances: options, what the next start uses, and the groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update

from appliance.model import InstanceState
from appliance.store import Transaction, networks, policy
from appliance.store.policy import Change
from appliance.store.schema import instances, port_groups, ports

SHUTDOWN_BEHAVIOR = "instance_initiated_shutdown_behavior"
STOPS, TERMINATES = "stop", "terminate"


def user_data(tx: Transaction, instance_id: str) -> str:
    """Return an instance's user data in base64; empty when it has none."""
    query = select(instances.c.user_data_base64).where(instances.c.id == instance_id)
    return tx.execute(query).scalar() or ""


def options(tx: Transaction, instance_id: str) -> dict[str, Any]:
    """Return the options of an instance; those that are left out have their defaults."""
    query = select(instances.c.attributes).where(instances.c.id == instance_id)
    body = tx.execute(query).scalar()
    return msgspec.json.decode(body, type=dict[str, Any]) if body else {}


def set_options(tx: Transaction, instance_ids: Collection[str], values: Mapping[str, Any]) -> None:
    """Set options of instances; ``None`` and false stand for the default."""
    query = select(instances.c.id, instances.c.attributes).where(instances.c.id.in_(instance_ids))
    for row in tx.execute(query).all():
        known = msgspec.json.decode(row.attributes) if row.attributes else {}
        merged = {**known, **values}
        kept = {name: value for name, value in merged.items() if value not in (None, False)}
        tx.execute(
            update(instances)
            .where(instances.c.id == row.id)
            .values(attributes=msgspec.json.encode(kept))
        )


def ends_by_itself(tx: Transaction, instance_id: str) -> bool:
    """Say whether an instance that shuts itself down shall be terminated."""
    return options(tx, instance_id).get(SHUTDOWN_BEHAVIOR) == TERMINATES


def set_while_stopped(tx: Transaction, instance_id: str, values: Mapping[str, str | int]) -> bool:
    """Set what the next start goes by; ``False`` when the instance is not stopped.

    A stopped instance claims no room and counts no quota for it: its start takes both by what is
    written here.
    """
    statement = (
        update(instances)
        .where(
            instances.c.id == instance_id,
            instances.c.state == InstanceState.STOPPED.value,
            instances.c.is_counted.is_(False),
        )
        .values(**values)
    )
    return tx.execute(statement).rowcount == 1


def set_groups(tx: Transaction, instance_id: str, group_ids: Sequence[str]) -> None:
    """Put all ports of an instance into these groups and no others.

    The nodes that enforce the groups are told after COMMIT, as after a change of rules.
    """
    query = select(ports.c.id, ports.c.network_id, ports.c.is_bound)
    rows = tx.execute(query.where(ports.c.instance_id == instance_id)).all()
    port_ids = [row.id for row in rows]
    had: dict[str, set[str]] = {port_id: set() for port_id in port_ids}
    members = select(port_groups).where(port_groups.c.port_id.in_(port_ids))
    for row in tx.execute(members):
        had[row.port_id].add(row.group_id)
    wanted = set(group_ids)
    changed = [row for row in rows if had[row.id] != wanted]
    if not changed:
        return
    changed_ids = [row.id for row in changed]
    tx.execute(delete(port_groups).where(port_groups.c.port_id.in_(changed_ids)))
    tx.execute(
        insert(port_groups),
        [
            {"port_id": port_id, "group_id": group_id}
            for port_id in changed_ids
            for group_id in sorted(wanted)
        ],
    )
    # A port that has never been bound is told to the nodes with its groups when it is.
    bound = [row.id for row in changed if row.is_bound]
    specs = networks.find(tx, {row.network_id for row in changed if row.is_bound})
    for vpc_id in sorted({spec.vpc_id for spec in specs.values()}):
        policy.changed(tx, vpc_id, _changes(tx, {each: had[each] for each in bound}, wanted))


def _changes(tx: Transaction, had: Mapping[str, set[str]], wanted: set[str]) -> list[Change]:
    owned = networks.of_ports(tx, had)
    changes = [Change(kind="port", subject=port_id) for port_id in had]
    for port_id, before in had.items():
        for kind, group_ids in (("left", before - wanted), ("joined", wanted - before)):
            changes += [
                Change(kind=kind, subject=group_id, address=address)
                for group_id in sorted(group_ids)
                for address in owned.get(port_id, ())
            ]
    return changes
