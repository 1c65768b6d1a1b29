"""How instances do, as far as it is known: what their owner wants, and whether their node is up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, and_, case, select

from appliance.model import InstanceState
from appliance.store import Transaction, filters, instance_filters
from appliance.store.describe import is_behind, is_listed
from appliance.store.filters import Filter
from appliance.store.instance_filters import LAUNCHED_AT, ZONE
from appliance.store.schema import instances, node_status, nodes

OK, IMPAIRED, INITIALIZING = "ok", "impaired", "initializing"
NO_DATA, NOT_APPLICABLE = "insufficient-data", "not-applicable"

REACHABILITY: Mapping[str, str] = {
    OK: "passed",
    IMPAIRED: "failed",
    INITIALIZING: "initializing",
    NO_DATA: "insufficient-data",
}
"""The outcome of the one check behind a status; none is made where it is not applicable."""


class StatusView(Struct, kw_only=True, gc=False):
    """An instance's state, and the status of its node (``system``) and of itself.

    ``changed_at`` is when the node went up or down.
    """

    instance_id: str
    zone: str | None
    state: str
    system: str
    instance: str
    changed_at: float | None
    created_at: float


# A node that is up and was heard of since the launch says so much: the instance has its power.
_system = case(
    (instances.c.state != InstanceState.RUNNING.value, NOT_APPLICABLE),
    (node_status.c.is_up.is_(None), NO_DATA),
    (node_status.c.is_up.is_(False), IMPAIRED),
    (node_status.c.seen_at < LAUNCHED_AT, INITIALIZING),
    else_=OK,
)
# Of an instance on a node that is silent nothing is known: it may well go on running.
_instance = case((_system == IMPAIRED, NO_DATA), else_=_system)


def _check(status: ColumnElement[str]) -> filters.Rule:
    return filters.text(case(dict(REACHABILITY), value=status))


FILTERS: Mapping[str, filters.Rule] = {
    **{
        name: instance_filters.FILTERS[name]
        for name in (
            "availability-zone",
            "availability-zone-id",
            "instance-state-code",
            "instance-state-name",
            "operator.managed",
            "operator.principal",
        )
    },
    "application-status.status": filters.nothing,
    "attached-ebs-status.status": filters.nothing,
    "event.code": filters.nothing,
    "event.description": filters.nothing,
    "event.instance-event-id": filters.nothing,
    "event.not-after": filters.nothing,
    "event.not-before": filters.nothing,
    "event.not-before-deadline": filters.nothing,
    "instance-status.reachability": _check(_instance),
    "instance-status.status": filters.text(_instance),
    "system-status.reachability": _check(_system),
    "system-status.status": filters.text(_system),
}
"""What the status of instances can be filtered by."""


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    terminated_s: float,
    ids: Sequence[str] = (),
    includes_all: bool = False,
    wanted: Sequence[Filter] = (),
    after: Sequence[float | str] = (),
    limit: int | None = None,
) -> list[StatusView]:
    """Return how a project's instances do, oldest first, from behind ``after`` on.

    :param terminated_s: seconds for which terminated instances stay on the list.
    :param includes_all: not only those that run.
    :param after: (created_at, id) of the last row of the page before.
    :raises InputError: a filter is not known.
    """
    condition = and_(
        is_listed(tx, project_id, terminated_s),
        is_behind(after),
        *filters.conditions(tx, FILTERS, wanted, instances.c.id),
    )
    if ids:
        condition = and_(condition, instances.c.id.in_(ids))
    if not includes_all:
        condition = and_(condition, instances.c.state == InstanceState.RUNNING.value)
    query = (
        select(
            instances.c.id,
            ZONE,
            instances.c.state,
            _system,
            _instance,
            node_status.c.changed_at,
            instances.c.created_at,
        )
        .select_from(
            instances.outerjoin(nodes, nodes.c.id == instances.c.node_id).outerjoin(
                node_status, node_status.c.node_id == instances.c.node_id
            )
        )
        .where(condition)
        .order_by(instances.c.created_at, instances.c.id)
        .limit(limit)
    )
    rows: Sequence[Any] = tx.execute(query).all()
    return [
        StatusView(
            instance_id=row[0],
            zone=row[1],
            state=row[2],
            system=row[3],
            instance=row[4],
            changed_at=row[5],
            created_at=row[6],
        )
        for row in rows
    ]
