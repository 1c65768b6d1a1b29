"""Filter ``capacity``: refuses nodes whose claims leave too little for the instance."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest
from appliance.scheduler.ranking import capacity_reasons

api_versions = frozenset({1})


class Capacity:
    """The filter; it keeps nothing between calls."""

    @hookimpl
    def filter_refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        return capacity_reasons(request, nodes)


def create(settings: NoSettings, context: PluginContext) -> Capacity:
    """Return the filter."""
    return Capacity()
