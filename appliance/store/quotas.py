"""What a project may use, and uses: one row per project and resource."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam, insert, select, update

from appliance.store import Transaction
from appliance.store.schema import instances, quotas

_TAKE = (
    update(quotas)
    .where(
        quotas.c.project_id == bindparam("of_project"),
        quotas.c.resource == bindparam("of_resource"),
        quotas.c.used + bindparam("amount") <= quotas.c.ceiling,
    )
    .values(used=quotas.c.used + bindparam("amount"))
)
_OF_PROJECT = select(quotas).where(quotas.c.project_id == bindparam("project_id"))


def create(tx: Transaction, project_id: str, ceilings: Mapping[str, int]) -> None:
    """Give a new project its quotas."""
    rows = [
        {"project_id": project_id, "resource": resource, "used": 0, "ceiling": ceiling}
        for resource, ceiling in ceilings.items()
    ]
    tx.execute(insert(quotas), rows)


def take(tx: Transaction, project_id: str, resource: str, amount: int) -> bool:
    """Use some of a resource in one conditional UPDATE; ``False`` when too little is left."""
    values = {"of_project": project_id, "of_resource": resource, "amount": amount}
    return tx.execute(_TAKE, values).rowcount == 1


def take_all(tx: Transaction, project_id: str, amounts: Mapping[str, int]) -> bool:
    """Use some of several resources, each as :func:`take` does.

    :returns: ``False`` when too little is left of one; the caller must not commit.
    """
    rows = [
        {"of_project": project_id, "of_resource": resource, "amount": amount}
        for resource, amount in amounts.items()
    ]
    return tx.execute(_TAKE, rows).rowcount == len(rows)


def give_back(tx: Transaction, project_id: str, resource: str, amount: int) -> None:
    """Use less of a resource."""
    if amount:
        tx.execute(
            update(quotas)
            .where(quotas.c.project_id == project_id, quotas.c.resource == resource)
            .values(used=quotas.c.used - amount)
        )


def ceiling(tx: Transaction, project_id: str, resource: str) -> int:
    """Return how much of a resource a project may use; 0 where nothing is said of it."""
    query = select(quotas.c.ceiling).where(
        quotas.c.project_id == project_id, quotas.c.resource == resource
    )
    return int(tx.execute(query).scalar() or 0)


def left(tx: Transaction, project_id: str) -> dict[str, int]:
    """Return how much of each resource is left; for saying how many, never for deciding."""
    rows = tx.execute(_OF_PROJECT, {"project_id": project_id})
    return {row.resource: row.ceiling - row.used for row in rows}


def uncount(tx: Transaction, instance_id: str) -> None:
    """Give back what an instance uses only while it runs; nothing when that was done before.

    ``instances.is_counted`` says whether the instance is counted: its state does not, once a
    stopped one is on its way to being terminated.
    """
    statement = (
        update(instances)
        .where(instances.c.id == instance_id, instances.c.is_counted.is_(True))
        .values(is_counted=False)
        .returning(instances.c.project_id, instances.c.vcpus, instances.c.memory_mib)
    )
    row = tx.execute(statement).first()
    if row:
        give_back(tx, row.project_id, "vcpus", row.vcpus)
        give_back(tx, row.project_id, "memory_mib", row.memory_mib)
