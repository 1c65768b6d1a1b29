"""Every filter that EC2 documents for an action is known here, and understood in all its forms."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest

from appliance.api.ec2.action_table import ACTIONS
from appliance.store.filters import TAGS
from tests.api.ec2.examples.stage import Refused, Stage
from tests.api.front import Front

ABOUT_INSTANCES = [
    "DescribeInstanceCreditSpecifications",
    "DescribeInstanceStatus",
    "DescribeInstanceTypes",
    "DescribeInstances",
]

_DOCUMENTED = re.compile(r"<li> <p> ?<code>([^<]+)</code>(?:/<code>([^<]+)</code>)? ?-")
_model = botocore.session.get_session().get_service_model("ec2")


def documented(action: str) -> set[str]:
    """Return the names that botocore's description of an action lists."""
    members = _model.operation_model(action).input_shape.members
    shape = members.get("Filters") or members.get("Filter")
    if shape is None:
        return set()
    found = [name for pair in _DOCUMENTED.findall(shape.documentation) for name in pair if name]
    return {html.unescape(name) for name in found}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    front = Front(tmp_path_factory.mktemp("stage"))
    made = Stage(front)
    front.make_running(front.run(2))
    yield made
    front.close()


@pytest.mark.parametrize("action", ABOUT_INSTANCES)
def test_no_documented_name_is_overlooked(action: str) -> None:
    text = _model.operation_model(action).input_shape.members["Filters"].documentation
    assert len(documented(action)) == text.count("<li>")


def test_the_names_are_found_in_the_descriptions() -> None:
    assert len(documented("DescribeInstances")) > 110
    assert {"tag:<key>", "network-interface.attachment.status"} <= documented("DescribeInstances")
    assert documented("DescribeInstanceCreditSpecifications") == {"instance-id"}


@pytest.mark.parametrize("action", ABOUT_INSTANCES)
def test_every_documented_filter_is_served(stage: Stage, action: str) -> None:
    unserved = {"tag:<key>": "tag:Name"}
    for name in sorted(documented(action)):
        for values in (["x"], ["*"], ["true", "a?c", "2026-01-02T*"]):
            wanted: Any = [{"Name": unserved.get(name, name), "Values": values}]
            try:
                stage.ask(action, Filters=wanted)
            except Refused as refused:
                pytest.fail(f"{action} does not take {name}={values}: {refused}")


@pytest.mark.parametrize("action", ABOUT_INSTANCES)
def test_no_filter_is_listed_that_is_not_documented(action: str) -> None:
    known = set(ACTIONS[action].filters) - set(TAGS)
    older_names = {"group-id", "group-name"} if action == "DescribeInstances" else set()
    assert known - documented(action) == older_names


@pytest.mark.parametrize("action", ABOUT_INSTANCES)
def test_an_unknown_filter_is_refused(stage: Stage, action: str) -> None:
    with pytest.raises(Refused, match="The filter 'colour' is invalid"):
        stage.ask(action, Filters=[{"Name": "colour", "Values": ["red"]}])
