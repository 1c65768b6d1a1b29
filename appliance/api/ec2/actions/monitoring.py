"""Whether owners want their instances monitored in detail: kept and shown, as EC2 does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.actions.instances import monitoring, monitoring_state
from appliance.api.ec2.actions.power import ids_of, standing_of_all
from appliance.api.ec2.call import Call
from appliance.model import InstanceState
from appliance.store import Transaction, attributes
from appliance.store.instance_filters import MONITORED
from appliance.store.wishes import Standing


@action(ignores=("MetricCategoryIds",))
def monitor_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Keep that instances are to be monitored in detail; there are no metrics yet."""
    return _change(call, params, MONITORED, under_way="pending")


@action(ignores=("MetricCategoryIds",))
def unmonitor_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Keep that instances are no longer to be monitored in detail."""
    return _change(call, params, None, under_way="disabling")


def _change(
    call: Call, params: Mapping[str, Any], wanted: str | None, *, under_way: str
) -> dict[str, Any]:
    ids = ids_of(params)

    def change(tx: Transaction) -> Mapping[str, Standing]:
        found = standing_of_all(tx, call, ids)
        for each in found.values():
            if each.state is InstanceState.TERMINATED:
                raise errors.incorrect_instance_state(each.instance_id, "monitored")
        attributes.set_options(tx, ids, {"monitoring": wanted})
        return found

    found = call.change(change, " ".join(ids))
    return {
        "InstanceMonitorings": [
            {"InstanceId": each, "Monitoring": monitoring(_state(found[each], wanted, under_way))}
            for each in ids
        ]
    }


def _state(before: Standing, wanted: str | None, under_way: str) -> str:
    """Return the state that EC2 answers: a change is under way, what was so before is settled."""
    if before.attributes.get("monitoring") == wanted:
        return monitoring_state(before.state, before.attributes)
    return under_way
