"""Weight ``spread``: prefers nodes with few instances."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest

api_versions = frozenset({1})


class Spread:
    """The weight; it keeps nothing between calls."""

    @hookimpl
    def weight_score(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[float]:
        return [-node.instances for node in nodes]


def create(settings: NoSettings, context: PluginContext) -> Spread:
    """Return the weight."""
    return Spread()
