"""Whatever botocore can say we hear, and whatever we say botocore hears."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import botocore.parsers
import botocore.serialize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.api.ec2.protocol.form import decode_form
from appliance.api.ec2.protocol.parser import RequestParser
from appliance.api.ec2.protocol.serializer import ReplySerializer

VERSION = "2016-11-15"
NAMESPACE = f"{{http://ec2.amazonaws.com/doc/{VERSION}/}}"

Draw = Callable[[st.SearchStrategy[Any]], Any]

few_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

xml_text = st.text(
    st.characters(
        exclude_categories=["Cs", "Cc"],
        include_characters="\t\n\r<&>\"']",
        exclude_characters="\ufffe\uffff",
    ),
    max_size=12,
)
seconds = st.datetimes(
    datetime(1970, 1, 1),
    datetime(2999, 12, 31),
    timezones=st.just(UTC),
).map(lambda moment: moment.replace(microsecond=0))
milliseconds = seconds.flatmap(
    lambda moment: st.integers(0, 999).map(lambda ms: moment.replace(microsecond=ms * 1000))
)


def draw_value(draw: Draw, shape: Any, timestamps: st.SearchStrategy[datetime]) -> Any:
    """Draw a value for one of botocore's shapes."""
    kind = shape.type_name
    if kind == "structure":
        names = list(shape.members)
        chosen = set(shape.required_members)
        if names:
            chosen |= draw(st.sets(st.sampled_from(names), min_size=1, max_size=5))
        return {
            name: draw_value(draw, shape.members[name], timestamps)
            for name in draw(st.permutations(sorted(chosen)))
        }
    if kind == "list":
        count = draw(st.integers(1, 3))
        return [draw_value(draw, shape.member, timestamps) for _ in range(count)]
    if kind == "string":
        return draw(st.sampled_from(shape.enum) if shape.enum else xml_text)
    if kind in ("integer", "long"):
        bits = 31 if kind == "integer" else 63
        low, high = shape.metadata.get("min", -(2**bits)), shape.metadata.get("max", 2**bits - 1)
        return draw(st.integers(low, high))
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.booleans(),
        "double": st.floats(allow_nan=False, allow_infinity=False),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "timestamp": timestamps,
        "blob": st.binary(max_size=40),
    }
    return draw(scalars[kind])


def without_empty(value: Any) -> Any:
    """Return what can cross the wire: a request cannot say an empty structure or list."""
    if isinstance(value, dict):
        kept = {name: without_empty(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item not in ({}, [])}
    if isinstance(value, list):
        kept_items = [without_empty(item) for item in value]
        return [item for item in kept_items if item not in ({}, [])]
    return value


@few_examples
@given(data=st.data())
def test_requests(data: st.DataObject, action: str, reference: Any, parser: RequestParser) -> None:
    operation = reference.operation_model(action)
    params = draw_value(data.draw, operation.input_shape, seconds)
    serializer = botocore.serialize.create_serializer("ec2", include_validation=False)
    body = serializer.serialize_to_request(params, operation)["body"]
    call = parser.parse(decode_form(urlencode(body).encode()))
    assert call.action == action
    assert call.version == VERSION
    assert call.params == without_empty(params)


@few_examples
@given(data=st.data())
def test_replies(
    data: st.DataObject, action: str, reference: Any, serializer: ReplySerializer
) -> None:
    output = reference.operation_model(action).output_shape
    result = draw_value(data.draw, output, milliseconds) if output else {}
    reply = serializer.serialize(action, result, request_id="req-1")
    parsed = botocore.parsers.create_parser("ec2").parse(
        {"status_code": 200, "headers": {}, "body": reply}, output
    )
    metadata = parsed.pop("ResponseMetadata")
    assert metadata["RequestId"] == "req-1"
    if output and "Return" in output.members:
        result.setdefault("Return", True)
    assert parsed == result
    assert_names(action, ElementTree.fromstring(reply), output)


def assert_names(action: str, root: ElementTree.Element, output: Any) -> None:
    assert root.tag == f"{NAMESPACE}{action}Response"
    assert root[0].tag == f"{NAMESPACE}requestId"
    body = list(root)[1:]
    if output is None or action in ("AssociateAddress", "CreateSecurityGroup"):
        assert (body[0].tag, body[0].text) == (f"{NAMESPACE}return", "true")
        body = body[1:]
    assert_structure(body, output)


def assert_structure(children: list[ElementTree.Element], shape: Any) -> None:
    """Every tag is the model's, and they come in the order of the model."""
    members = shape.members if shape else {}
    by_tag = {
        NAMESPACE + member.serialization.get("name", name): member
        for name, member in members.items()
    }
    tags = [child.tag for child in children]
    assert tags == [tag for tag in by_tag if tag in tags]
    for child in children:
        member = by_tag[child.tag]
        if member.type_name == "structure":
            assert_structure(list(child), member)
        elif member.type_name == "list":
            for item in child:
                assert item.tag == f"{NAMESPACE}item"
                if member.member.type_name == "structure":
                    assert_structure(list(item), member.member)
        else:
            assert not list(child)
