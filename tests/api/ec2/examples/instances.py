"""Examples of the actions about instances."""

from __future__ import annotations

from typing import Any

from appliance.api.ec2.actions.instance_attributes import ELEMENTS
from appliance.store import Transaction, schema
from tests.api.ec2.examples.stage import Stage, example
from tests.api.front import Front


def launched(stage: Stage, count: int = 1, **more: Any) -> list[str]:
    """Return the ids of new instances that are pending."""
    wanted = {
        "ImageId": stage.front.image.image_id,
        "InstanceType": "m1.tiny",
        "MinCount": count,
        "MaxCount": count,
        **more,
    }
    return [each["InstanceId"] for each in stage.ask("RunInstances", **wanted)["Instances"]]


def running(stage: Stage, count: int = 1, **more: Any) -> list[str]:
    """Return the ids of new instances that run."""
    ids = launched(stage, count, **more)
    stage.front.make_running(ids)
    return ids


def stopped(stage: Stage, **more: Any) -> str:
    """Return the id of a new instance that is stopped."""
    ids = running(stage, **more)
    stage.front.make_stopped(ids)
    return ids[0]


def node_is(front: Front, *, is_up: bool, seen_s: float = 1.0, changed_at: float = 5.0) -> None:
    """Let the one node be up or down, heard of ``seen_s`` seconds from now."""

    def write(tx: Transaction) -> None:
        values = {"is_up": is_up, "seen_at": tx.now + seen_s, "changed_at": changed_at}
        tx.execute(schema.node_status.update().values(**values))

    front.change(write)


@example("RunInstances")
def run_plain(stage: Stage) -> None:
    launched(stage)


@example("RunInstances")
def run_with_all_that_is_kept(stage: Stage) -> None:
    tags = [{"Key": "Name", "Value": "<web & co>"}, {"Key": "empty", "Value": ""}]
    launched(
        stage,
        2,
        ClientToken="a-token",
        UserData="IyEvYmluL3No",
        DisableApiTermination=True,
        DisableApiStop=True,
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 3},
        TagSpecifications=[
            {"ResourceType": kind, "Tags": tags}
            for kind in ("instance", "volume", "network-interface")
        ],
    )


@example("DescribeInstances")
def describe_in_every_state(stage: Stage) -> None:
    [pending] = launched(stage)
    [runs] = running(stage, TagSpecifications=[_named("web")])
    off = stopped(stage)
    [gone] = running(stage)
    stage.front.make_terminated([gone])
    ids = [pending, runs, off, gone]
    found = stage.ask("DescribeInstances", InstanceIds=ids)["Reservations"]
    states = {
        one["InstanceId"]: one["State"]["Name"] for group in found for one in group["Instances"]
    }
    assert [states[each] for each in ids] == ["pending", "running", "stopped", "terminated"]


def _named(name: str) -> dict[str, Any]:
    return {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}


@example("DescribeInstances")
def describe_a_page(stage: Stage) -> None:
    launched(stage, 6)
    assert stage.ask("DescribeInstances", MaxResults=5)["NextToken"]


@example("TerminateInstances")
def terminate(stage: Stage) -> None:
    stage.ask("TerminateInstances", InstanceIds=running(stage, 2))


@example("StopInstances")
def stop(stage: Stage) -> None:
    stage.ask("StopInstances", InstanceIds=running(stage, 2))


@example("StartInstances")
def start(stage: Stage) -> None:
    stage.ask("StartInstances", InstanceIds=[stopped(stage)])


@example("RebootInstances")
def reboot(stage: Stage) -> None:
    stage.ask("RebootInstances", InstanceIds=running(stage))


@example("GetConsoleOutput")
def console_of_a_running_instance(stage: Stage) -> None:
    [instance_id] = running(stage)
    stage.front.bus.consoles[instance_id] = b"\x1b[0mboot \xff\x00 <done>\r\n"
    assert stage.ask("GetConsoleOutput", InstanceId=instance_id)["Output"]


@example("GetConsoleOutput")
def console_of_a_pending_instance(stage: Stage) -> None:
    [instance_id] = launched(stage)
    assert stage.ask("GetConsoleOutput", InstanceId=instance_id)["Output"] == ""


@example("DescribeInstanceTypes")
def describe_types(stage: Stage) -> None:
    stage.ask("DescribeInstanceTypes")
    assert stage.ask("DescribeInstanceTypes", MaxResults=5)["NextToken"]


@example("DescribeInstanceStatus")
def status_in_every_state(stage: Stage) -> None:
    ids = [*launched(stage), *running(stage, 2), stopped(stage)]
    stage.ask("DescribeInstanceStatus", InstanceIds=ids, IncludeAllInstances=True)
    for is_up in (True, False):
        node_is(stage.front, is_up=is_up)
        assert len(stage.ask("DescribeInstanceStatus", InstanceIds=ids)["InstanceStatuses"]) == 2


@example("DescribeInstanceStatus")
def a_page_of_status(stage: Stage) -> None:
    running(stage, 6)
    assert stage.ask("DescribeInstanceStatus", MaxResults=5)["NextToken"]


@example("DescribeInstanceAttribute")
def every_attribute(stage: Stage) -> None:
    kernel = stage.front.make_image(kind="kernel", format="kernel", name="k").image_id
    [plain, special] = [
        *running(stage),
        *running(
            stage,
            KernelId=kernel,
            UserData="IyEvYmluL3No",
            DisableApiStop=True,
            DisableApiTermination=True,
            InstanceInitiatedShutdownBehavior="terminate",
        ),
    ]
    for instance_id in (plain, special):
        for attribute in ELEMENTS:
            stage.ask("DescribeInstanceAttribute", InstanceId=instance_id, Attribute=attribute)


@example("ModifyInstanceAttribute")
def modify(stage: Stage) -> None:
    [instance_id] = running(stage)
    stage.ask("ModifyInstanceAttribute", InstanceId=instance_id, DisableApiStop={"Value": True})
    stage.ask(
        "ModifyInstanceAttribute",
        InstanceId=instance_id,
        Attribute="instanceInitiatedShutdownBehavior",
        Value="terminate",
    )


@example("MonitorInstances")
def monitor(stage: Stage) -> None:
    ids = [*running(stage), *running(stage, Monitoring={"Enabled": True})]
    stage.ask("MonitorInstances", InstanceIds=ids)
    stage.ask("DescribeInstances", InstanceIds=ids)


@example("UnmonitorInstances")
def unmonitor(stage: Stage) -> None:
    ids = [*running(stage), *running(stage, Monitoring={"Enabled": True})]
    stage.ask("UnmonitorInstances", InstanceIds=ids)


@example("GetPasswordData")
def password(stage: Stage) -> None:
    [instance_id] = running(stage)
    assert stage.ask("GetPasswordData", InstanceId=instance_id)["PasswordData"] == ""


@example("DescribeInstanceCreditSpecifications")
def credit_options(stage: Stage) -> None:
    asked = {"InstanceType": "t3.nano", "CreditSpecification": {"CpuCredits": "unlimited"}}
    ids = [*launched(stage), *launched(stage, 6, **asked)]
    stage.ask("DescribeInstanceCreditSpecifications", InstanceIds=ids)
    assert stage.ask("DescribeInstanceCreditSpecifications", MaxResults=5)["NextToken"]
