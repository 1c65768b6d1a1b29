"""What the EC2 protocol costs apart from the rest: the model, a long reply, a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from appliance.api.ec2.protocol.form import decode_form
from appliance.api.ec2.protocol.model import load_model
from appliance.api.ec2.protocol.parser import RequestParser
from appliance.api.ec2.protocol.serializer import ReplySerializer
from tests.bench.figure import Figures, ms

_ACTIONS = ("RunInstances", "DescribeInstances", "DescribeInstanceTypes", "DescribeImages")
_INSTANCES = 1000
_REQUEST = (
    b"Action=RunInstances&Version=2016-11-15&ImageId=ami-0123456789abcdef0&MinCount=1&MaxCount=1"
    b"&InstanceType=t3.micro&KeyName=web&SecurityGroupId.1=sg-0123456789abcdef0&UserData=aGk%3D"
    b"&Placement.AvailabilityZone=zone-a&ClientToken=0123456789&BlockDeviceMapping.1.DeviceName=vda"
    b"&BlockDeviceMapping.1.Ebs.VolumeSize=8&TagSpecification.1.ResourceType=instance"
    b"&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web-1"
)


def _instance(number: int) -> dict[str, Any]:
    """Return an instance with the members that a running one has, as boto3 shows it."""
    launched = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    group = {"GroupId": "sg-0123456789abcdef0", "GroupName": "default"}
    address = f"10.0.{number // 250}.{number % 250 + 4}"
    name = f"ip-{address.replace('.', '-')}.internal"
    interface = f"eni-{number:017x}"
    return {
        "InstanceId": f"i-{number:017x}",
        "ImageId": "ami-0123456789abcdef0",
        "State": {"Code": 16, "Name": "running"},
        "PrivateDnsName": name,
        "PublicDnsName": "",
        "StateTransitionReason": "",
        "KeyName": "web & <db>",
        "AmiLaunchIndex": 0,
        "ProductCodes": [],
        "InstanceType": "t3.micro",
        "LaunchTime": launched,
        "Placement": {"AvailabilityZone": "zone-a", "GroupName": "", "Tenancy": "default"},
        "Monitoring": {"State": "disabled"},
        "SubnetId": "subnet-0123456789abcdef0",
        "VpcId": "vpc-0123456789abcdef0",
        "PrivateIpAddress": address,
        "PublicIpAddress": None,
        "Architecture": "x86_64",
        "RootDeviceType": "ebs",
        "RootDeviceName": "/dev/vda",
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/vda",
                "Ebs": {
                    "VolumeId": f"vol-{number:017x}",
                    "Status": "attached",
                    "AttachTime": launched,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "VirtualizationType": "hvm",
        "ClientToken": f"token-{number}",
        "Tags": [{"Key": "Name", "Value": f"web-{number}"}, {"Key": "env", "Value": "test"}],
        "SecurityGroups": [group],
        "SourceDestCheck": True,
        "Hypervisor": "xen",
        "NetworkInterfaces": [
            {
                "NetworkInterfaceId": interface,
                "SubnetId": "subnet-0123456789abcdef0",
                "VpcId": "vpc-0123456789abcdef0",
                "OwnerId": "000000000001",
                "Status": "in-use",
                "MacAddress": "02:00:00:00:00:01",
                "PrivateIpAddress": address,
                "PrivateDnsName": name,
                "SourceDestCheck": True,
                "Groups": [group],
                "Attachment": {
                    "AttachmentId": f"eni-attach-{number:017x}",
                    "DeviceIndex": 0,
                    "Status": "attached",
                    "AttachTime": launched,
                    "DeleteOnTermination": True,
                },
                "PrivateIpAddresses": [
                    {"PrivateIpAddress": address, "PrivateDnsName": name, "Primary": True}
                ],
            }
        ],
        "EbsOptimized": False,
        "EnaSupport": True,
        "MetadataOptions": {
            "State": "applied",
            "HttpTokens": "optional",
            "HttpPutResponseHopLimit": 1,
            "HttpEndpoint": "enabled",
        },
    }


def _least_s(call: Callable[[], object], rounds: int) -> float:
    """Return the least CPU time of several calls."""
    spent = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return min(spent)


def measure(is_quick: bool) -> Figures:
    """Measure loading the model, writing a long list, and reading a request."""
    rounds = 1 if is_quick else 5
    model = load_model(_ACTIONS)
    serializer, parser = ReplySerializer(model), RequestParser(model)
    reservation = {"ReservationId": "r-0123456789abcdef0", "OwnerId": "000000000001"}
    numbers = range(10 if is_quick else _INSTANCES)
    listed = {"Reservations": [{**reservation, "Instances": [_instance(n)]} for n in numbers]}

    def serialize() -> bytes:
        return serializer.serialize("DescribeInstances", listed, request_id="r")

    def parse() -> None:
        for _ in range(100):
            parser.parse(decode_form(_REQUEST))

    return {
        "EC2 model of four actions loaded: CPU": ms(_least_s(lambda: load_model(_ACTIONS), rounds)),
        "reply with 1,000 instances written: CPU": ms(_least_s(serialize, rounds)),
        "RunInstances request read: CPU": ms(_least_s(parse, rounds) / 100),
    }
