"""Examples of the actions about key pairs, groups, images and places."""

from __future__ import annotations

import itertools
from typing import Any

from tests.api.ec2.examples.stage import Stage, example

PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF6Wc1PZn5Mm6RbPFhVNnMVnKnJZ8qzmx3TQp0J4qPpE me"
TAGS = [{"Key": "Name", "Value": "a <b> & 'c'"}, {"Key": "empty", "Value": ""}]
_numbers = itertools.count()


def new_name() -> str:
    """Return a name that nothing has yet."""
    return f"example-{next(_numbers)}"


def new_group(stage: Stage, **more: Any) -> str:
    """Return the id of a new group."""
    wanted = {"GroupName": new_name(), "Description": "an example", **more}
    return str(stage.ask("CreateSecurityGroup", **wanted)["GroupId"])


def rules() -> list[dict[str, Any]]:
    """Return permissions of more than one form."""
    return [
        {
            "IpProtocol": "tcp",
            "FromPort": 80,
            "ToPort": 81,
            "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "inside"}],
            "Ipv6Ranges": [{"CidrIpv6": "fd00::/8"}],
        },
        {
            "IpProtocol": "icmp",
            "FromPort": -1,
            "ToPort": -1,
            "IpRanges": [{"CidrIp": "1.2.3.4/32"}],
        },
    ]


@example("CreateKeyPair")
def create_key(stage: Stage) -> None:
    tags = [{"ResourceType": "key-pair", "Tags": TAGS}]
    stage.ask("CreateKeyPair", KeyName=new_name(), KeyType="ed25519", TagSpecifications=tags)


@example("ImportKeyPair")
def import_key(stage: Stage) -> None:
    stage.ask("ImportKeyPair", KeyName=new_name(), PublicKeyMaterial=PUBLIC_KEY)


@example("DescribeKeyPairs")
def describe_keys(stage: Stage) -> None:
    create_key(stage)
    assert stage.ask("DescribeKeyPairs", IncludePublicKey=True)["KeyPairs"]


@example("DeleteKeyPair")
def delete_key(stage: Stage) -> None:
    name = new_name()
    stage.ask("ImportKeyPair", KeyName=name, PublicKeyMaterial=PUBLIC_KEY)
    stage.ask("DeleteKeyPair", KeyName=name)


@example("CreateSecurityGroup")
def create_group(stage: Stage) -> None:
    new_group(stage, TagSpecifications=[{"ResourceType": "security-group", "Tags": TAGS}])


@example("AuthorizeSecurityGroupIngress")
def authorize_ingress(stage: Stage) -> None:
    tags = [{"ResourceType": "security-group-rule", "Tags": TAGS}]
    stage.ask(
        "AuthorizeSecurityGroupIngress",
        GroupId=new_group(stage),
        IpPermissions=rules(),
        TagSpecifications=tags,
    )


@example("AuthorizeSecurityGroupEgress")
def authorize_egress(stage: Stage) -> None:
    stage.ask("AuthorizeSecurityGroupEgress", GroupId=new_group(stage), IpPermissions=rules())


@example("RevokeSecurityGroupIngress")
def revoke_ingress(stage: Stage) -> None:
    group_id = new_group(stage)
    stage.ask("AuthorizeSecurityGroupIngress", GroupId=group_id, IpPermissions=rules())
    stage.ask("RevokeSecurityGroupIngress", GroupId=group_id, IpPermissions=rules())


@example("RevokeSecurityGroupEgress")
def revoke_egress(stage: Stage) -> None:
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    stage.ask("RevokeSecurityGroupEgress", GroupId=new_group(stage), IpPermissions=[everything])


@example("DescribeSecurityGroups")
def describe_groups(stage: Stage) -> None:
    authorize_ingress(stage)
    pair = {"GroupId": new_group(stage), "Description": "each other"}
    stage.ask(
        "AuthorizeSecurityGroupIngress",
        GroupId=pair["GroupId"],
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [pair]}],
    )
    stage.ask("DescribeSecurityGroups")


@example("DeleteSecurityGroup")
def delete_group(stage: Stage) -> None:
    stage.ask("DeleteSecurityGroup", GroupId=new_group(stage))


@example("DescribeImages")
def describe_images(stage: Stage) -> None:
    kernel = stage.front.make_image(kind="kernel", format="kernel", name=new_name())
    stage.front.make_image(name=new_name(), kernel_id=kernel.image_id, description="<d>")
    stage.ask("DescribeImages")


def own_image(stage: Stage) -> str:
    """Return the id of a new image that is the project's own and private."""
    new = {"project_id": stage.front.keys.project_id, "is_public": False, "description": "<d>"}
    return stage.front.make_image(name=new_name(), **new).image_id


@example("DescribeImageAttribute")
def describe_image_attribute(stage: Stage) -> None:
    image_id = own_image(stage)
    sharing = {"Add": [{"Group": "all"}, {"UserId": "123456789012"}]}
    stage.ask("ModifyImageAttribute", ImageId=image_id, LaunchPermission=sharing)
    for attribute in ("description", "launchPermission", "blockDeviceMapping"):
        stage.ask("DescribeImageAttribute", ImageId=image_id, Attribute=attribute)


@example("ModifyImageAttribute")
def modify_image_attribute(stage: Stage) -> None:
    described = {"Value": "anew"}
    stage.ask("ModifyImageAttribute", ImageId=own_image(stage), Description=described)


@example("ResetImageAttribute")
def reset_image_attribute(stage: Stage) -> None:
    asked = {"ImageId": own_image(stage), "Attribute": "launchPermission"}
    stage.ask("ResetImageAttribute", **asked)


@example("DescribeRegions")
def describe_regions(stage: Stage) -> None:
    stage.ask("DescribeRegions")


@example("DescribeAvailabilityZones")
def describe_zones(stage: Stage) -> None:
    stage.ask("DescribeAvailabilityZones")
