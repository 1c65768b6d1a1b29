"""The instance types on offer: EC2's names with sizes that a machine of one's own can bear."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct


class InstanceType(Struct, frozen=True, kw_only=True):
    """A size of instances. ``disk_gib`` is the root disk's; 0 means the size of the image."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int = 0


DEFAULT = "m1.small"

_GIB = 1024
# m1.* are those of the first clouds; the sizes of the others are Amazon's.
_SIZES: tuple[tuple[str, int, int, int], ...] = (
    ("m1.tiny", 1, 512, 0),
    ("m1.small", 1, 2 * _GIB, 20),
    ("m1.medium", 2, 4 * _GIB, 40),
    ("m1.large", 4, 8 * _GIB, 80),
    ("m1.xlarge", 8, 16 * _GIB, 160),
    ("t2.nano", 1, 512, 0),
    ("t2.micro", 1, 1 * _GIB, 0),
    ("t2.small", 1, 2 * _GIB, 0),
    ("t2.medium", 2, 4 * _GIB, 0),
    ("t2.large", 2, 8 * _GIB, 0),
    ("t2.xlarge", 4, 16 * _GIB, 0),
    ("t2.2xlarge", 8, 32 * _GIB, 0),
    ("t3.nano", 2, 512, 0),
    ("t3.micro", 2, 1 * _GIB, 0),
    ("t3.small", 2, 2 * _GIB, 0),
    ("t3.medium", 2, 4 * _GIB, 0),
    ("t3.large", 2, 8 * _GIB, 0),
    ("t3.xlarge", 4, 16 * _GIB, 0),
    ("t3.2xlarge", 8, 32 * _GIB, 0),
    ("m5.large", 2, 8 * _GIB, 0),
    ("m5.xlarge", 4, 16 * _GIB, 0),
    ("m5.2xlarge", 8, 32 * _GIB, 0),
    ("m5.4xlarge", 16, 64 * _GIB, 0),
    ("c5.large", 2, 4 * _GIB, 0),
    ("c5.xlarge", 4, 8 * _GIB, 0),
    ("c5.2xlarge", 8, 16 * _GIB, 0),
    ("c5.4xlarge", 16, 32 * _GIB, 0),
    ("r5.large", 2, 16 * _GIB, 0),
    ("r5.xlarge", 4, 32 * _GIB, 0),
)

CATALOG: Mapping[str, InstanceType] = MappingProxyType(
    {
        name: InstanceType(name=name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
        for name, vcpus, memory_mib, disk_gib in _SIZES
    }
)
"""Every instance type by its name, smallest family first."""
