"""Key pairs: the public halves, by name within a project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from appliance.store import Transaction, filters, tags
from appliance.store.filters import Filter
from appliance.store.schema import key_pairs


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A key pair as it is stored; ``public_key`` is a line of OpenSSH's form."""

    key_pair_id: str
    name: str
    type: str
    fingerprint: str
    public_key: str
    created_at: float


FILTERS: Mapping[str, filters.Rule] = {
    "key-pair-id": filters.text(key_pairs.c.id),
    "key-name": filters.text(key_pairs.c.name),
    "fingerprint": filters.text(key_pairs.c.fingerprint),
}


def _key_pair(row: object) -> KeyPair:
    values = row._mapping  # type: ignore[attr-defined]
    return KeyPair(
        key_pair_id=values["id"],
        name=values["name"],
        type=values["type"],
        fingerprint=values["fingerprint"],
        public_key=values["public_key"],
        created_at=values["created_at"],
    )


def create(
    tx: Transaction, project_id: str, *, name: str, kind: str, fingerprint: str, public_key: str
) -> KeyPair:
    """Store a key pair; its name must be free, see :func:`find`."""
    key_pair = KeyPair(
        key_pair_id=tx.world.ids.ec2("key"),
        name=name,
        type=kind,
        fingerprint=fingerprint,
        public_key=public_key,
        created_at=tx.now,
    )
    tx.execute(
        insert(key_pairs).values(
            id=key_pair.key_pair_id,
            project_id=project_id,
            name=name,
            type=kind,
            fingerprint=fingerprint,
            public_key=public_key,
            created_at=tx.now,
        )
    )
    return key_pair


def find(
    tx: Transaction, project_id: str, names: Iterable[str] = (), ids: Iterable[str] = ()
) -> list[KeyPair]:
    """Return the key pairs that have one of the names or ids; missing ones are left out."""
    query = select(key_pairs).where(
        key_pairs.c.project_id == project_id,
        key_pairs.c.name.in_(list(names)) | key_pairs.c.id.in_(list(ids)),
    )
    return [_key_pair(row) for row in tx.execute(query)]


def list_all(tx: Transaction, project_id: str, wanted: Sequence[Filter] = ()) -> list[KeyPair]:
    """Return a project's key pairs by name.

    :raises InputError: a filter is not known.
    """
    query = select(key_pairs).where(
        key_pairs.c.project_id == project_id,
        *filters.conditions(tx, FILTERS, wanted, key_pairs.c.id),
    )
    return [_key_pair(row) for row in tx.execute(query.order_by(key_pairs.c.name))]


def remove(tx: Transaction, key_pair_id: str) -> None:
    """Delete a key pair and its tags; instances keep the key they were launched with."""
    tags.clear(tx, [key_pair_id])
    tx.execute(delete(key_pairs).where(key_pairs.c.id == key_pair_id))
