"""Weight ``memory``: prefers nodes with much unclaimed memory."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest

api_versions = frozenset({1})


class Memory:
    """The weight; it keeps nothing between calls."""

    @hookimpl
    def weight_score(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[float]:
        return [node.memory_mib - node.memory_claimed_mib for node in nodes]


def create(settings: NoSettings, context: PluginContext) -> Memory:
    """Return the weight."""
    return Memory()
