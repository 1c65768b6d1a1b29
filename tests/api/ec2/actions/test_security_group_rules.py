"""Single rules: listed, described anew, changed and revoked by their ids."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.store import schema
from tests.api.ec2.actions.counting import counted_statements
from tests.api.ec2.examples.networks import where
from tests.api.ec2.examples.others import new_group
from tests.api.ec2.examples.stage import Refused, Stage
from tests.api.ec2.test_traps import ask, texts
from tests.api.front import Front

ALL_V4 = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
ALL_V6 = {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
NOBODYS = "sgr-0123456789abcdef0"
WORDS = {False: "Ingress", True: "Egress"}
DIRECTIONS = pytest.mark.parametrize("is_egress", [False, True], ids=["ingress", "egress"])


def web(*ports: int, **more: Any) -> dict[str, Any]:
    """Return a permission for ports of TCP, with a description when one is given."""
    cidr = {"CidrIp": more.pop("cidr", "10.0.0.0/8"), **more}
    return {
        "IpProtocol": "tcp",
        "FromPort": ports[0],
        "ToPort": ports[-1],
        "IpRanges": [cidr],
    }


def rules_of(stage: Stage, group: str, **filters: Any) -> list[dict[str, Any]]:
    asked = where(group_id=group, **filters)
    found = stage.ask("DescribeSecurityGroupRules", Filters=asked)["SecurityGroupRules"]
    return sorted(found, key=lambda one: (one["IsEgress"], one["FromPort"]))


def authorized(stage: Stage, group: str, *permissions: Any, is_egress: bool = False) -> list[str]:
    """Return the ids of new rules."""
    reply = stage.ask(
        f"AuthorizeSecurityGroup{WORDS[is_egress]}", GroupId=group, IpPermissions=permissions
    )
    return [rule["SecurityGroupRuleId"] for rule in reply["SecurityGroupRules"]]


class TestDescription:
    def test_a_rule_has_ec2s_shape(self, stage: Stage) -> None:
        group, other = new_group(stage), new_group(stage)
        pair = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": other, "Description": "us"}]}
        first, second = authorized(stage, group, web(22, Description="ssh"), pair)
        by_id = {rule["SecurityGroupRuleId"]: rule for rule in rules_of(stage, group)}
        owner = stage.project_id
        arn = f"arn:aws:ec2:local-1:{owner}:security-group-rule/"
        assert by_id[first] == {
            "SecurityGroupRuleId": first,
            "SecurityGroupRuleArn": arn + first,
            "GroupId": group,
            "GroupOwnerId": owner,
            "IsEgress": False,
            "IpProtocol": "tcp",
            "FromPort": 22,
            "ToPort": 22,
            "CidrIpv4": "10.0.0.0/8",
            "Description": "ssh",
            "Tags": [],
        }
        assert by_id[second] == {
            "SecurityGroupRuleId": second,
            "SecurityGroupRuleArn": arn + second,
            "GroupId": group,
            "GroupOwnerId": owner,
            "IsEgress": False,
            "IpProtocol": "-1",
            "FromPort": -1,
            "ToPort": -1,
            "ReferencedGroupInfo": {"GroupId": other, "UserId": owner},
            "Description": "us",
            "Tags": [],
        }
        assert [rule["IsEgress"] for rule in by_id.values()].count(True) == 1

    def test_ids_filters_and_owners(self, stage: Stage, neighbour: Stage) -> None:
        group = new_group(stage)
        [rule] = authorized(stage, group, web(22))
        action = "DescribeSecurityGroupRules"
        [found] = stage.ask(action, SecurityGroupRuleIds=[rule])["SecurityGroupRules"]
        assert found["GroupId"] == group
        assert len(rules_of(stage, group, **{"security-group-rule-id": rule})) == 1
        assert rules_of(stage, group, **{"security-group-rule-id": NOBODYS}) == []
        missing = "InvalidSecurityGroupRuleId.NotFound"
        assert stage.refusal(action, SecurityGroupRuleIds=[rule, NOBODYS]) == missing
        assert neighbour.refusal(action, SecurityGroupRuleIds=[rule]) == missing
        assert rules_of(neighbour, group) == []
        malformed = "InvalidSecurityGroupRuleId.Malformed"
        assert stage.refusal(action, SecurityGroupRuleIds=["sg-01234567"]) == malformed
        with pytest.raises(Refused, match=f"The security group rule ID '{NOBODYS}' does not exist"):
            stage.ask(action, SecurityGroupRuleIds=[NOBODYS])

    def test_pages_and_statements(self, stage: Stage) -> None:
        group = new_group(stage)
        with counted_statements(stage.front) as of_one:
            assert len(rules_of(stage, group)) == 1
        made = authorized(stage, group, *(web(port) for port in range(1, 12)))
        with counted_statements(stage.front) as of_many:
            everything = {rule["SecurityGroupRuleId"] for rule in rules_of(stage, group)}
        assert len(of_one) == len(of_many) <= 4
        assert set(made) < everything
        sizes, found = [], []
        more: dict[str, str] = {}
        while True:
            reply = stage.ask(
                "DescribeSecurityGroupRules",
                Filters=where(group_id=group),
                MaxResults=6,
                **more,
            )
            sizes.append(len(reply["SecurityGroupRules"]))
            found += [rule["SecurityGroupRuleId"] for rule in reply["SecurityGroupRules"]]
            if "NextToken" not in reply:
                break
            more = {"NextToken": reply["NextToken"]}
        assert sizes == [6, 6]
        assert set(found) == everything
        assert stage.refusal("DescribeSecurityGroupRules", MaxResults=4) == "InvalidParameterValue"


@DIRECTIONS
class TestRevoking:
    def test_by_ids_of_one_direction(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        here = authorized(stage, group, web(1), web(2), web(3), is_egress=is_egress)
        [there] = authorized(stage, group, web(4), is_egress=not is_egress)
        action = f"RevokeSecurityGroup{WORDS[is_egress]}"
        for wrong in (there, NOBODYS):
            refused = stage.refusal(action, GroupId=group, SecurityGroupRuleIds=[here[0], wrong])
            assert refused == "InvalidSecurityGroupRuleId.NotFound"
        reply = stage.ask(action, GroupId=group, SecurityGroupRuleIds=here[:2])
        revoked = reply["RevokedSecurityGroupRules"]
        assert [rule["SecurityGroupRuleId"] for rule in revoked] == here[:2]
        left = {rule["SecurityGroupRuleId"] for rule in rules_of(stage, group)}
        assert left & {*here, there} == {here[2], there}

    def test_one_that_is_not_there(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        authorized(stage, group, web(80), is_egress=is_egress)
        action = f"RevokeSecurityGroup{WORDS[is_egress]}"
        for other in (web(81), web(80, cidr="10.0.0.0/9"), web(80, 81), ALL_V6):
            refused = stage.refusal(action, GroupId=group, IpPermissions=[other])
            assert refused == "InvalidPermission.NotFound"
        stage.ask(action, GroupId=group, IpPermissions=[web(80, Description="never said")])

    def test_the_same_again_is_a_duplicate(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        authorized(stage, group, web(80), is_egress=is_egress)
        action = f"AuthorizeSecurityGroup{WORDS[is_egress]}"
        with pytest.raises(Refused) as caught:
            stage.ask(action, GroupId=group, IpPermissions=[web(81), web(80, Description="new")])
        assert caught.value.code == "InvalidPermission.Duplicate"
        assert caught.value.message == (
            'the specified rule "peer: 10.0.0.0/8, TCP, from port: 80, to port: 80, ALLOW" '
            "already exists"
        )


@DIRECTIONS
class TestDescribingAnew:
    def test_by_what_the_rules_say(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        authorized(
            stage, group, web(1, Description="a"), web(2, Description="b"), is_egress=is_egress
        )
        self.update(stage, is_egress, GroupId=group, IpPermissions=[web(1, Description="new")])
        assert self.said(stage, group, is_egress) == {1: "new", 2: "b"}
        self.update(stage, is_egress, GroupId=group, IpPermissions=[web(1), web(2)])
        assert self.said(stage, group, is_egress) == {1: None, 2: None}

    def test_by_their_ids(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        ids = authorized(stage, group, web(1, Description="a"), web(2), is_egress=is_egress)
        described = [
            {"SecurityGroupRuleId": ids[0]},
            {"SecurityGroupRuleId": ids[1], "Description": "two"},
        ]
        before = policy_revisions(stage)
        self.update(stage, is_egress, GroupId=group, SecurityGroupRuleDescriptions=described)
        assert self.said(stage, group, is_egress) == {1: None, 2: "two"}
        assert policy_revisions(stage) == before, "what is said of rules is nothing to the nodes"

    def test_one_that_is_not_there_changes_nothing(self, stage: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        [here] = authorized(stage, group, web(1, Description="a"), is_egress=is_egress)
        [there] = authorized(stage, group, web(1, Description="b"), is_egress=not is_egress)
        action = f"UpdateSecurityGroupRuleDescriptions{WORDS[is_egress]}"
        asked = [web(1, Description="x"), web(9, Description="x")]
        refused = stage.refusal(action, GroupId=group, IpPermissions=asked)
        assert refused == "InvalidPermission.NotFound"
        for wrong in (there, NOBODYS):
            described = [
                {"SecurityGroupRuleId": each, "Description": "x"} for each in (here, wrong)
            ]
            refused = stage.refusal(action, GroupId=group, SecurityGroupRuleDescriptions=described)
            assert refused == "InvalidSecurityGroupRuleId.NotFound"
        assert self.said(stage, group, is_egress) == {1: "a"}
        assert stage.refusal(action, GroupId=group) == "MissingParameter"

    @pytest.mark.parametrize("text", ["x" * 256, "a\tb", '"', "é", "<b>"])
    def test_a_text_that_ec2_does_not_take(self, stage: Stage, is_egress: bool, text: str) -> None:
        group = new_group(stage)
        [rule] = authorized(stage, group, web(1), is_egress=is_egress)
        action = f"UpdateSecurityGroupRuleDescriptions{WORDS[is_egress]}"
        described = [{"SecurityGroupRuleId": rule, "Description": text}]
        for asked in (
            {"IpPermissions": [web(1, Description=text)]},
            {"SecurityGroupRuleDescriptions": described},
        ):
            assert stage.refusal(action, GroupId=group, **asked) == "InvalidParameterValue"

    def test_another_projects_group(self, stage: Stage, neighbour: Stage, is_egress: bool) -> None:
        group = new_group(stage)
        authorized(stage, group, web(1), is_egress=is_egress)
        action = f"UpdateSecurityGroupRuleDescriptions{WORDS[is_egress]}"
        refused = neighbour.refusal(action, GroupId=group, IpPermissions=[web(1)])
        assert refused == "InvalidGroup.NotFound"

    def update(self, stage: Stage, is_egress: bool, **params: Any) -> None:
        action = f"UpdateSecurityGroupRuleDescriptions{WORDS[is_egress]}"
        assert stage.ask(action, **params) == {"Return": True}

    def said(self, stage: Stage, group: str, is_egress: bool) -> dict[int, str | None]:
        return {
            rule["FromPort"]: rule.get("Description")
            for rule in rules_of(stage, group)
            if rule["IsEgress"] is is_egress and rule["IpProtocol"] == "tcp"
        }


def policy_revisions(stage: Stage) -> list[int]:
    return [row.policy_revision for row in stage.front.rows(schema.networks)]


def changed(rule_id: str, **rule: Any) -> dict[str, Any]:
    return {"SecurityGroupRuleId": rule_id, "SecurityGroupRule": rule}


def tcp(port: int, cidr: str = "10.0.0.0/8", **more: Any) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIpv4": cidr, **more}


class TestModifying:
    def test_a_rule_says_something_else_under_its_id(self, stage: Stage) -> None:
        group, other = new_group(stage), new_group(stage)
        first, second, third = authorized(stage, group, web(1), web(2), web(3, Description="c"))
        asked = [
            changed(first, **tcp(80, "10.1.2.3/16", Description="web")),
            changed(second, IpProtocol="udp", FromPort=53, ToPort=53, CidrIpv6="fd00::/8"),
            changed(third, IpProtocol="-1", ReferencedGroupId=other),
        ]
        before = policy_revisions(stage)
        stage.ask("ModifySecurityGroupRules", GroupId=group, SecurityGroupRules=asked)
        assert policy_revisions(stage) == [each + 1 for each in before]
        by_id = {rule["SecurityGroupRuleId"]: rule for rule in rules_of(stage, group)}
        assert (by_id[first]["CidrIpv4"], by_id[first]["FromPort"]) == ("10.1.0.0/16", 80)
        assert by_id[first]["Description"] == "web"
        assert (by_id[second]["IpProtocol"], by_id[second]["CidrIpv6"]) == ("udp", "fd00::/8")
        assert by_id[third]["ReferencedGroupInfo"]["GroupId"] == other
        assert "Description" not in by_id[third]
        assert not any(by_id[each]["IsEgress"] for each in (first, second, third))

    def test_two_change_places(self, stage: Stage) -> None:
        group = new_group(stage)
        first, second = authorized(stage, group, web(1), web(2))
        asked = [changed(first, **tcp(2)), changed(second, **tcp(1))]
        stage.ask("ModifySecurityGroupRules", GroupId=group, SecurityGroupRules=asked)
        ports = {rule["SecurityGroupRuleId"]: rule["FromPort"] for rule in rules_of(stage, group)}
        assert (ports[first], ports[second]) == (2, 1)

    @pytest.mark.parametrize(
        ("rule", "code"),
        [
            (tcp(2), "InvalidPermission.Duplicate"),
            (tcp(70000), "InvalidParameterValue"),
            (tcp(5, "10.0.0.0/33"), "InvalidParameterValue"),
            (tcp(5, CidrIpv6="::/0"), "InvalidParameterCombination"),
            ({"IpProtocol": "tcp", "FromPort": 5, "ToPort": 5}, "MissingParameter"),
            ({"CidrIpv4": "10.0.0.0/8"}, "MissingParameter"),
            (
                {"IpProtocol": "-1", "ReferencedGroupId": "sg-0123456789abcdef0"},
                "InvalidGroup.NotFound",
            ),
            ({"IpProtocol": "-1", "PrefixListId": "pl-01234567"}, "UnsupportedOperation"),
        ],
    )
    def test_what_is_refused_changes_nothing(
        self, stage: Stage, rule: dict[str, Any], code: str
    ) -> None:
        group = new_group(stage)
        first, second, third = authorized(stage, group, web(1), web(2), web(3))
        before = rules_of(stage, group)
        asked = [changed(third, **tcp(4)), changed(first, **rule)]
        refused = stage.refusal("ModifySecurityGroupRules", GroupId=group, SecurityGroupRules=asked)
        assert refused == code
        assert rules_of(stage, group) == before
        assert second

    def test_one_that_is_not_there(self, stage: Stage, neighbour: Stage) -> None:
        group, other = new_group(stage), new_group(stage)
        [rule] = authorized(stage, other, web(1))
        action = "ModifySecurityGroupRules"
        for wrong in (rule, NOBODYS):
            asked = [changed(wrong, **tcp(4))]
            refused = stage.refusal(action, GroupId=group, SecurityGroupRules=asked)
            assert refused == "InvalidSecurityGroupRuleId.NotFound"
        asked = [changed(rule, **tcp(4))]
        refused = neighbour.refusal(action, GroupId=other, SecurityGroupRules=asked)
        assert refused == "InvalidGroup.NotFound"


class TestGroupFilters:
    @pytest.fixture
    def group(self, stage: Stage) -> str:
        group, source = new_group(stage), new_group(stage)
        pair = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": source}]}
        v6 = {
            "IpProtocol": "udp",
            "FromPort": 53,
            "ToPort": 54,
            "Ipv6Ranges": [{"CidrIpv6": "fd00::/8"}],
        }
        ping = {
            "IpProtocol": "icmp",
            "FromPort": 8,
            "ToPort": 0,
            "IpRanges": [{"CidrIp": "1.2.3.4/32"}],
        }
        for is_egress in (False, True):
            authorized(stage, group, web(22, 23), pair, v6, ping, is_egress=is_egress)
        self.source = source
        [found] = stage.ask("DescribeSecurityGroups", GroupIds=[source])["SecurityGroups"]
        self.source_name = found["GroupName"]
        return group

    @pytest.mark.parametrize("prefix", ["ip-permission", "egress.ip-permission"])
    def test_of_rules(self, stage: Stage, group: str, prefix: str) -> None:
        fitting = {
            "cidr": ["10.0.0.0/8", "1.2.3.*"],
            "from-port": ["22", "8"],
            "group-id": [self.source],
            "group-name": [self.source_name],
            "ipv6-cidr": ["fd00::/8"],
            "protocol": ["tcp", "icmp", "-1", "u?p"],
            "to-port": ["23", "54", "0"],
            "user-id": [stage.project_id],
        }
        for name, values in fitting.items():
            for value in values:
                assert self.fits(stage, group, {f"{prefix}.{name}": value}), (name, value)
            assert not self.fits(stage, group, {f"{prefix}.{name}": "fd00::/9"}), name
        assert not self.fits(stage, group, {f"{prefix}.cidr": "fd00::/8"})
        assert not self.fits(stage, group, {f"{prefix}.ipv6-cidr": "10.0.0.0/8"})
        assert not self.fits(stage, group, {f"{prefix}.prefix-list-id": "*"})

    def test_directions_are_apart(self, stage: Stage, group: str) -> None:
        everybody = "0.0.0.0/0"
        assert self.fits(stage, group, {"egress.ip-permission.cidr": everybody})
        assert not self.fits(stage, group, {"ip-permission.cidr": everybody})

    def fits(self, stage: Stage, group: str, filters: dict[str, str]) -> bool:
        asked = where(group_id=group, **filters)
        return bool(stage.ask("DescribeSecurityGroups", Filters=asked)["SecurityGroups"])


def test_terraforms_order_of_making_a_group(stage: Stage) -> None:
    group = new_group(stage)
    assert [rule["IsEgress"] for rule in rules_of(stage, group)] == [True]
    stage.ask("RevokeSecurityGroupEgress", GroupId=group, IpPermissions=[ALL_V4])
    refused = stage.refusal("RevokeSecurityGroupEgress", GroupId=group, IpPermissions=[ALL_V6])
    assert refused == "InvalidPermission.NotFound"
    authorized(stage, group, web(443))
    authorized(stage, group, ALL_V4, is_egress=True)
    ids = [rule["SecurityGroupRuleId"] for rule in rules_of(stage, group)]
    stage.ask("RevokeSecurityGroupIngress", GroupId=group, SecurityGroupRuleIds=ids[:1])
    stage.ask("RevokeSecurityGroupEgress", GroupId=group, SecurityGroupRuleIds=ids[1:])
    stage.ask("DeleteSecurityGroup", GroupId=group)
    assert stage.refusal("DescribeSecurityGroups", GroupIds=[group]) == "InvalidGroup.NotFound"


def test_a_group_of_another_account_is_not_ones_own_of_that_name(stage: Stage) -> None:
    group = new_group(stage)
    asked = {"SourceSecurityGroupName": "default", "GroupId": group}
    theirs = asked | {"SourceSecurityGroupOwnerId": "123456789012"}
    refused = stage.refusal("AuthorizeSecurityGroupIngress", **theirs)
    assert refused == "InvalidGroup.NotFound"
    mine = asked | {"SourceSecurityGroupOwnerId": stage.project_id}
    assert stage.ask("AuthorizeSecurityGroupIngress", **mine)["SecurityGroupRules"]


@pytest.mark.parametrize(
    "form",
    [
        "Action=AuthorizeSecurityGroupEgress&{rule}",
        "Action=UpdateSecurityGroupRuleDescriptionsEgress&{rule}",
        "Action=RevokeSecurityGroupEgress&{rule}",
        (
            "Action=ModifySecurityGroupRules&SecurityGroupRule.1.SecurityGroupRuleId={id}"
            "&SecurityGroupRule.1.SecurityGroupRule.IpProtocol=-1"
            "&SecurityGroupRule.1.SecurityGroupRule.CidrIpv4=10.0.0.0/8"
        ),
    ],
)
def test_return_true_where_ec2_documents_it(front: Front, form: str) -> None:
    stage = Stage(front)
    group = new_group(stage)
    [rule] = authorized(stage, group, web(9))
    permission = (
        "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=9&IpPermissions.1.ToPort=9"
        "&IpPermissions.1.IpRanges.1.CidrIp=10.0.0.0/8"
    )
    if "Authorize" not in form:
        authorized(stage, group, web(9), is_egress=True)
    status, root = ask(front, form.format(rule=permission, id=rule) + f"&GroupId={group}")
    assert (status, texts(root, "return")) == (200, ["true"])
