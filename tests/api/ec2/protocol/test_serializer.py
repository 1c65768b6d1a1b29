"""Replies: what EC2 promises beyond the names that the round trips check."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any
from xml.etree import ElementTree

import botocore.parsers
import pytest

from appliance.api.ec2.protocol.serializer import ReplySerializer, serialize_error


class Mode(StrEnum):
    RSA = "rsa"


def reply(serializer: ReplySerializer, action: str, result: dict[str, Any]) -> str:
    return serializer.serialize(action, result, request_id="req-1").decode()


def test_a_reply_in_full(serializer: ReplySerializer) -> None:
    text = serializer.serialize(
        "DescribeKeyPairs",
        {
            "KeyPairs": [
                {
                    "Tags": [],
                    "KeyName": 'a<b>&"c"\r\n',
                    "KeyType": Mode.RSA,
                    "CreateTime": datetime(
                        2026, 1, 2, 4, 4, 5, tzinfo=timezone(timedelta(hours=1))
                    ),
                    "KeyFingerprint": None,
                }
            ]
        },
        request_id="r&1",
        version="2015-10-01",
    )
    assert text.decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<DescribeKeyPairsResponse xmlns="http://ec2.amazonaws.com/doc/2015-10-01/">'
        "<requestId>r&amp;1</requestId><keySet><item>"
        "<keyType>rsa</keyType><tagSet></tagSet><createTime>2026-01-02T03:04:05.000Z</createTime>"
        "<keyName>a&lt;b&gt;&amp;&quot;c&quot;&#13;\n</keyName></item></keySet>"
        "</DescribeKeyPairsResponse>"
    )


def test_a_hostile_version_stays_inside_its_attribute(serializer: ReplySerializer) -> None:
    hostile = '"><a b="'
    text = serializer.serialize("DescribeVpcs", {}, request_id="r", version=hostile)
    assert [child.tag.rpartition("}")[2] for child in ElementTree.fromstring(text)] == ["requestId"]


@pytest.mark.parametrize("action", ["RebootInstances", "CreateTags", "DeleteVolume"])
def test_actions_without_output_return_true(serializer: ReplySerializer, action: str) -> None:
    assert "<requestId>req-1</requestId><return>true</return></" in reply(serializer, action, {})


def test_return_is_true_unless_it_is_said_otherwise(serializer: ReplySerializer) -> None:
    assert "<return>true</return>" in reply(serializer, "DeleteKeyPair", {"KeyPairId": "key-1"})
    assert "<return>false</return>" in reply(serializer, "DeleteKeyPair", {"Return": False})
    associated = reply(serializer, "AssociateAddress", {"AssociationId": "eipassoc-1"})
    assert "<return>true</return><associationId>eipassoc-1</associationId>" in associated


def test_false_and_zero_and_empty_are_said(serializer: ReplySerializer) -> None:
    attribute = reply(
        serializer, "DescribeInstanceAttribute", {"DisableApiStop": {"Value": False}, "Groups": []}
    )
    assert "<disableApiStop><value>false</value></disableApiStop>" in attribute
    assert "<groupSet></groupSet>" in attribute
    assert "<code>0</code>" in reply(
        serializer, "StopInstances", {"StoppingInstances": [{"CurrentState": {"Code": 0}}]}
    )


@pytest.mark.parametrize(
    ("action", "result", "error"),
    [
        ("DescribeVpcs", {"Vpc": []}, ValueError),
        ("DescribeVpcs", {"Vpcs": [{"vpcId": "vpc-1"}]}, ValueError),
        ("RebootInstances", {"Return": True}, ValueError),
        ("DescribeVpcs", {"Vpcs": "vpc-1"}, TypeError),
        ("DescribeVpcs", {"Vpcs": {"VpcId": "vpc-1"}}, TypeError),
        ("DescribeVpcs", {"Vpcs": [{"VpcId": 1}]}, TypeError),
        ("DescribeVpcs", {"Vpcs": [{"VpcId": b"vpc-1"}]}, TypeError),
        ("DescribeVpcs", {"Vpcs": [{"IsDefault": "true"}]}, TypeError),
        ("DescribeVpcs", {"Vpcs": [{"IsDefault": 1}]}, TypeError),
        ("CreateVolume", {"Size": True}, TypeError),
        ("CreateVolume", {"Size": "8"}, TypeError),
        ("CreateVolume", {"CreateTime": "2026-01-02"}, TypeError),
        ("CreateVolume", {"CreateTime": datetime(2026, 1, 2)}, TypeError),
    ],
)
def test_a_result_that_is_not_the_models_is_our_mistake(
    serializer: ReplySerializer, action: str, result: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        reply(serializer, action, result)


def test_a_known_set_of_members_is_checked_every_time(serializer: ReplySerializer) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="Vpc of EC2's model has no member Name"):
            reply(serializer, "DescribeVpcs", {"Vpcs": [{"Name": "x"}]})


def test_every_character_leaves_the_reply_well_formed(serializer: ReplySerializer) -> None:
    for start in range(0, 0x110000, 0x1000):
        text = "".join(map(chr, range(start, start + 0x1000)))
        raw = serializer.serialize("DescribeVpcs", {"NextToken": text}, request_id="r")
        (token,) = (e for e in ElementTree.fromstring(raw) if e.tag.endswith("nextToken"))
        for sent, got in zip(text, token.text or "", strict=True):
            assert got == sent or (got == "\ufffd" and not _is_xml(sent))


def _is_xml(character: str) -> bool:
    code = ord(character)
    return (
        code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code > 0xFFFF
    )


def test_errors_are_read_by_botocore() -> None:
    raw = serialize_error("InvalidVpcID.NotFound", "The vpc ID '<x>&' \x00", request_id="req-9")
    parsed = botocore.parsers.create_parser("ec2").parse(
        {"status_code": 400, "headers": {}, "body": raw}, None
    )
    assert parsed["Error"] == {
        "Code": "InvalidVpcID.NotFound",
        "Message": "The vpc ID '<x>&' \ufffd",
    }
    assert parsed["ResponseMetadata"]["RequestId"] == "req-9"


def test_microseconds_are_cut(serializer: ReplySerializer) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
    assert "2026-01-02T03:04:05.999Z" in reply(serializer, "CreateVolume", {"CreateTime": moment})
