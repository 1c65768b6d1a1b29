"""CPU credits: what owners asked for is kept, and no instance is ever held back."""

from __future__ import annotations

from typing import Any

from appliance.api.ec2.action import Page, action
from appliance.api.ec2.actions.instances import check_all_exist
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, filters_of, page_of, place_of
from appliance.store import Transaction, credit_specifications
from appliance.store.credit_specifications import FILTERS, CreditView


@action(filters=FILTERS, page=Page(excludes={"InstanceIds": "instancesSet"}))
def describe_instance_credit_specifications(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the credit option of the instances named, else of those with ``unlimited``."""
    ids = check_ids(params.get("InstanceIds", ()), "i", "InvalidInstanceID")
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[CreditView]:
        check_all_exist(tx, call, ids)
        return credit_specifications.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            ids=ids,
            wanted=filters_of(params),
            after=place_of(params, float, str),
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda view: (view.created_at, view.instance_id))
    reply["InstanceCreditSpecifications"] = [
        {"InstanceId": view.instance_id, "CpuCredits": view.cpu_credits} for view in found
    ]
    return reply
