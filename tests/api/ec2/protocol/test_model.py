"""The model: cut down, yet the same as botocore's."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from appliance.api.ec2.protocol.model import ServiceModel, load_model
from appliance.errors import ConfigError


def test_knows_every_action_of_ec2_but_only_the_shapes_it_needs(
    model: ServiceModel, reference: Any, actions: list[str]
) -> None:
    assert model.action_names == set(reference.operation_names)
    assert set(model.operations) == set(actions)
    assert "CreateTransitGatewayRequest" not in model.shapes
    for shape in model.shapes.values():
        for member in shape.members:
            assert member.shape in model.shapes
        assert not shape.element or shape.element in model.shapes


def test_shapes_are_those_of_botocore(model: ServiceModel, reference: Any, action: str) -> None:
    operation = reference.operation_model(action)
    ours = model.operations[action]
    for theirs, name in (
        (operation.input_shape, ours.input),
        (operation.output_shape, ours.output),
    ):
        assert name == (theirs.name if theirs else "")
        if theirs:
            _assert_same(model, theirs, name)


def _assert_same(model: ServiceModel, theirs: Any, name: str) -> None:
    shape = model.shapes[name]
    assert shape.type == theirs.type_name
    assert list(shape.enum) == getattr(theirs, "enum", [])
    if theirs.type_name == "structure":
        assert [member.name for member in shape.members] == list(theirs.members)
        assert list(shape.required) == theirs.required_members
        for member in shape.members:
            theirs_member = theirs.members[member.name]
            assert member.output_name == theirs_member.serialization.get("name", member.name)
            _assert_same(model, theirs_member, member.shape)
    elif theirs.type_name == "list":
        _assert_same(model, theirs.member, shape.element)
    elif theirs.type_name == "integer":
        assert (shape.minimum, shape.maximum) == (
            theirs.metadata.get("min"),
            theirs.metadata.get("max"),
        )


def test_query_name_comes_before_location_name(model: ServiceModel) -> None:
    members = model.shapes["InstanceNetworkInterfaceSpecification"].by_input_name
    assert members["Ipv6Addresses"].output_name == "ipv6AddressesSet"


def test_a_description_need_not_be_packed(tmp_path: Path) -> None:
    plain = tmp_path / "service-2.json"
    plain.write_text(
        '{"operations": {"Do": {"name": "Do", "input": {"shape": "DoRequest"}}},'
        ' "shapes": {"DoRequest": {"type": "structure", "members": {}},'
        ' "Odd": {"type": "map"}}}'
    )
    assert load_model(["Do"], plain).operations["Do"].output == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f\x8b broken",
        gzip.compress(b"{", mtime=0),
        gzip.compress(b"{}", mtime=0),
        gzip.compress(b"x" * 99, mtime=0)[:-9],
    ],
)
def test_an_unreadable_description_says_which_file(tmp_path: Path, content: bytes) -> None:
    packed = tmp_path / "service-2.json.gz"
    packed.write_bytes(content)
    with pytest.raises(ConfigError, match=r"service-2\.json\.gz"):
        load_model([], packed)


def test_an_action_that_ec2_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match="LaunchRocket"):
        load_model(["DescribeInstances", "LaunchRocket"])
