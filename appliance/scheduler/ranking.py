"""What scheduler plugins share: who may be asked, why a node was refused, and a bounded record.

Pure functions. A reason is a short stable phrase that completes "the node …"; it is counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from appliance.model import NodeView, PlacementRequest, Refusals

MAX_NODE_IDS = 50
"""Nodes that a ranking names: enough to survive lost claims, few enough for the record."""

MAX_BEST = 10
"""Candidates that a ranking explains."""

MAX_RECORD_BYTES = 16 * 1024
"""Size of a ranking as JSON."""

MAX_EXAMPLES = 3
MAX_REASONS = 6
OTHER_REASONS = "has another reason"

_REASON_LENGTH = 80
_NAME_LENGTH = 64

A = TypeVar("A")
Reasons = Sequence[str | None]
Filter = Callable[[PlacementRequest, Sequence[NodeView]], Reasons]


def asked_reasons(request: PlacementRequest, nodes: Sequence[NodeView]) -> list[str | None]:
    """Refuse the nodes that the request itself rules out, by its pin and its exclusions."""
    pinned, excluded = request.pinned_node_id, frozenset(request.excluded_node_ids)
    if pinned is None and not excluded:
        return [None] * len(nodes)
    return [
        "has been tried for this instance"
        if node.node_id in excluded
        else "does not hold the disk or the network of this instance"
        if pinned is not None and node.node_id != pinned
        else None
        for node in nodes
    ]


def up_reasons(request: PlacementRequest, nodes: Sequence[NodeView]) -> list[str | None]:
    """Refuse the nodes that are down or take no instances."""
    return [
        None
        if node.is_up and node.accepts_instances
        else "is down"
        if not node.is_up
        else "takes no new instances"
        for node in nodes
    ]


def zone_reasons(request: PlacementRequest, nodes: Sequence[NodeView]) -> list[str | None]:
    """Refuse the nodes outside the zone that was asked for; none when no zone was."""
    zone = request.zone
    if zone is None:
        return [None] * len(nodes)
    return [None if node.zone == zone else "is in another availability zone" for node in nodes]


def capacity_reasons(request: PlacementRequest, nodes: Sequence[NodeView]) -> list[str | None]:
    """Refuse the nodes whose claims leave too little; the first resource that lacks is named."""
    vcpus, memory_mib, disk_gib = request.vcpus, request.memory_mib, request.disk_gib
    return [
        "has too few free vcpus"
        if node.vcpus_claimed + vcpus > node.vcpus
        else "has too little free memory"
        if node.memory_claimed_mib + memory_mib > node.memory_mib
        else "has too little free disk"
        if node.disk_claimed_gib + disk_gib > node.disk_gib
        else None
        for node in nodes
    ]


ASKED: tuple[str, Filter] = ("request", asked_reasons)
UP: tuple[str, Filter] = ("up", up_reasons)
ZONE: tuple[str, Filter] = ("zone", zone_reasons)
CAPACITY: tuple[str, Filter] = ("capacity", capacity_reasons)


def sift(
    request: PlacementRequest, nodes: Sequence[NodeView], filters: Iterable[tuple[str, Filter]]
) -> tuple[list[NodeView], tuple[Refusals, ...]]:
    """Return the nodes that pass all filters, and what each filter refused.

    A filter sees only what the ones before it let through. A filter that refused nobody leaves
    no entry.
    """
    left = list(nodes)
    refused = []
    for name, refuse in filters:
        reasons = refuse(request, left)
        if any(reasons):
            refused.append(count_refusals(name, left, reasons))
            left = [node for node, reason in zip(left, reasons, strict=True) if not reason]
    return left, tuple(refused)


def count_refusals(name: str, nodes: Sequence[NodeView], reasons: Reasons) -> Refusals:
    """Return what one filter refused, bounded however many nodes and reasons there are.

    Beyond the most frequent reasons the rest is counted as one, and long texts are cut.
    """
    counted = Counter(reason for reason in reasons if reason)
    shown: Counter[str] = Counter()
    for place, (text, count) in enumerate(counted.most_common()):
        shown[_cut(text, _REASON_LENGTH) if place < MAX_REASONS else OTHER_REASONS] += count
    examples: list[str] = []
    for node, reason in zip(nodes, reasons, strict=True):
        if reason:
            examples.append(_cut(node.name, _NAME_LENGTH))
            if len(examples) == MAX_EXAMPLES:
                break
    return Refusals(
        filter=_cut(name, _NAME_LENGTH),
        nodes=counted.total(),
        reasons=dict(shown),
        examples=tuple(examples),
    )


def shuffled(seed: int, items: Sequence[A], count: int = MAX_NODE_IDS) -> list[A]:
    """Return up to ``count`` of the items in an order that the seed decides, all equally likely."""
    return random.Random(seed).sample(items, min(count, len(items)))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
