"""The catalog of instance types."""

from __future__ import annotations

from typing import Any

from appliance import instance_types
from appliance.api.ec2 import errors
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import matches
from appliance.api.ec2.paging import filters_of, next_token, page_size, place_of
from appliance.instance_types import InstanceType

_LARGEST_PAGE = 100


def describe_instance_types(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return instance types in the order of the catalog."""
    asked = params.get("InstanceTypes", [])
    unknown = [name for name in asked if name not in instance_types.CATALOG]
    if unknown:
        raise errors.instance_types_not_found(unknown)
    wanted = filters_of(params)
    size = page_size(params, largest=_LARGEST_PAGE) or _LARGEST_PAGE
    chosen = [
        kind
        for name, kind in instance_types.CATALOG.items()
        if matches(wanted, _properties(kind)) and (not asked or name in asked)
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


def _properties(kind: InstanceType) -> dict[str, list[str]]:
    return {
        "auto-recovery-supported": ["false"],
        "bare-metal": ["false"],
        "burstable-performance-supported": ["false"],
        "current-generation": ["true"],
        "dedicated-hosts-supported": ["false"],
        "free-tier-eligible": ["false"],
        "hibernation-supported": ["false"],
        "hypervisor": ["xen"],
        "instance-storage-supported": ["false"],
        "instance-type": [kind.name],
        "memory-info.size-in-mib": [str(kind.memory_mib)],
        "processor-info.supported-architecture": ["x86_64"],
        "supported-root-device-type": ["ebs"],
        "supported-usage-class": ["on-demand"],
        "supported-virtualization-type": ["hvm"],
        "vcpu-info.default-cores": [str(kind.vcpus)],
        "vcpu-info.default-threads-per-core": ["1"],
        "vcpu-info.default-vcpus": [str(kind.vcpus)],
    }


def _description(kind: InstanceType) -> dict[str, Any]:
    return {
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
        },
        "MemoryInfo": {"SizeInMiB": kind.memory_mib},
        "InstanceStorageSupported": False,
        "EbsInfo": {"EbsOptimizedSupport": "unsupported", "EncryptionSupport": "unsupported"},
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
        },
        "PlacementGroupInfo": {"SupportedStrategies": []},
        "HibernationSupported": False,
        "BurstablePerformanceSupported": False,
        "DedicatedHostsSupported": False,
        "AutoRecoverySupported": False,
        "SupportedBootModes": ["legacy-bios"],
    }
