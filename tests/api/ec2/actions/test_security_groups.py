"""Security groups and their rules, as boto3 and Terraform use them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.api.ec2 import permissions
from appliance.config import Config, QuotaSettings
from appliance.messages import PolicyChanged
from appliance.store import schema
from tests.api.front import Front, code_of, error_of

ALL_OUT = {
    "IpProtocol": "-1",
    "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    "Ipv6Ranges": [],
    "PrefixListIds": [],
    "UserIdGroupPairs": [],
}


def permission(
    protocol: str = "tcp", low: int | None = 22, high: int | None = 22, **more: Any
) -> Any:
    made: dict[str, Any] = {"IpProtocol": protocol, **more}
    if low is not None:
        made["FromPort"] = low
    if high is not None:
        made["ToPort"] = high
    if not more:
        made["IpRanges"] = [{"CidrIp": "10.0.0.0/8"}]
    return made


@pytest.fixture
def web(ec2: Any) -> str:
    return str(ec2.create_security_group(GroupName="web", Description="for tests")["GroupId"])


def group(ec2: Any, group_id: str) -> Any:
    [found] = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    return found


def test_a_new_group_lets_everything_out_and_nothing_in(ec2: Any, web: str) -> None:
    found = group(ec2, web)
    assert found["IpPermissions"] == []
    assert found["IpPermissionsEgress"] == [ALL_OUT]
    assert found["VpcId"].startswith("vpc-")
    assert len(found["OwnerId"]) == 12


def test_the_default_group_is_there_from_the_start_and_reaches_itself(
    front: Front, ec2: Any
) -> None:
    [found] = ec2.describe_security_groups()["SecurityGroups"]
    assert found["GroupName"] == "default"
    [rule] = found["IpPermissions"]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [found["GroupId"]]
    assert rule["IpProtocol"] == "-1"
    assert found["IpPermissionsEgress"] == [ALL_OUT]
    assert front.quota("security_groups") == 1


def test_the_default_group_stays(ec2: Any) -> None:
    assert code_of(ec2.delete_security_group, GroupName="default") == "CannotDelete"
    assert code_of(ec2.create_security_group, GroupName="default", Description="d") == (
        "InvalidParameterValue"
    )


def test_terraform_revokes_both_egress_rules_first(ec2: Any, web: str) -> None:
    ec2.revoke_security_group_egress(
        GroupId=web, IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    code = code_of(
        ec2.revoke_security_group_egress,
        GroupId=web,
        IpPermissions=[{"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}],
    )
    assert code == "InvalidPermission.NotFound"
    assert group(ec2, web)["IpPermissionsEgress"] == []


def test_rules_with_the_same_ports_are_shown_together(ec2: Any, web: str) -> None:
    ranges = [{"CidrIp": "10.0.0.0/8", "Description": "ours"}, {"CidrIp": "192.168.0.0/16"}]
    made = ec2.authorize_security_group_ingress(
        GroupId=web,
        IpPermissions=[
            permission(IpRanges=ranges, Ipv6Ranges=[{"CidrIpv6": "2001:db8::/32"}]),
            permission("udp", 53, 53),
        ],
    )
    assert made["Return"] is True
    assert len({rule["SecurityGroupRuleId"] for rule in made["SecurityGroupRules"]}) == 4
    first, second = group(ec2, web)["IpPermissions"]
    assert first["IpRanges"] == ranges
    assert first["Ipv6Ranges"] == [{"CidrIpv6": "2001:db8::/32"}]
    assert (second["IpProtocol"], second["FromPort"], second["ToPort"]) == ("udp", 53, 53)


def test_the_historic_form_of_a_rule(ec2: Any, web: str) -> None:
    ec2.authorize_security_group_ingress(
        GroupName="web", IpProtocol="tcp", FromPort=80, ToPort=80, CidrIp="0.0.0.0/0"
    )
    ec2.authorize_security_group_ingress(GroupName="web", SourceSecurityGroupName="default")
    by_protocol = {each["IpProtocol"]: each for each in group(ec2, web)["IpPermissions"]}
    assert by_protocol["tcp"]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    assert len(by_protocol["-1"]["UserIdGroupPairs"]) == 1


@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        ("tcp", "tcp"),
        ("TCP", "tcp"),
        ("6", "tcp"),
        ("17", "udp"),
        ("132", "132"),
    ],
)
def test_a_protocol_has_one_form(ec2: Any, web: str, protocol: str, shown: str) -> None:
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission(protocol)])
    [found] = group(ec2, web)["IpPermissions"]
    assert found["IpProtocol"] == shown
    code = code_of(
        ec2.authorize_security_group_ingress, GroupId=web, IpPermissions=[permission(shown)]
    )
    assert code == "InvalidPermission.Duplicate"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (permission("icmp", -1, -1), ("icmp", -1, -1)),
        (permission("icmp", 8, 0), ("icmp", 8, 0)),
        (permission("icmp", 8, -1), ("icmp", 8, -1)),
        (permission("icmp", None, None), ("icmp", -1, -1)),
        (permission("58", 128, 0), ("icmpv6", 128, 0)),
        (permission("-1", 22, 22), ("-1", None, None)),
        (permission("112", 22, 22), ("112", None, None)),
        (permission("tcp", 0, 65535), ("tcp", 0, 65535)),
        (permission("tcp", 0, 0), ("tcp", 0, 0)),
    ],
)
def test_ports_types_and_codes(ec2: Any, web: str, sent: Any, stored: Any) -> None:
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[sent])
    [found] = group(ec2, web)["IpPermissions"]
    assert (found["IpProtocol"], found.get("FromPort"), found.get("ToPort")) == stored


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("255.255.255.255/32", "255.255.255.255/32"),
        ("2001:DB8:0::1/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_a_range_has_one_form(ec2: Any, web: str, sent: str, stored: str) -> None:
    field: Any = (
        {"Ipv6Ranges": [{"CidrIpv6": sent}]} if ":" in sent else {"IpRanges": [{"CidrIp": sent}]}
    )
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission(**field)])
    [found] = group(ec2, web)["IpPermissions"]
    shown = [*found["IpRanges"], *found["Ipv6Ranges"]]
    assert [next(iter(each.values())) for each in shown] == [stored]


BAD_RULES = {
    "reversed ports": permission(low=443, high=80),
    "port too high": permission(high=65536),
    "port below zero": permission(low=-1, high=-1),
    "no ports": permission(low=None, high=None),
    "one port": permission(low=None),
    "unknown protocol": permission("tcpp"),
    "protocol too high": permission("256"),
    "protocol below": permission("-2"),
    "protocol with zero": permission("0x6"),
    "icmp type": permission("icmp", 256, -1),
    "icmp code": permission("icmp", 8, 300),
    "icmp code of all types": permission("icmp", -1, 3),
    "no source": {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1},
    "33 bits": permission(IpRanges=[{"CidrIp": "10.0.0.0/33"}]),
    "no bits": permission(IpRanges=[{"CidrIp": "10.0.0.1"}]),
    "octal": permission(IpRanges=[{"CidrIp": "010.0.0.0/8"}]),
    "three octets": permission(IpRanges=[{"CidrIp": "10.0.0/8"}]),
    "a mask": permission(IpRanges=[{"CidrIp": "10.0.0.0/255.0.0.0"}]),
    "minus": permission(IpRanges=[{"CidrIp": "10.0.0.0/-1"}]),
    "other digits": permission(IpRanges=[{"CidrIp": "١٠.0.0.0/8"}]),
    "v6 among v4": permission(IpRanges=[{"CidrIp": "::/0"}]),
    "v4 among v6": permission(Ipv6Ranges=[{"CidrIpv6": "0.0.0.0/0"}]),
    "a zone id": permission(Ipv6Ranges=[{"CidrIpv6": "fe80::1%eth0/64"}]),
    "129 bits": permission(Ipv6Ranges=[{"CidrIpv6": "::/129"}]),
    "a command": permission(IpRanges=[{"CidrIp": "10.0.0.0/8; drop table inet"}]),
    "a line feed": permission(IpRanges=[{"CidrIp": "10.0.0.0/8\n"}]),
    "a description": permission(IpRanges=[{"CidrIp": "10.0.0.0/8", "Description": "<b>"}]),
    "a long one": permission(IpRanges=[{"CidrIp": "10.0.0.0/8", "Description": "x" * 256}]),
    "a prefix list": permission(PrefixListIds=[{"PrefixListId": "pl-1"}]),
    "twice": permission(IpRanges=[{"CidrIp": "10.0.0.0/8"}, {"CidrIp": "10.1.0.0/8"}]),
    "an unknown group": permission(UserIdGroupPairs=[{"GroupId": "sg-0123456789abcdef0"}]),
    "no group id": permission(UserIdGroupPairs=[{"GroupId": "web; reboot"}]),
    "others' group": permission(
        UserIdGroupPairs=[{"GroupName": "default", "UserId": "999999999999"}]
    ),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_a_bad_rule_is_refused_and_leaves_nothing(
    front: Front, ec2: Any, web: str, name: str
) -> None:
    before = front.snapshot()
    good = permission(IpRanges=[{"CidrIp": "198.51.100.0/24"}])
    code = code_of(
        ec2.authorize_security_group_ingress, GroupId=web, IpPermissions=[good, BAD_RULES[name]]
    )
    assert code in (
        "InvalidParameterValue",
        "MissingParameter",
        "InvalidGroup.NotFound",
        "InvalidGroupId.Malformed",
        "UnsupportedOperation",
    )
    assert front.snapshot() == before


def test_malformed_ranges_are_named_in_ec2s_words(ec2: Any, web: str) -> None:
    bad = permission(IpRanges=[{"CidrIp": "10.0.0.0/33"}])
    refused = error_of(ec2.authorize_security_group_ingress, GroupId=web, IpPermissions=[bad])
    assert refused["Message"] == "CIDR block 10.0.0.0/33 is malformed"


def test_a_rule_is_revoked_by_what_it_says_or_by_its_id(ec2: Any, web: str) -> None:
    made = ec2.authorize_security_group_ingress(
        GroupId=web, IpPermissions=[permission(), permission("udp")]
    )["SecurityGroupRules"]
    gone = ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[permission("6")])
    assert gone["Return"] is True
    assert [each["SecurityGroupRuleId"] for each in gone["RevokedSecurityGroupRules"]] == [
        made[0]["SecurityGroupRuleId"]
    ]
    rule_id = made[1]["SecurityGroupRuleId"]
    ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=[rule_id])
    assert group(ec2, web)["IpPermissions"] == []
    code = code_of(ec2.revoke_security_group_ingress, GroupId=web, SecurityGroupRuleIds=[rule_id])
    assert code == "InvalidSecurityGroupRuleId.NotFound"


def test_revoking_one_that_is_there_and_one_that_is_not_changes_nothing(
    front: Front, ec2: Any, web: str
) -> None:
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission()])
    before = front.snapshot()
    code = code_of(
        ec2.revoke_security_group_ingress,
        GroupId=web,
        IpPermissions=[permission(), permission("udp")],
    )
    assert code == "InvalidPermission.NotFound"
    assert front.snapshot() == before


def test_ingress_and_egress_are_apart(ec2: Any, web: str) -> None:
    ec2.authorize_security_group_egress(GroupId=web, IpPermissions=[permission()])
    code = code_of(ec2.revoke_security_group_ingress, GroupId=web, IpPermissions=[permission()])
    assert code == "InvalidPermission.NotFound"
    assert len(group(ec2, web)["IpPermissionsEgress"]) == 2


def test_every_change_of_rules_is_a_new_policy(front: Front, ec2: Any, web: str) -> None:
    def revision() -> int:
        [network] = front.rows(schema.networks)
        return int(network.policy_revision)

    front.enforce_policy()
    front.bus.casts.clear()
    before = revision()
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission()])
    ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[permission()])
    assert revision() == before + 2
    changes = [row for row in front.rows(schema.policy_changes) if row.subject == web]
    assert [row.kind for row in changes[-2:]] == ["rules", "rules"]
    told = [message for _, message in front.bus.casts if isinstance(message, PolicyChanged)]
    assert [message.revision for message in told] == [before + 1, before + 2]


def test_a_group_that_another_names_cannot_be_deleted(ec2: Any, web: str) -> None:
    other = ec2.create_security_group(GroupName="db", Description="d")["GroupId"]
    source = permission(UserIdGroupPairs=[{"GroupId": web}])
    ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=[source])
    assert code_of(ec2.delete_security_group, GroupId=web) == "DependencyViolation"
    assert code_of(ec2.delete_security_group, GroupName="web") == "InvalidGroup.InUse"
    ec2.revoke_security_group_ingress(GroupId=other, IpPermissions=[source])
    assert ec2.delete_security_group(GroupId=web)["Return"] is True


def test_a_group_that_names_itself_can_be_deleted(ec2: Any, web: str) -> None:
    source = permission(UserIdGroupPairs=[{"GroupId": web}])
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[source])
    ec2.delete_security_group(GroupId=web)
    assert code_of(ec2.describe_security_groups, GroupIds=[web]) == "InvalidGroup.NotFound"


def test_a_group_with_an_instance_cannot_be_deleted_until_it_is_terminated(
    front: Front, ec2: Any, web: str
) -> None:
    ids = front.run(SecurityGroupIds=[web])
    assert code_of(ec2.delete_security_group, GroupId=web) == "DependencyViolation"
    front.make_terminated(ids)
    ec2.delete_security_group(GroupId=web)
    assert front.quota("security_groups") == 1


def test_names_are_taken_once_per_project(front: Front, ec2: Any, web: str) -> None:
    code = code_of(ec2.create_security_group, GroupName="web", Description="d")
    assert code == "InvalidGroup.Duplicate"
    other = front.client(front.make_project("other"))
    other.create_security_group(GroupName="web", Description="d")


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("", "d"),
        ("sg-web", "d"),
        ("x" * 256, "d"),
        ("a\nb", "d"),
        ("é", "d"),
        (" a", "d"),
        ("a<script>", "d"),
        ("a", "x" * 256),
        ("a", "<b>"),
        ("a", "b\0"),
    ],
)
def test_hostile_names_are_refused(front: Front, ec2: Any, name: str, description: str) -> None:
    before = front.snapshot()
    code = code_of(ec2.create_security_group, GroupName=name, Description=description)
    assert code in ("InvalidParameterValue", "MissingParameter")
    assert front.snapshot() == before


def test_another_projects_groups_do_not_exist(front: Front, ec2: Any, web: str) -> None:
    other = front.client(front.make_project("other"))
    other.describe_security_groups()
    before = front.snapshot()
    missing = "InvalidGroup.NotFound"
    source = permission(UserIdGroupPairs=[{"GroupId": web}])
    assert code_of(other.describe_security_groups, GroupIds=[web]) == missing
    assert code_of(other.delete_security_group, GroupId=web) == missing
    for action in (
        other.authorize_security_group_ingress,
        other.revoke_security_group_ingress,
        other.authorize_security_group_egress,
        other.revoke_security_group_egress,
    ):
        assert code_of(action, GroupId=web, IpPermissions=[permission()]) == missing
    code = code_of(
        other.authorize_security_group_ingress, GroupName="default", IpPermissions=[source]
    )
    assert code == missing
    assert front.snapshot() == before


def test_filters_pages_and_tags(ec2: Any) -> None:
    tags = [{"ResourceType": "security-group", "Tags": [{"Key": "env", "Value": "test"}]}]
    for number in range(11):
        ec2.create_security_group(
            GroupName=f"g{number:02}", Description=f"d{number}", TagSpecifications=tags
        )
    pages = ec2.get_paginator("describe_security_groups").paginate(PaginationConfig={"PageSize": 5})
    sizes = [len(page["SecurityGroups"]) for page in pages]
    assert sizes == [5, 5, 2]

    def names(name: str, *values: str) -> list[str]:
        found = ec2.describe_security_groups(Filters=[{"Name": name, "Values": list(values)}])
        return [each["GroupName"] for each in found["SecurityGroups"]]

    assert names("group-name", "g0[12]", "g10") == ["g10"]
    assert names("tag:env", "test") == [f"g{number:02}" for number in range(11)]
    assert names("description", "d1") == ["g01"]
    assert names("egress.ip-permission.cidr", "0.0.0.0/0")[0] == "default"
    assert names("ip-permission.cidr", "0.0.0.0/0") == []
    assert code_of(ec2.describe_security_groups, NextToken="!") == "InvalidParameterValue"


@pytest.mark.parametrize("value", ["--5", "²", "9" * 30, "-", "5*", " 5", "5\n", "٢"])
@pytest.mark.parametrize("name", ["from-port", "to-port"])
def test_what_is_no_port_matches_no_rule(ec2: Any, name: str, value: str) -> None:
    for prefix in ("ip-permission", "egress.ip-permission"):
        wanted = [{"Name": f"{prefix}.{name}", "Values": [value]}]
        assert ec2.describe_security_groups(Filters=wanted)["SecurityGroups"] == []


@pytest.mark.parametrize(
    "refused",
    [
        {"Filters": [{"Name": "no-such", "Values": ["x"]}]},
        {"Filters": [{"Name": "group-id", "Values": []}]},
        {"Filters": [{"Name": "group-id", "Values": ["x"] * 201}]},
        {"NextToken": "x"},
        {"NextToken": "WzFd", "MaxResults": 5},
    ],
)
def test_a_list_that_is_refused_makes_no_default_group(
    front: Front, ec2: Any, refused: dict[str, Any]
) -> None:
    before = front.snapshot()
    code_of(ec2.describe_security_groups, **refused)
    assert front.snapshot() == before


def test_the_waiter_of_boto3_finds_the_group(ec2: Any, web: str) -> None:
    ec2.get_waiter("security_group_exists").wait(GroupIds=[web], WaiterConfig={"MaxAttempts": 1})


def test_the_number_of_rules_is_limited(tmp_path: Any) -> None:
    config = msgspec.structs.replace(Config(), quota=QuotaSettings(rules=3))
    front = Front(tmp_path, config)
    try:
        ec2 = front.client()
        made = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
        four = [permission(low=port, high=port) for port in range(4)]
        code = code_of(ec2.authorize_security_group_ingress, GroupId=made, IpPermissions=four)
        assert code == "RulesPerSecurityGroupLimitExceeded"
        ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=four[:3])
        code = code_of(ec2.authorize_security_group_ingress, GroupId=made, IpPermissions=four[3:])
        assert code == "RulesPerSecurityGroupLimitExceeded"
    finally:
        front.close()


def test_protocol_names_and_numbers_are_the_same_for_all_that_have_one() -> None:
    for name, number in (("tcp", 6), ("udp", 17), ("icmp", 1), ("icmpv6", 58), ("-1", -1)):
        assert permissions.read_protocol(name) == number
        assert permissions.protocol_name(number) == name
