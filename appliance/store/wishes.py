"""What owners want of their instances: running, stopped or terminated, with a new revision each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import select, update

from appliance.messages import Place, RebootWanted, Wanted
from appliance.model import Desired, InstanceState
from appliance.store import Transaction
from appliance.store.describe import is_listed
from appliance.store.instance_filters import ZONE
from appliance.store.schema import instances, nodes


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How an instance stands before a wish; ``zone`` is empty while it has none."""

    instance_id: str
    reservation_id: str
    state: InstanceState
    node_id: str | None
    zone: str
    attributes: Mapping[str, Any]


def standing(
    tx: Transaction, project_id: str, instance_ids: Sequence[str], *, terminated_s: float
) -> dict[str, Standing]:
    """Return how a project's instances stand, by id; those that are not on its list are left out.

    :param terminated_s: seconds for which terminated instances stay on the list.
    """
    query = (
        select(
            instances.c.id,
            instances.c.reservation_id,
            instances.c.state,
            instances.c.node_id,
            ZONE.label("zone"),
            instances.c.attributes,
        )
        .select_from(instances.outerjoin(nodes, nodes.c.id == instances.c.node_id))
        .where(is_listed(tx, project_id, terminated_s), instances.c.id.in_(instance_ids))
    )
    return {
        row.id: Standing(
            instance_id=row.id,
            reservation_id=row.reservation_id,
            state=InstanceState(row.state),
            node_id=row.node_id,
            zone=row.zone or "",
            attributes=msgspec.json.decode(row.attributes) if row.attributes else {},
        )
        for row in tx.execute(query)
    }


def terminate(tx: Transaction, instance_ids: Sequence[str], request_id: str) -> None:
    """Want instances gone for ever."""
    _want(
        tx,
        instance_ids,
        request_id,
        desired=Desired.TERMINATED.value,
        state=InstanceState.SHUTTING_DOWN.value,
        **_by_user(tx),
    )
    _tell_controller(tx, instance_ids, request_id)


def stop(tx: Transaction, chosen: Sequence[Standing], request_id: str, *, is_forced: bool) -> None:
    """Want running instances off; their disks and addresses stay."""
    ids = [standing_now.instance_id for standing_now in chosen]
    _want(
        tx,
        ids,
        request_id,
        desired=Desired.STOPPED.value,
        state=InstanceState.STOPPING.value,
        **_by_user(tx),
    )
    _tell_controller(tx, ids, request_id, is_forced=is_forced)


def start(tx: Transaction, chosen: Sequence[Standing], request_id: str) -> None:
    """Want stopped instances running again, each on the node of its disk."""
    _want(
        tx,
        [standing_now.instance_id for standing_now in chosen],
        request_id,
        desired=Desired.RUNNING.value,
        state=InstanceState.PENDING.value,
        attempts=0,
        transition_reason="",
        reason_code="",
        reason_message="",
    )
    for standing_now in chosen:
        place = Place(
            reservation_id=standing_now.reservation_id,
            instance_ids=(standing_now.instance_id,),
            request_id=request_id,
        )
        tx.cast("scheduler", place)


def reboot(tx: Transaction, instance_ids: Sequence[str], request_id: str) -> None:
    """Want running instances to boot anew."""
    for instance_id in instance_ids:
        message = RebootWanted(instance_id=instance_id, request_id=request_id)
        tx.cast("controller", message)


def _want(
    tx: Transaction,
    instance_ids: Sequence[str],
    request_id: str,
    **values: str | int,
) -> None:
    statement = (
        update(instances)
        .where(
            instances.c.id.in_(instance_ids),
            instances.c.state != InstanceState.TERMINATED.value,
            instances.c.desired != Desired.TERMINATED.value,
        )
        .values(
            revision=instances.c.revision + 1,
            request_id=request_id,
            progress_at=tx.now,
            **values,
        )
    )
    tx.execute(statement)


def _tell_controller(
    tx: Transaction, instance_ids: Sequence[str], request_id: str, *, is_forced: bool = False
) -> None:
    for instance_id in instance_ids:
        message = Wanted(instance_id=instance_id, request_id=request_id, is_forced=is_forced)
        tx.cast("controller", message)


def _by_user(tx: Transaction) -> dict[str, str]:
    moment = datetime.fromtimestamp(tx.now, UTC)
    return {
        "transition_reason": f"User initiated ({moment:%Y-%m-%d %H:%M:%S} GMT)",
        "reason_code": "Client.UserInitiatedShutdown",
        "reason_message": "Client.UserInitiatedShutdown: User initiated shutdown",
    }
