"""The catalog of instance types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import Property, passes
from appliance.api.ec2.paging import filters_of, next_token, place_of
from appliance.api.ec2.protocol.serializer import Constant
from appliance.instance_types import InstanceType


def _shown(*path: str) -> Property[InstanceType]:
    """Return the property that a reply shows at this place: what is seen is what is filtered."""

    def values(kind: InstanceType) -> list[str]:
        found: Any = _description(kind)
        for name in path:
            found = found.get(name, [])
        return [_text(each) for each in (found if isinstance(found, list) else [found])]

    return values


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nothing(kind: InstanceType) -> list[str]:
    return []


FILTERS: Mapping[str, Property[InstanceType]] = {
    "auto-recovery-supported": _shown("AutoRecoverySupported"),
    "bare-metal": _shown("BareMetal"),
    "burstable-performance-supported": _shown("BurstablePerformanceSupported"),
    "current-generation": _shown("CurrentGeneration"),
    "dedicated-hosts-supported": _shown("DedicatedHostsSupported"),
    "ebs-info.attachment-limit-type": _nothing,
    "ebs-info.ebs-optimized-info.baseline-bandwidth-in-mbps": _nothing,
    "ebs-info.ebs-optimized-info.baseline-iops": _nothing,
    "ebs-info.ebs-optimized-info.baseline-throughput-in-mbps": _nothing,
    "ebs-info.ebs-optimized-info.maximum-bandwidth-in-mbps": _nothing,
    "ebs-info.ebs-optimized-info.maximum-iops": _nothing,
    "ebs-info.ebs-optimized-info.maximum-throughput-in-mbps": _nothing,
    "ebs-info.ebs-optimized-support": _shown("EbsInfo", "EbsOptimizedSupport"),
    "ebs-info.encryption-support": _shown("EbsInfo", "EncryptionSupport"),
    "ebs-info.maximum-ebs-attachments": _shown("EbsInfo", "MaximumEbsAttachments"),
    "ebs-info.nvme-support": _shown("EbsInfo", "NvmeSupport"),
    "free-tier-eligible": _shown("FreeTierEligible"),
    "hibernation-supported": _shown("HibernationSupported"),
    "hypervisor": _shown("Hypervisor"),
    "instance-storage-info.disk.count": _nothing,
    "instance-storage-info.disk.size-in-gb": _nothing,
    "instance-storage-info.disk.type": _nothing,
    "instance-storage-info.encryption-support": _nothing,
    "instance-storage-info.nvme-support": _nothing,
    "instance-storage-info.total-size-in-gb": _nothing,
    "instance-storage-supported": _shown("InstanceStorageSupported"),
    "instance-type": _shown("InstanceType"),
    "memory-info.size-in-mib": _shown("MemoryInfo", "SizeInMiB"),
    "network-info.bandwidth-weightings": _nothing,
    "network-info.efa-info.maximum-efa-interfaces": _nothing,
    "network-info.efa-supported": _shown("NetworkInfo", "EfaSupported"),
    "network-info.ena-support": _shown("NetworkInfo", "EnaSupport"),
    "network-info.encryption-in-transit-supported": _shown(
        "NetworkInfo", "EncryptionInTransitSupported"
    ),
    "network-info.flexible-ena-queues-support": _shown("NetworkInfo", "FlexibleEnaQueuesSupport"),
    "network-info.ipv4-addresses-per-interface": _shown("NetworkInfo", "Ipv4AddressesPerInterface"),
    "network-info.ipv6-addresses-per-interface": _shown("NetworkInfo", "Ipv6AddressesPerInterface"),
    "network-info.ipv6-supported": _shown("NetworkInfo", "Ipv6Supported"),
    "network-info.maximum-network-cards": _shown("NetworkInfo", "MaximumNetworkCards"),
    "network-info.maximum-network-interfaces": _shown("NetworkInfo", "MaximumNetworkInterfaces"),
    "network-info.network-performance": _shown("NetworkInfo", "NetworkPerformance"),
    "nitro-enclaves-support": _shown("NitroEnclavesSupport"),
    "nitro-tpm-info.supported-versions": _nothing,
    "nitro-tpm-support": _shown("NitroTpmSupport"),
    "processor-info.supported-architecture": _shown("ProcessorInfo", "SupportedArchitectures"),
    "processor-info.supported-features": _nothing,
    "processor-info.sustained-clock-speed-in-ghz": _nothing,
    "reboot-migration-support": _shown("RebootMigrationSupport"),
    "supported-boot-mode": _shown("SupportedBootModes"),
    "supported-root-device-type": _shown("SupportedRootDeviceTypes"),
    "supported-usage-class": _shown("SupportedUsageClasses"),
    "supported-virtualization-type": _shown("SupportedVirtualizationTypes"),
    "vcpu-info.default-cores": _shown("VCpuInfo", "DefaultCores"),
    "vcpu-info.default-threads-per-core": _shown("VCpuInfo", "DefaultThreadsPerCore"),
    "vcpu-info.default-vcpus": _shown("VCpuInfo", "DefaultVCpus"),
    "vcpu-info.valid-cores": _shown("VCpuInfo", "ValidCores"),
    "vcpu-info.valid-threads-per-core": _shown("VCpuInfo", "ValidThreadsPerCore"),
}
"""What instance types can be filtered by."""


@action(
    filters=FILTERS,
    page=Page(largest=100, size=100),
    ignores=("IncludeUnsupportedInRegion",),
)
def describe_instance_types(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return instance types in the order of the catalog."""
    asked = params.get("InstanceTypes", [])
    unknown = [name for name in asked if name not in call.parts.types]
    if unknown:
        raise errors.instance_types_not_found(unknown)
    wanted = filters_of(params)
    size = params["MaxResults"]
    chosen = [
        kind
        for name, kind in call.parts.types.items()
        if passes(wanted, FILTERS, kind) and (not asked or name in asked)
    ]
    place = place_of(params, float)
    begin = int(place[0]) if place else 0
    if not 0 <= begin <= len(chosen):
        raise errors.invalid_pagination_token()
    reply: dict[str, Any] = {
        "InstanceTypes": [_description(kind) for kind in chosen[begin : begin + size]]
    }
    if begin + size < len(chosen):
        reply["NextToken"] = next_token(begin + size)
    return reply


@lru_cache(maxsize=1024)
def _description(kind: InstanceType) -> Constant:
    return Constant(
        {
            "InstanceType": kind.name,
            "CurrentGeneration": True,
            "FreeTierEligible": False,
            "SupportedUsageClasses": ["on-demand"],
            "SupportedRootDeviceTypes": ["ebs"],
            "SupportedVirtualizationTypes": ["hvm"],
            "BareMetal": False,
            "Hypervisor": "xen",
            "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
            "VCpuInfo": {
                "DefaultVCpus": kind.vcpus,
                "DefaultCores": kind.vcpus,
                "DefaultThreadsPerCore": 1,
                "ValidCores": [kind.vcpus],
                "ValidThreadsPerCore": [1],
            },
            "MemoryInfo": {"SizeInMiB": kind.memory_mib},
            "InstanceStorageSupported": False,
            "EbsInfo": {
                "EbsOptimizedSupport": "unsupported",
                "EncryptionSupport": "unsupported",
                "MaximumEbsAttachments": 1,
                "NvmeSupport": "unsupported",
            },
            "NetworkInfo": {
                "NetworkPerformance": "Up to 10 Gigabit",
                "MaximumNetworkInterfaces": 1,
                "MaximumNetworkCards": 1,
                "DefaultNetworkCardIndex": 0,
                "Ipv4AddressesPerInterface": 1,
                "Ipv6AddressesPerInterface": 0,
                "Ipv6Supported": False,
                "EnaSupport": "unsupported",
                "EfaSupported": False,
                "EncryptionInTransitSupported": False,
                "FlexibleEnaQueuesSupport": "unsupported",
            },
            "PlacementGroupInfo": {"SupportedStrategies": []},
            "HibernationSupported": False,
            # Credits are for types that are throttled without them; here none is.
            "BurstablePerformanceSupported": False,
            "DedicatedHostsSupported": False,
            "AutoRecoverySupported": False,
            "SupportedBootModes": ["legacy-bios"],
            "NitroEnclavesSupport": "unsupported",
            "NitroTpmSupport": "unsupported",
            "RebootMigrationSupport": "unsupported",
        }
    )
