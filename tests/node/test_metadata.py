"""What instances read at 169.254.169.254: about themselves, and about nobody else."""

import pytest

from tests.node.cloud import Instance
from tests.node.place import Place

pytestmark = pytest.mark.node

ADDRESS = "169.254.169.254"
TTL = "X-aws-ec2-metadata-token-ttl-seconds: 60"
IDENTITY = "/latest/meta-data/instance-id"


def ask(instance: Instance, path: str, *headers: str, method: str = "GET") -> tuple[int, str]:
    """Send a request from inside an instance and return status and body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {ADDRESS}", "Connection: close", *headers, ""]
    words = " ".join(f"'{line}'" for line in lines)
    said = instance.shell(rf"printf '%s\r\n' {words} | nc {ADDRESS} 80")
    head, _, body = said.partition("\n\n")
    return int(head.split()[1]), body


def token_of(instance: Instance) -> str:
    status, token = ask(instance, "/latest/api/token", TTL, method="PUT")
    assert status == 200
    return token


def test_an_instance_reads_about_itself(one: Instance) -> None:
    assert ask(one, IDENTITY) == (200, one.instance_id)
    assert ask(one, "/latest/meta-data/local-ipv4") == (200, one.address)
    found = one.describe()
    assert ask(one, "/latest/meta-data/reservation-id")[0] == 200
    assert ask(one, "/latest/meta-data/ami-id") == (200, found["ImageId"])
    assert ask(one, "/latest/meta-data/public-keys/") == (200, "0=tests")
    assert one.shell(f"wget -q -O - http://{ADDRESS}/latest/user-data").startswith("#!/bin/sh\n")


def test_a_token_opens_it_and_a_bad_one_does_not(one: Instance) -> None:
    token = token_of(one)
    assert ask(one, IDENTITY, f"X-aws-ec2-metadata-token: {token}") == (200, one.instance_id)
    assert ask(one, IDENTITY, f"X-aws-ec2-metadata-token: {token[:-4]}AAAA")[0] == 401


def test_where_tokens_are_required_nothing_goes_without(other: Instance) -> None:
    assert ask(other, IDENTITY)[0] == 401
    header = f"X-aws-ec2-metadata-token: {token_of(other)}"
    assert ask(other, IDENTITY, header) == (200, other.instance_id)


def test_the_source_decides_and_not_what_is_said(one: Instance, other: Instance) -> None:
    claims = (
        f"X-Forwarded-For: {other.address}",
        f"X-Real-IP: {other.address}",
        f"X-Instance-ID: {other.instance_id}",
        f"Forwarded: for={other.address}",
    )
    assert ask(one, IDENTITY, *claims) == (200, one.instance_id)
    assert ask(one, "/latest/api/token", TTL, claims[0], method="PUT")[0] == 403


def test_a_token_is_of_no_use_to_another(one: Instance, other: Instance) -> None:
    header = f"X-aws-ec2-metadata-token: {token_of(other)}"
    assert ask(one, IDENTITY, header)[0] == 401


def test_another_source_address_gets_nothing(one: Instance, other: Instance) -> None:
    device = "eth0"
    one.shell(f"ip address add {other.address}/32 dev {device}")
    try:
        request = rf"printf 'GET {IDENTITY} HTTP/1.0\r\n\r\n'"
        command = f"{request} | timeout 3 nc -s {other.address} {ADDRESS} 80"
        assert one.shell(command, is_checked=False) == ""
    finally:
        one.shell(f"ip address del {other.address}/32 dev {device}")
    assert ask(one, IDENTITY) == (200, one.instance_id)


def test_the_node_itself_is_nobody(one: Instance, place: Place) -> None:
    assert one.instance_id not in place.inside.fetch(ADDRESS, 80, IDENTITY)
