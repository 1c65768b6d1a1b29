"""Nodes and requests for tests of placement."""

from __future__ import annotations

import random
from typing import Any

from appliance.model import NodeView, PlacementRequest

ZONES = ("zone-a", "zone-b", "zone-c")


def make_node(number: int, **changes: Any) -> NodeView:
    """Return an idle node that is up, in the first zone, with changes."""
    values: dict[str, Any] = {
        "node_id": f"00000000-0000-4000-8000-{number:012x}",
        "name": f"node-{number}",
        "zone": ZONES[0],
        "is_up": True,
        "vcpus": 32,
        "vcpus_claimed": 0,
        "memory_mib": 65536,
        "memory_claimed_mib": 0,
        "disk_gib": 1000,
        "disk_claimed_gib": 0,
    }
    return NodeView(**{**values, **changes})


def make_request(**changes: Any) -> PlacementRequest:
    """Return a request for a small instance, with changes."""
    values: dict[str, Any] = {
        "instance_id": "i-00000000000000001",
        "project_id": "project-1",
        "instance_type": "m1.small",
        "vcpus": 2,
        "memory_mib": 2048,
        "disk_gib": 20,
    }
    return PlacementRequest(**{**values, **changes})


def make_cluster(count: int, seed: int = 1) -> list[NodeView]:
    """Return nodes of all kinds: loaded, full, down, closed, in three zones."""
    draw = random.Random(seed)
    return [
        make_node(
            number,
            zone=draw.choice(ZONES),
            is_up=draw.random() < 0.9,
            accepts_instances=draw.random() < 0.9,
            vcpus_claimed=draw.randint(0, 32),
            memory_claimed_mib=draw.randint(0, 65536),
            disk_claimed_gib=draw.randint(0, 1000),
            instances=draw.randint(0, 16),
        )
        for number in range(count)
    ]
