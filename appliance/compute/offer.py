"""What a node offers to instances of what its machine has. Pure."""

from __future__ import annotations

from appliance.config import ComputeSettings
from appliance.model import NodeCapacity


def offered(capacity: NodeCapacity, settings: ComputeSettings) -> tuple[int, int, int]:
    """Return vcpus, MiB of memory and GiB of disk, after what is kept back and the ratios."""
    memory_mib = max(capacity.memory_mib - settings.reserved_memory_mib, 0)
    return (
        int(capacity.vcpus * settings.vcpu_ratio),
        int(memory_mib * settings.memory_ratio),
        int(capacity.disk_gib * settings.disk_ratio),
    )
