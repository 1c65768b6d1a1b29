"""What DescribeInstances shows is what its filters go by, name by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.config import Config
from appliance.store import Transaction, schema
from appliance.store.instance_filters import FILTERS
from tests.api.ec2.examples.stage import Stage
from tests.api.front import Front
from tests.services.stores import KINDS, on_store

Shown = Callable[[dict[str, Any], dict[str, Any]], Any]


def of(*path: str | int) -> Shown:
    """Return what finds a place in an instance, as text."""

    def find(reservation: dict[str, Any], instance: dict[str, Any]) -> Any:
        found: Any = instance
        for name in path:
            found = found[name]
        return found

    return find


CARD = ("NetworkInterfaces", 0)
DISK = ("BlockDeviceMappings", 0)
METADATA = "MetadataOptions"

SHOWN: dict[str, Shown] = {
    "architecture": of("Architecture"),
    "availability-zone": of("Placement", "AvailabilityZone"),
    "availability-zone-id": of("Placement", "AvailabilityZoneId"),
    "block-device-mapping.attach-time": of(*DISK, "Ebs", "AttachTime"),
    "block-device-mapping.delete-on-termination": of(*DISK, "Ebs", "DeleteOnTermination"),
    "block-device-mapping.device-name": of(*DISK, "DeviceName"),
    "block-device-mapping.status": of(*DISK, "Ebs", "Status"),
    "block-device-mapping.volume-id": of(*DISK, "Ebs", "VolumeId"),
    "client-token": of("ClientToken"),
    "current-instance-boot-mode": of("CurrentInstanceBootMode"),
    "ebs-optimized": of("EbsOptimized"),
    "ena-support": of("EnaSupport"),
    "enclave-options.enabled": of("EnclaveOptions", "Enabled"),
    "group-id": of("SecurityGroups", 0, "GroupId"),
    "group-name": of("SecurityGroups", 0, "GroupName"),
    "hibernation-options.configured": of("HibernationOptions", "Configured"),
    "hypervisor": of("Hypervisor"),
    "image-id": of("ImageId"),
    "instance-id": of("InstanceId"),
    "instance-state-code": of("State", "Code"),
    "instance-state-name": of("State", "Name"),
    "instance-type": of("InstanceType"),
    "instance.group-id": of("SecurityGroups", 0, "GroupId"),
    "instance.group-name": of("SecurityGroups", 0, "GroupName"),
    "kernel-id": of("KernelId"),
    "key-name": of("KeyName"),
    "launch-index": of("AmiLaunchIndex"),
    "launch-time": of("LaunchTime"),
    "maintenance-options.auto-recovery": of("MaintenanceOptions", "AutoRecovery"),
    "metadata-options.http-endpoint": of(METADATA, "HttpEndpoint"),
    "metadata-options.http-protocol-ipv4": lambda reservation, instance: "enabled",
    "metadata-options.http-protocol-ipv6": of(METADATA, "HttpProtocolIpv6"),
    "metadata-options.http-put-response-hop-limit": of(METADATA, "HttpPutResponseHopLimit"),
    "metadata-options.http-tokens": of(METADATA, "HttpTokens"),
    "metadata-options.instance-metadata-tags": of(METADATA, "InstanceMetadataTags"),
    "metadata-options.state": of(METADATA, "State"),
    "monitoring-state": of("Monitoring", "State"),
    "network-interface.addresses.primary": of(*CARD, "PrivateIpAddresses", 0, "Primary"),
    "network-interface.addresses.private-dns-name": of(
        *CARD, "PrivateIpAddresses", 0, "PrivateDnsName"
    ),
    "network-interface.addresses.private-ip-address": of(
        *CARD, "PrivateIpAddresses", 0, "PrivateIpAddress"
    ),
    "network-interface.attachment.attach-time": of(*CARD, "Attachment", "AttachTime"),
    "network-interface.attachment.attachment-id": of(*CARD, "Attachment", "AttachmentId"),
    "network-interface.attachment.delete-on-termination": of(
        *CARD, "Attachment", "DeleteOnTermination"
    ),
    "network-interface.attachment.device-index": of(*CARD, "Attachment", "DeviceIndex"),
    "network-interface.attachment.instance-id": of("InstanceId"),
    "network-interface.attachment.instance-owner-id": of(*CARD, "OwnerId"),
    "network-interface.attachment.network-card-index": of(*CARD, "Attachment", "NetworkCardIndex"),
    "network-interface.attachment.status": of(*CARD, "Attachment", "Status"),
    "network-interface.availability-zone": of("Placement", "AvailabilityZone"),
    "network-interface.description": of(*CARD, "Description"),
    "network-interface.group-id": of(*CARD, "Groups", 0, "GroupId"),
    "network-interface.group-name": of(*CARD, "Groups", 0, "GroupName"),
    "network-interface.ipv6-native": lambda reservation, instance: False,
    "network-interface.mac-address": of(*CARD, "MacAddress"),
    "network-interface.network-interface-id": of(*CARD, "NetworkInterfaceId"),
    "network-interface.operator.managed": lambda reservation, instance: False,
    "network-interface.owner-id": of(*CARD, "OwnerId"),
    "network-interface.private-dns-name": of(*CARD, "PrivateDnsName"),
    "network-interface.private-ip-address": of(*CARD, "PrivateIpAddress"),
    "network-interface.requester-managed": lambda reservation, instance: False,
    "network-interface.source-dest-check": of(*CARD, "SourceDestCheck"),
    "network-interface.status": of(*CARD, "Status"),
    "network-interface.subnet-id": of(*CARD, "SubnetId"),
    "network-interface.tag-key": lambda reservation, instance: "card",
    "network-interface.tag-value": lambda reservation, instance: "first",
    "network-interface.vpc-id": of(*CARD, "VpcId"),
    "operator.managed": lambda reservation, instance: False,
    "owner-id": lambda reservation, instance: reservation["OwnerId"],
    "platform-details": of("PlatformDetails"),
    "private-dns-name": of("PrivateDnsName"),
    "private-dns-name-options.enable-resource-name-dns-a-record": of(
        "PrivateDnsNameOptions", "EnableResourceNameDnsARecord"
    ),
    "private-dns-name-options.enable-resource-name-dns-aaaa-record": of(
        "PrivateDnsNameOptions", "EnableResourceNameDnsAAAARecord"
    ),
    "private-dns-name-options.hostname-type": of("PrivateDnsNameOptions", "HostnameType"),
    "private-ip-address": of("PrivateIpAddress"),
    "ramdisk-id": of("RamdiskId"),
    "reason": of("StateTransitionReason"),
    "reservation-id": lambda reservation, instance: reservation["ReservationId"],
    "root-device-name": of("RootDeviceName"),
    "root-device-type": of("RootDeviceType"),
    "source-dest-check": of("SourceDestCheck"),
    "state-reason-code": of("StateReason", "Code"),
    "state-reason-message": of("StateReason", "Message"),
    "subnet-id": of("SubnetId"),
    "tenancy": of("Placement", "Tenancy"),
    "usage-operation": of("UsageOperation"),
    "usage-operation-update-time": of("UsageOperationUpdateTime"),
    "virtualization-type": of("VirtualizationType"),
    "vpc-id": of("VpcId"),
}
"""Where a reply shows what a filter names; nothing has a place for the few others."""

CANNOT_BE = sorted(set(FILTERS) - set(SHOWN))


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "isoformat"):
        return f"{value:%Y-%m-%dT%H:%M:%S}.000Z"
    return str(value)


@pytest.fixture(scope="module", params=KINDS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with on_store(request, Config()) as config:
        front = Front(tmp_path_factory.mktemp("stage"), config)
        yield Stage(front)
        front.close()


@pytest.fixture(scope="module")
def target(stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Launch an instance of which everything is special, and another that has nothing."""
    front = stage.front
    plain = front.run()
    kernel = front.make_image(kind="kernel", format="kernel", name="k").image_id
    ramdisk = front.make_image(kind="ramdisk", format="ramdisk", name="r").image_id
    image = front.make_image(name="i", root_device_name="/dev/sda1")
    stage.ask("ImportKeyPair", KeyName="mine", PublicKeyMaterial=PUBLIC_KEY)
    group_id = stage.ask("CreateSecurityGroup", GroupName="web", Description="d")["GroupId"]
    [instance_id] = front.run(
        ImageId=image.image_id,
        InstanceType="t3.nano",
        KernelId=kernel,
        RamdiskId=ramdisk,
        KeyName="mine",
        SecurityGroupIds=[group_id],
        ClientToken="tok",
        Monitoring={"Enabled": True},
        MetadataOptions={
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 7,
            "InstanceMetadataTags": "enabled",
        },
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": "card", "Value": "first"}],
            }
        ],
    )
    front.make_running([instance_id])

    def say_why(tx: Transaction) -> None:
        table = schema.instances
        values = {
            "transition_reason": "User initiated (now)",
            "reason_code": "Client.Test",
            "reason_message": "It is [a] test.",
        }
        tx.execute(table.update().where(table.c.id == instance_id).values(**values))

    front.change(say_why)
    front.make_terminated(plain)
    [reservation] = stage.ask("DescribeInstances", InstanceIds=[instance_id])["Reservations"]
    return reservation, reservation["Instances"][0]


PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF6Wc1PZn5Mm6RbPFhVNnMVnKnJZ8qzmx3TQp0J4qPpE me"


def found(stage: Stage, name: str, *values: str) -> list[str]:
    reply = stage.ask("DescribeInstances", Filters=[{"Name": name, "Values": list(values)}])
    return [one["InstanceId"] for group in reply["Reservations"] for one in group["Instances"]]


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_is_shown_is_found(stage: Stage, target: Any, name: str) -> None:
    instance_id = target[1]["InstanceId"]
    value = as_text(SHOWN[name](*target))
    assert instance_id in found(stage, name, value)
    assert instance_id in found(stage, name, "nonsense", value)
    assert instance_id not in found(stage, name, "nonsense", f"{value}x")


@pytest.mark.parametrize("name", sorted(set(SHOWN) - {"network-interface.description"}))
def test_wildcards_are_understood(stage: Stage, target: Any, name: str) -> None:
    instance_id = target[1]["InstanceId"]
    value = as_text(SHOWN[name](*target))
    if name.endswith("time"):
        assert instance_id in found(stage, name, f"{value[:13]}*")
        return
    assert instance_id in found(stage, name, f"{value[:-1]}?")
    assert instance_id in found(stage, name, "nonsense*", f"{value[:1]}*")
    assert instance_id not in found(stage, name, f"?{value}")


@pytest.mark.parametrize("name", CANNOT_BE)
def test_what_cannot_be_is_found_nowhere(stage: Stage, target: Any, name: str) -> None:
    assert found(stage, name, "*", "true", "false", "") == []


def test_what_only_live_instances_have_is_not_found_at_terminated_ones(
    stage: Stage, target: Any
) -> None:
    instance_id = target[1]["InstanceId"]
    for name in SHOWN:
        if name.startswith(("network-interface.", "block-device-mapping.")):
            assert set(found(stage, name, "*", "true", "false", "0")) <= {instance_id}, name


def test_monitoring_of_a_pending_instance_is_pending(stage: Stage) -> None:
    [instance_id] = stage.front.run(Monitoring={"Enabled": True})
    [reservation] = stage.ask("DescribeInstances", InstanceIds=[instance_id])["Reservations"]
    assert reservation["Instances"][0]["Monitoring"] == {"State": "pending"}
    assert found(stage, "monitoring-state", "pending") == [instance_id]
