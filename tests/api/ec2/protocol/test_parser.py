"""Requests as old and new clients write them, and as nobody should."""

from __future__ import annotations

import random
import time
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.api.ec2.errors import Ec2Error
from appliance.api.ec2.protocol.form import MAX_PARAMETERS, decode_form
from appliance.api.ec2.protocol.parser import RequestParser

RUN_ONE = "Action=RunInstances&MinCount=1&MaxCount=1"
AUTHORIZE = (
    "Action=AuthorizeSecurityGroupIngress&GroupName=g&IpPermissions.1.IpProtocol=tcp"
    "&IpPermissions.1.FromPort=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0"
    "&IpPermissions.1.Groups.1.GroupName=web"
)
WORDS = (
    "Filter Name Value InstanceId 1 2 0 01 -1 999999999 x BlockDeviceMapping Ebs VolumeSize "
    "NetworkInterface SecurityGroup IpPermissions IpRanges CidrIp Groups Tag Key MaxResults "
    "MinCount MaxCount DryRun TagSpecification ResourceType Placement Monitoring Enabled "
    "UserData member ² ٣ \x00 \U000103ff"
)


def params(parser: RequestParser, query: str) -> dict[str, Any]:
    return parser.parse(decode_form(query.encode())).params


def refusal(parser: RequestParser, query: str) -> Ec2Error:
    with pytest.raises(Ec2Error) as caught:
        parser.parse(decode_form(query.encode()))
    return caught.value


def test_filters_become_what_a_boto3_caller_passes(parser: RequestParser) -> None:
    query = (
        "Action=DescribeInstances&Version=2015-10-01&Filter.2.Value.7=b&Filter.2.Name=tag%3AName"
        "&Filter.2.Value.2=a+b&Filter.1.Name=vpc-id&InstanceId.1=i-1&Unheard.Of.3=x&MaxResults=9"
    )
    call = parser.parse(decode_form(query.encode()))
    assert call.version == "2015-10-01"
    assert call.params == {
        "Filters": [{"Name": "vpc-id"}, {"Name": "tag:Name", "Values": ["a b", "b"]}],
        "InstanceIds": ["i-1"],
        "MaxResults": 9,
    }


def test_a_mapping_will_do(parser: RequestParser) -> None:
    call = parser.parse({"Action": "DescribeInstances", "DryRun": "TRUE"})
    assert (call.params, call.version) == ({"DryRun": True}, "2016-11-15")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Action=GetConsoleOutput&InstanceId=i-1", {"InstanceId": "i-1"}),
        ("Action=GetConsoleOutput&InstanceId.1=i-1", {"InstanceId": "i-1"}),
        ("Action=RebootInstances&InstanceId=i-1", {"InstanceIds": ["i-1"]}),
        ("Action=RebootInstances&InstanceId.0=i-1", {"InstanceIds": ["i-1"]}),
        ("Action=DescribeRegions&RegionName=", {}),
        (
            "Action=RunInstances&MinCount=1&MaxCount=1&SecurityGroup.1=web&SecurityGroupId.1=sg-1",
            {"MinCount": 1, "MaxCount": 1, "SecurityGroups": ["web"], "SecurityGroupIds": ["sg-1"]},
        ),
        (
            "Action=RunInstances&MinCount=1&MaxCount=1&UserData=aGk%0AaG8%3D%0A&AddressingType=x",
            {"MinCount": 1, "MaxCount": 1, "UserData": "aGk\naG8=\n"},
        ),
        (
            AUTHORIZE,
            {
                "GroupName": "g",
                "IpPermissions": [
                    {
                        "IpProtocol": "tcp",
                        "FromPort": -1,
                        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
                        "UserIdGroupPairs": [{"GroupName": "web"}],
                    }
                ],
            },
        ),
        (
            "Action=DeleteTags&ResourceId.1=i-1&Tag.1.Key=a&Tag.2.Key=b&Tag.2.Value=",
            {"Resources": ["i-1"], "Tags": [{"Key": "a"}, {"Key": "b", "Value": ""}]},
        ),
        ("Action=DescribeInstances&Filter=x&Filter.x.Name=y&MaxResults.Of=1", {}),
        ("Action=DescribeInstances&DryRun=true&DryRun=true", {"DryRun": True}),
    ],
)
def test_forms_that_clients_use(
    parser: RequestParser, query: str, expected: dict[str, Any]
) -> None:
    assert params(parser, query) == expected


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ("", "MissingAction", "action"),
        ("Action=", "MissingAction", "action"),
        (
            "Action=DescribeSpotFleet",
            "InvalidAction",
            "The action DescribeSpotFleet is not valid for this web service.",
        ),
        ("Action=DescribeInstances&Action=StopInstances", "MalformedQueryString", "Action"),
        ("Action=DescribeInstances&Version=1", "NoSuchVersion", "(1)"),
        (
            "Action=DescribeInstances&MaxResults=5&MaxResults=6",
            "MalformedQueryString",
            "MaxResults",
        ),
        (
            "Action=GetConsoleOutput&InstanceId=a&InstanceId.1=b",
            "MalformedQueryString",
            "InstanceId",
        ),
        ("Action=StopInstances&InstanceId=a&InstanceId.1=b", "MalformedQueryString", "InstanceId"),
        (
            "Action=StopInstances&InstanceId.01=a&InstanceId.1=b",
            "MalformedQueryString",
            "InstanceId",
        ),
        ("Action=DescribeInstances&Filter.999999999.Name=x", "MalformedQueryString", "Filter"),
        (
            "Action=StopInstances",
            "MissingParameter",
            "The request must contain the parameter InstanceId",
        ),
        ("Action=RunInstances&MaxCount=1", "MissingParameter", "MinCount"),
        (
            f"{RUN_ONE}&ElasticGpuSpecification.1.Types=x&ElasticInferenceAccelerator.4.Count=1",
            "MissingParameter",
            "ElasticInferenceAccelerator.4.Type",
        ),
        (
            "Action=DescribeVpcs&MaxResults=1",
            "InvalidParameterValue",
            "Value ( 1 ) for parameter maxResults is invalid. Expecting a value greater than 5.",
        ),
        ("Action=DescribeVpcs&MaxResults=1001", "InvalidParameterValue", "maxResults"),
        (
            "Action=RunInstances&MinCount=one",
            "InvalidParameterValue",
            "(one) for parameter minCount",
        ),
        ("Action=RunInstances&MinCount=", "InvalidParameterValue", "minCount"),
        ("Action=RunInstances&MinCount=2147483648", "InvalidParameterValue", "range"),
        ("Action=RunInstances&MinCount=%D9%A3", "InvalidParameterValue", "integer"),
        ("Action=RunInstances&MinCount=1_0", "InvalidParameterValue", "integer"),
        ("Action=RunInstances&MinCount=" + "9" * 10000, "InvalidParameterValue", "integer"),
        ("Action=DescribeInstances&DryRun=yes", "InvalidParameterValue", "dryRun"),
        ("Action=CreateVolume&VolumeType=gp9", "InvalidParameterValue", "volumeType"),
        ("Action=ImportKeyPair&KeyName=k&PublicKeyMaterial=%21", "InvalidParameterValue", "base64"),
        ("Action=CreateKeyPair&KeyName=%00", "InvalidParameterValue", "keyName"),
        ("Action=CreateKeyPair&KeyName=" + "k" * 5000, "InvalidParameterValue", "4096"),
        ("Action=CreateKeyPair&KeyName=%ff", "MalformedQueryString", "UTF-8"),
        (
            f"{RUN_ONE}&InstanceMarketOptions.SpotOptions.ValidUntil=0001-01-01T00:00:00%2B23:59",
            "InvalidParameterValue",
            "validUntil",
        ),
        ("&" * MAX_PARAMETERS, "MalformedQueryString", "1000"),
    ],
)
def test_refusals(parser: RequestParser, query: str, code: str, text: str) -> None:
    error = refusal(parser, query)
    assert error.exact_code == code
    assert text.lower() in error.message.lower()
    assert error.http_status == 400
    assert len(error.message) < 300


def test_an_instance_type_may_be_one_that_amazon_lacks(parser: RequestParser) -> None:
    query = "Action=RunInstances&MinCount=1&MaxCount=1&InstanceType=m1.tiny"
    assert params(parser, query)["InstanceType"] == "m1.tiny"


def test_blobs_may_hold_line_breaks(parser: RequestParser) -> None:
    key = b"ssh-ed25519 AAAA key" * 9
    folded = b64encode(key).decode()
    query = f"Action=ImportKeyPair&KeyName=k&PublicKeyMaterial={folded[:76]}%0D%0A{folded[76:]}%0A"
    assert params(parser, query)["PublicKeyMaterial"] == key


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z", "2026-01-02T04:04:05%2B01:00"],
)
def test_timestamps_are_in_utc(parser: RequestParser, text: str) -> None:
    query = f"{RUN_ONE}&InstanceMarketOptions.SpotOptions.ValidUntil={text}"
    until = params(parser, query)["InstanceMarketOptions"]["SpotOptions"]["ValidUntil"]
    assert until == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert until.tzinfo is UTC


def test_ten_thousand_random_queries_get_an_answer_or_an_ec2_error(
    parser: RequestParser, actions: list[str]
) -> None:
    rng = random.Random(8773)
    words = ["", *WORDS.split(" ")]
    values = [
        "",
        "1",
        "-5",
        "true",
        "i-1",
        "%",
        "%zz",
        "\x00",
        "é",
        "9" * 400,
        "x" * 9000,
        "a=b",
        "1e999",
    ]
    answered = 0
    for _ in range(10_000):
        pairs = [("Action", rng.choice([*actions, "Nothing"]))]
        for _ in range(rng.randrange(8)):
            name = ".".join(rng.choices(words, k=rng.randrange(1, 7)))
            pairs.append((name, rng.choice(values)))
        rng.shuffle(pairs)
        raw = "&".join(f"{name}={value}" for name, value in pairs).encode("utf-8")
        refused: Ec2Error | None = None
        try:
            parser.parse(decode_form(raw))
        except Ec2Error as error:
            refused = error
        if refused is None:
            answered += 1
        else:
            assert refused.http_status == 400
            assert len(refused.message) < 300
    assert 500 < answered < 9_500


@pytest.mark.parametrize(
    "name", ["Filter.{}.Name", "Filter.{0}.Value.{0}", "X{}", "Filter.1.Value.{}.a.b.c.d.e.f"]
)
def test_time_grows_with_the_number_of_parameters(parser: RequestParser, name: str) -> None:
    def cost_s(count: int) -> float:
        pairs = [("Action", "DescribeInstances")]
        pairs += [(name.format(index), "v") for index in range(count)]
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            parser.parse(pairs)
            best = min(best, time.process_time() - start)
        return best

    assert cost_s(8000) < 40 * cost_s(800) + 0.01


def test_a_deep_name_costs_little(parser: RequestParser) -> None:
    start = time.process_time()
    assert params(parser, "Action=DescribeInstances&Filter" + ".1" * 1_000_000 + "=x") == {}
    assert time.process_time() - start < 1
