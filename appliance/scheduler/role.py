"""Hop 3: place instances, and keep the record of why they went where they did."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.bus import Delivery
from appliance.hooks import Scheduler
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.messages import Order, Place, node_topic
from appliance.model import (
    Decision,
    Desired,
    InstanceSpec,
    InstanceState,
    NodeView,
    PlacementRequest,
    Ranking,
    Reason,
    TimelineEntry,
)
from appliance.node import NodeParts
from appliance.role import Role
from appliance.scheduler.record import summary
from appliance.store import Transaction, instances, nodes, placements, timeline
from appliance.store.instances import Instance
from appliance.store.placements import Placement

api_versions = frozenset({1})


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What placing needs: the parts of the node and the scheduler plugin."""

    parts: NodeParts
    scheduler: Scheduler


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

    The ranking is made on a view from before the transaction; the claim on the view's first node
    with room is what decides.
    """
    views = placing.parts.need_store().read(nodes.views)
    delivery.once(lambda tx: _place_all(placing, tx, message, views))


def _place_all(placing: Placing, tx: Transaction, message: Place, views: list[NodeView]) -> None:
    clock = placing.parts.world.clock
    started_at, started = clock.now(), clock.monotonic()
    waiting = [
        (instance, kept)
        for instance in instances.find(tx, message.instance_ids)
        if instance.desired is Desired.RUNNING and instance.state is InstanceState.PENDING
        for kept in [placements.active(tx, instance.instance_id)]
        if kept is None or kept.memory_mib == 0
    ]
    board = {view.node_id: view for view in views}
    choices = [_choose(placing, tx, instance, kept, board) for instance, kept in waiting]
    placed = [choice for choice in choices if choice.node_id]
    is_enough = len(placed) >= min(message.min_count, len(waiting))
    specs = instances.specs(tx, [choice.instance_id for choice in placed], placing.parts.zone)
    took_ms = (clock.monotonic() - started) * 1000
    for (instance, kept), choice in zip(waiting, choices, strict=True):
        timeline.decide(tx, choice)
        if choice.node_id and is_enough:
            _order(tx, instance, kept, choice, specs[instance.instance_id])
        else:
            _refuse(tx, instance, kept, choice, message.min_count)
        timeline.record(tx, [_entry(placing, instance, choice, started_at, took_ms)])


def _choose(
    placing: Placing,
    tx: Transaction,
    instance: Instance,
    kept: Placement | None,
    board: dict[str, NodeView],
) -> Decision:
    """Rank the nodes and claim the first with room; ``board`` keeps up with the claims."""
    request = PlacementRequest(
        instance_id=instance.instance_id,
        project_id=instance.project_id,
        instance_type=instance.instance_type,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=0 if kept else instance.disk_gib,
        zone=instance.zone,
        pinned_node_id=kept.node_id if kept else None,
        excluded_node_ids=() if kept else placements.failed_nodes(tx, instance.instance_id),
        seed=placing.parts.world.random.getrandbits(32),
    )
    ranking = placing.scheduler.rank(request, list(board.values()))
    epoch = instance.epoch + 1
    lost = 0
    for node_id in ranking.node_ids:
        if _claim(tx, instance, kept, epoch, node_id):
            board[node_id] = _with_claim(board[node_id], request)
            return _decision(placing, instance, ranking, epoch, board[node_id], lost)
        lost += 1
    return _decision(placing, instance, ranking, epoch, None, lost)


def _claim(
    tx: Transaction, instance: Instance, kept: Placement | None, epoch: int, node_id: str
) -> bool:
    if kept:
        return placements.renew(
            tx, kept, epoch, vcpus=instance.vcpus, memory_mib=instance.memory_mib
        )
    return placements.claim(
        tx,
        instance.instance_id,
        epoch,
        node_id,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=instance.disk_gib,
    )


def _with_claim(view: NodeView, request: PlacementRequest) -> NodeView:
    return msgspec.structs.replace(
        view,
        vcpus_claimed=view.vcpus_claimed + request.vcpus,
        memory_claimed_mib=view.memory_claimed_mib + request.memory_mib,
        disk_claimed_gib=view.disk_claimed_gib + request.disk_gib,
        instances=view.instances + 1,
    )


def _decision(
    placing: Placing,
    instance: Instance,
    ranking: Ranking,
    epoch: int,
    node: NodeView | None,
    claims_lost: int,
) -> Decision:
    return Decision(
        instance_id=instance.instance_id,
        epoch=epoch,
        scheduler=placing.scheduler.name,
        ranking=ranking,
        node_id=node.node_id if node else None,
        node_name=node.name if node else None,
        claims_lost=claims_lost,
        summary=summary(ranking, node.name if node else None, claims_lost),
        made_at=placing.parts.world.clock.now(),
    )


def _order(
    tx: Transaction,
    instance: Instance,
    kept: Placement | None,
    choice: Decision,
    spec: InstanceSpec,
) -> None:
    assert choice.node_id is not None
    instances.placed(tx, instance.instance_id, choice.epoch, choice.node_id)
    order = Order(
        instance_id=instance.instance_id,
        epoch=choice.epoch,
        revision=instance.revision,
        verb="run",
        spec=spec,
        adopts_epoch=kept.epoch if kept else 0,
        request_id=instance.request_id,
    )
    tx.cast(node_topic("compute", choice.node_id), order)


def _refuse(
    tx: Transaction, instance: Instance, kept: Placement | None, choice: Decision, min_count: int
) -> None:
    """End what could not be placed: a launch is terminated, a start leaves it stopped."""
    message = choice.summary
    if choice.node_id:
        claimed = placements.find(tx, instance.instance_id, choice.epoch)
        if claimed:
            placements.end(tx, claimed, "too few of the reservation could be placed")
        message = f"Fewer than the {min_count} instances asked for could be placed."
    reason = Reason(code="Server.InsufficientInstanceCapacity", message=message)
    if instance.attempts and instance.reason:
        # What failed on a node says more than that no other node is left.
        failed = instance.reason
        reason = Reason(code=failed.code, message=f"{failed.message} No other node: {message}")
    if kept:
        instances.stopped(tx, instance, reason)
    else:
        instances.terminated(tx, instance, reason)


def _entry(
    placing: Placing, instance: Instance, choice: Decision, started_at: float, took_ms: float
) -> TimelineEntry:
    return TimelineEntry(
        instance_id=instance.instance_id,
        epoch=choice.epoch,
        request_id=instance.request_id,
        node=placing.parts.node_name,
        role="scheduler",
        name="place",
        started_at=started_at,
        duration_ms=took_ms,
        outcome="ok" if choice.node_id else "refused",
        detail=choice.summary,
    )
