"""Secrets of the whole cluster, sealed: the authority's key, the login that administers the bus."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from appliance.seal import Seal
from appliance.store import Transaction
from appliance.store.schema import cluster_secrets

_PURPOSE = "cluster secret"


def put(tx: Transaction, seal: Seal, name: str, clear: bytes) -> None:
    """Store a secret, in place of the one of that name."""
    values = {"sealed": seal.close(clear, f"{_PURPOSE}:{name}"), "changed_at": tx.now}
    changed = tx.execute(
        update(cluster_secrets).where(cluster_secrets.c.name == name).values(values)
    )
    if not changed.rowcount:
        tx.execute(insert(cluster_secrets).values(name=name, **values))


def find(tx: Transaction, seal: Seal, name: str) -> bytes | None:
    """Return a secret; ``None`` when there is none of that name.

    :raises ConfigError: the key that sealed it is not in this node's file, or it was altered.
    """
    found = sealed(tx, name)
    return seal.open(found, f"{_PURPOSE}:{name}") if found else None


def sealed(tx: Transaction, name: str) -> bytes | None:
    """Return a secret as it is stored, which a copy of the store has just so."""
    query = select(cluster_secrets.c.sealed).where(cluster_secrets.c.name == name)
    found: bytes | None = tx.execute(query).scalar_one_or_none()
    return found


def remove(tx: Transaction, name: str) -> None:
    """Forget a secret; none there is no error."""
    tx.execute(delete(cluster_secrets).where(cluster_secrets.c.name == name))
