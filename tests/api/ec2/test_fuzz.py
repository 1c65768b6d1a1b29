"""Requests made from EC2's own model with hostile values: never a 5xx, always well-formed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.front_door import FrontDoor
from appliance.api.ec2.protocol.model import ServiceModel, load_model
from appliance.model import HttpRequest, Identity
from tests.api.ec2.test_traps import Stub
from tests.api.front import Front

MODEL: ServiceModel = load_model(ACTIONS)
HOSTILE = [
    "",
    "0",
    "-1",
    "1",
    "22",
    "65536",
    "2147483648",
    "true",
    "a" * 300,
    "' OR 1=1 --",
    "<b>&amp;",
    "../../etc/passwd",
    "é\u202e",
    "\0",
    "\r\nX: y",
    "%s%n",
    "*",
    "?",
    "\\",
    "[",
    "tcp",
    "icmp",
    "-1",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "10.0.0.1/33",
    "default",
    "i-0123456789abcdef0",
    "i-12345678",
    "sg-12345678",
    "ami-12345678",
    "subnet-12345678",
    "m1.tiny",
    "local-1a",
    "instance-id",
    "tag:Name",
    "vpc-id",
    "launch-time",
    "2026-*",
    "9999-99-99T99:99:99Z",
    "WzEuMCwiYSJd",
    "aGVsbG8=",
    "ssh-rsa AAAA",
]
# What gets a request past the first checks; {…} is filled in when there is something to name.
GOOD = {
    "MinCount": "1",
    "MaxCount": "1",
    "ImageId": "{image}",
    "InstanceId": "{instance}",
    "GroupId": "{group}",
    "GroupName": "default",
    "KeyName": "mine",
    "DeviceName": "/dev/vda",
    "VolumeSize": "2",
    "IpProtocol": "tcp",
    "FromPort": "22",
    "ToPort": "23",
    "CidrIp": "10.0.0.0/8",
    "ResourceType": "instance",
    "Name": "tag:a",
}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FrontDoor, dict[str, str]]]:
    front = Front(tmp_path_factory.mktemp("fuzz"))
    who = Identity(
        user_id="u", user_name="u", project_id=front.keys.project_id, access_level="member"
    )
    logging.getLogger("appliance.api.ec2.front_door").setLevel(logging.ERROR)
    # The default group: no request of this test can delete it.
    group = front.client().describe_security_groups()["SecurityGroups"][0]["GroupId"]
    known = {"{image}": front.image.image_id, "{instance}": front.run()[0], "{group}": group}
    try:
        yield FrontDoor(front.parts, Stub(who)), known  # type: ignore[arg-type]
    finally:
        logging.getLogger("appliance.api.ec2.front_door").setLevel(logging.NOTSET)
        front.close()


def names_of(draw: Any, shape_name: str, depth: int = 0) -> Iterator[str]:
    """Yield names of parameters as a client could send them for a shape."""
    shape = MODEL.shapes[shape_name]
    if shape.type == "structure" and depth < 4:
        members = [member for member in shape.members if member.name != "DryRun"]
        wanted = [member for member in members if member.name in shape.required]
        if members:
            wanted += draw(st.lists(st.sampled_from(members), max_size=4))
        for member in wanted:
            for rest in names_of(draw, member.shape, depth + 1):
                yield f"{member.input_name}.{rest}".rstrip(".")
    elif shape.type == "list":
        for number in draw(st.sampled_from([["1"], ["1", "2"], ["0"], ["7"], ["x"], [""]])):
            for rest in names_of(draw, shape.element, depth + 1):
                yield f"{number}.{rest}".strip(".")
    else:
        yield ""


@st.composite
def forms(draw: Any) -> list[tuple[str, str]]:
    action = draw(st.sampled_from(sorted(ACTIONS)))
    operation = MODEL.operations[action]
    pairs = {"Action": action}
    for name in names_of(draw, operation.input):
        parts = [part for part in name.split(".") if not part.isdigit()]
        good = GOOD.get(parts[-1] if parts else "")
        is_good = good is not None and draw(st.integers(0, 3)) > 0
        hostile = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
        pairs[name] = good if is_good else draw(hostile)
    return list(pairs.items())


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(form=forms())
def test_no_request_breaks_the_api(
    door: tuple[FrontDoor, dict[str, str]], form: list[tuple[str, str]]
) -> None:
    front_door, known = door
    form = [(name, known.get(value, value)) for name, value in form]
    request = HttpRequest(
        method="POST",
        target="/",
        headers=(("host", "n1:8773"),),
        body=urlencode(form).encode(),
        source="127.0.0.1",
    )
    reply = front_door.answer(request)
    assert reply.status < 500, reply.body
    ElementTree.fromstring(reply.body)
