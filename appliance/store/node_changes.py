"""What an operator writes about a node: roles, whether it takes instances, how much, its end."""

from __future__ import annotations

from sqlalchemy import delete, or_, select, update

from appliance.store import Transaction
from appliance.store.schema import node_claims, node_status, nodes


def set_roles(tx: Transaction, node_id: str, roles: tuple[str, ...]) -> None:
    """Write which roles a node shall have."""
    _write(tx, node_id, roles=" ".join(roles))


def set_accepts(tx: Transaction, node_id: str, *, accepts_instances: bool) -> None:
    """Write whether a node takes new instances."""
    _write(tx, node_id, accepts_instances=accepts_instances)


def set_approved(
    tx: Transaction,
    node_id: str,
    *,
    vcpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
) -> None:
    """Write the most that a node may offer; ``None`` is no limit."""
    _write(
        tx,
        node_id,
        approved_vcpus=vcpus,
        approved_memory_mib=memory_mib,
        approved_disk_gib=disk_gib,
    )


def remove(tx: Transaction, node_id: str) -> None:
    """Let a node be one no longer; its name is free, and what it offered is gone."""
    _write(tx, node_id, removed_at=tx.now, roles="")
    tx.execute(update(node_status).where(node_status.c.node_id == node_id).values(is_up=False))
    tx.execute(delete(node_claims).where(node_claims.c.node_id == node_id))


def find_removed(tx: Transaction, name: str) -> str | None:
    """Return the id of the node of that name or id that was removed last; ``None`` for none."""
    query = (
        select(nodes.c.id)
        .where(nodes.c.removed_at.is_not(None), or_(nodes.c.name == name, nodes.c.id == name))
        .order_by(nodes.c.removed_at.desc())
    )
    found: str | None = tx.execute(query).scalars().first()
    return found


def _write(tx: Transaction, node_id: str, **values: object) -> None:
    tx.execute(update(nodes).where(nodes.c.id == node_id).values(**values))
