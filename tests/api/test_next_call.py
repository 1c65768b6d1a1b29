"""T29: whoever loses a right has lost it with the next call, on every API of the cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from appliance.store import Transaction, identity
from tests.api.front import Front, Keys, error_of

REFUSED = {
    "Code": "AuthFailure",
    "Message": "AWS was not able to validate the provided access credentials",
}
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Member:
    """A user with a key, in a project of its own, on two APIs over one store."""

    front: Front
    urls: tuple[str, str]
    project: str
    user: str
    keys: Keys

    def clients(self, keys: Keys | None = None) -> list[Any]:
        """Return a client of each API."""
        return [self.front.client(keys or self.keys, url=url) for url in self.urls]

    def change(self, work: Callable[[Transaction], object]) -> None:
        self.front.change(work)


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, str]]:
    front = Front(tmp_path_factory.mktemp("next-call"))
    with front.second_api() as url:
        yield front, url
    front.close()


@pytest.fixture
def member(apis: tuple[Front, str]) -> Member:
    front, second = apis
    project = f"project-{next(_numbers)}"
    return Member(
        front=front,
        urls=(front.url, second),
        project=project,
        user=f"{project}-user",
        keys=front.make_project(project),
    )


LOSSES: dict[str, Callable[[Transaction, Member], object]] = {
    "user disabled": lambda tx, m: identity.enable_user(tx, m.user, is_enabled=False),
    "user deleted": lambda tx, m: identity.delete_user(tx, m.user),
    "project disabled": lambda tx, m: identity.enable_project(tx, m.project, is_enabled=False),
    "project deleted": lambda tx, m: identity.delete_project(tx, m.project),
    "removed from the project": lambda tx, m: identity.leave_project(tx, m.user, m.project),
    "key disabled": lambda tx, m: identity.enable_access_key(
        tx, m.keys.access_key_id, is_enabled=False
    ),
    "key deleted": lambda tx, m: identity.delete_access_key(tx, m.keys.access_key_id),
    "key rotated": lambda tx, m: identity.rotate_access_key(tx, m.front.seal, m.keys.access_key_id),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_t29_the_next_call_is_refused(member: Member, loss: str) -> None:
    clients = member.clients()
    for ec2 in clients:
        assert ec2.describe_regions()["Regions"]
    member.change(lambda tx: LOSSES[loss](tx, member))
    for ec2 in clients:
        assert error_of(ec2.describe_regions) == REFUSED
        assert error_of(ec2.create_key_pair, KeyName="k") == REFUSED


def test_t29_a_lower_level_holds_from_the_next_call(member: Member) -> None:
    clients = member.clients()
    for number, ec2 in enumerate(clients):
        ec2.create_key_pair(KeyName=f"k{number}", KeyType="ed25519")
    member.change(lambda tx: identity.join_project(tx, member.user, member.project, "reader"))
    for ec2 in clients:
        assert len(ec2.describe_key_pairs()["KeyPairs"]) == 2
        assert error_of(ec2.create_key_pair, KeyName="k")["Code"] == "UnauthorizedOperation"


def test_t29_a_rotated_key_works_for_its_grace_and_no_longer(member: Member) -> None:
    front, old = member.front, member.keys
    new_id, secret = front.change(
        lambda tx: identity.rotate_access_key(tx, front.seal, old.access_key_id, grace_s=600.0)
    )
    new = Keys(access_key_id=new_id, secret=secret, project_id=old.project_id)
    for ec2 in (*member.clients(), *member.clients(new)):
        assert ec2.describe_regions()["Regions"]
    # Clients date their requests by the machine's clock: within 15 minutes of this one.
    front.clock.offset_s = 601
    try:
        for ec2 in member.clients():
            assert error_of(ec2.describe_regions) == REFUSED
        for ec2 in member.clients(new):
            assert ec2.describe_regions()["Regions"]
    finally:
        front.clock.offset_s = 0.0


def test_t29_what_was_taken_can_be_given_back(member: Member) -> None:
    clients = member.clients()
    member.change(lambda tx: identity.enable_user(tx, member.user, is_enabled=False))
    assert error_of(clients[0].describe_regions) == REFUSED
    member.change(lambda tx: identity.enable_user(tx, member.user, is_enabled=True))
    for ec2 in clients:
        assert ec2.describe_regions()["Regions"]
