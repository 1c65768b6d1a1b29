"""Report what the EC2 protocol costs: load the model, write a long list, read and verify a request.

Run it as a program; it prints CPU time and passes no judgement.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from appliance.api.ec2.protocol.form import decode_form
from appliance.api.ec2.protocol.model import load_model
from appliance.api.ec2.protocol.parser import RequestParser
from appliance.api.ec2.protocol.serializer import ReplySerializer

INSTANCES = 1000
REQUEST = (
    b"Action=RunInstances&Version=2016-11-15&ImageId=ami-0123456789abcdef0&MinCount=1&MaxCount=1"
    b"&InstanceType=t3.micro&KeyName=web&SecurityGroupId.1=sg-0123456789abcdef0&UserData=aGk%3D"
    b"&Placement.AvailabilityZone=zone-a&ClientToken=0123456789&BlockDeviceMapping.1.DeviceName=vda"
    b"&BlockDeviceMapping.1.Ebs.VolumeSize=8&TagSpecification.1.ResourceType=instance"
    b"&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web-1"
)


def instance(number: int) -> dict[str, Any]:
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


def best_cpu_ms(call: Callable[[], object], repeats: int = 15) -> float:
    """Return the least CPU time of several calls."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best * 1000


def main() -> None:
    """Print one line per measurement."""
    actions = ["RunInstances", "DescribeInstances", "DescribeInstanceTypes", "DescribeImages"]
    tracemalloc.start()
    model = load_model(actions)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"model: {best_cpu_ms(lambda: load_model(actions), 5):.1f} ms CPU", end=", ")
    print(f"{kept / 1e6:.2f} MB kept, {peak / 1e6:.1f} MB while loading")
    print(f"serializer made: {best_cpu_ms(lambda: ReplySerializer(model), 5):.2f} ms CPU")
    serializer, parser = ReplySerializer(model), RequestParser(model)
    reservation = {"ReservationId": "r-0123456789abcdef0", "OwnerId": "000000000001"}
    reservations = [{**reservation, "Instances": [instance(number)]} for number in range(INSTANCES)]

    def serialize() -> bytes:
        result = {"Reservations": reservations}
        return serializer.serialize("DescribeInstances", result, request_id="r")

    print(f"DescribeInstances of {INSTANCES}: {best_cpu_ms(serialize):.1f} ms CPU", end=", ")
    print(f"{len(serialize()) / 1e6:.2f} MB")
    parse = best_cpu_ms(lambda: [parser.parse(decode_form(REQUEST)) for _ in range(100)])
    print(f"RunInstances parsed: {parse * 10:.0f} us CPU")


if __name__ == "__main__":
    main()
