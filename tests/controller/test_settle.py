"""What the controller does next, for every state that an instance may be in."""

from __future__ import annotations

import pytest

from appliance.controller.settle import Action, Held, next_action, order_for_holding
from appliance.model import Desired, InstanceState, Phase
from appliance.store.instances import Instance
from appliance.store.placements import Placement

PENDING, RUNNING = InstanceState.PENDING, InstanceState.RUNNING
STOPPING, STOPPED = InstanceState.STOPPING, InstanceState.STOPPED
GOING, GONE = InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED
RUN, STOP, END = Desired.RUNNING, Desired.STOPPED, Desired.TERMINATED


def instance(state: InstanceState, desired: Desired, revision: int = 5) -> Instance:
    return Instance(
        instance_id="i-1",
        project_id="p",
        reservation_id="r-1",
        request_id="req",
        instance_type="t2.nano",
        vcpus=1,
        memory_mib=512,
        disk_gib=1,
        zone=None,
        desired=desired,
        revision=revision,
        state=state,
        epoch=2,
        seq=1,
        attempts=0,
        node_id="n1",
        launched_at=None,
        progress_at=0.0,
        reason=None,
    )


def placement(memory_mib: int = 512, epoch: int = 2) -> Placement:
    return Placement(
        instance_id="i-1",
        epoch=epoch,
        node_id="n1",
        phase=Phase.COMMITTED,
        vcpus=1 if memory_mib else 0,
        memory_mib=memory_mib,
        disk_gib=1,
        changed_at=0.0,
    )


HERE, KEPT = placement(), placement(memory_mib=0)


@pytest.mark.parametrize(
    ("state", "desired", "where", "action"),
    [
        (PENDING, RUN, None, Action.PLACE),
        (PENDING, RUN, HERE, Action.ORDER_RUN),
        (PENDING, RUN, KEPT, Action.PLACE),
        (PENDING, END, None, Action.END),
        (PENDING, END, HERE, Action.ORDER_REMOVE),
        (PENDING, STOP, HERE, Action.ORDER_STOP),
        (PENDING, STOP, None, Action.PLACE),
        (RUNNING, RUN, HERE, Action.ORDER_RUN),
        (RUNNING, STOP, HERE, Action.ORDER_STOP),
        (RUNNING, RUN, None, Action.NONE),
        (STOPPING, STOP, HERE, Action.ORDER_STOP),
        (STOPPED, STOP, KEPT, Action.NONE),
        (STOPPED, STOP, None, Action.NONE),
        (STOPPED, END, KEPT, Action.ORDER_REMOVE),
        (STOPPED, END, None, Action.END),
        (GOING, END, HERE, Action.ORDER_REMOVE),
        (GOING, END, None, Action.END),
        (GONE, END, None, Action.NONE),
        (GONE, END, HERE, Action.ORDER_REMOVE),
    ],
)
def test_next_action(
    state: InstanceState, desired: Desired, where: Placement | None, action: Action
) -> None:
    assert next_action(instance(state, desired), where) is action


def held(state: str, epoch: int = 2, revision: int = 5) -> Held:
    return Held(epoch=epoch, revision=revision, state=state)


@pytest.mark.parametrize(
    ("what", "where", "seen", "action"),
    [
        # nobody knows it here
        (None, None, held("running"), Action.ORDER_REMOVE),
        (instance(RUNNING, RUN), None, held("running"), Action.ORDER_REMOVE),
        (None, None, None, Action.NONE),
        # all is well
        (instance(RUNNING, RUN), HERE, held("running"), Action.NONE),
        (instance(STOPPED, STOP), KEPT, held("stopped"), Action.NONE),
        # the order was lost
        (instance(PENDING, RUN), HERE, None, Action.ORDER_RUN),
        (instance(GOING, END), HERE, None, Action.ORDER_REMOVE),
        (instance(GOING, END), HERE, held("running"), Action.ORDER_REMOVE),
        (instance(STOPPING, STOP), HERE, held("running", revision=4), Action.ORDER_STOP),
        # the node is at it, or its report is on the way
        (instance(STOPPING, STOP), HERE, held("working"), Action.NONE),
        (instance(PENDING, RUN), HERE, held("working"), Action.NONE),
        (instance(RUNNING, RUN), HERE, held("stopped"), Action.NONE),
        (instance(STOPPING, STOP), HERE, held("stopped", revision=4), Action.NONE),
        # after a power cut
        (instance(RUNNING, RUN), HERE, held("off"), Action.ORDER_RUN),
        (instance(STOPPING, STOP), HERE, held("off"), Action.ORDER_STOP),
        (instance(STOPPED, STOP), KEPT, held("off"), Action.ORDER_STOP),
        (instance(STOPPED, STOP), KEPT, held("off", epoch=1), Action.ORDER_STOP),
        (instance(GOING, END), HERE, held("off"), Action.ORDER_REMOVE),
        # after a lost journal: it runs, and the node must learn what it is
        (instance(RUNNING, RUN), HERE, held("running", revision=0), Action.ORDER_RUN),
        # another epoch
        (instance(RUNNING, RUN), HERE, held("running", epoch=3), Action.NONE),
        (instance(PENDING, RUN), HERE, held("running", epoch=1), Action.ORDER_RUN),
        (instance(GOING, END), HERE, held("running", epoch=1), Action.ORDER_REMOVE),
        # a start that has yet to be placed
        (instance(PENDING, RUN), KEPT, held("stopped", revision=4), Action.NONE),
    ],
)
def test_order_for_holding(
    what: Instance | None, where: Placement | None, seen: Held | None, action: Action
) -> None:
    assert order_for_holding(what, where, seen) is action
