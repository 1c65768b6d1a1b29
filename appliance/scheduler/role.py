"""Hop 3: place instances, and keep the record of why they went where they did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import msgspec

from appliance.bus import Delivery
from appliance.hooks import Scheduler
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.messages import Order, Place, node_topic
from appliance.model import Decision, InstanceSpec, Reason, TimelineEntry
from appliance.node import NodeParts
from appliance.role import Role
from appliance.scheduler.claims import Claim, claim_all, give_back, placement_of
from appliance.scheduler.plan import Placing, Plan, Waiting, find_waiting, make_plan
from appliance.scheduler.record import summary
from appliance.store import Transaction, instances, placements, timeline

api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return SchedulerRole()


class SchedulerRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Load the scheduler plugin and take ``Place``."""
        name = parts.config.scheduler.driver
        placing = Placing(
            parts=parts, scheduler=Scheduler(name, parts.plugin(Scheduler.group, name))
        )
        return Role(
            name="scheduler",
            topic="scheduler",
            casts={Place: lambda message, delivery: place(placing, message, delivery)},
        )


def place(placing: Placing, message: Place, delivery: Delivery) -> None:
    """Place the instances of a message: at least ``min_count`` of them, or none.

    The rankings are made on a view from before the transaction, so that the store waits for no
    plugin; the claims in it decide. Where they or the instances say that the view was too old,
    nothing is written and the nodes are ranked once more.
    """
    clock = placing.parts.world.clock
    began = _Began(at=clock.now(), monotonic=clock.monotonic())
    filled: dict[str, tuple[str, ...]] = {}
    for is_last in (False, True):
        plan = make_plan(placing, message.instance_ids, filled)
        try:
            delivery.once(partial(_place_all, placing, message, plan, began, is_last))
        except _OutdatedError as outdated:
            filled = outdated.filled
        else:
            return


@dataclass(frozen=True, kw_only=True)
class _Began:
    at: float
    monotonic: float


class _OutdatedError(Exception):
    """The plan was made on a view that is too old; ``filled`` as :func:`make_plan` takes it."""

    def __init__(self, filled: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.filled = filled


def _place_all(
    placing: Placing, message: Place, plan: Plan, began: _Began, is_last: bool, tx: Transaction
) -> None:
    waiting = find_waiting(tx, message.instance_ids)
    ranked = [found for one in waiting if (found := plan.of(one))]
    claims = claim_all(tx, ranked)
    filled = {
        claim.ranked.waiting.instance_id: claim.ranked.ranking.node_ids
        for claim in claims
        if claim.is_outranked
    }
    if not is_last and (filled or len(ranked) < len(waiting)):
        raise _OutdatedError(filled)
    choices = [(claim, _decision(placing, plan, claim)) for claim in claims]
    timeline.decide(tx, [choice for _, choice in choices])
    timeline.record(tx, [_entry(placing, *pair, began) for pair in choices])
    placed = [claim for claim in claims if claim.node_id]
    if len(placed) >= min(message.min_count, len(claims)):
        _order(tx, placed, plan)
        choices = [pair for pair in choices if pair[0].node_id is None]
    else:
        give_back(tx, placed)
    for claim, choice in choices:
        _refuse(tx, claim.ranked.waiting, choice, message.min_count)


def _decision(placing: Placing, plan: Plan, claim: Claim) -> Decision:
    name = plan.nodes[claim.node_id].name if claim.node_id else None
    return Decision(
        instance_id=claim.ranked.waiting.instance_id,
        epoch=claim.epoch,
        scheduler=placing.scheduler.name,
        ranking=claim.ranked.ranking,
        node_id=claim.node_id,
        node_name=name,
        claims_lost=claim.claims_lost,
        summary=summary(claim.ranked.ranking, name, claim.claims_lost),
        made_at=placing.parts.world.clock.now(),
    )


def _order(tx: Transaction, claims: list[Claim], plan: Plan) -> None:
    new = [placement_of(tx, claim) for claim in claims]
    placements.write(tx, new)
    instances.placed(tx, [(one.instance_id, one.epoch, one.node_id) for one in new])
    for claim, placement in zip(claims, new, strict=True):
        instance = claim.ranked.waiting.instance
        order = Order(
            instance_id=instance.instance_id,
            epoch=placement.epoch,
            revision=instance.revision,
            verb="run",
            spec=_spec_there(plan, instance.instance_id, placement.node_id),
            adopts_epoch=placement.adopts_epoch,
            request_id=instance.request_id,
        )
        tx.cast(node_topic("compute", placement.node_id), order)


def _spec_there(plan: Plan, instance_id: str, node_id: str) -> InstanceSpec:
    """Return what a node needs to build an instance, which is in that node's zone from now on."""
    spec = plan.specs[instance_id]
    return msgspec.structs.replace(spec, zone=spec.zone or plan.nodes[node_id].zone)


def _refuse(tx: Transaction, waiting: Waiting, choice: Decision, min_count: int) -> None:
    """End what could not be placed: a launch is terminated, a start leaves it stopped."""
    instance, message = waiting.instance, choice.summary
    if choice.node_id:
        message = f"Fewer than the {min_count} instances asked for could be placed."
    reason = Reason(code="Server.InsufficientInstanceCapacity", message=message)
    if instance.attempts and instance.reason:
        # What failed on a node says more than that no other node is left.
        failed = instance.reason
        reason = Reason(code=failed.code, message=f"{failed.message} No other node: {message}")
    if waiting.kept or placements.was_fenced(tx, instance.instance_id):
        # What is left of one whose node died is its id and its addresses: for a later start.
        instances.stopped(tx, instance, reason)
    else:
        instances.terminated(tx, instance, reason)


def _entry(placing: Placing, claim: Claim, choice: Decision, began: _Began) -> TimelineEntry:
    return TimelineEntry(
        instance_id=choice.instance_id,
        epoch=choice.epoch,
        request_id=claim.ranked.waiting.instance.request_id,
        node=placing.parts.node_name,
        role="scheduler",
        name="place",
        started_at=began.at,
        duration_ms=(placing.parts.world.clock.monotonic() - began.monotonic) * 1000,
        outcome="ok" if choice.node_id else "refused",
        detail=choice.summary,
    )
