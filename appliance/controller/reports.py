"""What a node's report does to the records."""

from __future__ import annotations

from appliance.bus import Delivery
from appliance.controller.reported import Told, fitting
from appliance.messages import (
    INSTANCE_INITIATED_SHUTDOWN,
    Place,
    Report,
    ReportConfirmed,
    Wanted,
    node_topic,
)
from appliance.model import Desired, InstanceState, Reason
from appliance.node import NodeParts
from appliance.store import Transaction, attributes, instances, placements, quotas, timeline
from appliance.store.instances import Instance
from appliance.store.placements import Placement


def report(parts: NodeParts, told: Told, message: Report, delivery: Delivery) -> None:
    """Write a report where (epoch, seq) is newer, and confirm it."""
    message = fitting(message)

    def write(tx: Transaction) -> None:
        instance = instances.get(tx, message.instance_id)
        placement = placements.find(tx, message.instance_id, message.epoch)
        if placement and placement.node_id == message.node_id:
            timeline.record(tx, told.take(message))
        if (
            instance
            and placement
            and placement.is_active
            and (placement.node_id == message.node_id)
        ):
            _apply(parts, tx, message, instance, placement)
        if message.state != "pending":
            confirmation = ReportConfirmed(
                instance_id=message.instance_id,
                epoch=message.epoch,
                seq=message.seq,
                request_id=message.request_id,
            )
            tx.cast(node_topic("compute", message.node_id), confirmation)

    delivery.once(write)


def _apply(
    parts: NodeParts, tx: Transaction, message: Report, instance: Instance, placement: Placement
) -> None:
    if message.state in ("gone", "failed"):
        if placements.end(tx, placement, _text(message)) and instance.epoch == message.epoch:
            _gone(parts, tx, message, instance)
        return
    if message.state == "pending":
        if instance.epoch == message.epoch:
            instances.progressed(tx, message.instance_id)
        return
    values: dict[str, object] = {}
    if message.state == "running" and instance.desired is Desired.RUNNING:
        values = {"state": InstanceState.RUNNING.value, "reason_code": "", "reason_message": ""}
        if instance.launched_at is None or instance.state is InstanceState.PENDING:
            values["launched_at"] = tx.now
    elif message.state == "stopped" and instance.desired is not Desired.TERMINATED:
        _stopped(tx, message, instance, placement)
        return
    instances.reported(tx, message.instance_id, message.epoch, message.seq, values)


def _text(message: Report) -> str:
    return message.reason.message if message.reason else message.state


def _stopped(tx: Transaction, message: Report, instance: Instance, placement: Placement) -> None:
    """Write that an instance is off: as it was asked to be, or by itself, or for good reason."""
    by_itself = instance.desired is Desired.RUNNING
    if by_itself and message.is_asked and message.revision < instance.revision:
        return  # it stopped for an older wish, and has been started again meanwhile
    values: dict[str, object] = {"state": InstanceState.STOPPED.value}
    if by_itself:
        values |= {"desired": Desired.STOPPED.value, "revision": instance.revision + 1}
    ends = by_itself and _is_its_end(tx, message)
    if ends:
        values |= {
            "desired": Desired.TERMINATED.value,
            "state": InstanceState.SHUTTING_DOWN.value,
        }
    if message.reason:
        values |= {"reason_code": message.reason.code, "reason_message": message.reason.message}
    if instances.reported(tx, message.instance_id, message.epoch, message.seq, values):
        placements.free_while_stopped(tx, placement)
        quotas.uncount(tx, instance.instance_id)
        if ends:
            wish = Wanted(instance_id=instance.instance_id, request_id=message.request_id)
            tx.cast("controller", wish)


def _is_its_end(tx: Transaction, message: Report) -> bool:
    """Say whether an instance shut itself down, and its owner wants it terminated then."""
    reason = message.reason
    shut_down = reason is not None and reason.code == INSTANCE_INITIATED_SHUTDOWN
    return shut_down and attributes.ends_by_itself(tx, message.instance_id)


def _gone(parts: NodeParts, tx: Transaction, message: Report, instance: Instance) -> None:
    """Decide what follows when nothing of an instance is left on its node."""
    if instance.state is InstanceState.TERMINATED:
        # It was said to have ended while its node was silent.
        instances.release(tx, instance.instance_id)
        return
    if instance.desired is Desired.TERMINATED:
        instances.terminated(tx, instance, None)
        return
    instances.left_node(tx, instance.instance_id)
    attempts = instances.count_attempt(tx, instance.instance_id, message.reason)
    may_retry = (
        instance.desired is Desired.RUNNING
        and instance.launched_at is None
        and attempts < parts.config.scheduler.attempts
    )
    if may_retry:
        place = Place(
            reservation_id=instance.reservation_id,
            instance_ids=(instance.instance_id,),
            request_id=instance.request_id,
        )
        tx.cast("scheduler", place)
        return
    reason = message.reason or Reason(code="Server.InternalError", message="The launch failed.")
    instances.terminated(tx, instance, reason)
