"""RunInstances: everything is checked and written in one transaction."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance import instance_types
from appliance.api.ec2 import errors
from appliance.api.ec2.action import action
from appliance.api.ec2.actions.images import check_image_id, image_gib
from appliance.api.ec2.actions.instances import reservations
from appliance.api.ec2.actions.launch_refusals import REFUSED
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids
from appliance.api.ec2.tagging import tags_of
from appliance.instance_types import Catalog, InstanceType
from appliance.store import (
    Transaction,
    describe,
    groups,
    images,
    key_pairs,
    launches,
    networks,
    zones,
)
from appliance.store.attributes import SHUTDOWN_BEHAVIOR
from appliance.store.credit_specifications import STANDARD, UNLIMITED
from appliance.store.images import KERNEL, MACHINE, RAMDISK, Image
from appliance.store.instance_filters import MONITORED, TOKEN_OF_SIGNATURE
from appliance.store.launches import Launch, RootDisk

MOST_INSTANCES = 1000
LARGEST_USER_DATA = 16 * 1024
MOST_GROUPS = 16
LONGEST_TOKEN = 64
MOST_HOPS = 64
BURSTABLE_FAMILIES = ("t2", "t3", "t3a", "t4g")

_TAGGED = ("instance", "volume", "network-interface")
_ROOT_ALIASES = ("/dev/sda1", "/dev/xvda", "/dev/vda")
_ONLY_TUNING = ("AdditionalInfo", "EbsOptimized", "MaintenanceOptions", "Operator")


@dataclass(frozen=True, kw_only=True)
class _Nic:
    """Where the one network card goes."""

    subnet_id: str
    group_ids: Sequence[str]


@action(refuses=REFUSED, ignores=_ONLY_TUNING)
def run_instances(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Accept a launch and return its reservation; the instances are pending.

    A client token, or the same signed request within its second, gets the same reservation.
    """
    _check_metadata_options(params.get("MetadataOptions", {}))
    token = _client_token(params)
    plan = _Plan(call, params)

    def change(tx: Transaction) -> str:
        known = _repeated(tx, call, token, plan.request_hash)
        return known or launches.write(tx, plan.launch(tx, token))

    reservation_id = call.change(change, lambda reservation_id: reservation_id)
    views = call.read(
        lambda tx: describe.list_page(
            tx,
            call.project_id,
            terminated_s=call.parts.config.store.terminated_s,
            reservation_id=reservation_id,
        )
    )
    found = reservations(sorted(views, key=lambda view: view.launch_index), call.parts.zone)
    empty = {
        "ReservationId": reservation_id,
        "OwnerId": call.project_id,
        "Groups": [],
        "Instances": [],
    }
    return found[0] if found else empty


def _check_metadata_options(options: Mapping[str, Any]) -> None:
    hops = options.get("HttpPutResponseHopLimit", 1)
    if not 1 <= hops <= MOST_HOPS:
        raise errors.invalid_parameter_value(
            "HttpPutResponseHopLimit", f"{hops}", f"It must be from 1 to {MOST_HOPS}."
        )


def _client_token(params: Mapping[str, Any]) -> str:
    token: str = params.get("ClientToken", "")
    if len(token) > LONGEST_TOKEN or not token.isascii() or token.startswith(TOKEN_OF_SIGNATURE):
        raise errors.invalid_parameter_value(
            "ClientToken", token, f"It must be up to {LONGEST_TOKEN} ASCII characters."
        )
    return token


def _repeated(tx: Transaction, call: Call, token: str, request_hash: str) -> str:
    """Return the reservation that this request made before; empty when it is new."""
    stored = token or _implicit_token(call)
    found = launches.find_by_token(tx, call.project_id, stored) if stored else None
    if found is None:
        return ""
    if found.request_hash != request_hash:
        raise errors.idempotent_parameter_mismatch()
    return found.reservation_id


def _implicit_token(call: Call) -> str:
    """Return the token of a request without one: its signature, so that a retry is no launch."""
    digest = call.identity.request_digest
    return f"{TOKEN_OF_SIGNATURE}{digest}"[:LONGEST_TOKEN] if digest else ""


def _request_hash(params: Mapping[str, Any]) -> str:
    meant = {name: value for name, value in params.items() if name != "ClientToken"}
    return hashlib.sha256(msgspec.json.encode(meant, order="deterministic")).hexdigest()


class _Plan:
    """A launch as it was asked for: what needs no store is checked here already."""

    def __init__(self, call: Call, params: Mapping[str, Any]) -> None:
        self._call = call
        self._params = params
        self.request_hash = _request_hash(params)
        self.min_count, self.max_count = _counts(params)
        self.image_id = _required_image_id(params)
        self.instance_type = _instance_type(params, call.parts.types)
        self.user_data_base64 = user_data_base64(params.get("UserData", ""))
        self.nic = _nic(params)
        self.tags = tags_of(params, _TAGGED)
        self.zone = _zone(params.get("Placement", {}))
        _check_cpu(params, self.instance_type)

    def launch(self, tx: Transaction, token: str) -> Launch:
        """Find every part of the launch and take its quota.

        :raises Ec2Error: a part is missing or does not fit; the caller writes nothing.
        """
        call, params = self._call, self._params
        image = find_image(tx, call, self.image_id, MACHINE)
        kernel_id = self._boot_file(tx, "KernelId", KERNEL, image.kernel_id)
        ramdisk_id = self._boot_file(tx, "RamdiskId", RAMDISK, image.ramdisk_id)
        root_disk = _root_disk(params, image, self.instance_type, call.parts.config.images)
        network_id, vpc_id, zone = self._network(tx, root_disk.claimed_gib(image))
        group_ids = self._group_ids(tx, vpc_id)
        key_name, public_key = self._key(tx)
        count = launches.take_quota(
            tx, call.project_id, self.instance_type, self.min_count, self.max_count
        )
        clock = call.parts.world.clock
        return Launch(
            project_id=call.project_id,
            request_id=call.request_id,
            request_hash=self.request_hash,
            client_token=token or _implicit_token(call) or None,
            min_count=self.min_count,
            count=count,
            image=image,
            kernel_id=kernel_id,
            ramdisk_id=ramdisk_id,
            instance_type=self.instance_type,
            root_disk=root_disk,
            zone=zone or None,
            network_id=network_id,
            group_ids=group_ids,
            key_name=key_name,
            public_key=public_key,
            user_data_base64=self.user_data_base64,
            attributes=_attributes(params),
            tags=self.tags,
            node=call.parts.node_name,
            started_at=call.started_at,
            duration_ms=(clock.monotonic() - call.started) * 1000,
        )

    def _boot_file(self, tx: Transaction, name: str, kind: str, of_image: str | None) -> str | None:
        asked = self._params.get(name)
        if not asked:
            return of_image
        check_image_id(asked, images.ID_PREFIXES[kind])
        return find_image(tx, self._call, asked, kind).image_id

    def _network(self, tx: Transaction, disk_gib: int) -> tuple[str, str, str]:
        """Return network, VPC and zone; the zone is empty where any will do."""
        if self.zone and self.zone not in {self._call.parts.zone, *zones.list_all(tx)}:
            raise errors.zone_not_found(self.zone)
        network_id = self.nic.subnet_id or self._default_network(tx, disk_gib)
        spec = networks.find(tx, [network_id]).get(network_id)
        if spec is None:
            if self.nic.subnet_id:
                raise errors.subnets_not_found([network_id])
            raise errors.Ec2Error(
                "MissingInput", "No subnets found for the default VPC. Please specify a subnet."
            )
        zone = zones.of_network(tx, network_id)
        if zone and self.zone and zone != self.zone:
            raise errors.invalid_parameter_value(
                "availabilityZone",
                self.zone,
                f"Subnet '{network_id}' is in the availability zone {zone}",
            )
        return network_id, spec.vpc_id, self.zone or zone

    def _default_network(self, tx: Transaction, disk_gib: int) -> str:
        """Return the default network of the zone asked for, or of the one with most room."""
        if self.zone:
            own = networks.default_in_zone(tx, self.zone)
            return own or networks.default_in_zone(tx, "") or ""
        quarantine_s = self._call.parts.config.network.address_quarantine_s
        usable = networks.defaults_with_addresses(tx, quarantine_s=quarantine_s)
        if len(usable) < 2:
            return next(iter(usable.values()), "") or networks.default_in_zone(tx, None) or ""
        need = {
            "vcpus": self.instance_type.vcpus,
            "memory_mib": self.instance_type.memory_mib,
            "disk_gib": disk_gib,
        }
        room = zones.room(tx, need)
        return usable[min(usable, key=lambda zone: (-room.get(zone, -1), zone))]

    def _group_ids(self, tx: Transaction, vpc_id: str) -> list[str]:
        ids = [*self._params.get("SecurityGroupIds", ()), *self.nic.group_ids]
        names = list(dict.fromkeys(self._params.get("SecurityGroups", ())))
        if not ids and not names:
            return [groups.default(tx, self._call.project_id, vpc_id).group_id]
        return groups_for_port(tx, self._call, vpc_id, ids, names)

    def _key(self, tx: Transaction) -> tuple[str | None, str]:
        name = self._params.get("KeyName")
        if not name:
            return None, ""
        found = key_pairs.find(tx, self._call.project_id, [name])
        if not found:
            raise errors.key_pairs_not_found([name])
        return found[0].name, found[0].public_key


def groups_for_port(
    tx: Transaction, call: Call, vpc_id: str, ids: Sequence[str], names: Sequence[str] = ()
) -> list[str]:
    """Return the ids of the groups that a port in a VPC shall be in.

    :raises Ec2Error: an id is malformed, a group missing or of another VPC, or there are too many.
    """
    ids = check_ids(ids, "sg", "InvalidGroupId")
    if groups.DEFAULT_NAME in names:
        groups.default(tx, call.project_id, vpc_id)
    found = groups.find(tx, call.project_id, ids=ids, names=names, vpc_id=vpc_id)
    known = {group.group_id for group in found} | {group.name for group in found}
    missing = [each for each in (*ids, *names) if each not in known]
    if missing:
        raise errors.groups_not_found(missing)
    if any(group.vpc_id != vpc_id for group in found):
        raise errors.Ec2Error(
            "InvalidParameter",
            "The security group and the subnet belong to different networks.",
        )
    if len(found) > MOST_GROUPS:
        raise errors.Ec2Error(
            "SecurityGroupsPerInterfaceLimitExceeded",
            f"The maximum number of security groups per interface is {MOST_GROUPS}.",
        )
    return sorted(group.group_id for group in found)


def find_image(tx: Transaction, call: Call, image_id: str, kind: str) -> Image:
    """Return an image that the project may use.

    :raises Ec2Error: there is none of that kind, or it is not ready.
    """
    image = images.find(tx, call.project_id, [image_id]).get(image_id)
    if image is None or image.kind != kind:
        raise errors.images_not_found([image_id])
    if image.state != "available":
        raise errors.Ec2Error(
            "InvalidAMIID.Unavailable", f"The image ID '{image_id}' is not available"
        )
    return image


def _counts(params: Mapping[str, Any]) -> tuple[int, int]:
    least, most = int(params["MinCount"]), int(params["MaxCount"])
    for name, value in (("minCount", least), ("maxCount", most)):
        if value < 1:
            raise errors.invalid_parameter_value(name, f"{value}", "It must be at least 1.")
    if least > most:
        raise errors.invalid_parameter_value(
            "minCount", f"{least}", "It must not be greater than maxCount."
        )
    if least > MOST_INSTANCES:
        raise errors.invalid_parameter_value(
            "minCount", f"{least}", f"At most {MOST_INSTANCES} instances are launched at once."
        )
    return least, min(most, MOST_INSTANCES)


def _required_image_id(params: Mapping[str, Any]) -> str:
    image_id: str = params.get("ImageId", "")
    if not image_id:
        raise errors.missing_parameter("ImageId")
    return check_image_id(image_id)


def _instance_type(params: Mapping[str, Any], types: Catalog) -> InstanceType:
    name = params.get("InstanceType", instance_types.DEFAULT)
    found = types.get(name)
    if found is None:
        raise errors.Ec2Error(
            "InvalidParameterValue", f"Invalid value '{errors.shorten(name)}' for InstanceType."
        )
    return found


def user_data_base64(text: str) -> str:
    """Return user data in base64 without the line breaks that older clients put in.

    :raises Ec2Error: it is no base64, or too long.
    """
    plain = "".join(text.split())
    try:
        decoded = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.user_data_malformed() from error
    if len(decoded) > LARGEST_USER_DATA:
        raise errors.Ec2Error(
            "InvalidParameterValue", f"User data is limited to {LARGEST_USER_DATA} bytes"
        )
    return plain


def _nic(params: Mapping[str, Any]) -> _Nic:
    cards = params.get("NetworkInterfaces", [])
    subnet_id = params.get("SubnetId", "")
    if not cards:
        return _Nic(subnet_id=_checked_subnet(subnet_id), group_ids=())
    if subnet_id or params.get("SecurityGroupIds") or params.get("SecurityGroups"):
        raise errors.invalid_parameter_combination(
            "Network interfaces and an instance-level subnet ID or security groups may not be "
            "specified on the same request"
        )
    card = cards[0]
    if len(cards) > 1 or card.get("DeviceIndex", 0) != 0:
        raise errors.unsupported_operation("Instances have one network interface.")
    return _Nic(
        subnet_id=_checked_subnet(card.get("SubnetId", "")), group_ids=card.get("Groups", ())
    )


def _checked_subnet(subnet_id: str) -> str:
    return check_ids([subnet_id], "subnet", "InvalidSubnetID")[0] if subnet_id else ""


def _root_disk(
    params: Mapping[str, Any], image: Image, kind: InstanceType, limits: Any
) -> RootDisk:
    disk_gib = kind.disk_gib
    for mapping in params.get("BlockDeviceMappings", ()):
        if "NoDevice" in mapping or mapping.get("VirtualName"):
            continue
        if mapping.get("DeviceName") not in (image.root_device_name, *_ROOT_ALIASES):
            raise errors.unsupported_operation("Instances have one disk, the root device.")
        ebs = mapping.get("Ebs", {})
        disk_gib = ebs.get("VolumeSize", disk_gib)
        if not 1 <= disk_gib <= limits.largest_gib and "VolumeSize" in ebs:
            raise errors.invalid_parameter_value(
                "volumeSize", f"{disk_gib}", f"It must be from 1 to {limits.largest_gib}."
            )
    needed = image_gib(image)
    if disk_gib and disk_gib < needed:
        raise errors.Ec2Error(
            "InvalidBlockDeviceMapping",
            f"Volume of size {disk_gib}GB is smaller than the image {image.image_id}, expect "
            f"size >= {needed}GB",
        )
    return RootDisk(
        device_name=image.root_device_name, disk_gib=disk_gib, delete_on_termination=True
    )


def _zone(placement: Mapping[str, str]) -> str:
    """Return the zone that was asked for by name or by id, which are the same; empty for any."""
    name, zone_id = placement.get("AvailabilityZone", ""), placement.get("AvailabilityZoneId", "")
    if name and zone_id:
        raise errors.invalid_parameter_combination(
            "The parameter AvailabilityZone cannot be used with the parameter AvailabilityZoneId"
        )
    return name or zone_id


def has_credits(kind: InstanceType) -> bool:
    """Say whether instances of a type have CPU credits."""
    return kind.name.partition(".")[0] in BURSTABLE_FAMILIES


def _check_cpu(params: Mapping[str, Any], kind: InstanceType) -> None:
    """Refuse a shape of the CPU, or credits, that instances of a type do not have."""
    wanted = params.get("CpuOptions", {})
    shape = (wanted.get("CoreCount", kind.vcpus), wanted.get("ThreadsPerCore", 1))
    if shape != (kind.vcpus, 1):
        raise errors.unsupported_operation(
            f"Instances of type {kind.name} have {kind.vcpus} cores with one thread each."
        )
    credit = params.get("CreditSpecification", {}).get("CpuCredits")
    if credit is None:
        return
    if credit not in (STANDARD, UNLIMITED):
        raise errors.invalid_parameter_value(
            "CpuCredits", credit, f"It must be {STANDARD} or {UNLIMITED}."
        )
    if not has_credits(kind):
        raise errors.invalid_parameter_combination(
            f"The instance type {kind.name} does not support CPU credits."
        )


def _attributes(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept for the instance beside its columns; defaults are left out."""
    metadata = params.get("MetadataOptions", {})
    wanted = {
        "disable_api_termination": params.get("DisableApiTermination"),
        "disable_api_stop": params.get("DisableApiStop"),
        SHUTDOWN_BEHAVIOR: params.get("InstanceInitiatedShutdownBehavior"),
        "monitoring": MONITORED if params.get("Monitoring", {}).get("Enabled") else None,
        "cpu_credits": params.get("CreditSpecification", {}).get("CpuCredits"),
        "http_tokens": metadata.get("HttpTokens"),
        "http_put_response_hop_limit": metadata.get("HttpPutResponseHopLimit"),
        "instance_metadata_tags": metadata.get("InstanceMetadataTags"),
    }
    return {name: value for name, value in wanted.items() if value not in (None, False)}
