"""Tags of resources of any kind: one indexed table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Select, delete, insert, select

from appliance.store import Transaction
from appliance.store.schema import tags


def add(
    tx: Transaction,
    project_id: str,
    resource_type: str,
    resource_ids: Iterable[str],
    values: Mapping[str, str],
) -> None:
    """Tag new resources; for those that may have tags already use :func:`put`."""
    rows = [
        {
            "resource_id": resource_id,
            "key": key,
            "value": value,
            "resource_type": resource_type,
            "project_id": project_id,
        }
        for resource_id in resource_ids
        for key, value in values.items()
    ]
    if rows:
        tx.execute(insert(tags), rows)


def put(
    tx: Transaction,
    project_id: str,
    resource_type: str,
    resource_ids: Iterable[str],
    values: Mapping[str, str],
) -> None:
    """Tag resources; a tag of the same key is replaced."""
    ids = list(resource_ids)
    tx.execute(delete(tags).where(tags.c.resource_id.in_(ids), tags.c.key.in_(list(values))))
    add(tx, project_id, resource_type, ids, values)


def clear(tx: Transaction, resource_ids: Iterable[str]) -> None:
    """Remove all tags of resources that end."""
    tx.execute(delete(tags).where(tags.c.resource_id.in_(list(resource_ids))))


def of(
    tx: Transaction, resource_ids: Iterable[str] | Select[tuple[str]]
) -> dict[str, list[tuple[str, str]]]:
    """Return the (key, value) pairs of resources by id; the ids may be a query."""
    ids = resource_ids if isinstance(resource_ids, Select) else list(resource_ids)
    query = select(tags.c.resource_id, tags.c.key, tags.c.value).where(tags.c.resource_id.in_(ids))
    found: dict[str, list[tuple[str, str]]] = {}
    rows: Iterable[Any] = tx.execute(query.order_by(tags.c.key))
    for resource_id, key, value in rows:
        found.setdefault(resource_id, []).append((key, value))
    return found
