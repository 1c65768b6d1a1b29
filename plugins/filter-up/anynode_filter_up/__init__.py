"""Filter ``up``: refuses nodes that are down or take no new instances."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest
from appliance.scheduler.ranking import up_reasons

api_versions = frozenset({1})


class Up:
    """The filter; it keeps nothing between calls."""

    @hookimpl
    def filter_refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        return up_reasons(request, nodes)


def create(settings: NoSettings, context: PluginContext) -> Up:
    """Return the filter."""
    return Up()
