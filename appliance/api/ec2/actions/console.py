"""What instances print on their serial port."""

from __future__ import annotations

import base64
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, moment
from appliance.messages import ConsoleRead, ReadConsole, node_topic
from appliance.store import Transaction, wishes

LARGEST_OUTPUT = 64 * 1024
_MOST_S = 10.0


@action(ignores=("Latest",))
def get_console_output(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the end of the output; an empty one for an instance that is on no node."""
    [instance_id] = check_ids([params["InstanceId"]], "i", "InvalidInstanceID")

    def find(tx: Transaction) -> wishes.Standing:
        found = wishes.standing(
            tx, call.project_id, [instance_id], terminated_s=call.parts.config.store.terminated_s
        )
        if not found:
            raise errors.instances_not_found([instance_id])
        return found[instance_id]

    node_id = call.read(find).node_id
    if not node_id:
        now = moment(call.started_at)
        return {"InstanceId": instance_id, "Timestamp": now, "Output": ""}
    question = ReadConsole(
        instance_id=instance_id, tail_bytes=LARGEST_OUTPUT, request_id=call.request_id
    )
    deadline_s = min(call.parts.config.bus.call_deadline_s, _MOST_S)
    topic = node_topic("compute", node_id)
    answer = call.parts.bus.call(topic, question, ConsoleRead, deadline_s).output
    return {
        "InstanceId": instance_id,
        "Timestamp": moment(answer.written_at or call.started_at),
        "Output": base64.b64encode(answer.text[-LARGEST_OUTPUT:]).decode("ascii"),
    }
