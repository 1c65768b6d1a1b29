"""Every change, and every attempt at one, has its line: who, what, on what, with what result."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest

from appliance.api.ec2 import refused_calls
from appliance.api.ec2.refused_calls import AUTHENTICATE, RefusedCalls
from appliance.errors import Unavailable
from appliance.store import Transaction, audit, schema
from appliance.store.audit import Entry
from tests.api.front import Front, Keys, code_of, error_of

CANARY = "canary-7f3a9c"
NEVER_WAS = "i-0123456789abcdef0"


def entries(front: Front) -> list[Entry]:
    return front.store.read(lambda tx: audit.find(tx, limit=1000))


def last(front: Front) -> Entry:
    return entries(front)[-1]


def test_a_change_is_written_down_with_all_that_is_known(front: Front, ec2: Any) -> None:
    reply = ec2.create_security_group(GroupName="web", Description="d")
    [entry] = entries(front)
    assert (entry.action, entry.result, entry.actor) == ("CreateSecurityGroup", "ok", "demo-user")
    assert entry.access_key_id == front.keys.access_key_id
    assert entry.user_id.startswith("AIDA")
    assert entry.project_id == front.keys.project_id
    assert entry.source == "127.0.0.1"
    assert entry.request_id == reply["ResponseMetadata"]["RequestId"]
    assert reply["GroupId"] in entry.subject
    assert abs(entry.at - front.clock.now()) < 60


def test_it_is_written_in_the_transaction_of_the_change(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tx: Transaction, deed: audit.Deed) -> None:
        raise Unavailable("The log is full.")

    before = front.snapshot()
    monkeypatch.setattr(audit, "record", fail)
    assert code_of(front.client().create_key_pair, KeyName="k") == "Unavailable"
    assert front.snapshot() == before


def test_reading_is_not_written_down(front: Front, ec2: Any) -> None:
    ec2.describe_instances()
    assert code_of(ec2.describe_instances, InstanceIds=[NEVER_WAS]).endswith("NotFound")
    assert entries(front) == []


@pytest.mark.parametrize(
    ("call", "params", "result", "subject"),
    [
        ("terminate_instances", {"InstanceIds": [NEVER_WAS]}, "InvalidInstanceID.NotFound", ""),
        ("stop_instances", {"InstanceIds": ["i-x"]}, "InvalidInstanceID.Malformed", "i-x"),
        ("create_key_pair", {"KeyName": "k", "DryRun": True}, "DryRunOperation", "k"),
        ("delete_security_group", {}, "MissingParameter", "-"),
        (
            "run_instances",
            {"ImageId": "ami-0123456789abcdef0", "MinCount": 1, "MaxCount": 1},
            "InvalidAMIID.NotFound",
            "ami-0123456789abcdef0",
        ),
    ],
)
def test_what_was_refused_is_written_down(
    front: Front, ec2: Any, call: str, params: dict[str, Any], result: str, subject: str
) -> None:
    assert code_of(getattr(ec2, call), **params) == result
    [entry] = entries(front)
    assert (entry.result, entry.actor) == (result, "demo-user")
    assert entry.subject == {"": NEVER_WAS, "-": ""}.get(subject, subject)


def test_a_request_that_cannot_be_read_is_written_down(front: Front, ec2: Any) -> None:
    def garble(params: dict[str, Any], **rest: Any) -> None:
        params["body"]["MinCount"] = "many"

    ec2.meta.events.register("before-call.ec2.RunInstances", garble)
    wanted = {"ImageId": front.image.image_id, "MinCount": 1, "MaxCount": 1}
    code = code_of(ec2.run_instances, **wanted)
    entry = last(front)
    assert (entry.action, entry.result) == ("RunInstances", code)


def test_who_may_not_is_written_down(front: Front) -> None:
    reader = front.client(front.make_key("demo", "rita", "reader"))
    assert code_of(reader.terminate_instances, InstanceIds=[NEVER_WAS]) == "UnauthorizedOperation"
    [entry] = entries(front)
    assert (entry.actor, entry.result, entry.subject) == (
        "rita",
        "UnauthorizedOperation",
        NEVER_WAS,
    )


def test_no_secret_is_in_the_log(front: Front, ec2: Any) -> None:
    made = ec2.create_key_pair(KeyName="k", KeyType="ed25519")
    run = {
        "ImageId": front.image.image_id,
        "InstanceType": "m1.tiny",
        "MinCount": 1,
        "MaxCount": 1,
        "UserData": CANARY,
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "password", "Value": CANARY}]}
        ],
    }
    ec2.run_instances(**run)
    assert code_of(ec2.run_instances, **run, KeyName="nobodys").endswith("NotFound")
    assert code_of(ec2.run_instances, **run, ClientToken=CANARY * 5) != ""
    assert code_of(ec2.import_key_pair, KeyName="x", PublicKeyMaterial=CANARY.encode()) != ""
    # The secret in the place of the id, as it happens to people.
    swapped = Keys(access_key_id=front.keys.secret, secret=CANARY, project_id="")
    assert code_of(front.client(swapped).describe_regions) != ""
    told = repr(entries(front))
    for secret in (CANARY, front.keys.secret, made["KeyMaterial"].splitlines()[1]):
        assert secret not in told


def test_strangers_are_written_down_within_bounds(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Keys(access_key_id=front.keys.access_key_id, secret=CANARY, project_id="")
    unknown = Keys(access_key_id="AKIAAAAAAAAAAAAAAAAA", secret=CANARY, project_id="")
    for keys in (wrong, unknown):
        client = front.client(keys)
        for _ in range(3):
            assert code_of(client.describe_regions) == "AuthFailure"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(front.url, data=b"Action=DescribeRegions")
    caught.value.close()
    found = entries(front)
    assert [(one.action, one.actor, one.access_key_id, one.result) for one in found] == [
        (AUTHENTICATE, "", wrong.access_key_id, "AuthFailure"),
        (AUTHENTICATE, "", unknown.access_key_id, "AuthFailure"),
        (AUTHENTICATE, "", "", "MissingAuthenticationToken"),
    ]
    assert [one.subject for one in found] == [
        "",
        "2 more were left out before",
        "2 more were left out before",
    ]


def test_the_number_of_strangers_written_down_is_bounded(front: Front) -> None:
    notes = RefusedCalls(front.parts)
    for number in range(300):
        notes.stranger(
            claimed=f"AKIA{number}", code="AuthFailure", request_id="r", source="s", now=1e9
        )
    assert len(entries(front)) == refused_calls.STRANGERS
    notes.stranger(claimed="AKIA", code="AuthFailure", request_id="r", source="s", now=1e9 + 20)
    assert last(front).subject == "200 more were left out before"


def test_a_log_that_cannot_be_written_changes_no_refusal(
    front: Front, ec2: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(tx: Transaction, deed: audit.Deed) -> None:
        raise Unavailable("The log is full.")

    monkeypatch.setattr(audit, "record", fail)
    code = code_of(ec2.terminate_instances, InstanceIds=[NEVER_WAS])
    assert code == "InvalidInstanceID.NotFound"
    assert "could not write to the audit log" in caplog.text


def test_many_wrong_signatures_lock_out_the_key_at_that_address_only(front: Front) -> None:
    wrong = front.client(Keys(access_key_id=front.keys.access_key_id, secret=CANARY, project_id=""))
    right, other = front.client(), front.client(front.make_project("other"))
    refused = [repr(error_of(wrong.describe_regions)) for _ in range(25)]
    refused.append(repr(error_of(right.describe_regions)))
    assert len(set(refused)) == 1
    assert other.describe_regions()["Regions"]
    front.clock.offset_s += 10
    assert right.describe_regions()["Regions"]
    assert front.rows(schema.handled) == []
