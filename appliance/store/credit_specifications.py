"""The CPU credit options that owners asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import and_, func, select

from appliance.store import Transaction, filters
from appliance.store.describe import is_behind, is_listed
from appliance.store.filters import Filter
from appliance.store.instance_filters import attribute
from appliance.store.schema import instances

STANDARD, UNLIMITED = "standard", "unlimited"

FILTERS: Mapping[str, filters.Rule] = {"instance-id": filters.text(instances.c.id)}
"""What credit options can be filtered by."""


class CreditView(Struct, kw_only=True, gc=False):
    """An instance's credit option."""

    instance_id: str
    cpu_credits: str
    created_at: float


def list_page(
    tx: Transaction,
    project_id: str,
    *,
    terminated_s: float,
    ids: Sequence[str] = (),
    wanted: Sequence[Filter] = (),
    after: Sequence[float | str] = (),
    limit: int | None = None,
) -> list[CreditView]:
    """Return the options of these instances, without ids of all that asked for ``unlimited``.

    Oldest instances first, from behind ``after`` (created_at, id) on.

    :raises InputError: a filter is not known.
    """
    shown = func.coalesce(attribute(tx, "cpu_credits"), STANDARD)
    condition = and_(
        is_listed(tx, project_id, terminated_s),
        is_behind(after),
        instances.c.id.in_(ids) if ids else shown == UNLIMITED,
        *filters.conditions(tx, FILTERS, wanted),
    )
    query = select(instances.c.id, shown, instances.c.created_at).where(condition)
    query = query.order_by(instances.c.created_at, instances.c.id).limit(limit)
    rows: Iterable[Any] = tx.execute(query)
    return [CreditView(instance_id=row[0], cpu_credits=row[1], created_at=row[2]) for row in rows]
