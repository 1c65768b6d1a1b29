"""Filter ``reserved``: keeps some nodes for some projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import NodeView, PlacementRequest

api_versions = frozenset({1})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes are kept, and for whom."""

    nodes: Annotated[tuple[str, ...], Meta(description="names of the reserved nodes")] = ()
    projects: Annotated[tuple[str, ...], Meta(description="ids of projects that may use them")] = ()


class Reserved:
    """The filter."""

    def __init__(self, settings: Settings) -> None:
        self._nodes = frozenset(settings.nodes)
        self._projects = frozenset(settings.projects)

    @hookimpl
    def filter_refuse(
        self, request: PlacementRequest, nodes: Sequence[NodeView]
    ) -> list[str | None]:
        if request.project_id in self._projects:
            return [None] * len(nodes)
        return [
            "is reserved for other projects" if node.name in self._nodes else None for node in nodes
        ]


def create(settings: Settings, context: PluginContext) -> Reserved:
    """Return the filter."""
    return Reserved(settings)
