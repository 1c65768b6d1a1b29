"""Tags: on every resource, by each project for itself, and gone with what bears them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from appliance.store import images, schema
from appliance.store.images import NewImage
from tests.api.ec2.examples.instances import running
from tests.api.ec2.examples.networks import rule_ids, where
from tests.api.ec2.examples.others import PUBLIC_KEY, new_group, new_name
from tests.api.ec2.examples.stage import Refused, Stage
from tests.api.ec2.test_traps import ask, texts
from tests.api.front import Front

MISSING = {
    "i-0123456789abcdef0": "InvalidInstanceID.NotFound",
    "ami-0123456789abcdef0": "InvalidAMIID.NotFound",
    "aki-0123456789abcdef0": "InvalidAMIID.NotFound",
    "key-0123456789abcdef0": "InvalidKeyPair.NotFound",
    "sg-0123456789abcdef0": "InvalidGroup.NotFound",
    "sgr-0123456789abcdef0": "InvalidSecurityGroupRuleId.NotFound",
    "vol-0123456789abcdef0": "InvalidVolume.NotFound",
    "eni-0123456789abcdef0": "InvalidNetworkInterfaceID.NotFound",
    "subnet-0123456789abcdef0": "InvalidSubnetID.NotFound",
    "vpc-0123456789abcdef0": "InvalidVpcID.NotFound",
}
OWNED = ("i", "key", "sg", "sgr", "vol", "eni")
SHARED = ("ami", "subnet", "vpc")
DESCRIBING: dict[str, tuple[str, str, str]] = {
    "i": ("DescribeInstances", "instance-id", "Reservations"),
    "key": ("DescribeKeyPairs", "key-pair-id", "KeyPairs"),
    "sg": ("DescribeSecurityGroups", "group-id", "SecurityGroups"),
    "sgr": ("DescribeSecurityGroupRules", "security-group-rule-id", "SecurityGroupRules"),
    "eni": ("DescribeNetworkInterfaces", "network-interface-id", "NetworkInterfaces"),
    "ami": ("DescribeImages", "image-id", "Images"),
    "subnet": ("DescribeSubnets", "subnet-id", "Subnets"),
    "vpc": ("DescribeVpcs", "vpc-id", "Vpcs"),
}


def pairs(**values: str) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in values.items()]


def tags_of(stage: Stage, *resource_ids: str) -> dict[str, str]:
    """Return the tags of resources as one mapping."""
    found = stage.ask("DescribeTags", Filters=where(resource_id=list(resource_ids)))["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


@pytest.fixture(scope="module")
def ids(stage: Stage) -> dict[str, str]:
    """Return one resource of each kind by the beginning of its id."""
    [instance_id] = running(stage)
    [[instance]] = [
        one["Instances"]
        for one in stage.ask("DescribeInstances", InstanceIds=[instance_id])["Reservations"]
    ]
    group = new_group(stage)
    key = stage.ask("ImportKeyPair", KeyName=new_name(), PublicKeyMaterial=PUBLIC_KEY)
    return {
        "i": instance_id,
        "key": key["KeyPairId"],
        "sg": group,
        "sgr": rule_ids(stage, group, is_egress=True)[0],
        "vol": instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"],
        "eni": instance["NetworkInterfaces"][0]["NetworkInterfaceId"],
        "ami": stage.front.image.image_id,
        "subnet": instance["SubnetId"],
        "vpc": instance["VpcId"],
    }


class TestEveryResource:
    @pytest.mark.parametrize("kind", [*OWNED, *SHARED])
    def test_it_is_tagged_shown_found_and_freed(
        self, stage: Stage, ids: dict[str, str], kind: str
    ) -> None:
        stage.ask("CreateTags", Resources=[ids[kind]], Tags=pairs(b="2", a="1", c=""))
        found = stage.ask("DescribeTags", Filters=where(resource_id=ids[kind]))["Tags"]
        assert [(tag["ResourceId"], tag["Key"], tag["Value"]) for tag in found] == [
            (ids[kind], "a", "1"),
            (ids[kind], "b", "2"),
            (ids[kind], "c", ""),
        ]
        assert found[0]["ResourceType"] == {
            "i": "instance",
            "key": "key-pair",
            "sg": "security-group",
            "sgr": "security-group-rule",
            "vol": "volume",
            "eni": "network-interface",
            "ami": "image",
            "subnet": "subnet",
            "vpc": "vpc",
        }.get(kind)
        if kind in DESCRIBING:
            self.check_description(stage, ids[kind], kind)
        stage.ask("CreateTags", Resources=[ids[kind]], Tags=pairs(b="3"))
        assert tags_of(stage, ids[kind]) == {"a": "1", "b": "3", "c": ""}
        stage.ask("DeleteTags", Resources=[ids[kind]])
        assert tags_of(stage, ids[kind]) == {}

    def check_description(self, stage: Stage, resource_id: str, kind: str) -> None:
        action, id_filter, member = DESCRIBING[kind]
        [found] = stage.ask(action, Filters=where(**{id_filter: resource_id, "tag:a": "1"}))[member]
        if kind == "i":
            [found] = found["Instances"]
        shown = found.get("Tags", found.get("TagSet"))
        assert shown == pairs(a="1", b="2", c="")
        for missed in (where(**{"tag:a": "2"}), where(tag_key="d"), where(**{"tag:c": "?"})):
            assert not stage.ask(action, Filters=where(**{id_filter: resource_id}) + missed)[member]
        by_key = where(tag_key=["d", "b*"])
        assert stage.ask(action, Filters=where(**{id_filter: resource_id}) + by_key)[member]

    @pytest.mark.parametrize("kind", [*OWNED])
    def test_anothers_does_not_exist(
        self, stage: Stage, neighbour: Stage, ids: dict[str, str], kind: str
    ) -> None:
        code = MISSING[f"{kind}-0123456789abcdef0"]
        for action, more in (("CreateTags", {"Tags": pairs(a="1")}), ("DeleteTags", {})):
            assert neighbour.refusal(action, Resources=[ids[kind]], **more) == code
        assert neighbour.ask("DescribeTags", Filters=where(resource_id=ids[kind]))["Tags"] == []

    @pytest.mark.parametrize("kind", [*SHARED])
    def test_what_is_shared_is_tagged_by_each_for_itself(
        self, stage: Stage, neighbour: Stage, ids: dict[str, str], kind: str
    ) -> None:
        stage.ask("CreateTags", Resources=[ids[kind]], Tags=pairs(Name="mine"))
        neighbour.ask("CreateTags", Resources=[ids[kind]], Tags=pairs(Name="yours", more="x"))
        action, id_filter, member = DESCRIBING[kind]
        for one, name in ((stage, "mine"), (neighbour, "yours")):
            assert tags_of(one, ids[kind])["Name"] == name
            by_name = where(**{id_filter: ids[kind], "tag:Name": name})
            [found] = one.ask(action, Filters=by_name)[member]
            assert {"Key": "Name", "Value": name} in found["Tags"]
        assert not stage.ask(action, Filters=where(tag_key="more"))[member]
        neighbour.ask("DeleteTags", Resources=[ids[kind]])
        assert tags_of(neighbour, ids[kind]) == {}
        assert tags_of(stage, ids[kind]) == {"Name": "mine"}
        stage.ask("DeleteTags", Resources=[ids[kind]])

    def test_owners_tags_of_a_public_image_are_not_for_others(
        self, stage: Stage, neighbour: Stage
    ) -> None:
        new = NewImage(
            project_id=stage.project_id,
            kind=images.MACHINE,
            name=new_name(),
            format="qcow2",
            sha256="1" * 64,
            size_bytes=1,
            is_public=True,
        )
        image_id = stage.front.change(lambda tx: images.create(tx, new)).image_id
        stage.ask("CreateTags", Resources=[image_id], Tags=pairs(secret="x"))
        [mine] = stage.ask("DescribeImages", ImageIds=[image_id])["Images"]
        assert mine["Tags"] == pairs(secret="x")
        assert tags_of(neighbour, image_id) == {}
        [seen] = neighbour.ask("DescribeImages", ImageIds=[image_id])["Images"]
        assert seen.get("Tags", []) == []
        assert not neighbour.ask("DescribeImages", Filters=where(tag_key="secret"))["Images"]
        neighbour.ask("CreateTags", Resources=[image_id], Tags=pairs(b="2"))
        stage.front.change(lambda tx: images.delete(tx, image_id))
        assert kept(stage, image_id, f"{image_id}@{neighbour.project_id}") == set()


class TestIds:
    @pytest.mark.parametrize(("missing", "code"), MISSING.items())
    @pytest.mark.parametrize("action", ["CreateTags", "DeleteTags"])
    def test_one_that_does_not_exist_changes_nothing(
        self, stage: Stage, ids: dict[str, str], action: str, missing: str, code: str
    ) -> None:
        stage.ask("CreateTags", Resources=[ids["sg"]], Tags=pairs(kept="1"))
        assert stage.refusal(action, Resources=[ids["sg"], missing], Tags=pairs(kept="2")) == code
        assert tags_of(stage, ids["sg"]) == {"kept": "1"}

    def test_the_text_is_ec2s(self, stage: Stage) -> None:
        with pytest.raises(Refused, match="The vpc ID 'vpc-0123456789abcdef0' does not exist"):
            stage.ask("CreateTags", Resources=["vpc-0123456789abcdef0"], Tags=pairs(a=""))

    @pytest.mark.parametrize(
        "bad", ["", "x", "i-", "i-123", "I-01234567", "i-0123456789ABCDEF0", "r-01234567", "i_x@1"]
    )
    def test_one_of_no_known_form_is_invalid(self, stage: Stage, bad: str) -> None:
        code = stage.refusal("CreateTags", Resources=[bad], Tags=pairs(a=""))
        assert code == "InvalidID"

    def test_the_same_twice_is_once(self, stage: Stage) -> None:
        group = new_group(stage)
        stage.ask("CreateTags", Resources=[group, group], Tags=pairs(a="1"))
        assert tags_of(stage, group) == {"a": "1"}


class TestLimits:
    @pytest.mark.parametrize(
        ("tags", "code"),
        [
            (pairs(**{"k" * 129: "v"}), "InvalidParameterValue"),
            (pairs(k="v" * 257), "InvalidParameterValue"),
            (pairs(**{"aws:mine": "v"}), "InvalidParameterValue"),
            (pairs(**{"AWS:mine": "v"}), "InvalidParameterValue"),
            ([*pairs(k="1"), *pairs(k="2")], "InvalidParameterValue"),
            ([{"Value": "v"}], "MissingParameter"),
            ([], "MissingParameter"),
            (pairs(**{f"k{n}": "" for n in range(51)}), "TagLimitExceeded"),
        ],
    )
    def test_what_ec2_refuses(self, stage: Stage, tags: list[Any], code: str) -> None:
        group = new_group(stage)
        assert stage.refusal("CreateTags", Resources=[group], Tags=tags) == code
        assert tags_of(stage, group) == {}

    @pytest.mark.parametrize(
        ("key", "value"), [("k" * 128, "v" * 256), ("ключ 😀", "é" * 256), ("a:b/c=@", " x ")]
    )
    def test_what_ec2_takes(self, stage: Stage, key: str, value: str) -> None:
        group = new_group(stage)
        stage.ask("CreateTags", Resources=[group], Tags=pairs(**{key: value}))
        assert tags_of(stage, group) == {key: value}

    def test_fifty_on_a_resource_and_not_one_more(self, stage: Stage) -> None:
        group, other = new_group(stage), new_group(stage)
        fifty = {f"k{n}": "1" for n in range(50)}
        stage.ask("CreateTags", Resources=[group], Tags=pairs(**fifty))
        refused = stage.refusal("CreateTags", Resources=[other, group], Tags=pairs(more=""))
        assert refused == "TagLimitExceeded"
        assert tags_of(stage, other) == {}
        stage.ask("CreateTags", Resources=[group], Tags=pairs(k7="2"))
        assert tags_of(stage, group) == fifty | {"k7": "2"}

    def test_fifty_also_when_many_ask_at_once(self, stage: Stage) -> None:
        group = new_group(stage)
        outcomes: list[str] = []

        def tag(number: int) -> None:
            four = pairs(**{f"{number}.{n}": "" for n in range(4)})
            try:
                stage.ask("CreateTags", Resources=[group], Tags=four)
                outcomes.append("")
            except Refused as refused:
                outcomes.append(refused.code)

        threads = [threading.Thread(target=tag, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [""] * 12 + ["TagLimitExceeded"] * 8
        assert len(tags_of(stage, group)) == 48


class TestDeletion:
    @pytest.mark.parametrize(
        ("wanted", "left"),
        [
            ([{"Key": "a"}], {"b": "", "c": "3"}),
            ([{"Key": "a", "Value": "1"}], {"b": "", "c": "3"}),
            ([{"Key": "a", "Value": "2"}], {"a": "1", "b": "", "c": "3"}),
            ([{"Key": "a", "Value": ""}], {"a": "1", "b": "", "c": "3"}),
            ([{"Key": "b", "Value": ""}], {"a": "1", "c": "3"}),
            ([{"Key": "a", "Value": "9"}, {"Key": "c"}, {"Key": "x"}], {"a": "1", "b": ""}),
            ([], {}),
        ],
    )
    def test_by_key_by_both_or_all(
        self, stage: Stage, wanted: list[Any], left: dict[str, str]
    ) -> None:
        group = new_group(stage)
        stage.ask("CreateTags", Resources=[group], Tags=pairs(a="1", b="", c="3"))
        for _ in range(2):
            stage.ask("DeleteTags", Resources=[group], Tags=wanted)
            assert tags_of(stage, group) == left

    @pytest.mark.parametrize("bad", [[{"Key": "aws:x"}], [{"Value": "x"}]])
    def test_a_bad_key_is_refused(self, stage: Stage, bad: list[Any]) -> None:
        group = new_group(stage)
        assert stage.refusal("DeleteTags", Resources=[group], Tags=bad)

    def test_tags_end_with_what_bears_them(self, stage: Stage) -> None:
        group = new_group(stage)
        stage.ask("AuthorizeSecurityGroupIngress", GroupId=group, IpPermissions=[web(80), web(81)])
        out = rule_ids(stage, group, is_egress=True)
        first, second = rule_ids(stage, group, is_egress=False)
        stage.ask("CreateTags", Resources=[group, first, second, *out], Tags=pairs(a="1"))
        stage.ask("RevokeSecurityGroupIngress", GroupId=group, SecurityGroupRuleIds=[first])
        assert kept(stage, group, first, second, *out) == {group, second, *out}
        stage.ask("DeleteSecurityGroup", GroupId=group)
        assert kept(stage, group, first, second, *out) == set()

    def test_tags_of_an_instance_stay_as_long_as_it_is_listed(self, front: Front) -> None:
        stage = Stage(front)
        [instance_id] = running(
            stage,
            TagSpecifications=[
                {"ResourceType": kind, "Tags": pairs(a="1")}
                for kind in ("instance", "volume", "network-interface")
            ],
        )
        assert {tag["ResourceType"] for tag in stage.ask("DescribeTags")["Tags"]} == {
            "instance",
            "network-interface",
            "volume",
        }
        front.make_terminated([instance_id])
        assert [tag["ResourceId"] for tag in stage.ask("DescribeTags")["Tags"]] == [instance_id]
        assert [row.resource_id for row in front.rows(schema.tags)] == [instance_id]
        front.clock.offset_s += front.config.store.terminated_s + 1
        assert stage.ask("DescribeTags")["Tags"] == []


def web(port: int) -> dict[str, Any]:
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port,
        "IpRanges": [{"CidrIp": "10.0.0.0/8"}],
    }


def kept(stage: Stage, *subjects: str) -> set[str]:
    """Return those of the ids under which tags are stored."""
    return {row.resource_id for row in stage.front.rows(schema.tags)} & set(subjects)


@pytest.fixture(scope="module")
def groups(stage: Stage) -> list[str]:
    """Return three groups with three tags each."""
    made = sorted(new_group(stage) for _ in range(3))
    for number, group in enumerate(made):
        tags = pairs(**{f"page-{letter}": f"v{number}" for letter in "abc"})
        stage.ask("CreateTags", Resources=[group], Tags=tags)
    return made


class TestDescribeTags:
    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({"key": "page-*"}, 9),
            ({"key": "page-?"}, 9),
            ({"key": ["page-a", "page-b"]}, 6),
            ({"key": "page-*", "value": "v0"}, 3),
            ({"key": "page-*", "value": ["v0", "v2"]}, 6),
            ({"tag:page-a": "v*"}, 3),
            ({"tag:page-a": "v1", "key": "page-a"}, 1),
            ({"tag:page-a": "v1", "tag:page-b": "v1"}, 0),
            ({"key": "page-*", "resource-type": "security-group"}, 9),
            ({"key": "page-*", "resource-type": "instance"}, 0),
            ({"key": "PAGE-*"}, 0),
            ({"key": "aws:ec2launchtemplate:id"}, 0),
        ],
    )
    def test_filters(
        self, stage: Stage, groups: list[str], filters: dict[str, Any], count: int
    ) -> None:
        assert len(stage.ask("DescribeTags", Filters=where(**filters))["Tags"]) == count

    @pytest.mark.parametrize(("size", "lengths"), [(5, [5, 4]), (9, [9]), (8, [8, 1]), (10, [9])])
    def test_a_token_exactly_when_more_is_to_come(
        self, stage: Stage, groups: list[str], size: int, lengths: list[int]
    ) -> None:
        found: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        pages = []
        while True:
            reply = stage.ask("DescribeTags", Filters=where(key="page-*"), MaxResults=size, **more)
            pages.append(len(reply["Tags"]))
            found += [(tag["ResourceId"], tag["Key"]) for tag in reply["Tags"]]
            if "NextToken" not in reply:
                break
            more = {"NextToken": reply["NextToken"]}
        assert pages == lengths
        assert found == [(group, f"page-{letter}") for group in groups for letter in "abc"]

    @pytest.mark.parametrize("size", [4, 0, -1])
    def test_a_page_that_is_too_small(self, stage: Stage, size: int) -> None:
        assert stage.refusal("DescribeTags", MaxResults=size) == "InvalidParameterValue"


class TestTagSpecifications:
    """Whatever makes something tags it."""

    @pytest.mark.parametrize(
        ("action", "kind"),
        [
            ("CreateKeyPair", "key-pair"),
            ("ImportKeyPair", "key-pair"),
            ("CreateSecurityGroup", "security-group"),
            ("AuthorizeSecurityGroupIngress", "security-group-rule"),
            ("AuthorizeSecurityGroupEgress", "security-group-rule"),
            ("RunInstances", "instance"),
            ("RunInstances", "volume"),
            ("RunInstances", "network-interface"),
        ],
    )
    def test_it_is_tagged(self, stage: Stage, action: str, kind: str) -> None:
        params: dict[str, dict[str, Any]] = {
            "CreateKeyPair": {"KeyName": new_name(), "KeyType": "ed25519"},
            "ImportKeyPair": {"KeyName": new_name(), "PublicKeyMaterial": PUBLIC_KEY},
            "CreateSecurityGroup": {"GroupName": new_name(), "Description": "d"},
            "RunInstances": {
                "ImageId": stage.front.image.image_id,
                "InstanceType": "m1.tiny",
                "MinCount": 1,
                "MaxCount": 1,
            },
        }
        name = new_name()
        tags = [{"ResourceType": kind, "Tags": pairs(made=name)}]
        wanted = params.get(action) or {"GroupId": new_group(stage), "IpPermissions": [web(1)]}
        stage.ask(action, TagSpecifications=tags, **wanted)
        [tag] = stage.ask("DescribeTags", Filters=where(**{"tag:made": name}))["Tags"]
        assert tag["ResourceType"] == kind

    def test_another_kind_is_refused(self, stage: Stage) -> None:
        tags = [{"ResourceType": "instance", "Tags": pairs(a="1")}]
        wanted = {"GroupName": new_name(), "Description": "d", "TagSpecifications": tags}
        assert stage.refusal("CreateSecurityGroup", **wanted) == "InvalidParameterValue"


@pytest.mark.parametrize("action", ["CreateTags", "DeleteTags"])
def test_return_true_where_ec2_documents_it(front: Front, action: str) -> None:
    group = new_group(Stage(front))
    status, root = ask(front, f"Action={action}&ResourceId.1={group}&Tag.1.Key=k&Tag.1.Value=v")
    assert (status, texts(root, "return")) == (200, ["true"])
