"""Weight ``vcpus``: prefers nodes with many unclaimed vcpus."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest

api_versions = frozenset({1})


class Vcpus:
    """The weight; it keeps nothing between calls."""

    @hookimpl
    def weight_score(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[float]:
        return [node.vcpus - node.vcpus_claimed for node in nodes]


def create(settings: NoSettings, context: PluginContext) -> Vcpus:
    """Return the weight."""
    return Vcpus()
