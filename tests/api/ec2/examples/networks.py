"""Examples of the actions about VPCs, subnets, interfaces and single rules."""

from __future__ import annotations

from typing import Any

from tests.api.ec2.examples.instances import launched, running
from tests.api.ec2.examples.others import TAGS, new_group, rules
from tests.api.ec2.examples.stage import Stage, example


def where(**values: Any) -> list[dict[str, Any]]:
    """Return filters; an underscore stands for a hyphen."""
    return [
        {"Name": name.replace("_", "-"), "Values": value if isinstance(value, list) else [value]}
        for name, value in values.items()
    ]


@example("DescribeVpcs")
def describe_the_default_vpc(stage: Stage) -> None:
    [vpc] = stage.ask("DescribeVpcs", Filters=where(is_default="true"))["Vpcs"]
    stage.ask("CreateTags", Resources=[vpc["VpcId"]], Tags=TAGS)
    [vpc] = stage.ask("DescribeVpcs", VpcIds=[vpc["VpcId"]])["Vpcs"]
    assert vpc["Tags"] == sorted(TAGS, key=lambda tag: tag["Key"])
    stage.ask("DeleteTags", Resources=[vpc["VpcId"]])


@example("DescribeSubnets")
def describe_the_default_subnets(stage: Stage) -> None:
    found = stage.ask("DescribeSubnets", Filters=where(default_for_az="true"))["Subnets"]
    assert found
    assert stage.ask("DescribeSubnets", SubnetIds=[found[0]["SubnetId"]], MaxResults=5)["Subnets"]


@example("DescribeNetworkInterfaces")
def describe_interfaces(stage: Stage) -> None:
    tagged = [{"ResourceType": "network-interface", "Tags": TAGS}]
    ids = [*launched(stage), *running(stage, TagSpecifications=tagged)]
    of_these = where(**{"attachment.instance-id": ids})
    found = stage.ask("DescribeNetworkInterfaces", Filters=of_these)["NetworkInterfaces"]
    assert [each["Attachment"]["InstanceId"] for each in found] == ids


@example("DescribeSecurityGroupRules")
def describe_rules(stage: Stage) -> None:
    group = new_group(stage)
    tags = [{"ResourceType": "security-group-rule", "Tags": TAGS}]
    pair = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group, "Description": "us"}]}
    stage.ask(
        "AuthorizeSecurityGroupIngress",
        GroupId=group,
        IpPermissions=[*rules(), pair],
        TagSpecifications=tags,
    )
    found = stage.ask("DescribeSecurityGroupRules", Filters=where(group_id=group))
    assert len(found["SecurityGroupRules"]) == 5


def rule_ids(stage: Stage, group: str, *, is_egress: bool) -> list[str]:
    """Return the ids of a group's rules of one direction."""
    found = stage.ask("DescribeSecurityGroupRules", Filters=where(group_id=group))
    return [
        rule["SecurityGroupRuleId"]
        for rule in found["SecurityGroupRules"]
        if rule["IsEgress"] is is_egress
    ]


@example("UpdateSecurityGroupRuleDescriptionsIngress")
def describe_ingress_anew(stage: Stage) -> None:
    group = new_group(stage)
    stage.ask("AuthorizeSecurityGroupIngress", GroupId=group, IpPermissions=rules())
    stage.ask(
        "UpdateSecurityGroupRuleDescriptionsIngress", GroupId=group, IpPermissions=rules()[:1]
    )
    described = [
        {"SecurityGroupRuleId": each, "Description": "said anew"}
        for each in rule_ids(stage, group, is_egress=False)
    ]
    stage.ask(
        "UpdateSecurityGroupRuleDescriptionsIngress",
        GroupId=group,
        SecurityGroupRuleDescriptions=described,
    )


@example("UpdateSecurityGroupRuleDescriptionsEgress")
def describe_egress_anew(stage: Stage) -> None:
    group = new_group(stage)
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0", "Description": "all"}]}
    stage.ask(
        "UpdateSecurityGroupRuleDescriptionsEgress", GroupId=group, IpPermissions=[everything]
    )


@example("ModifySecurityGroupRules")
def modify_a_rule(stage: Stage) -> None:
    group = new_group(stage)
    [out] = rule_ids(stage, group, is_egress=True)
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIpv6": "::/0"}
    wanted = [{"SecurityGroupRuleId": out, "SecurityGroupRule": rule}]
    stage.ask("ModifySecurityGroupRules", GroupId=group, SecurityGroupRules=wanted)


@example("DescribeAccountAttributes")
def describe_the_account(stage: Stage) -> None:
    stage.ask("DescribeAccountAttributes")
    names = ["supported-platforms", "max-instances"]
    found = stage.ask("DescribeAccountAttributes", AttributeNames=names)["AccountAttributes"]
    assert [each["AttributeName"] for each in found] == names


@example("DescribeInstanceTypeOfferings")
def describe_offerings(stage: Stage) -> None:
    for kind in ("region", "availability-zone", "availability-zone-id"):
        found = stage.ask("DescribeInstanceTypeOfferings", LocationType=kind, MaxResults=5)
        assert len(found["InstanceTypeOfferings"]) == 5
        assert found["NextToken"]


@example("CreateTags")
def create_tags(stage: Stage) -> None:
    stage.ask("CreateTags", Resources=[new_group(stage), *launched(stage)], Tags=TAGS)


@example("DeleteTags")
def delete_tags(stage: Stage) -> None:
    group = new_group(stage)
    stage.ask("CreateTags", Resources=[group], Tags=TAGS)
    stage.ask("DeleteTags", Resources=[group], Tags=[{"Key": "Name"}])


@example("DescribeTags")
def describe_tags(stage: Stage) -> None:
    group = new_group(stage)
    stage.ask("CreateTags", Resources=[group], Tags=TAGS)
    found = stage.ask("DescribeTags", Filters=where(resource_id=group))["Tags"]
    assert [tag["Key"] for tag in found] == ["Name", "empty"]


@example("DescribeVpcAttribute")
def describe_vpc_attributes(stage: Stage) -> None:
    [vpc] = stage.ask("DescribeVpcs", Filters=where(is_default="true"))["Vpcs"]
    for name in ("enableDnsSupport", "enableDnsHostnames", "enableNetworkAddressUsageMetrics"):
        stage.ask("DescribeVpcAttribute", VpcId=vpc["VpcId"], Attribute=name)
