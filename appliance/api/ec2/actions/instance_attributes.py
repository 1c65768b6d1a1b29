"""Single attributes of an instance, each in the element that EC2 has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.actions.instances import disk_entry, groups_of
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, moment
from appliance.model import InstanceState
from appliance.store import Transaction, attributes, describe
from appliance.store.attributes import SHUTDOWN_BEHAVIOR, STOPS
from appliance.store.describe import InstanceView

Shown = Callable[[InstanceView, str], Any]
"""Returns an attribute's element from an instance and its user data."""


def _value(value: Any) -> dict[str, Any]:
    """Return an element with a value; an empty element where there is none, as EC2 sends it."""
    return {"Value": value} if value not in (None, "") else {}


def _option(name: str) -> Shown:
    return lambda view, user_data: {"Value": view.attributes.get(name, False)}


def _groups(view: InstanceView) -> list[Any]:
    is_listed = view.ports and view.state != InstanceState.TERMINATED
    return [dict(group) for group in groups_of(view.ports[0])] if is_listed else []


ELEMENTS: Mapping[str, tuple[str, Shown]] = {
    "blockDeviceMapping": (
        "BlockDeviceMappings",
        lambda view, user_data: [disk_entry(disk, moment(view.launched_at)) for disk in view.disks],
    ),
    "disableApiStop": ("DisableApiStop", _option("disable_api_stop")),
    "disableApiTermination": ("DisableApiTermination", _option("disable_api_termination")),
    "ebsOptimized": ("EbsOptimized", lambda view, user_data: {"Value": False}),
    "enaSupport": ("EnaSupport", lambda view, user_data: {"Value": False}),
    "enclaveOptions": ("EnclaveOptions", lambda view, user_data: {"Enabled": False}),
    "groupSet": ("Groups", lambda view, user_data: _groups(view)),
    "instanceInitiatedShutdownBehavior": (
        "InstanceInitiatedShutdownBehavior",
        lambda view, user_data: {"Value": view.attributes.get(SHUTDOWN_BEHAVIOR, STOPS)},
    ),
    "instanceType": ("InstanceType", lambda view, user_data: _value(view.instance_type)),
    "kernel": ("KernelId", lambda view, user_data: _value(view.kernel_id)),
    "productCodes": ("ProductCodes", lambda view, user_data: []),
    "ramdisk": ("RamdiskId", lambda view, user_data: _value(view.ramdisk_id)),
    "rootDeviceName": ("RootDeviceName", lambda view, user_data: _value(view.root_device_name)),
    "sourceDestCheck": ("SourceDestCheck", lambda view, user_data: {"Value": True}),
    "sriovNetSupport": ("SriovNetSupport", lambda view, user_data: {}),
    "userData": ("UserData", lambda view, user_data: _value(user_data)),
}
"""Every attribute that EC2 documents: the member of the reply, and how it is found."""


@action()
def describe_instance_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return one attribute, always in its element, also where it has no value."""
    [instance_id] = check_ids([params["InstanceId"]], "i", "InvalidInstanceID")
    member, shown = ELEMENTS[params["Attribute"]]

    def read(tx: Transaction) -> tuple[InstanceView, str]:
        found = describe.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            ids=[instance_id],
        )
        if not found:
            raise errors.instances_not_found([instance_id])
        needs_user_data = params["Attribute"] == "userData"
        return found[0], attributes.user_data(tx, instance_id) if needs_user_data else ""

    return {"InstanceId": instance_id, member: shown(*call.read(read))}
