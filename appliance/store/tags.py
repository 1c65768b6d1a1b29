"""Tags of resources of any kind: one indexed table.

What belongs to nobody or to somebody else, such as a VPC or a public image, is tagged by each
project for itself: such tags are kept under the resource's id and the project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
)

from appliance.model import InstanceState
from appliance.store import Transaction, filters
from appliance.store.filters import Filter
from appliance.store.schema import instances, tags

MOST_TAGS = 50
"""Tags that a resource may bear."""


class Tag(NamedTuple):
    """A tag with what bears it; ``subject`` is the id under which it is kept."""

    subject: str
    resource_id: str
    resource_type: str
    key: str
    value: str


def shared(resource_id: str, project_id: str) -> str:
    """Return the id under which a project's tags of what is not its own are kept."""
    return f"{resource_id}@{project_id}"


def shared_column(column: ColumnElement[str], project_id: str) -> ColumnElement[str]:
    """Return what :func:`shared` does as SQL."""
    return column + literal(f"@{project_id}")


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
    resource_types: Mapping[str, str],
    values: Mapping[str, str],
) -> bool:
    """Tag resources, given as id → type; a tag of the same key is replaced.

    :returns: ``False`` when one has more tags than it may; the caller must not commit.
    """
    subjects = list(resource_types)
    tx.execute(delete(tags).where(tags.c.resource_id.in_(subjects), tags.c.key.in_(list(values))))
    for kind in sorted(set(resource_types.values())):
        ids = [subject for subject in subjects if resource_types[subject] == kind]
        add(tx, project_id, kind, ids, values)
    crowded = (
        select(tags.c.resource_id)
        .where(tags.c.resource_id.in_(subjects))
        .group_by(tags.c.resource_id)
        .having(func.count() > MOST_TAGS)
    )
    return tx.execute(crowded.limit(1)).first() is None


def remove(
    tx: Transaction, subjects: Sequence[str], wanted: Sequence[tuple[str, str | None]]
) -> None:
    """Remove tags by (key, value), those of any value for ``None``; all tags for no pairs."""
    statement = delete(tags).where(tags.c.resource_id.in_(subjects))
    if wanted:
        whole = [key for key, value in wanted if value is None]
        exact = [(key, value) for key, value in wanted if value is not None]
        statement = statement.where(
            or_(tags.c.key.in_(whole), tuple_(tags.c.key, tags.c.value).in_(exact))
        )
    tx.execute(statement)


def clear(tx: Transaction, resource_ids: Iterable[str]) -> None:
    """Remove all tags of resources that end."""
    tx.execute(delete(tags).where(tags.c.resource_id.in_(list(resource_ids))))


def clear_of_all(tx: Transaction, resource_id: str) -> None:
    """Remove all projects' tags of what ends and was not only one project's."""
    clear(tx, [resource_id])
    tx.execute(delete(tags).where(tags.c.resource_id.startswith(shared(resource_id, ""))))


def _of(ids: Select[tuple[str]] | BindParameter[Any]) -> Select[Any]:
    query = select(tags.c.resource_id, tags.c.key, tags.c.value)
    return query.where(tags.c.resource_id.in_(ids)).order_by(tags.c.key)


_OF = _of(bindparam("ids", expanding=True))


def of(
    tx: Transaction, resource_ids: Iterable[str] | Select[tuple[str]]
) -> dict[str, list[tuple[str, str]]]:
    """Return the (key, value) pairs of resources by id; the ids may be a query."""
    rows: Iterable[Any] = (
        tx.execute(_of(resource_ids))
        if isinstance(resource_ids, Select)
        else tx.execute(_OF, {"ids": list(resource_ids)})
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for resource_id, key, value in rows:
        found.setdefault(resource_id, []).append((key, value))
    return found


def of_shared(
    tx: Transaction, project_id: str, resource_ids: Iterable[str]
) -> dict[str, list[tuple[str, str]]]:
    """Return a project's (key, value) pairs of what is not its own, by id."""
    ids = list(resource_ids)
    found = of(tx, [shared(each, project_id) for each in ids])
    return {each: pairs for each in ids if (pairs := found.get(shared(each, project_id)))}


def _rules(project_id: str) -> dict[str, filters.Rule]:
    def resource_id(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
        both = [*values, *(shared(value, project_id) for value in values)]
        return filters.matches(tx, tags.c.resource_id, both)

    return {
        "key": filters.text(tags.c.key),
        "resource-id": resource_id,
        "resource-type": filters.text(tags.c.resource_type),
        "value": filters.text(tags.c.value),
    }


def _pair_rule(key: str) -> filters.Rule:
    return lambda tx, values: and_(tags.c.key == key, filters.matches(tx, tags.c.value, values))


FILTERS = (*_rules(""), filters.ANY_TAG)
"""What tags can be filtered by."""


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    terminated_s: float,
    wanted: Sequence[Filter] = (),
    after: Sequence[str] = (),
    limit: int | None = None,
) -> list[Tag]:
    """Return a project's tags by resource and key, from behind ``after`` (subject, key) on.

    :param terminated_s: seconds for which terminated instances stay on the list.
    :raises InputError: a filter is not known.
    """
    rules = _rules(project_id) | {
        name: _pair_rule(name.removeprefix("tag:"))
        for name, _ in wanted
        if filters.is_known(name, [filters.ANY_TAG])
    }
    ended = exists().where(
        instances.c.id == tags.c.resource_id,
        instances.c.state == InstanceState.TERMINATED.value,
        instances.c.terminated_at <= tx.now - terminated_s,
    )
    query = select(tags.c.resource_id, tags.c.resource_type, tags.c.key, tags.c.value).where(
        tags.c.project_id == project_id, ~ended, *filters.conditions(tx, rules, wanted)
    )
    if after:
        query = query.where(tuple_(tags.c.resource_id, tags.c.key) > tuple_(*after))
    rows: Iterable[Any] = tx.execute(query.order_by(tags.c.resource_id, tags.c.key).limit(limit))
    return [
        Tag(subject, subject.partition("@")[0], kind, key, value)
        for subject, kind, key, value in rows
    ]
