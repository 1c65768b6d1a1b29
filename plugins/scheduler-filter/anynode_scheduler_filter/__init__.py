"""Scheduler ``filter``: filters, then weights, then chance among the best few."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct, field

from appliance.hooks import Filters, Weights
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import Candidate, NodeView, PlacementRequest, Ranking
from appliance.scheduler.ranking import ASKED, MAX_BEST, MAX_NODE_IDS, sift

api_versions = frozenset({1})

Name = Annotated[str, Meta(min_length=1, max_length=40)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the scheduler asks, and how freely it picks."""

    filters: Annotated[
        tuple[Name, ...], Meta(description="filter plugins, in the order they run", max_length=20)
    ] = ("up", "zone", "capacity")
    weights: Annotated[
        dict[Name, float],
        Meta(description="multiplier of each weight plugin, no unit", max_length=20),
    ] = field(default_factory=lambda: {"memory": 1.0, "vcpus": 1.0, "spread": 1.0})
    choose_among: Annotated[
        int,
        Meta(
            description="number of best nodes of which one is picked at random; "
            "1 always takes the best",
            ge=1,
            le=MAX_NODE_IDS,
        ),
    ] = 3


class Filter:
    """The scheduler; it keeps nothing between calls."""

    def __init__(self, filters: Filters, weights: Weights, choose_among: int) -> None:
        self._filters = filters
        self._weights = weights
        self._choose_among = choose_among

    @hookimpl
    def scheduler_rank(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> Ranking:
        fitting, refusals = sift(request, nodes, (ASKED, *self._filters.named()))
        candidates = self._best(request, fitting)
        return Ranking(
            node_ids=tuple(candidate.node_id for candidate in candidates),
            considered=len(nodes),
            refusals=refusals,
            best=tuple(candidates[:MAX_BEST]),
        )

    def _best(self, request: PlacementRequest, nodes: Sequence[NodeView]) -> list[Candidate]:
        weighed = self._weights.score(request, nodes)
        totals = map(sum, zip(*(scores for _, scores in weighed), strict=True))
        chance = random.Random(request.seed)
        # The draw decides between equals: else all schedulers would agree on the same idle nodes.
        keys = (
            (total, chance.random(), place)
            for place, total in enumerate(totals if weighed else [0.0] * len(nodes))
        )
        order = heapq.nlargest(MAX_NODE_IDS, keys)
        first = order[: self._choose_among]
        chance.shuffle(first)
        return [
            Candidate(
                node_id=nodes[place].node_id,
                score=round(total, 4),
                scores={name: round(scores[place], 4) for name, scores in weighed},
            )
            for total, _, place in first + order[self._choose_among :]
        ]


def create(settings: Settings, context: PluginContext) -> Filter:
    """Return the scheduler with the filters and weights that its settings name."""
    return Filter(
        context.plugins.filters(settings.filters),
        context.plugins.weights(settings.weights),
        settings.choose_among,
    )
