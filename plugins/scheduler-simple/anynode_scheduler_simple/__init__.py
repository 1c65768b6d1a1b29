"""Scheduler ``simple``: the least loaded node, by claimed vcpus."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.model import Candidate, NodeView, PlacementRequest, Ranking
from appliance.scheduler.ranking import ASKED, CAPACITY, MAX_BEST, MAX_NODE_IDS, UP, ZONE, sift

api_versions = frozenset({1})


class Simple:
    """The scheduler; it keeps nothing between calls."""

    @hookimpl
    def scheduler_rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        fitting, refusals = sift(request, nodes, (ASKED, UP, ZONE, CAPACITY))
        draw = random.Random(request.seed).random
        # The draw decides between equals: else all schedulers would take the same idle node.
        loads = ((node.vcpus_claimed, draw(), place) for place, node in enumerate(fitting))
        chosen = [fitting[place] for *_, place in heapq.nsmallest(MAX_NODE_IDS, loads)]
        return Ranking(
            node_ids=tuple(node.node_id for node in chosen),
            considered=len(nodes),
            refusals=refusals,
            best=tuple(
                Candidate(
                    node_id=node.node_id,
                    score=float(-node.vcpus_claimed),
                    scores={"claimed vcpus": float(-node.vcpus_claimed)},
                )
                for node in chosen[:MAX_BEST]
            ),
        )


def create(settings: NoSettings, context: PluginContext) -> Simple:
    """Return the scheduler."""
    return Simple()
