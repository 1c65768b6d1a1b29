"""What to do next about an instance: a pure decision, from what is wanted and what is."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from appliance.model import Desired, InstanceState
from appliance.store.instances import Instance
from appliance.store.placements import Placement


class Action(enum.StrEnum):
    """The next move."""

    NONE = "none"
    PLACE = "place"
    ORDER_RUN = "run"
    ORDER_STOP = "stop"
    ORDER_REMOVE = "remove"
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Held:
    """An instance as its node holds it."""

    epoch: int
    revision: int
    state: str


def next_action(instance: Instance, placement: Placement | None) -> Action:
    """Return the move that brings an instance nearer to what is wanted of it.

    :param placement: the active one; ``None`` when the instance is on no node.
    """
    if instance.state is InstanceState.TERMINATED:
        return Action.ORDER_REMOVE if placement else Action.NONE
    if instance.desired is Desired.TERMINATED:
        return Action.ORDER_REMOVE if placement else Action.END
    if placement is None:
        return Action.PLACE if instance.state is InstanceState.PENDING else Action.NONE
    if instance.desired is Desired.STOPPED:
        return Action.NONE if instance.state is InstanceState.STOPPED else Action.ORDER_STOP
    if placement.memory_mib == 0:
        return Action.PLACE  # it was stopped: a start claims its room again
    return Action.ORDER_RUN


def order_for_holding(
    instance: Instance | None, placement: Placement | None, held: Held | None
) -> Action:
    """Return the order that a node needs so that it holds what it should.

    :param placement: the instance's active placement on that node; ``None`` when there is none.
    :param held: what the node says; ``None`` when it does not hold the instance at all.
    """
    if placement is None or instance is None:
        return Action.ORDER_REMOVE if held else Action.NONE
    if held is not None and held.epoch > placement.epoch:
        return Action.NONE  # the answer was overtaken by a newer placement
    wanted = next_action(instance, placement)
    if held is None:
        return wanted if wanted in (Action.ORDER_RUN, Action.ORDER_REMOVE) else Action.NONE
    if held.state == "off" and wanted is Action.NONE and instance.desired is Desired.STOPPED:
        return Action.ORDER_STOP  # it waits for a word: whether it is to run again
    if held.epoch < placement.epoch:
        return wanted if wanted in (Action.ORDER_RUN, Action.ORDER_REMOVE) else Action.NONE
    if wanted is Action.ORDER_REMOVE:
        return wanted
    if held.revision >= instance.revision and held.state != "off":
        return Action.NONE  # the node is at it, or its report is on the way
    settled = {Action.ORDER_RUN: "running", Action.ORDER_STOP: "stopped"}
    if held.state == settled.get(wanted) and held.revision > 0:
        return Action.NONE  # at revision 0 the node has only found it, and must learn what it is
    return wanted if wanted in settled else Action.NONE
