"""The catalog of instance types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.action import Page, action
from appliance.api.ec2.call import Call
from appliance.api.ec2.matching import Property, passes
from appliance.api.ec2.paging import filters_of, next_token, place_of
from appliance.instance_types import InstanceType

FILTERS: Mapping[str, Property[InstanceType]] = {
    "auto-recovery-supported": lambda kind: ["false"],
    "bare-metal": lambda kind: ["false"],
    "burstable-performance-supported": lambda kind: ["false"],
    "current-generation": lambda kind: ["true"],
    "dedicated-hosts-supported": lambda kind: ["false"],
    "free-tier-eligible": lambda kind: ["false"],
    "hibernation-supported": lambda kind: ["false"],
    "hypervisor": lambda kind: ["xen"],
    "instance-storage-supported": lambda kind: ["false"],
    "instance-type": lambda kind: [kind.name],
    "memory-info.size-in-mib": lambda kind: [str(kind.memory_mib)],
    "processor-info.supported-architecture": lambda kind: ["x86_64"],
    "supported-root-device-type": lambda kind: ["ebs"],
    "supported-usage-class": lambda kind: ["on-demand"],
    "supported-virtualization-type": lambda kind: ["hvm"],
    "vcpu-info.default-cores": lambda kind: [str(kind.vcpus)],
    "vcpu-info.default-threads-per-core": lambda kind: ["1"],
    "vcpu-info.default-vcpus": lambda kind: [str(kind.vcpus)],
}
"""What instance types can be filtered by."""


@action(filters=FILTERS, page=Page(largest=100, size=100))
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
