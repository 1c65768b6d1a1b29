"""Passwords that Windows makes at its first boot."""

from __future__ import annotations

from typing import Any

from appliance.api.ec2.action import action
from appliance.api.ec2.actions.instances import check_all_exist
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, moment


@action()
def get_password_data(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return that there is no password: an instance has none that it could tell."""
    ids = check_ids([params["InstanceId"]], "i", "InvalidInstanceID")
    call.read(lambda tx: check_all_exist(tx, call, ids))
    return {"InstanceId": ids[0], "Timestamp": moment(call.started_at), "PasswordData": ""}
