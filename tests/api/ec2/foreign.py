"""What to ask of each action so that it names what belongs to another project.

``{instance}`` and the like stand for the ids and names of one project's things, ``{own_…}`` for
those of the project that asks, ``{public_image}`` and ``{vpc}`` for what is everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.api.front import Front, Keys

NOTHING = "nothing"

PERMISSION = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
TAG = [{"Key": "k", "Value": "v"}]
PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHCrZm5lZ0fuWL3l1pYzJmkp0WwHWd0QJH2XWcLOsSY"

GHOSTS: Mapping[str, str] = {
    "instance": "i-0fedcba9876543210",
    "stopped": "i-0fedcba9876543211",
    "group": "sg-0fedcba9876543210",
    "group_name": "nobodys-group",
    "rule": "sgr-0fedcba9876543210",
    "egress_rule": "sgr-0fedcba9876543211",
    "key_name": "nobodys-key",
    "key_pair": "key-0fedcba9876543210",
    "image": "ami-0fedcba9876543210",
    "kernel": "aki-0fedcba9876543210",
    "interface": "eni-0fedcba9876543210",
}
"""The same names for what never existed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters, and what is answered to who may not know what they name.

    :param answer: a code, where it is not one that ends in ``NotFound``; ``NOTHING`` for an answer
        without an error that tells nothing.
    :param is_foreign: whether it names something that a project owns at all.
    """

    params: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    is_foreign: bool = True


def _plain(**params: Any) -> list[Case]:
    """Return the case of an action that names nothing that anybody owns."""
    return [Case(params=params, is_foreign=False)]


def _filter(name: str, value: str) -> Case:
    return Case(params={"Filters": [{"Name": name, "Values": [value]}]}, answer=NOTHING)


def _instances(**more: Any) -> list[Case]:
    return [
        Case(params={"InstanceIds": ["{instance}"], **more}),
        Case(params={"InstanceIds": ["{own_instance}", "{instance}"], **more}),
    ]


def _launch(**more: Any) -> Case:
    wanted = {"ImageId": "{public_image}", "InstanceType": "m1.tiny", "MinCount": 1, "MaxCount": 1}
    return Case(params={**wanted, **more})


def _rules(**more: Any) -> list[Case]:
    source = [{**PERMISSION, "UserIdGroupPairs": [{"GroupId": "{group}"}]}]
    permission = [{**PERMISSION, "IpRanges": [{"CidrIp": "10.9.0.0/16"}]}]
    return [
        Case(params={"GroupId": "{group}", "IpPermissions": permission, **more}),
        Case(params={"GroupId": "{own_group}", "IpPermissions": source, **more}),
    ]


def _descriptions(rule: str) -> list[Case]:
    said = [{"SecurityGroupRuleId": rule, "Description": "d"}]
    return [
        Case(params={"GroupId": "{group}", "SecurityGroupRuleDescriptions": said}),
        Case(params={"GroupId": "{own_group}", "SecurityGroupRuleDescriptions": said}),
    ]


_TAGGABLE = ("instance", "group", "rule", "key_pair", "image", "interface")

CASES: Mapping[str, Sequence[Case]] = {
    "AuthorizeSecurityGroupEgress": _rules(),
    "AuthorizeSecurityGroupIngress": [
        *_rules(),
        Case(params={"GroupName": "{group_name}", "IpPermissions": [PERMISSION]}),
    ],
    "CreateKeyPair": _plain(KeyName="fresh", KeyType="ed25519"),
    "CreateSecurityGroup": _plain(GroupName="fresh", Description="d"),
    "CreateTags": [Case(params={"Resources": [f"{{{n}}}"], "Tags": TAG}) for n in _TAGGABLE],
    "DeleteKeyPair": [
        Case(params={"KeyPairId": "{key_pair}"}),
        Case(params={"KeyName": "{key_name}"}, answer=NOTHING),
    ],
    "DeleteSecurityGroup": [
        Case(params={"GroupId": "{group}"}),
        Case(params={"GroupName": "{group_name}"}),
    ],
    "DeleteTags": [Case(params={"Resources": [f"{{{n}}}"], "Tags": TAG}) for n in _TAGGABLE],
    "DescribeAccountAttributes": _plain(),
    "DescribeAvailabilityZones": _plain(),
    "DescribeImageAttribute": [
        Case(params={"ImageId": "{image}", "Attribute": "launchPermission"}),
        Case(params={"ImageId": "{image}", "Attribute": "description"}),
    ],
    "DescribeImages": [
        Case(params={"ImageIds": ["{image}"]}),
        Case(params={"Owners": ["{project}"]}, answer=NOTHING),
        Case(params={"ExecutableUsers": ["{project}"]}, answer=NOTHING),
        _filter("image-id", "{image}"),
        _filter("owner-id", "{project}"),
        _filter("tag:mark", "{mark}"),
    ],
    "DescribeInstanceAttribute": [
        Case(params={"InstanceId": "{instance}", "Attribute": name})
        for name in ("userData", "groupSet", "disableApiTermination")
    ],
    "DescribeInstanceCreditSpecifications": _instances(),
    "DescribeInstanceStatus": _instances(),
    "DescribeInstanceTypeOfferings": _plain(),
    "DescribeInstanceTypes": _plain(),
    "DescribeInstances": [
        *_instances(),
        _filter("instance-id", "{instance}"),
        _filter("key-name", "{key_name}"),
        _filter("instance.group-id", "{group}"),
        _filter("owner-id", "{project}"),
        _filter("tag:mark", "{mark}"),
    ],
    "DescribeKeyPairs": [
        Case(params={"KeyNames": ["{key_name}"]}),
        Case(params={"KeyPairIds": ["{key_pair}"]}),
        _filter("key-name", "{key_name}"),
    ],
    "DescribeNetworkInterfaces": [
        Case(params={"NetworkInterfaceIds": ["{interface}"]}),
        _filter("attachment.instance-id", "{instance}"),
    ],
    "DescribeRegions": _plain(),
    "DescribeSecurityGroupRules": [
        Case(params={"SecurityGroupRuleIds": ["{rule}"]}),
        _filter("group-id", "{group}"),
    ],
    "DescribeSecurityGroups": [
        Case(params={"GroupIds": ["{group}"]}),
        Case(params={"GroupNames": ["{group_name}"]}),
        _filter("group-id", "{group}"),
        _filter("owner-id", "{project}"),
    ],
    "DescribeSubnets": _plain(),
    "DescribeTags": [_filter("resource-id", "{instance}"), _filter("value", "{mark}")],
    "DescribeVpcAttribute": _plain(VpcId="{vpc}", Attribute="enableDnsSupport"),
    "DescribeVpcs": _plain(),
    "GetCallerIdentity": _plain(),
    "GetConsoleOutput": [Case(params={"InstanceId": "{instance}"})],
    "GetPasswordData": [Case(params={"InstanceId": "{instance}"})],
    "ImportKeyPair": _plain(KeyName="imported", PublicKeyMaterial=PUBLIC_KEY),
    "ModifyImageAttribute": [
        Case(params={"ImageId": "{image}", "LaunchPermission": {"Add": [{"Group": "all"}]}}),
    ],
    "ModifyInstanceAttribute": [
        Case(params={"InstanceId": "{instance}", "DisableApiTermination": {"Value": True}}),
        Case(params={"InstanceId": "{own_instance}", "Groups": ["{group}"]}),
    ],
    "ModifySecurityGroupRules": [
        Case(
            params={
                "GroupId": group,
                "SecurityGroupRules": [
                    {
                        "SecurityGroupRuleId": "{rule}",
                        "SecurityGroupRule": {**PERMISSION, "CidrIpv4": "10.7.0.0/16"},
                    }
                ],
            }
        )
        for group in ("{group}", "{own_group}")
    ],
    "MonitorInstances": _instances(),
    "RebootInstances": _instances(),
    "ResetImageAttribute": [
        Case(params={"ImageId": "{image}", "Attribute": "launchPermission"}),
    ],
    "RevokeSecurityGroupEgress": [
        Case(params={"GroupId": group, "SecurityGroupRuleIds": ["{egress_rule}"]})
        for group in ("{group}", "{own_group}")
    ],
    "RevokeSecurityGroupIngress": [
        Case(params={"GroupId": group, "SecurityGroupRuleIds": ["{rule}"]})
        for group in ("{group}", "{own_group}")
    ],
    "RunInstances": [
        _launch(ImageId="{image}"),
        _launch(KernelId="{kernel}"),
        _launch(KeyName="{key_name}"),
        _launch(SecurityGroupIds=["{group}"]),
        _launch(SecurityGroups=["{group_name}"]),
    ],
    "StartInstances": [Case(params={"InstanceIds": ["{stopped}"]})],
    "StopInstances": _instances(),
    "TerminateInstances": _instances(),
    "UnmonitorInstances": _instances(),
    "UpdateSecurityGroupRuleDescriptionsEgress": _descriptions("{egress_rule}"),
    "UpdateSecurityGroupRuleDescriptionsIngress": _descriptions("{rule}"),
}
"""By action; the first case of each is one that its owner may ask."""


OF_ONE: Mapping[str, dict[str, Any]] = {
    "DescribeImageAttribute": {"Attribute": "launchPermission", "ImageId": "{own_image}"},
    "DescribeInstanceAttribute": {"Attribute": "userData", "InstanceId": "{own_instance}"},
    "DescribeVpcAttribute": {"Attribute": "enableDnsSupport", "VpcId": "{vpc}"},
}
"""What to ask of the Describe actions that list nothing."""


def filled(params: Any, names: Mapping[str, str]) -> Any:
    """Return parameters with the names put in for what stands for them."""
    if isinstance(params, dict):
        return {key: filled(value, names) for key, value in params.items()}
    if isinstance(params, list):
        return [filled(each, names) for each in params]
    if isinstance(params, str):
        for name, value in names.items():
            params = params.replace(f"{{{name}}}", value)
    return params


def make_belongings(front: Front, owner: Keys, mark: str) -> dict[str, str]:
    """Make one of each thing in a project; return ids and names, all of them with ``mark``."""
    ec2 = front.client(owner)
    key = ec2.create_key_pair(KeyName=f"{mark}-key", KeyType="ed25519")
    group_id = ec2.create_security_group(GroupName=f"{mark}-group", Description=mark)["GroupId"]
    permission = [{**PERMISSION, "IpRanges": [{"CidrIp": "10.8.0.0/16", "Description": mark}]}]
    let_in = ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=permission)
    let_out = ec2.authorize_security_group_egress(GroupId=group_id, IpPermissions=permission)
    image = front.make_image(
        project_id=owner.project_id, is_public=False, name=f"{mark}-image", description=mark
    )
    kernel = front.make_image(
        project_id=owner.project_id, is_public=False, name=f"{mark}-kernel", kind="kernel"
    )
    reply = ec2.run_instances(
        ImageId=image.image_id,
        InstanceType="m1.tiny",
        MinCount=2,
        MaxCount=2,
        KeyName=key["KeyName"],
        SecurityGroupIds=[group_id],
        UserData=f"#!/bin/sh\necho {mark}\n",
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "mark", "Value": mark}]}],
    )
    running, stopped = (each["InstanceId"] for each in reply["Instances"])
    front.make_running([running, stopped])
    front.make_stopped([stopped])
    front.bus.consoles[running] = mark.encode()
    interface = reply["Instances"][0]["NetworkInterfaces"][0]["NetworkInterfaceId"]
    return {
        "project": owner.project_id,
        "mark": mark,
        "instance": running,
        "stopped": stopped,
        "group": group_id,
        "group_name": f"{mark}-group",
        "rule": let_in["SecurityGroupRules"][0]["SecurityGroupRuleId"],
        "egress_rule": let_out["SecurityGroupRules"][0]["SecurityGroupRuleId"],
        "key_name": key["KeyName"],
        "key_pair": key["KeyPairId"],
        "image": image.image_id,
        "kernel": kernel.image_id,
        "interface": interface,
    }
