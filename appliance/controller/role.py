"""Hop 8: write what nodes report, and bring about what is wanted."""

from __future__ import annotations

import logging

from appliance.bus import Delivery
from appliance.cluster.doors import close_doors, open_doors
from appliance.controller import lost, reports
from appliance.controller.heartbeats import WRITE_EVERY_S, Heartbeats
from appliance.controller.replicas import EVERY_S, note_images, replicate
from appliance.controller.reported import Told
from appliance.controller.roster import Roster
from appliance.controller.settle import Action, Held, next_action, order_for_holding
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.messages import (
    DeadLetter,
    GetMembers,
    Heartbeat,
    Holding,
    Holdings,
    Inventory,
    Order,
    Place,
    RebootWanted,
    Report,
    Wanted,
    node_topic,
)
from appliance.model import Desired, InstanceState, Reason
from appliance.node import NodeParts
from appliance.role import Periodic, Role
from appliance.store import (
    Transaction,
    history,
    instances,
    launches,
    members,
    nodes,
    placements,
    timeline,
)
from appliance.store.instances import Instance
from appliance.store.placements import Placement

log = logging.getLogger(__name__)
api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return ControllerRole()


class ControllerRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Take reports and wishes, answer inventories, sweep."""
        settings = parts.config.controller
        heartbeats = Heartbeats(parts)
        sweeper = Sweeper(parts, heartbeats)
        told = Told(parts.world.clock)
        return Role(
            name="controller",
            topic="controller",
            casts={
                Report: lambda message, delivery: reports.report(parts, told, message, delivery),
                Wanted: lambda message, delivery: wanted(parts, message, delivery),
                RebootWanted: lambda message, delivery: reboot(parts, message, delivery),
                DeadLetter: lambda message, delivery: dead_letter(parts, message, delivery),
            },
            calls={
                Inventory: lambda question: inventory(parts, question),
                GetMembers: Roster(parts).answer,
            },
            hears={Heartbeat: heartbeats.hear},
            periodic=(
                Periodic(name="heartbeats", every_s=WRITE_EVERY_S, run=heartbeats.write),
                Periodic(name="sweep", every_s=settings.sweep_every_s, run=sweeper.sweep),
                Periodic(name="replicas", every_s=EVERY_S, run=lambda: replicate(parts)),
                Periodic(name="forget", every_s=3600.0, run=lambda: forget(parts)),
            ),
            start=lambda: open_doors(parts),
            stop=lambda: close_doors(parts),
        )


def wanted(parts: NodeParts, message: Wanted, delivery: Delivery) -> None:
    """Do what the new desired state of an instance asks for."""

    def settle_it(tx: Transaction) -> None:
        instance = instances.get(tx, message.instance_id)
        if instance is not None:
            instances.progressed(tx, instance.instance_id)
            settle(parts, tx, instance, is_forced=message.is_forced)

    delivery.once(settle_it)


def settle(
    parts: NodeParts, tx: Transaction, instance: Instance, *, is_forced: bool = False
) -> None:
    """Make the next move for an instance."""
    placement = placements.active(tx, instance.instance_id)
    action = next_action(instance, placement)
    if action is Action.PLACE:
        message = Place(
            reservation_id=instance.reservation_id,
            instance_ids=(instance.instance_id,),
            request_id=instance.request_id,
        )
        tx.cast("scheduler", message)
    elif action is Action.END:
        instances.terminated(tx, instance, None)
    elif placement and action is not Action.NONE:
        order = make_order(parts, tx, instance, placement, action, is_forced=is_forced)
        tx.cast(node_topic("compute", placement.node_id), order)


def make_order(
    parts: NodeParts,
    tx: Transaction,
    instance: Instance,
    placement: Placement,
    action: Action,
    *,
    is_forced: bool = False,
) -> Order:
    """Return the order that carries out an action on the placement's node."""
    specs = instances.specs(tx, [instance.instance_id])
    return Order(
        instance_id=instance.instance_id,
        epoch=placement.epoch,
        revision=instance.revision,
        verb=action.value,
        spec=specs.get(instance.instance_id),
        adopts_epoch=placement.adopts_epoch,
        seq=instance.seq if instance.epoch == placement.epoch else 0,
        is_forced=is_forced,
        request_id=instance.request_id,
    )


def reboot(parts: NodeParts, message: RebootWanted, delivery: Delivery) -> None:
    """Pass a reboot on to the node of a running instance."""

    def pass_on(tx: Transaction) -> None:
        instance = instances.get(tx, message.instance_id)
        placement = placements.active(tx, message.instance_id)
        if instance and placement and instance.state is InstanceState.RUNNING:
            order = Order(
                instance_id=instance.instance_id,
                epoch=placement.epoch,
                revision=instance.revision,
                verb="reboot",
                request_id=message.request_id,
            )
            tx.cast(node_topic("compute", placement.node_id), order)

    delivery.once(pass_on)


def dead_letter(parts: NodeParts, message: DeadLetter, delivery: Delivery) -> None:
    """Fail the instances whose order or placement nobody could handle."""

    def fail(tx: Transaction) -> None:
        if message.kind == Place.__name__:
            _fail_unplaced(tx, message)
            return
        if message.kind != Order.__name__:
            return
        instance = instances.get(tx, message.instance_id or message.subject)
        if instance is None or instance.state is not InstanceState.PENDING:
            return
        if message.instance_id and message.epoch != instance.epoch:
            return
        text = f"The order to the node was given up: {message.error}"
        reason = Reason(code="Server.InternalError", message=text[:1000])
        _give_up(tx, instance, reason)

    delivery.once(fail)


def _give_up(tx: Transaction, instance: Instance, reason: Reason) -> None:
    """End a launch that leads nowhere; one that has run before keeps its disk and is stopped."""
    if instance.launched_at is None:
        instances.want(tx, instance, Desired.TERMINATED, reason=reason)
        tx.cast("controller", Wanted(instance_id=instance.instance_id))
        return
    kept = placements.active(tx, instance.instance_id)
    if kept:
        placements.free_while_stopped(tx, kept)
    instances.stopped(tx, instance, reason)


def _fail_unplaced(tx: Transaction, message: DeadLetter) -> None:
    text = f"It could not be placed: {message.error}"
    reason = Reason(code="Server.InternalError", message=text[:1000])
    ids = message.instance_ids or launches.instance_ids(tx, message.subject)
    for instance in instances.find(tx, ids):
        kept = placements.active(tx, instance.instance_id)
        if instance.desired is not Desired.RUNNING or instance.state is not InstanceState.PENDING:
            continue
        if kept is None:
            instances.terminated(tx, instance, reason)
        elif kept.memory_mib == 0:
            instances.stopped(tx, instance, reason)


def inventory(parts: NodeParts, question: Inventory) -> Holdings:
    """Compare what a node holds with what it should; answer the orders that it lacks."""

    note_images(parts, question)

    def compare(tx: Transaction) -> Holdings:
        here = {p.instance_id: p for p in placements.on_node(tx, question.node_id)}
        held = {h.instance_id: h for h in question.holdings}
        known = {i.instance_id: i for i in instances.find(tx, {*here, *held})}
        orders = []
        for instance_id in sorted({*here, *held}):
            instance, placement = known.get(instance_id), here.get(instance_id)
            holding = held.get(instance_id)
            seen = (
                Held(epoch=holding.epoch, revision=holding.revision, state=holding.state)
                if holding
                else None
            )
            action = order_for_holding(instance, placement, seen)
            if action is Action.NONE:
                continue
            if instance and placement:
                orders.append(make_order(parts, tx, instance, placement, action))
            elif holding:
                orders.append(_remove_stale(instance, holding))
        return Holdings(orders=tuple(orders))

    return parts.need_store().read(compare)


def _remove_stale(instance: Instance | None, holding: Holding) -> Order:
    """Return the order that removes a copy; its disk goes only if its owner wanted that."""
    return Order(
        instance_id=holding.instance_id,
        epoch=holding.epoch,
        revision=holding.revision + 1,
        verb="remove",
        sets_aside=instance is None or instance.state is not InstanceState.TERMINATED,
    )


class Sweeper:
    """Finds what shows no progress, and nodes that are silent.

    Ordering again is no progress, so what hangs stays visible as such. When it was last ordered is
    kept in memory: after a restart it is ordered once more, which does no harm.
    """

    def __init__(self, parts: NodeParts, heartbeats: Heartbeats) -> None:
        self._parts = parts
        self._heartbeats = heartbeats
        self._ordered_at: dict[str, float] = {}

    def sweep(self) -> None:
        """Order again what has stood still, and give up a launch that goes on doing so."""
        settings = self._parts.config.controller
        store = self._parts.need_store()
        if not store.transaction(self._look_at_nodes):
            return  # Another controller sweeps.
        since = self._parts.world.clock.now() - settings.progress_s
        still = store.read(lambda tx: instances.without_progress(tx, since))
        now = self._parts.world.clock.monotonic()
        ids = {instance.instance_id for instance in still}
        self._ordered_at = {key: at for key, at in self._ordered_at.items() if key in ids}
        for instance in still:
            if (
                self._ordered_at.get(instance.instance_id, float("-inf"))
                > now - settings.progress_s
            ):
                continue
            self._ordered_at[instance.instance_id] = now
            log.info("instance %s shows no progress in %s", instance.instance_id, instance.state)
            store.transaction(lambda tx, i=instance: self._move_on(tx, i, since))  # type: ignore[misc]

    def _look_at_nodes(self, tx: Transaction) -> bool:
        """Find nodes that are down, and help what waits for them; ``False``: it is not our turn."""
        settings = self._parts.config.controller
        if not self._heartbeats.take_turn(tx):
            return False
        self._heartbeats.note_all(tx)
        well_for_s = self._parts.bus.well_for_s()
        down = nodes.mark_silent_down(tx, settings.node_silence_s, well_for_s)
        for node_id in down:
            log.warning("node %s is down: silent for %g s", node_id, settings.node_silence_s)
        if down:
            members.changed(tx)
        for instance_id in lost.place_anew(tx):
            log.info("instance %s is placed anew: its node is down", instance_id)
        for instance_id in lost.end_away(tx):
            log.info("instance %s has ended as far as is known: its node is down", instance_id)
        return True

    def _move_on(self, tx: Transaction, seen: Instance, since: float) -> None:
        instance = instances.get(tx, seen.instance_id)
        if instance is None or instance.progress_at != seen.progress_at:
            return
        settings = self._parts.config.controller
        is_launch = instance.state is InstanceState.PENDING and instance.desired is Desired.RUNNING
        age_s = tx.now - instance.progress_at
        if is_launch and age_s > settings.give_up_s:
            text = f"The launch showed no progress for {age_s:.0f} s. {_last_cause(tx, instance)}"
            _give_up(tx, instance, Reason(code="Server.InternalError", message=text.strip()[:1000]))
        else:
            settle(self._parts, tx, instance)


def _last_cause(tx: Transaction, instance: Instance) -> str:
    """Return what its node said last of a failure at this epoch; empty when nothing."""
    entries = timeline.of_instance(tx, instance.instance_id)
    causes = [one.causes for one in entries if one.epoch == instance.epoch and one.causes]
    return causes[-1][0] if causes else ""


def forget(parts: NodeParts) -> None:
    """Delete history that is older than the settings keep."""
    settings = parts.config.store
    while parts.need_store().transaction(
        lambda tx: history.forget(
            tx,
            history_s=settings.history_days * 86400.0,
            audit_s=settings.audit_days * 86400.0,
            terminated_s=settings.terminated_s,
        )
    ):
        continue
