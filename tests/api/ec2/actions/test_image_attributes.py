"""Images that are public, shared, or nobody else's, and what follows for a launch."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.store import image_shares
from appliance.store.images import Image
from tests.api.front import Front, Keys, error_of

NOBODY = "999999999999"


@pytest.fixture
def other(front: Front) -> Keys:
    return front.make_project("other")


@pytest.fixture
def private(front: Front) -> Image:
    """An image of the project ``demo`` that nobody else may use."""
    return front.make_image(project_id=front.keys.project_id, is_public=False, name="private")


@pytest.fixture
def boss(front: Front) -> Any:
    """A client of an admin of the project ``demo``."""
    return front.client(front.make_key("demo", "boss", "admin"))


def permissions(boss: Any, image: Image) -> list[dict[str, str]]:
    reply = boss.describe_image_attribute(Attribute="launchPermission", ImageId=image.image_id)
    assert reply["ImageId"] == image.image_id
    return list(reply["LaunchPermissions"])


def allow(boss: Any, image: Image, *, remove: bool = False, **who: str) -> None:
    change = {"Remove" if remove else "Add": [who]}
    boss.modify_image_attribute(ImageId=image.image_id, LaunchPermission=change)


def launch(client: Any, image: Image) -> str:
    reply = client.run_instances(
        ImageId=image.image_id, InstanceType="m1.tiny", MinCount=1, MaxCount=1
    )
    return str(reply["Instances"][0]["InstanceId"])


def test_a_shared_image_can_be_seen_and_launched_until_it_is_not(
    front: Front, boss: Any, private: Image, other: Keys
) -> None:
    theirs = front.client(other)
    unknown = error_of(theirs.describe_images, ImageIds=["ami-0123456789abcdef0"])
    hidden = error_of(theirs.describe_images, ImageIds=[private.image_id])
    assert hidden["Code"] == "InvalidAMIID.NotFound"
    assert (
        hidden["Message"].replace(private.image_id, "ami-0123456789abcdef0") == (unknown["Message"])
    )
    allow(boss, private, UserId=other.project_id)
    assert permissions(boss, private) == [{"UserId": other.project_id}]
    [seen] = theirs.describe_images(ImageIds=[private.image_id])["Images"]
    assert (seen["OwnerId"], seen["Public"]) == (front.keys.project_id, False)
    instance_id = launch(theirs, private)
    allow(boss, private, remove=True, UserId=other.project_id)
    assert error_of(launch, client=theirs, image=private)["Code"] == "InvalidAMIID.NotFound"
    [reservation] = theirs.describe_instances(InstanceIds=[instance_id])["Reservations"]
    assert reservation["Instances"][0]["ImageId"] == private.image_id
    assert reservation["Instances"][0]["State"]["Name"] == "pending"


def test_a_public_image_is_everybodys_until_it_is_not(
    front: Front, boss: Any, private: Image, other: Keys
) -> None:
    allow(boss, private, Group="all")
    assert permissions(boss, private) == [{"Group": "all"}]
    launch(front.client(other), private)
    boss.reset_image_attribute(ImageId=private.image_id, Attribute="launchPermission")
    assert permissions(boss, private) == []
    refused = error_of(launch, client=front.client(other), image=private)
    assert refused["Code"] == "InvalidAMIID.NotFound"
    launch(front.client(), private)


def test_both_forms_of_the_request_and_repeats(front: Front, boss: Any, private: Image) -> None:
    for _ in range(2):
        boss.modify_image_attribute(
            ImageId=private.image_id,
            Attribute="launchPermission",
            OperationType="add",
            UserIds=[NOBODY, front.keys.project_id],
            UserGroups=["all"],
        )
    # An owner needs no permission of its own.
    assert permissions(boss, private) == [{"Group": "all"}, {"UserId": NOBODY}]
    boss.modify_image_attribute(
        ImageId=private.image_id, OperationType="remove", UserIds=[NOBODY], UserGroups=["all"]
    )
    assert permissions(boss, private) == []


def test_images_are_listed_by_owner_and_by_who_may_launch_them(
    front: Front, boss: Any, private: Image, other: Keys
) -> None:
    allow(boss, private, UserId=other.project_id)
    third = front.make_project("third")

    def ids(keys: Keys, **params: Any) -> set[str]:
        found = front.client(keys).describe_images(**params)["Images"]
        return {each["ImageId"] for each in found}

    def filtered(keys: Keys, name: str, *values: str) -> set[str]:
        return ids(keys, Filters=[{"Name": name, "Values": list(values)}])

    operators, mine = {front.image.image_id}, {private.image_id}
    assert ids(other) == operators | mine
    assert ids(third) == operators
    assert ids(other, ExecutableUsers=["self"]) == mine
    assert ids(other, ExecutableUsers=[other.project_id]) == mine
    assert ids(other, ExecutableUsers=["all"]) == operators
    assert ids(other, ExecutableUsers=["self", "all"]) == operators | mine
    assert ids(front.keys, ExecutableUsers=[other.project_id]) == mine
    # Whom others share with is not shown: not to a stranger, nor to one who may launch it, too.
    assert ids(third, ExecutableUsers=[other.project_id]) == set()
    allow(boss, private, UserId=third.project_id)
    assert ids(third) == operators | mine
    assert ids(other, ExecutableUsers=[third.project_id]) == set()
    assert ids(front.keys, ExecutableUsers=[third.project_id]) == mine
    assert ids(other, Owners=["self"]) == set()
    assert ids(other, Owners=[front.keys.project_id]) == mine
    assert ids(other, Owners=["amazon"]) == operators
    assert filtered(other, "owner-id", front.keys.project_id) == mine
    assert filtered(other, "is-public", "false") == mine
    assert filtered(other, "is-public", "true") == operators


def test_only_its_owner_may_look_and_change(
    front: Front, boss: Any, private: Image, other: Keys
) -> None:
    allow(boss, private, UserId=other.project_id)
    theirs = front.client(front.make_key("other", "their-boss", "admin"))
    before = front.snapshot()
    wanted = {"ImageId": private.image_id, "Attribute": "launchPermission"}
    change = {"LaunchPermission": {"Add": [{"Group": "all"}]}}
    for refused in (
        error_of(theirs.describe_image_attribute, **wanted),
        error_of(theirs.reset_image_attribute, **wanted),
        error_of(theirs.modify_image_attribute, ImageId=private.image_id, **change),
    ):
        assert refused == {
            "Code": "AuthFailure",
            "Message": f"Not authorized for image:{private.image_id}",
        }
    assert front.snapshot() == before


def test_sharing_is_for_admins(front: Front, private: Image) -> None:
    member = front.client()
    assert permissions(member, private) == []
    refused = error_of(allow, boss=member, image=private, Group="all")
    assert refused["Code"] == "UnauthorizedOperation"


BAD_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({}, "InvalidParameterCombination"),
    ({"LaunchPermission": {"Add": [{"UserId": "12345"}]}}, "InvalidAMIAttributeItemValue"),
    ({"LaunchPermission": {"Add": [{"UserId": "self"}]}}, "InvalidAMIAttributeItemValue"),
    ({"UserGroups": ["some"], "OperationType": "add"}, "InvalidAMIAttributeItemValue"),
    ({"UserIds": [NOBODY]}, "MissingParameter"),
    (
        {"LaunchPermission": {"Add": [{"OrganizationArn": "arn:aws:o"}]}},
        "UnsupportedOperation",
    ),
    ({"Description": {"Value": "x" * 256}}, "InvalidParameterValue"),
    (
        {"Description": {"Value": "x"}, "LaunchPermission": {"Add": [{"Group": "all"}]}},
        "InvalidParameterCombination",
    ),
    ({"Attribute": "kernel", "Value": "aki-0123456789abcdef0"}, "UnsupportedOperation"),
]


def test_bad_changes_are_refused(front: Front, boss: Any, private: Image) -> None:
    before = front.snapshot()
    for wanted, code in BAD_CHANGES:
        refused = error_of(boss.modify_image_attribute, ImageId=private.image_id, **wanted)
        assert refused["Code"] == code, wanted
    assert front.snapshot() == before


def test_an_image_is_shared_with_a_bounded_number(
    boss: Any, private: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_shares, "MOST_SHARES", 2)
    for number in range(2):
        allow(boss, private, UserId=f"{number:012}")
    refused = error_of(allow, boss=boss, image=private, UserId=NOBODY)
    assert refused["Code"] == "ResourceLimitExceeded"
    assert len(permissions(boss, private)) == 2


def test_the_other_attributes(boss: Any, front: Front) -> None:
    kernel = front.make_image(kind="kernel", format="kernel", name="vmlinuz")
    image = front.make_image(
        project_id=front.keys.project_id, kernel_id=kernel.image_id, description="old"
    )

    def attribute(name: str) -> dict[str, Any]:
        reply = boss.describe_image_attribute(Attribute=name, ImageId=image.image_id)
        return {key: value for key, value in reply.items() if key != "ResponseMetadata"}

    boss.modify_image_attribute(ImageId=image.image_id, Description={"Value": "new <&>"})
    assert attribute("description")["Description"] == {"Value": "new <&>"}
    boss.modify_image_attribute(ImageId=image.image_id, Attribute="description", Value="again")
    assert attribute("description")["Description"] == {"Value": "again"}
    assert attribute("kernel")["KernelId"] == {"Value": kernel.image_id}
    [device] = attribute("blockDeviceMapping")["BlockDeviceMappings"]
    assert device["Ebs"]["VolumeSize"] == 1
    refused = error_of(
        boss.describe_image_attribute, Attribute="tpmSupport", ImageId=image.image_id
    )
    assert refused["Code"] == "UnsupportedOperation"
