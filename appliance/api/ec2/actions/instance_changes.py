"""ModifyInstanceAttribute: one attribute at a time, in either of its two forms."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Refusal, action
from appliance.api.ec2.actions.images import check_image_id
from appliance.api.ec2.actions.launch import (
    find_image,
    groups_for_port,
    has_credits,
    user_data_base64,
)
from appliance.api.ec2.actions.power import standing_of_all
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids
from appliance.model import InstanceState
from appliance.store import Transaction, attributes, describe, images
from appliance.store.attributes import SHUTDOWN_BEHAVIOR, STOPS, TERMINATES
from appliance.store.images import KERNEL, RAMDISK

_MEMBERS: Mapping[str, str] = {
    "blockDeviceMapping": "BlockDeviceMappings",
    "disableApiStop": "DisableApiStop",
    "disableApiTermination": "DisableApiTermination",
    "ebsOptimized": "EbsOptimized",
    "enaSupport": "EnaSupport",
    "enclaveOptions": "EnclaveOptions",
    "groupSet": "Groups",
    "instanceInitiatedShutdownBehavior": "InstanceInitiatedShutdownBehavior",
    "instanceType": "InstanceType",
    "kernel": "Kernel",
    "ramdisk": "Ramdisk",
    "sourceDestCheck": "SourceDestCheck",
    "sriovNetSupport": "SriovNetSupport",
    "userData": "UserData",
}
"""The attributes that can be changed, and the members of a request that change them."""

_FLAGS = (
    "disableApiStop",
    "disableApiTermination",
    "ebsOptimized",
    "enaSupport",
    "sourceDestCheck",
)

REFUSED = (
    Refusal(
        parameter="SourceDestCheck.Value",
        text="An interface sends and takes what is its own address's, and nothing else.",
        unless=(True,),
    ),
    Refusal(
        parameter="EbsOptimized.Value",
        text="EBS-optimized instances are not supported for your requested configuration.",
    ),
    Refusal(parameter="EnaSupport.Value", text="ENA is not supported."),
    Refusal(parameter="SriovNetSupport.Value", text="SR-IOV is not supported."),
    Refusal(parameter="EnclaveOptions.Enabled", text="Enclaves are not supported."),
    Refusal(
        parameter="BlockDeviceMappings.Ebs.DeleteOnTermination",
        text="Root disks are deleted on termination.",
        unless=(True,),
    ),
    Refusal(
        parameter="BlockDeviceMappings.VirtualName",
        text="Instances have one disk, the root device.",
    ),
)
"""What an instance cannot be made into."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The instance that a transaction changes."""

    tx: Transaction
    call: Call
    instance_id: str


@action(refuses=REFUSED)
def modify_instance_attribute(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Change one attribute of an instance; some can be changed only while it is stopped."""
    [instance_id] = check_ids([params["InstanceId"]], "i", "InvalidInstanceID")
    attribute, value = _asked(params)
    for refusal in REFUSED:
        refusal.check({_MEMBERS[attribute]: value})

    def change(tx: Transaction) -> None:
        found = standing_of_all(tx, call, [instance_id])[instance_id]
        if found.state in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
            raise errors.incorrect_instance_state(instance_id, "modified")
        _CHANGES[attribute](_Target(tx=tx, call=call, instance_id=instance_id), value)

    # The value stays out of the audit log: user data may hold secrets.
    call.change(change, f"{instance_id} {attribute}")
    return {}


def _asked(params: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the attribute, and its value in the form of the attribute's own member.

    :raises Ec2Error: none or several are given, or the value is none of the attribute's.
    """
    given = [name for name, member in _MEMBERS.items() if member in params]
    named = params.get("Attribute")
    if len(given) > 1 or (named and given and given != [named]):
        raise errors.invalid_parameter_combination("Fields for multiple attribute types specified")
    if given:
        return given[0], params[_MEMBERS[given[0]]]
    if not named:
        raise errors.invalid_parameter_combination("No attributes specified.")
    if named not in _MEMBERS:
        raise errors.invalid_parameter_value("attribute", named, "It cannot be modified.")
    if "Value" not in params:
        raise errors.missing_parameter("Value")
    return named, _read(named, params["Value"])


def _read(attribute: str, text: str) -> Any:
    """Return the text of ``Value`` as the attribute's own member would say it."""
    if attribute in _FLAGS:
        return {"Value": _flag(text)}
    if attribute == "enclaveOptions":
        return {"Enabled": _flag(text)}
    if attribute == "groupSet":
        return [text]
    if attribute == "blockDeviceMapping":
        raise errors.invalid_parameter_value("value", text, "Use BlockDeviceMapping.")
    if attribute == "userData":
        return {"Value": base64.b64decode(user_data_base64(text))}
    return {"Value": text}


def _flag(text: str) -> bool:
    flags = {"true": True, "false": False}
    if text.lower() not in flags:
        raise errors.invalid_parameter_value("value", text, "It must be true or false.")
    return flags[text.lower()]


def _set_protection(option: str) -> Callable[[_Target, Any], None]:
    def change(target: _Target, value: Mapping[str, bool]) -> None:
        wanted = {option: value.get("Value", False)}
        attributes.set_options(target.tx, [target.instance_id], wanted)

    return change


def _set_shutdown_behavior(target: _Target, value: Mapping[str, str]) -> None:
    wanted = value.get("Value", "")
    if wanted not in (STOPS, TERMINATES):
        raise errors.invalid_parameter_value(
            "instanceInitiatedShutdownBehavior", wanted, f"It must be {STOPS} or {TERMINATES}."
        )
    attributes.set_options(target.tx, [target.instance_id], {SHUTDOWN_BEHAVIOR: wanted})


def _set_groups(target: _Target, ids: Sequence[str]) -> None:
    [view] = describe.list_page(
        target.tx, target.call.project_id, terminated_s=0.0, ids=[target.instance_id]
    )
    vpc_id = view.ports[0].vpc_id
    group_ids = groups_for_port(target.tx, target.call, vpc_id, ids)
    attributes.set_groups(target.tx, target.instance_id, group_ids)


def _set_type(target: _Target, value: Mapping[str, str]) -> None:
    name = value.get("Value", "")
    kind = target.call.parts.types.get(name)
    if kind is None:
        raise errors.invalid_instance_attribute(
            f"Invalid value '{errors.shorten(name)}' for instanceType."
        )
    sizes = {"vcpus": kind.vcpus, "memory_mib": kind.memory_mib}
    _set_while_stopped(target, {"instance_type": kind.name, **sizes})
    if not has_credits(kind):
        attributes.set_options(target.tx, [target.instance_id], {"cpu_credits": None})


def _set_user_data(target: _Target, value: Mapping[str, bytes]) -> None:
    text = base64.b64encode(value.get("Value", b"")).decode("ascii")
    _set_while_stopped(target, {"user_data_base64": user_data_base64(text)})


def _set_boot_file(column: str, kind: str) -> Callable[[_Target, Any], None]:
    def change(target: _Target, value: Mapping[str, str]) -> None:
        image_id = check_image_id(value.get("Value", ""), images.ID_PREFIXES[kind])
        found = find_image(target.tx, target.call, image_id, kind)
        _set_while_stopped(target, {column: found.image_id})

    return change


def _set_while_stopped(target: _Target, values: Mapping[str, str | int]) -> None:
    if not attributes.set_while_stopped(target.tx, target.instance_id, values):
        raise errors.not_stopped(target.instance_id)


def _check_disks(target: _Target, mappings: Sequence[Mapping[str, Any]]) -> None:
    """Take what is so anyway: the root disk is there, and goes with its instance."""
    [view] = describe.list_page(
        target.tx, target.call.project_id, terminated_s=0.0, ids=[target.instance_id]
    )
    known = {disk.device_name: disk.volume_id for disk in view.disks}
    for mapping in mappings:
        name = mapping.get("DeviceName", "")
        if "NoDevice" in mapping:
            raise errors.unsupported_operation("The root disk cannot be taken away.")
        if name not in known:
            raise errors.invalid_instance_attribute(
                f"No device is currently mapped at {errors.shorten(name)}"
            )
        volume_id = mapping.get("Ebs", {}).get("VolumeId", known[name])
        if volume_id != known[name]:
            raise errors.invalid_instance_attribute(
                f"Volume {errors.shorten(volume_id)} is not attached at {name}"
            )


def _keep(target: _Target, value: object) -> None:
    """Take what is so anyway; anything else was refused before."""


_CHANGES: Mapping[str, Callable[[_Target, Any], None]] = {
    "blockDeviceMapping": _check_disks,
    "disableApiStop": _set_protection("disable_api_stop"),
    "disableApiTermination": _set_protection("disable_api_termination"),
    "ebsOptimized": _keep,
    "enaSupport": _keep,
    "enclaveOptions": _keep,
    "groupSet": _set_groups,
    "instanceInitiatedShutdownBehavior": _set_shutdown_behavior,
    "instanceType": _set_type,
    "kernel": _set_boot_file("kernel_id", KERNEL),
    "ramdisk": _set_boot_file("ramdisk_id", RAMDISK),
    "sourceDestCheck": _keep,
    "sriovNetSupport": _keep,
    "userData": _set_user_data,
}
