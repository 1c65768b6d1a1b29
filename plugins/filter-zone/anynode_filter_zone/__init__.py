"""Filter ``zone``: refuses nodes outside the availability zone that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest
from appliance.scheduler.ranking import zone_reasons

api_versions = frozenset({1})


class Zone:
    """The filter; it keeps nothing between calls."""

    @hookimpl
    def filter_refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        return zone_reasons(request, nodes)


def create(settings: NoSettings, context: PluginContext) -> Zone:
    """Return the filter."""
    return Zone()
