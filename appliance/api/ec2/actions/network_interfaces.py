"""Network interfaces: the ports of instances."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.errors import network_interfaces_not_found
from appliance.api.ec2.paging import (
    check_ids,
    filters_of,
    missing_of,
    moment,
    page_of,
    place_of,
    tag_set,
)
from appliance.store import Transaction, interfaces
from appliance.store.filters import TAGS
from appliance.store.interfaces import InterfaceView


@action(
    filters=(*interfaces.FILTERS, *TAGS),
    page=Page(excludes={"NetworkInterfaceIds": "networkInterfaceIds"}),
    ignores=("IncludeManagedResources",),
)
def describe_network_interfaces(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return the network interfaces of instances; each comes and goes with its instance."""
    ids = check_ids(params.get("NetworkInterfaceIds", ()), "eni", "InvalidNetworkInterfaceId")
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[InterfaceView]:
        missing = missing_of(ids, interfaces.known_ids(tx, call.project_id, ids)) if ids else []
        if missing:
            raise network_interfaces_not_found(missing)
        return interfaces.list_page(
            tx,
            call.project_id,
            default_zone=call.parts.zone,
            ids=ids,
            wanted=filters_of(params),
            after=place_of(params, float, str),
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda view: (view.created_at, view.port_id))
    times: dict[float, datetime] = {}
    reply["NetworkInterfaces"] = [
        _description(view, times.setdefault(view.attached_at, moment(view.attached_at)))
        for view in found
    ]
    return reply


def _description(view: InterfaceView, attached_at: datetime) -> dict[str, Any]:
    names = [f"ip-{each.replace('.', '-')}.{view.domain}" for each in view.addresses]
    return {
        "NetworkInterfaceId": view.port_id,
        "OwnerId": view.project_id,
        "VpcId": view.vpc_id,
        "SubnetId": view.network_id,
        "AvailabilityZone": view.zone,
        "AvailabilityZoneId": view.zone,
        "Description": "",
        "Status": "in-use",
        "InterfaceType": "interface",
        "MacAddress": view.mac,
        "SourceDestCheck": True,
        "RequesterManaged": False,
        "Operator": {"Managed": False},
        "PrivateIpAddress": view.addresses[0] if view.addresses else None,
        "PrivateDnsName": names[0] if names else None,
        "PrivateIpAddresses": [
            {"PrivateIpAddress": address, "PrivateDnsName": name, "Primary": place == 0}
            for place, (address, name) in enumerate(zip(view.addresses, names, strict=True))
        ],
        "Ipv6Addresses": [],
        "Groups": [{"GroupId": each, "GroupName": name} for each, name in view.groups],
        "Attachment": {
            "AttachmentId": interfaces.attachment_id(view.port_id),
            "InstanceId": view.instance_id,
            "InstanceOwnerId": view.project_id,
            "DeviceIndex": view.device_index,
            "NetworkCardIndex": 0,
            "Status": "attached",
            "AttachTime": attached_at,
            "DeleteOnTermination": True,
        },
        "TagSet": tag_set(view.tags),
    }
