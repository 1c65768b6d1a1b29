"""Every action has its access level, and nothing else is allowed."""

from __future__ import annotations

import pytest

from appliance.api import policy
from appliance.api.ec2.action_table import ACTIONS
from appliance.model import Identity
from tests.api.front import Front, error_of

READS = ("Describe", "Get")
OPENS_TO_OTHERS = {"ModifyImageAttribute", "ResetImageAttribute"}
"""What gives other projects a share is for admins."""


def who(access_level: str) -> Identity:
    return Identity(user_id="u", user_name="u", project_id="p", access_level=access_level)


def test_every_action_is_named_and_no_other() -> None:
    assert set(policy.NEEDED) == set(ACTIONS) | {"GetCallerIdentity"}


@pytest.mark.parametrize("action", sorted(policy.NEEDED))
def test_readers_read_members_change_and_admins_share(action: str) -> None:
    reads = action.startswith(READS)
    assert policy.is_allowed(who("reader"), action) is reads
    assert policy.is_allowed(who("member"), action) is (action not in OPENS_TO_OTHERS)
    assert policy.is_allowed(who("admin"), action)
    assert policy.is_change(action) is not reads


@pytest.mark.parametrize("access_level", ["", "owner", "Admin", "none"])
def test_an_unknown_access_level_may_do_nothing(access_level: str) -> None:
    assert not any(policy.is_allowed(who(access_level), action) for action in policy.NEEDED)


@pytest.mark.parametrize("action", ["", "DeleteEverything", "describeinstances", "RunInstances "])
def test_an_unknown_action_is_nobodys(action: str) -> None:
    assert not any(policy.is_allowed(who(level), action) for level in ("reader", "member", "admin"))


def test_a_reader_is_refused_before_anything_is_looked_up(front: Front) -> None:
    reader = front.client(front.make_key("demo", "rita", "reader"))
    before = front.snapshot()
    refused = error_of(reader.terminate_instances, InstanceIds=["i-0123456789abcdef0"])
    assert refused["Code"] == "UnauthorizedOperation"
    assert error_of(reader.create_key_pair, KeyName="k")["Code"] == "UnauthorizedOperation"
    assert error_of(reader.create_key_pair, KeyName="k", DryRun=True)["Code"] == (
        "UnauthorizedOperation"
    )
    assert front.snapshot() == before
    assert reader.describe_instances()["Reservations"] == []
