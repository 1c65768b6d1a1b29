"""What instances can be filtered by: every name that EC2 documents, as SQL.

What cannot be here has the answer that is true: nothing matches, or the one value that all have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec.structs import fields
from sqlalchemy import ColumnElement, Text, and_, case, cast, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from appliance.model import InstanceState, NetworkSpec
from appliance.store import Transaction, filters
from appliance.store.schema import (
    addresses,
    block_devices,
    images,
    instances,
    networks,
    nodes,
    port_groups,
    ports,
    reservations,
    security_groups,
    tags,
)

STATE_CODES: Mapping[str, int] = {
    InstanceState.PENDING: 0,
    InstanceState.RUNNING: 16,
    InstanceState.SHUTTING_DOWN: 32,
    InstanceState.TERMINATED: 48,
    InstanceState.STOPPING: 64,
    InstanceState.STOPPED: 80,
}
"""EC2's number for each state."""

TOKEN_OF_SIGNATURE = "signed:"  # noqa: S105 - it names a kind of token
"""What a client token begins with that was made from a signature, and is nobody's to see."""

MONITORED = "enabled"
"""The value of the attribute ``monitoring`` of an instance whose owner wants it monitored."""

ZONE = func.coalesce(instances.c.zone, nodes.c.zone)
"""The zone of an instance, in a query that joins its node."""

LAUNCHED_AT = func.coalesce(instances.c.launched_at, instances.c.created_at)
"""When an instance was launched; until then, when that was asked for."""

TOKEN = case(
    (func.coalesce(reservations.c.client_token, "").like(f"{TOKEN_OF_SIGNATURE}%"), ""),
    else_=func.coalesce(reservations.c.client_token, ""),
)
"""The client token that an owner may see, in a query that joins the reservation."""

# Values are stored without the members that have their defaults.
_USUAL_DOMAIN = {field.name: field.default for field in fields(NetworkSpec)}["domain"]

# A fraction is zero, or only a beginning that a star follows.
_WHOLE_SECONDS = re.compile(r"([^.]*)(?:\.(?:0*|0*\*)Z?)?", re.DOTALL)

_state_code = case(
    {str(name): str(code) for name, code in STATE_CODES.items()}, value=instances.c.state
)


def attribute(tx: Transaction, name: str) -> ColumnElement[str]:
    """Return an instance's attribute as text; NULL where it is not set."""
    return _member(tx, instances.c.attributes, name)


def _member(tx: Transaction, body: ColumnElement[bytes], name: str) -> ColumnElement[str]:
    """Return a member of a JSON object as text."""
    if tx.is_sqlite:
        return cast(func.json_extract(cast(body, Text), f"$.{name}"), Text)
    text_of: ColumnElement[str] = cast(func.convert_from(body, "UTF8"), JSONB)[name].astext
    return text_of


def _attribute(name: str, default: str) -> filters.Rule:
    return lambda tx, values: filters.matches(
        tx, func.coalesce(attribute(tx, name), default), values
    )


def _monitoring(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    shown = case(
        (func.coalesce(attribute(tx, "monitoring"), "") != MONITORED, "disabled"),
        (instances.c.state == InstanceState.PENDING.value, "pending"),
        else_="enabled",
    )
    return filters.matches(tx, shown, values)


def _of_ports(rule: filters.Rule) -> filters.Rule:
    """Make a rule about ports one about the instances that have them."""
    return lambda tx, values: instances.c.id.in_(
        select(ports.c.instance_id).where(rule(tx, values))
    )


def _with_ports(rule: filters.Rule) -> filters.Rule:
    """Make a rule about instances one about those that have ports."""
    return lambda tx, values: and_(
        rule(tx, values), instances.c.id.in_(select(ports.c.instance_id))
    )


def _of_disks(rule: filters.Rule) -> filters.Rule:
    """Make a rule about disks one about the instances that have them."""
    return lambda tx, values: instances.c.id.in_(
        select(block_devices.c.instance_id).where(rule(tx, values))
    )


def _with_disks(rule: filters.Rule) -> filters.Rule:
    """Make a rule about instances one about those that have disks."""
    return lambda tx, values: and_(
        rule(tx, values), instances.c.id.in_(select(block_devices.c.instance_id))
    )


def _group(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: instances.c.id.in_(
        select(ports.c.instance_id)
        .join(port_groups, port_groups.c.port_id == ports.c.id)
        .join(security_groups, security_groups.c.id == port_groups.c.group_id)
        .where(filters.matches(tx, column, values))
    )


def _vpc(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    return ports.c.network_id.in_(
        select(networks.c.id).where(filters.matches(tx, networks.c.vpc_id, values))
    )


def _address(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    return ports.c.id.in_(
        select(addresses.c.port_id).where(filters.matches(tx, addresses.c.address, values))
    )


def _is_primary(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """A port has one address, its primary one."""
    return and_(
        filters.matches(tx, literal("true"), values),
        ports.c.id.in_(select(addresses.c.port_id).where(addresses.c.port_id.is_not(None))),
    )


def _dns_name(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """The name is made of the address: ``ip-10-0-0-5.`` and the network's domain."""
    host = literal("ip-") + func.replace(addresses.c.address, ".", "-")
    domain = func.coalesce(_member(tx, networks.c.body, "domain"), _USUAL_DOMAIN)
    name = host + literal(".") + domain
    return ports.c.id.in_(
        select(addresses.c.port_id)
        .join(networks, networks.c.id == addresses.c.network_id)
        .where(addresses.c.port_id.is_not(None), filters.matches(tx, name, values))
    )


def _port_tag(column: ColumnElement[str]) -> filters.Rule:
    return lambda tx, values: ports.c.id.in_(
        select(tags.c.resource_id).where(filters.matches(tx, column, values))
    )


def _root_device_name(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    return instances.c.image_id.in_(
        select(images.c.id).where(filters.matches(tx, images.c.root_device_name, values))
    )


_launched_at = filters.moment(LAUNCHED_AT)


def _launched(tx: Transaction, values: Sequence[str]) -> ColumnElement[bool]:
    """Times are shown without their fractions of a second, and go by what is shown."""
    whole = [found[1] for value in values if (found := _WHOLE_SECONDS.fullmatch(value))]
    return _launched_at(tx, whole)


_zone = filters.text(ZONE)
_private_dns_name = _of_ports(_dns_name)
_private_address = _of_ports(_address)
_group_id = _group(security_groups.c.id)
_group_name = _group(security_groups.c.name)
_subnet_id = _of_ports(filters.text(ports.c.network_id))
_vpc_id = _of_ports(_vpc)
_false = filters.constant("false")
_attachment_id = literal("eni-attach-") + func.substr(ports.c.id, len("eni-") + 1)

_OF_INSTANCES: Mapping[str, filters.Rule] = {
    "affinity": filters.nothing,
    "architecture": filters.constant("x86_64"),
    "availability-zone": _zone,
    "availability-zone-id": _zone,
    "block-device-mapping.attach-time": _with_disks(_launched),
    "block-device-mapping.delete-on-termination": _of_disks(
        filters.flag(block_devices.c.delete_on_termination)
    ),
    "block-device-mapping.device-name": _of_disks(filters.text(block_devices.c.device_name)),
    "block-device-mapping.status": _of_disks(filters.constant("attached")),
    "block-device-mapping.volume-id": _of_disks(filters.text(block_devices.c.id)),
    "boot-mode": filters.nothing,
    "capacity-reservation-id": filters.nothing,
    "capacity-reservation-specification.capacity-reservation-preference": filters.nothing,
    "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-id": (
        filters.nothing
    ),
    (
        "capacity-reservation-specification.capacity-reservation-target."
        "capacity-reservation-resource-group-arn"
    ): filters.nothing,
    "client-token": filters.text(TOKEN),
    "current-instance-boot-mode": filters.constant("legacy-bios"),
    "dns-name": filters.nothing,
    "ebs-optimized": _false,
    "ena-support": _false,
    "enclave-options.enabled": _false,
    "group-id": _group_id,
    "group-name": _group_name,
    "hibernation-options.configured": _false,
    "host-id": filters.nothing,
    "hypervisor": filters.constant("xen"),
    "iam-instance-profile.arn": filters.nothing,
    "iam-instance-profile.id": filters.nothing,
    "image-id": filters.text(instances.c.image_id),
    "instance-id": filters.text(instances.c.id),
    "instance-lifecycle": filters.nothing,
    "instance-state-code": filters.text(_state_code),
    "instance-state-name": filters.text(instances.c.state),
    "instance-type": filters.text(instances.c.instance_type),
    "instance.group-id": _group_id,
    "instance.group-name": _group_name,
    "ip-address": filters.nothing,
    "ipv6-address": filters.nothing,
    "kernel-id": filters.text(instances.c.kernel_id),
    "key-name": filters.text(instances.c.key_name),
    "launch-index": filters.number(instances.c.launch_index),
    "launch-time": _launched,
    "maintenance-options.auto-recovery": filters.constant("disabled"),
    "metadata-options.http-endpoint": filters.constant("enabled"),
    "metadata-options.http-protocol-ipv4": filters.constant("enabled"),
    "metadata-options.http-protocol-ipv6": filters.constant("disabled"),
    "metadata-options.http-put-response-hop-limit": _attribute("http_put_response_hop_limit", "1"),
    "metadata-options.http-tokens": _attribute("http_tokens", "optional"),
    "metadata-options.instance-metadata-tags": _attribute("instance_metadata_tags", "disabled"),
    "metadata-options.state": filters.constant("applied"),
    "monitoring-state": _monitoring,
    "network-performance-options.bandwidth-weighting": filters.nothing,
    "operator.managed": _false,
    "operator.principal": filters.nothing,
    "outpost-arn": filters.nothing,
    "owner-id": filters.text(instances.c.project_id),
    "placement-group-name": filters.nothing,
    "placement-partition-number": filters.nothing,
    "platform": filters.nothing,
    "platform-details": filters.constant("Linux/UNIX"),
    "private-dns-name": _private_dns_name,
    "private-dns-name-options.enable-resource-name-dns-a-record": _false,
    "private-dns-name-options.enable-resource-name-dns-aaaa-record": _false,
    "private-dns-name-options.hostname-type": filters.constant("ip-name"),
    "private-ip-address": _private_address,
    "product-code": filters.nothing,
    "product-code.type": filters.nothing,
    "ramdisk-id": filters.text(instances.c.ramdisk_id),
    "reason": filters.text(instances.c.transition_reason),
    "requester-id": filters.nothing,
    "reservation-id": filters.text(instances.c.reservation_id),
    "root-device-name": _root_device_name,
    "root-device-type": filters.constant("ebs"),
    "source-dest-check": filters.constant("true"),
    "spot-instance-request-id": filters.nothing,
    "state-reason-code": filters.text(instances.c.reason_code),
    "state-reason-message": filters.text(instances.c.reason_message),
    "subnet-id": _subnet_id,
    "tenancy": filters.constant("default"),
    "tpm-support": filters.nothing,
    "usage-operation": filters.constant("RunInstances"),
    "usage-operation-update-time": _launched,
    "virtualization-type": filters.constant("hvm"),
    "vpc-id": _vpc_id,
}

_OF_INTERFACES: Mapping[str, filters.Rule] = {
    "addresses.primary": _of_ports(_is_primary),
    "addresses.private-dns-name": _private_dns_name,
    "addresses.private-ip-address": _private_address,
    "attachment.attach-time": _with_ports(_launched),
    "attachment.attachment-id": _of_ports(filters.text(_attachment_id)),
    "attachment.delete-on-termination": _of_ports(filters.constant("true")),
    "attachment.device-index": _of_ports(filters.number(ports.c.device_index)),
    "attachment.instance-id": _of_ports(filters.text(ports.c.instance_id)),
    "attachment.instance-owner-id": _of_ports(filters.text(ports.c.project_id)),
    "attachment.network-card-index": _of_ports(filters.constant("0")),
    "attachment.status": _of_ports(filters.constant("attached")),
    "availability-zone": _with_ports(_zone),
    "deny-all-igw-traffic": filters.nothing,
    "description": _of_ports(filters.constant("")),
    "group-id": _group_id,
    "group-name": _group_name,
    "ipv4-prefixes.ipv4-prefix": filters.nothing,
    "ipv6-address": filters.nothing,
    "ipv6-addresses.ipv6-address": filters.nothing,
    "ipv6-addresses.is-primary-ipv6": filters.nothing,
    "ipv6-native": _of_ports(_false),
    "ipv6-prefixes.ipv6-prefix": filters.nothing,
    "mac-address": _of_ports(filters.text(ports.c.mac)),
    "network-interface-id": _of_ports(filters.text(ports.c.id)),
    "operator.managed": _of_ports(_false),
    "operator.principal": filters.nothing,
    "outpost-arn": filters.nothing,
    "owner-id": _of_ports(filters.text(ports.c.project_id)),
    "private-dns-name": _private_dns_name,
    "private-ip-address": _private_address,
    "public-dns-name": filters.nothing,
    "requester-id": filters.nothing,
    "requester-managed": _of_ports(_false),
    "source-dest-check": _of_ports(filters.constant("true")),
    "status": _of_ports(filters.constant("in-use")),
    "subnet-id": _subnet_id,
    "tag-key": _of_ports(_port_tag(tags.c.key)),
    "tag-value": _of_ports(_port_tag(tags.c.value)),
    "vpc-id": _vpc_id,
}

# There are no public addresses yet.
_OF_ASSOCIATIONS = (
    "allocation-id",
    "association-id",
    "carrier-ip",
    "customer-owned-ip",
    "ip-owner-id",
    "public-dns-name",
    "public-ip",
)

FILTERS: Mapping[str, filters.Rule] = {
    **_OF_INSTANCES,
    **{f"network-interface.{name}": rule for name, rule in _OF_INTERFACES.items()},
    **{
        f"network-interface.{place}association.{name}": filters.nothing
        for place in ("", "addresses.")
        for name in _OF_ASSOCIATIONS
    },
}
"""What DescribeInstances can be filtered by; its query joins the reservation and the node."""
