"""What becomes of instances whose node is down, or is confirmed dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import Conflict
from appliance.messages import Place
from appliance.model import Desired, InstanceState, Reason, TimelineEntry
from appliance.store import Transaction, instances, networks, placements, timeline
from appliance.store.instances import Instance
from appliance.store.nodes import NodeStatus
from appliance.store.placements import Placement


def place_anew(tx: Transaction) -> list[str]:
    """Place instances anew whose node is down and has never bound them; return their ids.

    Such a node cannot have built them, and its binding will be refused.
    """
    moved = []
    for placement in placements.unbound_on_down_nodes(tx):
        if not placements.end_unbound(tx, placement, "its node is down and had not bound it"):
            continue
        instance = instances.get(tx, placement.instance_id)
        if instance is None or instance.epoch != placement.epoch:
            continue
        if instance.desired is Desired.TERMINATED:
            instances.terminated(tx, instance, None)
        elif instance.state is InstanceState.PENDING:
            instances.progressed(tx, instance.instance_id)
            _place(tx, instance)
        moved.append(instance.instance_id)
    return moved


def _place(tx: Transaction, instance: Instance) -> None:
    place = Place(
        reservation_id=instance.reservation_id,
        instance_ids=(instance.instance_id,),
        request_id=instance.request_id,
    )
    tx.cast("scheduler", place)


def end_away(tx: Transaction) -> list[str]:
    """Say of instances that shut down on nodes that are down that they ended; return their ids.

    Their placements stay, with addresses and claims, until the node says that they are gone.
    """
    ended = instances.ending_on_down_nodes(tx)
    return [one.instance_id for one in ended if instances.terminated_away(tx, one, None)]


@dataclass(frozen=True, kw_only=True)
class Evacuation:
    """What an evacuation has done: instances placed anew, left stopped, and ended."""

    placed: tuple[str, ...]
    stopped: tuple[str, ...]
    ended: tuple[str, ...]


def check_dead(node: NodeStatus) -> None:
    """Refuse to take a node for dead that was heard of.

    :raises Conflict: it is up.
    """
    if node.is_up:
        raise Conflict(
            f"Node {node.name} is up: it was heard of a moment ago.",
            hint="Stop its instances, or take its power first and wait until it is down "
            "(`anynode node list`).",
        )


def check_networks(tx: Transaction, node: NodeStatus, instance_ids: Sequence[str]) -> None:
    """Refuse to evacuate instances whose network is on that node alone.

    :raises Conflict: there are some; the message names the networks.
    """
    specs = instances.specs(tx, instance_ids)
    wanted = {port.network_id for spec in specs.values() for port in spec.ports}
    only_here = sorted(
        network_id
        for network_id, keeper in networks.keepers(tx, wanted).items()
        if keeper == node.node_id
    )
    if only_here:
        raise Conflict(
            f"{', '.join(only_here)} is on node {node.name} alone, so that its instances can be "
            "nowhere else.",
            hint="Bring the node back, or terminate these instances and launch others.",
        )


def evacuate(tx: Transaction, node: NodeStatus, by: str) -> Evacuation:
    """Fence all that belongs on a dead node, and place anew what shall run.

    Ids, MACs and addresses stay; what was on the disks is lost. Safe to repeat.

    :raises Conflict: the node is up, or instances can be nowhere else; nothing was changed.
    """
    check_dead(node)
    here = placements.on_node(tx, node.node_id)
    found = {one.instance_id: one for one in instances.find(tx, [p.instance_id for p in here])}
    living = [i for i, one in found.items() if one.desired is not Desired.TERMINATED]
    check_networks(tx, node, living)
    done: dict[str, list[str]] = {"placed": [], "stopped": [], "ended": []}
    for placement in here:
        instance = found.get(placement.instance_id)
        if placements.fence(tx, placement, f"{by} has confirmed that its node is dead"):
            what = _move_on(tx, instance, placement, node) if instance else "ended"
            done[what].append(placement.instance_id)
    return Evacuation(**{what: tuple(ids) for what, ids in done.items()})


def _move_on(tx: Transaction, instance: Instance, placement: Placement, node: NodeStatus) -> str:
    if instance.epoch != placement.epoch:
        return "ended"  # a newer placement of it lives on
    if instance.state is InstanceState.TERMINATED:
        instances.release(tx, instance.instance_id)
        return "ended"
    if instance.desired is Desired.TERMINATED:
        reason = Reason(code="Client.UserInitiatedShutdown", message="User initiated shutdown")
        instances.terminated(tx, instance, None if instance.reason else reason)
        return "ended"
    instances.displaced(tx, instance)
    timeline.record(tx, [_entry(tx, instance, node)])
    if instance.desired is not Desired.RUNNING:
        return "stopped"
    _place(tx, instance)
    return "placed"


def _entry(tx: Transaction, instance: Instance, node: NodeStatus) -> TimelineEntry:
    return TimelineEntry(
        instance_id=instance.instance_id,
        epoch=instance.epoch,
        request_id=instance.request_id,
        node=node.name,
        role="controller",
        name="evacuate",
        started_at=tx.now,
        duration_ms=0.0,
        detail=f"node {node.name} is dead: what was on its disk is lost",
    )
