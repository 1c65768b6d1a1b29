"""What the cluster knows of itself and everybody may see, by name."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from appliance.store import Transaction
from appliance.store.schema import cluster

AUTHORITY = "authority"
"""The certificate of the cluster's authority, PEM."""


def put(tx: Transaction, name: str, value: str) -> None:
    """Store a fact, in place of the one of that name."""
    changed = tx.execute(update(cluster).where(cluster.c.key == name).values(value=value))
    if not changed.rowcount:
        tx.execute(insert(cluster).values(key=name, value=value))


def find(tx: Transaction, name: str) -> str | None:
    """Return a fact; ``None`` when there is none of that name."""
    query = select(cluster.c.value).where(cluster.c.key == name)
    found: str | None = tx.execute(query).scalar_one_or_none()
    return found


def remove(tx: Transaction, name: str) -> None:
    """Forget a fact; none there is no error."""
    tx.execute(delete(cluster).where(cluster.c.key == name))
