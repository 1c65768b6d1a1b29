"""What there is to know of the caller's account, which is the project."""

from __future__ import annotations

from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.actions.launch import MOST_GROUPS
from appliance.api.ec2.call import Call
from appliance.store import Transaction, networks, quotas


@action()
def describe_account_attributes(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the default VPC and some ceilings; that of instances is the project's quota."""

    def read(tx: Transaction) -> dict[str, str]:
        return {
            "supported-platforms": "VPC",
            "default-vpc": networks.default_vpc(tx) or "none",
            "max-instances": str(quotas.ceiling(tx, call.project_id, "instances")),
            "vpc-max-security-groups-per-interface": str(MOST_GROUPS),
            # There are no addresses to allocate.
            "max-elastic-ips": "0",
            "vpc-max-elastic-ips": "0",
        }

    found = call.read(read)
    asked = list(dict.fromkeys(params.get("AttributeNames", found)))
    for name in asked:
        if name not in found:
            raise errors.invalid_parameter_value("attributeName", name)
    return {
        "AccountAttributes": [
            {"AttributeName": name, "AttributeValues": [{"AttributeValue": found[name]}]}
            for name in asked
        ]
    }
