"""Scheduler ``chance``: a random node that is up and has room."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import Candidate, NodeView, PlacementRequest, Ranking
from appliance.scheduler.ranking import ASKED, CAPACITY, MAX_BEST, UP, shuffled, sift

api_versions = frozenset({1})


class Chance:
    """The scheduler; it keeps nothing between calls."""

    @hookimpl
    def scheduler_rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        fitting, refusals = sift(request, nodes, (ASKED, UP, CAPACITY))
        chosen = tuple(node.node_id for node in shuffled(request.seed, fitting))
        return Ranking(
            node_ids=chosen,
            considered=len(nodes),
            refusals=refusals,
            best=tuple(Candidate(node_id=node_id) for node_id in chosen[:MAX_BEST]),
        )


def create(settings: NoSettings, context: PluginContext) -> Chance:
    """Return the scheduler."""
    return Chance()
