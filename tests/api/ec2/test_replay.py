"""A signed request that changes something takes effect once."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from appliance.api.ec2.call import REPEATABLE_S
from appliance.messages import Place, RebootWanted, Wanted
from appliance.store import history, schema
from tests.api.front import Front


class Signed:
    """One signed request that can be sent again and again."""

    def __init__(self, front: Front, form: str, path: str = "/") -> None:
        request = AWSRequest(
            method="POST",
            url=front.url + path,
            data=form.encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
        )
        keys = Credentials(front.keys.access_key_id, front.keys.secret)
        SigV4Auth(keys, "ec2", "local-1").add_auth(request)
        self._prepared = request.prepare()
        self._path = path
        self.headers = {**self._prepared.headers, "Host": front.url.removeprefix("http://")}

    def send(self, to: str = "", **headers: str) -> tuple[int, str]:
        """Send the same bytes and return status and body.

        :param to: URL of another API than the one that it was signed for.
        """
        prepared = self._prepared
        request = urllib.request.Request(
            to + self._path if to else prepared.url,
            data=prepared.body,
            headers={**self.headers, **headers},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def sent(front: Front, kind: type) -> list[Any]:
    return [message for _, message in front.bus.casts if isinstance(message, kind)]


def test_t28_a_stop_is_not_replayed_after_a_start(front: Front, ec2: Any) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    stop = Signed(front, f"Action=StopInstances&Version=2016-11-15&InstanceId.1={instance_id}")
    assert stop.send()[0] == 200
    front.make_stopped([instance_id])
    ec2.start_instances(InstanceIds=[instance_id])
    front.make_running([instance_id])
    front.clock.offset_s += REPEATABLE_S + 1
    before = front.snapshot()
    status, body = stop.send()
    assert (status, "RequestExpired" in body) == (400, True)
    assert front.snapshot() == before


def test_t28_other_headers_do_not_make_it_another_request(front: Front) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    front.client().delete_key_pair(KeyName="k")
    front.clock.offset_s += REPEATABLE_S + 1
    status, body = make.send(**{"User-Agent": "another", "X-Forwarded-For": "1.2.3.4"})
    assert (status, "RequestExpired" in body) == (400, True)
    assert front.rows(schema.key_pairs) == []


def test_t28_replay_after_a_restart_of_the_api_is_refused(front: Front) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    front.client().delete_key_pair(KeyName="k")
    front.clock.offset_s += REPEATABLE_S + 1
    front.restart_api()
    status, body = make.send(to=front.url)
    assert (status, "RequestExpired" in body) == (400, True)
    assert front.rows(schema.key_pairs) == []


def test_t28_replay_to_another_api_is_refused(front: Front) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    front.client().delete_key_pair(KeyName="k")
    front.clock.offset_s += REPEATABLE_S + 1
    with front.second_api() as url:
        status, body = make.send(to=url)
    assert (status, "RequestExpired" in body) == (400, True)
    assert front.rows(schema.key_pairs) == []


def test_t28_what_was_refused_is_not_replayed_when_it_would_be_carried_out(front: Front) -> None:
    [instance_id] = front.run(DisableApiTermination=True)
    end = Signed(front, f"Action=TerminateInstances&Version=2016-11-15&InstanceId.1={instance_id}")
    assert "OperationNotPermitted" in end.send()[1]
    front.client().modify_instance_attribute(
        InstanceId=instance_id, DisableApiTermination={"Value": False}
    )
    front.clock.offset_s += REPEATABLE_S + 1
    status, body = end.send()
    assert (status, "RequestExpired" in body) == (400, True)
    assert sent(front, Wanted) == []


def test_a_retry_within_its_second_of_what_was_refused_is_carried_out(front: Front) -> None:
    [instance_id] = front.run()
    reboot = Signed(front, f"Action=RebootInstances&Version=2016-11-15&InstanceId.1={instance_id}")
    assert "IncorrectInstanceState" in reboot.send()[1]
    front.make_running([instance_id])
    assert [reboot.send()[0], reboot.send()[0]] == [200, 200]
    assert len(sent(front, RebootWanted)) == 1


def test_a_dry_run_is_no_change_and_may_be_repeated(front: Front) -> None:
    dry = Signed(front, "Action=CreateKeyPair&KeyName=k&DryRun=true")
    assert "DryRunOperation" in dry.send()[1]
    front.clock.offset_s += REPEATABLE_S + 1
    assert "DryRunOperation" in dry.send()[1]


def test_t28_old_and_future_dates_are_refused(front: Front) -> None:
    requests = [Signed(front, f"Action={one}") for one in ("DescribeRegions", "CreateKeyPair")]
    before = front.snapshot()
    for minutes in (-16, 16, 10 * 365 * 24 * 60):
        front.clock.offset_s = -60 * minutes
        for request in requests:
            status, body = request.send()
            assert (status, "RequestExpired" in body) == (400, True), minutes
    assert front.snapshot() == before


def test_t28_clocks_may_differ_by_less_than_15_minutes(front: Front) -> None:
    request = Signed(front, "Action=DescribeRegions")
    for minutes in (-14, 14):
        front.clock.offset_s = 60 * minutes
        assert request.send()[0] == 200


def test_t28_a_missing_date_is_refused(front: Front) -> None:
    request = Signed(front, "Action=DescribeRegions")
    del request.headers["X-Amz-Date"]
    status, body = request.send()
    assert (status, "IncompleteSignature" in body) == (400, True)


def test_t28_two_dates_are_refused(front: Front) -> None:
    both = Signed(
        front, "Action=DescribeRegions&Timestamp=2026-01-01T00:00:00Z&Expires=2036-01-01T00:00:00Z"
    )
    status, body = both.send()
    assert (status, "InvalidRequest" in body) == (400, True)
    twice = Signed(front, "Action=DescribeRegions", path="/?X-Amz-Date=20360101T000000Z")
    status, body = twice.send()
    assert (status, "IncompleteSignature" in body) == (400, True)


def test_old_signed_requests_are_forgotten_when_none_is_good_any_more(front: Front) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    assert len(front.rows(schema.handled)) == 1

    def forget(after_s: float) -> None:
        front.clock.offset_s = after_s
        front.change(lambda tx: history.forget(tx, history_s=1e9, audit_s=1e9, terminated_s=3600.0))

    forget(3600.0)
    assert len(front.rows(schema.handled)) == 1
    forget(25 * 3600.0)
    assert front.rows(schema.handled) == []


def test_t28_a_launch_without_a_token_that_is_sent_again_is_the_same_launch(front: Front) -> None:
    launch = Signed(
        front,
        f"Action=RunInstances&Version=2016-11-15&ImageId={front.image.image_id}"
        "&InstanceType=m1.tiny&MinCount=1&MaxCount=1",
    )
    first, again = launch.send(), launch.send()
    assert first[0] == again[0] == 200
    assert first[1].split("<instanceId>")[1][:19] == again[1].split("<instanceId>")[1][:19]
    assert "<clientToken></clientToken>" in again[1]
    assert len(sent(front, Place)) == 1
    front.clock.offset_s += REPEATABLE_S + 1
    assert launch.send()[0] == 400
    assert len(front.rows(schema.instances)) == 1


def test_a_reboot_that_is_sent_again_is_one_reboot(front: Front) -> None:
    [instance_id] = front.run()
    front.make_running([instance_id])
    reboot = Signed(front, f"Action=RebootInstances&Version=2016-11-15&InstanceId.1={instance_id}")
    assert [reboot.send()[0], reboot.send()[0]] == [200, 200]
    assert len(sent(front, RebootWanted)) == 1


def test_a_retry_within_its_second_gets_the_natural_answer(front: Front) -> None:
    [instance_id] = front.run()
    stop = Signed(front, f"Action=TerminateInstances&Version=2016-11-15&InstanceId.1={instance_id}")
    assert [stop.send()[0], stop.send()[0]] == [200, 200]
    assert len(sent(front, Wanted)) == 1
    make = Signed(front, "Action=CreateSecurityGroup&GroupName=a&GroupDescription=b")
    assert make.send()[0] == 200
    status, body = make.send()
    assert (status, "InvalidGroup.Duplicate" in body) == (400, True)


def test_reading_again_is_allowed(front: Front) -> None:
    read = Signed(front, "Action=DescribeInstances&Version=2016-11-15")
    assert read.send()[0] == 200
    front.clock.offset_s += REPEATABLE_S + 1
    assert read.send()[0] == 200


@pytest.mark.parametrize("path", ["/", "/services/Cloud", "/services/Cloud/"])
def test_both_paths_are_served(front: Front, path: str) -> None:
    assert Signed(front, "Action=DescribeRegions", path).send()[0] == 200
