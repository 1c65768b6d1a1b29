"""Counting anew what is kept as a sum: claims and quotas; and freeing what nobody has."""

from __future__ import annotations

from sqlalchemy import ColumnElement, ScalarSelect, func, select, update

from appliance.model import InstanceState
from appliance.store import Transaction
from appliance.store.placements import ACTIVE
from appliance.store.schema import (
    addresses,
    instances,
    key_pairs,
    node_claims,
    placements,
    ports,
    quotas,
    security_groups,
)


def claims(tx: Transaction, node_id: str) -> None:
    """Set the claims on a node to the sum of its active placements, in one statement."""

    def total(value: ColumnElement[int]) -> ScalarSelect[int]:
        query = select(func.coalesce(value, 0)).where(
            placements.c.node_id == node_id, placements.c.phase.in_(ACTIVE)
        )
        return query.scalar_subquery()

    tx.execute(
        update(node_claims)
        .where(node_claims.c.node_id == node_id)
        .values(
            vcpus_claimed=total(func.sum(placements.c.vcpus)),
            memory_claimed_mib=total(func.sum(placements.c.memory_mib)),
            disk_claimed_gib=total(func.sum(placements.c.disk_gib)),
            instances=total(func.count()),
        )
    )


def quotas_of_all(tx: Transaction) -> None:
    """Set what each project uses to what it has, one statement per resource."""
    runs = instances.c.state == InstanceState.RUNNING.value
    tx.execute(update(instances).where(runs).values(is_counted=True))
    alive = instances.c.state != InstanceState.TERMINATED.value
    counted = alive & instances.c.is_counted.is_(True)
    _set_used(tx, "instances", select(func.count()).where(_is_own(instances), alive))
    for name in ("vcpus", "memory_mib"):
        total = func.coalesce(func.sum(instances.c[name]), 0)
        _set_used(tx, name, select(total).where(_is_own(instances), counted))
    for name, table in (("security_groups", security_groups), ("key_pairs", key_pairs)):
        _set_used(tx, name, select(func.count()).where(_is_own(table)))


def _is_own(table: object) -> ColumnElement[bool]:
    return table.c.project_id == quotas.c.project_id  # type: ignore[attr-defined, no-any-return]


def _set_used(tx: Transaction, resource: str, query: object) -> None:
    used = query.correlate(quotas).scalar_subquery()  # type: ignore[attr-defined]
    tx.execute(update(quotas).where(quotas.c.resource == resource).values(used=used))


def free_stray(tx: Transaction, address: str) -> None:
    """Free an address if the port that has it does not exist."""
    tx.execute(
        update(addresses)
        .where(
            addresses.c.address == address,
            addresses.c.port_id.is_not(None),
            addresses.c.port_id.not_in(select(ports.c.id)),
        )
        .values(port_id=None, freed_at=tx.now)
    )
