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
from appliance.store import schema
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

    def send(self, **headers: str) -> tuple[int, str]:
        """Send the same bytes and return status and body."""
        prepared = self._prepared
        request = urllib.request.Request(
            prepared.url,
            data=prepared.body,
            headers={**dict(prepared.headers), **headers},
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


def test_a_stop_is_not_replayed_after_a_start(front: Front, ec2: Any) -> None:
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


def test_other_headers_do_not_make_it_another_request(front: Front) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    front.client().delete_key_pair(KeyName="k")
    front.clock.offset_s += REPEATABLE_S + 1
    status, body = make.send(**{"User-Agent": "another", "X-Forwarded-For": "1.2.3.4"})
    assert (status, "RequestExpired" in body) == (400, True)
    assert front.rows(schema.key_pairs) == []


def test_it_is_remembered_by_other_nodes_and_after_a_restart(front: Front, tmp_path: Any) -> None:
    make = Signed(front, "Action=CreateKeyPair&Version=2016-11-15&KeyName=k&KeyType=ed25519")
    assert make.send()[0] == 200
    rows = [row for row in front.rows(schema.handled) if row.consumer == "signed-request"]
    assert len(rows) == 1
    assert len(rows[0].message_id) == 64


def test_a_launch_without_a_token_that_is_sent_again_is_the_same_launch(front: Front) -> None:
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
