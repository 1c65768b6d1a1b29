"""How instances do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.actions.instances import check_all_exist
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, filters_of, moment, page_of, place_of
from appliance.api.ec2.protocol.serializer import Constant
from appliance.store import Transaction, instance_status
from appliance.store.filters import TAGS
from appliance.store.instance_filters import STATE_CODES
from appliance.store.instance_status import FILTERS, IMPAIRED, REACHABILITY, StatusView

MOST_IDS = 100

_STATES = {name: Constant({"Code": code, "Name": str(name)}) for name, code in STATE_CODES.items()}


@action(
    filters=(*FILTERS, *TAGS),
    page=Page(excludes={"InstanceIds": "instancesSet"}),
    ignores=("IncludeManagedResources",),
)
def describe_instance_status(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return how instances and their nodes do; those that run, or all of them."""
    ids = check_ids(params.get("InstanceIds", ()), "i", "InvalidInstanceID")
    if len(ids) > MOST_IDS:
        raise errors.invalid_parameter_value(
            "instanceId", f"{len(ids)}", f"At most {MOST_IDS} instances can be named."
        )
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[StatusView]:
        check_all_exist(tx, call, ids)
        return instance_status.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            ids=ids,
            includes_all=params.get("IncludeAllInstances", False),
            wanted=filters_of(params),
            after=place_of(params, float, str),
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda view: (view.created_at, view.instance_id))
    reply["InstanceStatuses"] = [_entry(view, call.parts.zone) for view in found]
    return reply


def _entry(view: StatusView, default_zone: str) -> dict[str, Any]:
    zone = view.zone or default_zone
    return {
        "InstanceId": view.instance_id,
        "AvailabilityZone": zone,
        "AvailabilityZoneId": zone,
        "InstanceState": _STATES[view.state],
        "Events": [],
        "SystemStatus": _summary(view.system, view.changed_at),
        "InstanceStatus": _summary(view.instance, view.changed_at),
    }


@lru_cache(maxsize=256)
def _summary(status: str, changed_at: float | None) -> Constant:
    if status not in REACHABILITY:
        return Constant({"Status": status})
    check: dict[str, Any] = {"Name": "reachability", "Status": REACHABILITY[status]}
    if status == IMPAIRED and changed_at is not None:
        check["ImpairedSince"] = moment(changed_at)
    return Constant({"Status": status, "Details": [check]})
