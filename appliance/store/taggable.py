"""What a project may tag: resources of any kind, known by the beginning of their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy import Select, select

from appliance.store import Transaction, describe, images, tags
from appliance.store.schema import (
    block_devices,
    instances,
    key_pairs,
    networks,
    ports,
    security_group_rules,
    security_groups,
    vpcs,
)

Ids = Select[tuple[str]]

_OWNED: Mapping[str, tuple[str, Callable[[str], Ids]]] = {
    "eni": ("network-interface", lambda owner: _owned(ports.c.id, ports.c.project_id, owner)),
    "key": ("key-pair", lambda owner: _owned(key_pairs.c.id, key_pairs.c.project_id, owner)),
    "sg": (
        "security-group",
        lambda owner: _owned(security_groups.c.id, security_groups.c.project_id, owner),
    ),
    "sgr": (
        "security-group-rule",
        lambda owner: (
            select(security_group_rules.c.id)
            .join(security_groups, security_groups.c.id == security_group_rules.c.group_id)
            .where(security_groups.c.project_id == owner)
        ),
    ),
    "vol": (
        "volume",
        lambda owner: (
            select(block_devices.c.id)
            .join(instances, instances.c.id == block_devices.c.instance_id)
            .where(instances.c.project_id == owner)
        ),
    ),
}
_SHARED = {"subnet": ("subnet", networks.c.id), "vpc": ("vpc", vpcs.c.id)}
_IMAGES = frozenset(images.ID_PREFIXES.values())

RESOURCE_TYPES: Mapping[str, str] = {
    "i": "instance",
    **dict.fromkeys(sorted(_IMAGES), "image"),
    **{prefix: kind for prefix, (kind, _) in (*_OWNED.items(), *_SHARED.items())},
}
"""The type of what bears tags by the beginning of its id."""


def _owned(column: object, owner_column: object, owner: str) -> Ids:
    return select(column).where(owner_column == owner)  # type: ignore[call-overload,no-any-return]


def find(
    tx: Transaction, project_id: str, resource_ids: Sequence[str], *, terminated_s: float
) -> dict[str, tuple[str, str]]:
    """Return (subject, type) by id of what a project may tag; the rest is left out.

    :param terminated_s: seconds for which terminated instances stay on the list.
    """
    by_prefix: dict[str, list[str]] = {}
    for each in resource_ids:
        by_prefix.setdefault(each.partition("-")[0], []).append(each)
    found: dict[str, tuple[str, str]] = {}
    for prefix, ids in by_prefix.items():
        for resource_id, subject in _known(tx, project_id, prefix, ids, terminated_s):
            found[resource_id] = (subject, RESOURCE_TYPES[prefix])
    return found


def _known(
    tx: Transaction, project_id: str, prefix: str, ids: list[str], terminated_s: float
) -> Iterable[tuple[str, str]]:
    """Yield (id, subject) of the known ones among ids of one kind."""
    if prefix == "i":
        known = describe.known_ids(tx, project_id, ids, terminated_s=terminated_s)
        return [(each, each) for each in known]
    if prefix in _IMAGES:
        seen = images.find(tx, project_id, ids).values()
        return [(each.image_id, images.subject_of(each, project_id)) for each in seen]
    if prefix in _SHARED:
        column = _SHARED[prefix][1]
        rows = tx.execute(select(column).where(column.in_(ids))).scalars()
        return [(each, tags.shared(each, project_id)) for each in rows]
    if prefix in _OWNED:
        query = _OWNED[prefix][1](project_id)
        chosen = query.where(query.selected_columns[0].in_(ids))
        return [(each, each) for each in tx.execute(chosen).scalars()]
    return []
