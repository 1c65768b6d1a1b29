"""Instances as EC2 shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import (
    check_ids,
    filters_of,
    moment,
    page_of,
    place_of,
    tag_set,
)
from appliance.api.ec2.protocol.serializer import Constant
from appliance.model import InstanceState
from appliance.store import Transaction, describe
from appliance.store.describe import DiskView, InstanceView, PortView
from appliance.store.filters import TAGS
from appliance.store.instance_filters import FILTERS, MONITORED, STATE_CODES
from appliance.store.interfaces import attachment_id

_STATES = {name: Constant({"Code": code, "Name": str(name)}) for name, code in STATE_CODES.items()}
_MONITORING = {
    state: Constant({"State": state}) for state in ("disabled", "disabling", "enabled", "pending")
}
_NOT_CONFIGURED = Constant({"Configured": False})
_NOT_ENABLED = Constant({"Enabled": False})
_NAME_OPTIONS = Constant(
    {
        "HostnameType": "ip-name",
        "EnableResourceNameDnsARecord": False,
        "EnableResourceNameDnsAAAARecord": False,
    }
)
_MAINTENANCE = Constant({"AutoRecovery": "disabled", "RebootMigration": "disabled"})


@action(
    filters=(*FILTERS, *TAGS),
    page=Page(excludes={"InstanceIds": "instancesSet"}),
    ignores=("IncludeManagedResources",),
)
def describe_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return instances by reservation, from the store alone: a silent node hides nothing."""
    ids = check_ids(params.get("InstanceIds", ()), "i", "InvalidInstanceID")
    size = params.get("MaxResults")

    def read(tx: Transaction) -> list[InstanceView]:
        check_all_exist(tx, call, ids)
        return describe.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            ids=ids,
            wanted=filters_of(params),
            after=place_of(params, float, str),
            limit=None if size is None else size + 1,
        )

    found, reply = page_of(call.read(read), size, lambda view: (view.created_at, view.instance_id))
    reply["Reservations"] = reservations(found, call.parts.zone)
    return reply


def check_all_exist(tx: Transaction, call: Call, ids: Sequence[str]) -> None:
    """Refuse ids that are not on the project's list.

    :raises Ec2Error: there are some.
    """
    if not ids:
        return
    known = describe.known_ids(
        tx, call.project_id, ids, terminated_s=call.parts.config.store.terminated_s
    )
    missing = [each for each in ids if each not in known]
    if missing:
        raise errors.instances_not_found(missing)


def reservations(views: Sequence[InstanceView], default_zone: str) -> list[dict[str, Any]]:
    """Return instances grouped by the launch that they came from.

    :param default_zone: what is shown for an instance that asked for no zone and has no node yet.
    """
    found: dict[str, dict[str, Any]] = {}
    times: dict[float, datetime] = {}
    for view in views:
        reservation = found.get(view.reservation_id)
        if reservation is None:
            reservation = found[view.reservation_id] = {
                "ReservationId": view.reservation_id,
                "OwnerId": view.project_id,
                "Groups": [],
                "Instances": [],
            }
        launched_at = times.get(view.launched_at)
        if launched_at is None:
            launched_at = times[view.launched_at] = moment(view.launched_at)
        reservation["Instances"].append(_instance(view, launched_at, default_zone))
    return list(found.values())


def _instance(view: InstanceView, launched_at: datetime, default_zone: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "InstanceId": view.instance_id,
        "ImageId": view.image_id,
        "State": _STATES[view.state],
        "PrivateDnsName": "",
        "PublicDnsName": "",
        "StateTransitionReason": view.transition_reason,
        "KeyName": view.key_name,
        "AmiLaunchIndex": view.launch_index,
        "ProductCodes": [],
        "InstanceType": view.instance_type,
        "LaunchTime": launched_at,
        "Placement": _placement(view.zone or default_zone),
        "KernelId": view.kernel_id,
        "RamdiskId": view.ramdisk_id,
        "Monitoring": _MONITORING[monitoring_state(view.state, view.attributes)],
        "Architecture": "x86_64",
        "RootDeviceType": "ebs",
        "RootDeviceName": view.root_device_name,
        "BlockDeviceMappings": [disk_entry(disk, launched_at) for disk in view.disks],
        "VirtualizationType": "hvm",
        "ClientToken": view.client_token,
        "Tags": tag_set(view.tags),
        "SecurityGroups": [],
        "SourceDestCheck": True,
        # EC2 says so whatever the hypervisor is, and clients know no other.
        "Hypervisor": "xen",
        "NetworkInterfaces": [],
        "EbsOptimized": False,
        "EnaSupport": False,
        "HibernationOptions": _NOT_CONFIGURED,
        "EnclaveOptions": _NOT_ENABLED,
        "CpuOptions": _cpu_options(view.vcpus),
        "MetadataOptions": _metadata_options(
            view.attributes.get("http_tokens", "optional"),
            view.attributes.get("http_put_response_hop_limit", 1),
            view.attributes.get("instance_metadata_tags", "disabled"),
        ),
        "MaintenanceOptions": _MAINTENANCE,
        "PrivateDnsNameOptions": _NAME_OPTIONS,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "UsageOperationUpdateTime": launched_at,
        "CurrentInstanceBootMode": "legacy-bios",
    }
    if view.reason_code:
        shown["StateReason"] = {"Code": view.reason_code, "Message": view.reason_message}
    if view.ports and view.state != InstanceState.TERMINATED:
        first = view.ports[0]
        shown["NetworkInterfaces"] = [
            _interface(port, view.project_id, launched_at) for port in view.ports
        ]
        shown["SecurityGroups"] = groups_of(first)
        shown["SubnetId"] = first.network_id
        shown["VpcId"] = first.vpc_id
        shown["PrivateDnsName"] = _dns_name(first)
        shown["PrivateIpAddress"] = first.addresses[0] if first.addresses else None
    return shown


def monitoring_state(state: str, attributes: Mapping[str, Any]) -> str:
    """Return what EC2 says of the monitoring that an owner wants of an instance."""
    if attributes.get("monitoring") != MONITORED:
        return "disabled"
    return "pending" if state == InstanceState.PENDING else "enabled"


def monitoring(state: str) -> Constant:
    """Return a state of monitoring as replies carry it."""
    return _MONITORING[state]


def disk_entry(disk: DiskView, attached_at: datetime) -> dict[str, Any]:
    """Return a disk as replies carry it."""
    return {
        "DeviceName": disk.device_name,
        "Ebs": {
            "VolumeId": disk.volume_id,
            "Status": "attached",
            "AttachTime": attached_at,
            "DeleteOnTermination": disk.delete_on_termination,
        },
    }


def groups_of(port: PortView) -> list[Constant]:
    """Return a port's groups as replies carry them."""
    return [_group(group_id, name) for group_id, name in port.groups]


# Few different ones occur in a list of many instances.
@lru_cache(maxsize=1024)
def _group(group_id: str, name: str) -> Constant:
    return Constant({"GroupId": group_id, "GroupName": name})


@lru_cache(maxsize=64)
def _placement(zone: str) -> Constant:
    return Constant(
        {
            "AvailabilityZone": zone,
            "AvailabilityZoneId": zone,
            "GroupName": "",
            "Tenancy": "default",
        }
    )


@lru_cache(maxsize=64)
def _cpu_options(vcpus: int) -> Constant:
    return Constant({"CoreCount": vcpus, "ThreadsPerCore": 1})


def _dns_name(port: PortView) -> str:
    if not port.addresses:
        return ""
    return f"ip-{port.addresses[0].replace('.', '-')}.{port.domain}"


def _interface(port: PortView, owner_id: str, attached_at: datetime) -> dict[str, Any]:
    name = _dns_name(port)
    return {
        "NetworkInterfaceId": port.port_id,
        "OwnerId": owner_id,
        "Status": "in-use",
        "Description": "",
        "MacAddress": port.mac,
        "SubnetId": port.network_id,
        "VpcId": port.vpc_id,
        "SourceDestCheck": True,
        "InterfaceType": "interface",
        "PrivateDnsName": name,
        "PrivateIpAddress": port.addresses[0] if port.addresses else None,
        "PrivateIpAddresses": [
            {"PrivateIpAddress": address, "Primary": place == 0, "PrivateDnsName": name}
            for place, address in enumerate(port.addresses)
        ],
        "Ipv6Addresses": [],
        "Groups": groups_of(port),
        "Attachment": {
            "AttachmentId": attachment_id(port.port_id),
            "DeviceIndex": port.device_index,
            "NetworkCardIndex": 0,
            "Status": "attached",
            "AttachTime": attached_at,
            "DeleteOnTermination": True,
        },
    }


@lru_cache(maxsize=128)
def _metadata_options(tokens: str, hop_limit: int, tags: str) -> Constant:
    return Constant(
        {
            "State": "applied",
            "HttpTokens": tokens,
            "HttpPutResponseHopLimit": hop_limit,
            "HttpEndpoint": "enabled",
            "HttpProtocolIpv6": "disabled",
            "InstanceMetadataTags": tags,
        }
    )
