"""Terminate, stop, start and reboot: what is written and what is sent on."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.messages import Place, RebootWanted, Wanted
from appliance.store import Transaction, schema
from tests.api.front import Front, code_of, error_of

MISSING = "i-0123456789abcdef0"


def state_of(front: Front, instance_id: str) -> tuple[str, str, int]:
    [row] = [row for row in front.rows(schema.instances) if row.id == instance_id]
    return row.state, row.desired, row.revision


def sent(front: Front, kind: type) -> list[Any]:
    return [message for _, message in front.bus.casts if isinstance(message, kind)]


def changes(reply: Any, name: str) -> list[tuple[str, str]]:
    return [(each["PreviousState"]["Name"], each["CurrentState"]["Name"]) for each in reply[name]]


def set_state(front: Front, **values: Any) -> None:
    front.change(lambda tx: tx.execute(schema.instances.update().values(**values)))


@pytest.fixture
def running(front: Front) -> list[str]:
    ids = front.run(2)
    front.make_running(ids)
    front.bus.casts.clear()
    return ids


def test_terminating_goes_straight_to_shutting_down(
    front: Front, ec2: Any, running: list[str]
) -> None:
    reply = ec2.terminate_instances(InstanceIds=running)
    assert changes(reply, "TerminatingInstances") == [("running", "shutting-down")] * 2
    assert state_of(front, running[0]) == ("shutting-down", "terminated", 2)
    assert sorted(message.instance_id for message in sent(front, Wanted)) == sorted(running)
    assert {topic for topic, _ in front.bus.casts} == {"controller"}


def test_a_pending_instance_can_be_terminated(front: Front, ec2: Any) -> None:
    ids = front.run()
    reply = ec2.terminate_instances(InstanceIds=ids)
    assert changes(reply, "TerminatingInstances") == [("pending", "shutting-down")]


def test_terminating_twice_is_fine_and_changes_nothing(
    front: Front, ec2: Any, running: list[str]
) -> None:
    ec2.terminate_instances(InstanceIds=running)
    again = ec2.terminate_instances(InstanceIds=running)
    assert changes(again, "TerminatingInstances") == [("shutting-down", "shutting-down")] * 2
    front.make_terminated(running)
    once_more = ec2.terminate_instances(InstanceIds=running)
    assert changes(once_more, "TerminatingInstances") == [("terminated", "terminated")] * 2
    assert state_of(front, running[0]) == ("terminated", "terminated", 2)
    assert len(sent(front, Wanted)) == 2


def test_protected_instances_are_not_terminated(front: Front, ec2: Any) -> None:
    [protected] = front.run(DisableApiTermination=True)
    [other] = front.run()
    code = code_of(ec2.terminate_instances, InstanceIds=[other, protected])
    assert code == "OperationNotPermitted"
    assert state_of(front, other)[0] == "pending"


def test_a_protected_instance_keeps_those_of_its_zone_and_no_others(front: Front, ec2: Any) -> None:
    a, b, c, d = front.run(4)
    zone = schema.instances.c.zone
    other_zone = schema.instances.update().where(schema.instances.c.id.in_([a, b]))
    front.change(lambda tx: tx.execute(other_zone.values({zone: "local-1b"})))
    ec2.modify_instance_attribute(InstanceId=c, DisableApiTermination={"Value": True})
    front.bus.casts.clear()
    refused = error_of(ec2.terminate_instances, InstanceIds=[a, b, c, d])
    assert refused["Code"] == "OperationNotPermitted"
    assert c in refused["Message"]
    states = {each: state_of(front, each)[0] for each in (a, b, c, d)}
    assert states == {a: "shutting-down", b: "shutting-down", c: "pending", d: "pending"}
    assert {message.instance_id for message in sent(front, Wanted)} == {a, b}
    before = front.rows(schema.instances)
    refused = error_of(ec2.terminate_instances, InstanceIds=[a, b, c, d])
    assert refused["Code"] == "OperationNotPermitted"
    assert front.rows(schema.instances) == before


def test_an_unknown_id_keeps_all_zones_from_being_terminated(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    code = code_of(ec2.terminate_instances, InstanceIds=[instance_id, MISSING])
    assert code == "InvalidInstanceID.NotFound"
    assert state_of(front, instance_id)[0] == "pending"


def test_protection_from_stops_is_protection_from_termination(front: Front, ec2: Any) -> None:
    [instance_id] = front.run(DisableApiStop=True)
    front.make_running([instance_id])
    refused = error_of(ec2.terminate_instances, InstanceIds=[instance_id])
    assert refused["Code"] == "OperationNotPermitted"
    assert "'disableApiStop'" in refused["Message"]
    front.make_terminated([instance_id])
    [change] = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "terminated"


def test_stop_and_start(front: Front, ec2: Any, running: list[str]) -> None:
    reply = ec2.stop_instances(InstanceIds=running)
    assert changes(reply, "StoppingInstances") == [("running", "stopping")] * 2
    assert state_of(front, running[0]) == ("stopping", "stopped", 2)
    assert not any(message.is_forced for message in sent(front, Wanted))
    front.make_stopped(running)
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [2, 0, 0]
    front.bus.casts.clear()
    reply = ec2.start_instances(InstanceIds=running)
    assert changes(reply, "StartingInstances") == [("stopped", "pending")] * 2
    assert state_of(front, running[0]) == ("pending", "running", 3)
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [2, 2, 1024]
    placed = sent(front, Place)
    assert sorted(each for message in placed for each in message.instance_ids) == sorted(running)
    assert {topic for topic, _ in front.bus.casts} == {"scheduler"}
    [instance, _] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert instance["StateTransitionReason"] == ""


def test_a_stop_can_be_forced_also_when_it_is_under_way(
    front: Front, ec2: Any, running: list[str]
) -> None:
    ec2.stop_instances(InstanceIds=running)
    front.bus.casts.clear()
    reply = ec2.stop_instances(InstanceIds=running, Force=True)
    assert changes(reply, "StoppingInstances") == [("stopping", "stopping")] * 2
    assert all(message.is_forced for message in sent(front, Wanted))
    assert len(sent(front, Wanted)) == 2


def test_quota_for_a_start_is_taken_or_nothing_is_started(
    front: Front, ec2: Any, running: list[str]
) -> None:
    front.make_stopped(running)

    def narrow(tx: Transaction) -> None:
        table = schema.quotas
        tx.execute(table.update().where(table.c.resource == "vcpus").values(ceiling=1))

    front.change(narrow)
    before = front.snapshot()
    assert code_of(ec2.start_instances, InstanceIds=running) == "VcpuLimitExceeded"
    assert front.snapshot() == before
    ec2.start_instances(InstanceIds=running[:1])


def test_a_stopped_instance_that_is_terminated_gives_back_what_it_holds(
    front: Front, ec2: Any, running: list[str]
) -> None:
    front.make_stopped(running)
    ec2.terminate_instances(InstanceIds=running)
    front.make_terminated(running)
    assert [front.quota(name) for name in ("instances", "vcpus", "memory_mib")] == [0, 0, 0]


def test_reboot_is_sent_on(front: Front, ec2: Any, running: list[str]) -> None:
    ec2.reboot_instances(InstanceIds=running)
    assert [message.instance_id for message in sent(front, RebootWanted)] == running
    assert state_of(front, running[0]) == ("running", "running", 1)


ALLOWED = {
    "terminate_instances": {
        "pending",
        "running",
        "stopping",
        "stopped",
        "shutting-down",
        "terminated",
    },
    "stop_instances": {"running", "stopping", "stopped"},
    "start_instances": {"stopped", "pending", "running"},
    "reboot_instances": {"running", "terminated"},
}


@pytest.mark.parametrize("action", ALLOWED)
def test_every_action_in_every_state(front: Front, ec2: Any, action: str) -> None:
    ids = front.run()
    for state in sorted(ALLOWED["terminate_instances"]):
        set_state(front, state=state, desired="running", terminated_at=4e9)
        before = front.snapshot()
        if state in ALLOWED[action]:
            getattr(ec2, action)(InstanceIds=ids)
        else:
            refused = error_of(getattr(ec2, action), InstanceIds=ids)
            assert refused["Code"] == "IncorrectInstanceState"
            assert ids[0] in refused["Message"]
            assert front.snapshot() == before


@pytest.mark.parametrize("action", ALLOWED)
def test_all_ids_must_exist_or_nothing_happens(
    front: Front, ec2: Any, running: list[str], action: str
) -> None:
    before = front.snapshot()
    refused = error_of(getattr(ec2, action), InstanceIds=[*running, MISSING])
    assert refused["Code"] == "InvalidInstanceID.NotFound"
    assert MISSING in refused["Message"]
    code = code_of(getattr(ec2, action), InstanceIds=[*running, "i-bad"])
    assert code == "InvalidInstanceID.Malformed"
    assert code_of(getattr(ec2, action), InstanceIds=running, DryRun=True) == "DryRunOperation"
    other = front.client(front.make_project("other"))
    after_project = front.snapshot()
    assert code_of(getattr(other, action), InstanceIds=running) == "InvalidInstanceID.NotFound"
    assert front.snapshot() == after_project
    assert before["instances"] == after_project["instances"]


def test_the_waiters_of_boto3_are_content(front: Front, ec2: Any, running: list[str]) -> None:
    quick = {"Delay": 1, "MaxAttempts": 2}
    ec2.get_waiter("instance_exists").wait(InstanceIds=running, WaiterConfig=quick)
    ec2.get_waiter("instance_running").wait(InstanceIds=running, WaiterConfig=quick)
    ec2.stop_instances(InstanceIds=running)
    front.make_stopped(running)
    ec2.get_waiter("instance_stopped").wait(InstanceIds=running, WaiterConfig=quick)
    ec2.terminate_instances(InstanceIds=running)
    front.make_terminated(running)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=running, WaiterConfig=quick)
