"""DescribeInstanceStatus: what is known of an instance, and of its node."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.api.ec2.examples.instances import node_is
from tests.api.front import Front, code_of, error_of

MISSING = "i-0123456789abcdef0"


def statuses(reply: Any) -> dict[str, tuple[str, str]]:
    return {
        one["InstanceId"]: (one["SystemStatus"]["Status"], one["InstanceStatus"]["Status"])
        for one in reply["InstanceStatuses"]
    }


@pytest.fixture
def running(front: Front) -> str:
    [instance_id] = front.run()
    front.make_running([instance_id])
    node_is(front, is_up=True)
    return instance_id


def test_an_instance_on_a_node_that_is_up_is_ok(ec2: Any, running: str) -> None:
    [found] = ec2.describe_instance_status()["InstanceStatuses"]
    passed = {"Status": "ok", "Details": [{"Name": "reachability", "Status": "passed"}]}
    assert found == {
        "InstanceId": running,
        "AvailabilityZone": "local-1a",
        "AvailabilityZoneId": "local-1a",
        "InstanceState": {"Code": 16, "Name": "running"},
        "Events": [],
        "SystemStatus": passed,
        "InstanceStatus": passed,
    }


def test_a_node_that_is_down_impairs_the_system_and_says_nothing_of_the_instance(
    front: Front, ec2: Any, running: str
) -> None:
    node_is(front, is_up=False, changed_at=1_700_000_000.0)
    [found] = ec2.describe_instance_status(InstanceIds=[running])["InstanceStatuses"]
    assert found["SystemStatus"] == {
        "Status": "impaired",
        "Details": [
            {
                "Name": "reachability",
                "Status": "failed",
                "ImpairedSince": datetime.fromtimestamp(1_700_000_000, UTC),
            }
        ],
    }
    assert found["InstanceStatus"]["Status"] == "insufficient-data"
    assert found["InstanceState"]["Name"] == "running"


def test_until_its_node_was_heard_of_an_instance_is_initializing(
    front: Front, ec2: Any, running: str
) -> None:
    node_is(front, is_up=True, seen_s=-60.0)
    assert statuses(ec2.describe_instance_status()) == {running: ("initializing", "initializing")}


def test_only_running_instances_unless_all_are_wanted(front: Front, ec2: Any, running: str) -> None:
    [pending] = front.run()
    assert set(statuses(ec2.describe_instance_status())) == {running}
    assert statuses(ec2.describe_instance_status(InstanceIds=[pending])) == {}
    everything = ec2.describe_instance_status(IncludeAllInstances=True)
    assert statuses(everything)[pending] == ("not-applicable", "not-applicable")
    [other] = [one for one in everything["InstanceStatuses"] if one["InstanceId"] == pending]
    assert other["SystemStatus"] == {"Status": "not-applicable"}
    front.make_terminated([pending])
    assert pending in statuses(ec2.describe_instance_status(IncludeAllInstances=True))


def test_the_waiter_for_a_good_status_is_content(ec2: Any, running: str) -> None:
    ec2.get_waiter("instance_status_ok").wait(InstanceIds=[running])


def test_filters_go_by_what_is_shown(front: Front, ec2: Any, running: str) -> None:
    [pending] = front.run()
    expected: list[tuple[str, list[str], set[str]]] = [
        ("availability-zone", ["local-1?"], {running, pending}),
        ("availability-zone", ["elsewhere"], set()),
        ("instance-state-name", ["running"], {running}),
        ("instance-state-code", ["0"], {pending}),
        ("instance-status.status", ["ok"], {running}),
        ("instance-status.status", ["not-applicable"], {pending}),
        ("instance-status.reachability", ["passed"], {running}),
        ("instance-status.reachability", ["*"], {running}),
        ("system-status.status", ["ok", "not-*"], {running, pending}),
        ("system-status.reachability", ["failed"], set()),
        ("event.code", ["*"], set()),
        ("operator.managed", ["false"], {running, pending}),
        ("attached-ebs-status.status", ["*"], set()),
        ("tag:Name", ["*"], set()),
    ]
    for name, values, ids in expected:
        wanted = [{"Name": name, "Values": values}]
        reply = ec2.describe_instance_status(IncludeAllInstances=True, Filters=wanted)
        assert set(statuses(reply)) == ids, (name, values)
    node_is(front, is_up=False)
    wanted = [{"Name": "system-status.reachability", "Values": ["failed"]}]
    assert set(statuses(ec2.describe_instance_status(Filters=wanted))) == {running}


def test_pages_show_each_instance_once(front: Front, ec2: Any) -> None:
    ids = [each for _ in range(3) for each in front.run(4)]
    front.make_running(ids)
    paginator = ec2.get_paginator("describe_instance_status")
    pages = list(paginator.paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["InstanceStatuses"]) for page in pages] == [5, 5, 2]
    assert sorted(each for page in pages for each in statuses(page)) == sorted(ids)
    assert "NextToken" not in pages[-1]


def test_bad_requests(front: Front, ec2: Any, running: str) -> None:
    describe = ec2.describe_instance_status
    assert error_of(describe, InstanceIds=[MISSING])["Message"] == (
        f"The instance ID '{MISSING}' does not exist"
    )
    assert code_of(describe, InstanceIds=["i-x"]) == "InvalidInstanceID.Malformed"
    assert code_of(describe, MaxResults=4) == "InvalidParameterValue"
    assert code_of(describe, NextToken="x") == "InvalidParameterValue"
    assert code_of(describe, MaxResults=5, InstanceIds=[running]) == "InvalidParameterCombination"
    many = [f"i-{number:017x}" for number in range(101)]
    assert code_of(describe, InstanceIds=many) == "InvalidParameterValue"
    other = front.client(front.make_project("other"))
    assert other.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"] == []
    assert code_of(other.describe_instance_status, InstanceIds=[running]) == (
        "InvalidInstanceID.NotFound"
    )
