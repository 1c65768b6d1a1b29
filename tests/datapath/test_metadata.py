"""The metadata tree and the answers: pure, with EC2's listing rules and both token versions."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.datapath.metadata import LONGEST_TTL_S, Request, Response, Tokens, answer
from appliance.datapath.metadata_tree import VERSIONS, Subject
from appliance.model import (
    BlockDeviceSpec,
    ImageRef,
    InstanceMetadata,
    NetworkSpec,
    PortSpec,
)

NOW = 1_700_000_000.0
KEY = b"k" * 32
TTL = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "x-aws-ec2-metadata-token"


def make_subject(number: int = 1, network_id: str = "subnet-1", **about: Any) -> Subject:
    network = NetworkSpec(
        network_id=network_id,
        vpc_id="vpc-1",
        type="flatdhcp",
        cidr="10.64.0.0/24",
        gateway="10.64.0.1",
        bridge="anbr0",
    )
    port = PortSpec(
        port_id=f"eni-{number}",
        instance_id=f"i-{number}",
        device_index=0,
        mac=f"06:a0:00:00:00:{number:02x}",
        network_id=network_id,
        addresses=(f"10.64.0.{number + 4}", f"fd00::{number + 4}"),
        hostname=f"ip-10-64-0-{number + 4}",
        group_ids=("sg-1", "sg-2"),
    )
    fields: dict[str, Any] = {
        "instance_id": f"i-{number}",
        "project_id": "123456789012",
        "reservation_id": "r-1",
        "launch_index": 3,
        "image_id": "ami-1",
        "instance_type": "m1.small",
        "zone": "local-1a",
        "region": "local-1",
        "hostname": f"ip-10-64-0-{number + 4}",
        "security_groups": ("default", "web"),
        **about,
    }
    image = ImageRef(image_id="ami-1", sha256="0" * 64, format="qcow2", size_bytes=1)
    return Subject(
        metadata=InstanceMetadata(**fields),
        ports=(port,),
        networks=(network,),
        block_devices=(
            BlockDeviceSpec(device_name="/dev/sda1", disk_gib=1, image=image),
            BlockDeviceSpec(device_name="/dev/sdb", disk_gib=1, image=image),
        ),
    )


RICH = make_subject(
    kernel_id="aki-1",
    ramdisk_id="ari-1",
    key_name="mine",
    public_key="ssh-ed25519 AAAA me@here",
    user_data_base64=base64.b64encode(b"#!/bin/sh\n\xff\0").decode(),
    tags={"Name": "web 1", "a/b": "hidden", "..": "hidden"},
)


def ask(
    target: str,
    subject: Subject | None = RICH,
    method: str = "GET",
    source: str = "10.64.0.5",
    network_id: str = "subnet-1",
    now: float = NOW,
    **headers: Any,
) -> Response:
    request = Request(
        network_id=network_id,
        source=source,
        method=method,
        target=target,
        headers={name.replace("_", "-").lower(): value for name, value in headers.items()},
    )
    return answer(request, subject, Tokens(KEY), now)


def text(target: str, subject: Subject = RICH) -> str:
    response = ask(target, subject)
    assert response.status == 200, target
    return response.body.decode()


def get_token(subject: Subject = RICH, ttl: str = "60") -> str:
    source = subject.ports[0].addresses[0]
    network_id = subject.ports[0].network_id
    response = ask(
        "/latest/api/token",
        subject,
        "PUT",
        source,
        network_id,
        x_aws_ec2_metadata_token_ttl_seconds=ttl,
    )
    assert response.status == 200
    return response.body.decode()


def test_root_lists_versions() -> None:
    assert text("/").split("\n") == list(VERSIONS)
    assert "2009-04-04" in VERSIONS
    assert "latest" in VERSIONS


def test_version_lists_without_slashes() -> None:
    assert text("/latest/").split("\n") == ["dynamic", "meta-data", "user-data"]
    assert text("/latest") == text("/latest/")
    assert text("/2009-04-04/meta-data/") == text("/latest/meta-data/")


def test_meta_data_listing() -> None:
    assert text("/latest/meta-data/").split("\n") == [
        "ami-id",
        "ami-launch-index",
        "ami-manifest-path",
        "block-device-mapping/",
        "hostname",
        "instance-action",
        "instance-id",
        "instance-life-cycle",
        "instance-type",
        "kernel-id",
        "local-hostname",
        "local-ipv4",
        "mac",
        "network/",
        "placement/",
        "public-keys/",
        "ramdisk-id",
        "reservation-id",
        "security-groups",
        "services/",
        "tags/",
    ]


def test_what_is_not_there_is_not_listed() -> None:
    plain = make_subject()
    names = text("/latest/meta-data/", plain).split("\n")
    for name in ("kernel-id", "ramdisk-id", "public-keys/", "tags/", "public-ipv4"):
        assert name not in names
    assert ask("/latest/user-data", plain).status == 404
    assert ask("/latest/meta-data/public-keys/", plain).status == 404
    assert text("/latest/", plain).split("\n") == ["dynamic", "meta-data"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ami-id", "ami-1"),
        ("ami-launch-index", "3"),
        ("block-device-mapping/", "ami\nebs1\nroot"),
        ("block-device-mapping/root", "/dev/sda1"),
        ("block-device-mapping/ebs1", "/dev/sdb"),
        ("hostname", "ip-10-64-0-5.anynode.internal"),
        ("instance-id", "i-1"),
        ("kernel-id", "aki-1"),
        ("local-ipv4", "10.64.0.5"),
        ("mac", "06:a0:00:00:00:01"),
        ("network/", "interfaces/"),
        ("network/interfaces/macs/", "06:a0:00:00:00:01/"),
        ("network/interfaces/macs/06:a0:00:00:00:01/device-number", "0"),
        ("network/interfaces/macs/06:a0:00:00:00:01/ipv6s", "fd00::5"),
        ("network/interfaces/macs/06:a0:00:00:00:01/local-ipv4s", "10.64.0.5"),
        ("network/interfaces/macs/06:a0:00:00:00:01/owner-id", "123456789012"),
        ("network/interfaces/macs/06:a0:00:00:00:01/security-group-ids", "sg-1\nsg-2"),
        ("network/interfaces/macs/06:a0:00:00:00:01/subnet-id", "subnet-1"),
        ("network/interfaces/macs/06:a0:00:00:00:01/subnet-ipv4-cidr-block", "10.64.0.0/24"),
        ("network/interfaces/macs/06:a0:00:00:00:01/vpc-id", "vpc-1"),
        ("placement/", "availability-zone\nregion"),
        ("placement/availability-zone", "local-1a"),
        ("public-keys/", "0=mine"),
        ("public-keys", "0=mine"),
        ("public-keys/0/", "openssh-key"),
        ("public-keys/0", "openssh-key"),
        ("public-keys/0/openssh-key", "ssh-ed25519 AAAA me@here\n"),
        ("security-groups", "default\nweb"),
        ("services/partition", "aws"),
        ("tags/instance/", "Name"),
        ("tags/instance/Name", "web 1"),
    ],
)
def test_values(path: str, value: str) -> None:
    assert text(f"/latest/meta-data/{path}") == value


def test_content_types() -> None:
    user_data = ask("/latest/user-data")
    assert user_data.body == b"#!/bin/sh\n\xff\0"
    assert user_data.content_type == "application/octet-stream"
    assert ask("/latest/meta-data/ami-id").content_type == "text/plain"


def test_identity_document() -> None:
    document = json.loads(text("/latest/dynamic/instance-identity/document"))
    assert document["accountId"] == "123456789012"
    assert document["instanceId"] == "i-1"
    assert document["privateIp"] == "10.64.0.5"
    assert document["region"] == "local-1"


@pytest.mark.parametrize(
    "target",
    [
        "/nope",
        "/2001-01-01/meta-data/",
        "/latest/meta-data/nope",
        "/latest/meta-data/ami-id/",
        "/latest/meta-data/ami-id/x",
        "/latest/meta-data/public-keys/1/openssh-key",
        "/latest/meta-data/../user-data",
        "/latest/meta-data/tags/instance/a/b",
        "/latest/meta-data/%00",
    ],
)
def test_unknown_paths(target: str) -> None:
    response = ask(target)
    assert response.status == 404
    assert b"<title>404 - Not Found</title>" in response.body


def test_spellings_of_a_target() -> None:
    for target in (
        "//latest//meta-data/ami-id",
        "/latest/meta-data/ami-id?x=1",
        "http://169.254.169.254/latest/meta-data/ami-id",
        "/latest/meta-data/ami%2Did",
    ):
        assert text(target) == "ami-1"
    assert ask("*").status == 400
    assert ask("http://[").status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "X"])
def test_only_reading(method: str) -> None:
    assert ask("/latest/meta-data/ami-id", method=method).status == 405


def test_nobody_and_strangers_get_nothing() -> None:
    assert ask("/latest/meta-data/ami-id", None).status == 404
    assert ask("/latest/meta-data/ami-id", source="10.64.0.6").status == 404
    assert ask("/latest/meta-data/ami-id", network_id="subnet-2").status == 404


def test_what_a_request_says_of_its_sender_is_ignored() -> None:
    response = ask(
        "/latest/meta-data/instance-id",
        x_forwarded_for="10.64.0.6",
        x_instance_id="i-2",
        x_instance_id_signature="0" * 64,
        x_tenant_id="other",
    )
    assert response.body == b"i-1"


def test_token_opens_the_tree() -> None:
    strict = make_subject(requires_token=True)
    assert ask("/latest/meta-data/ami-id", strict).status == 401
    assert ask("/", strict).status == 401
    response = ask(
        "/latest/meta-data/ami-id", strict, x_aws_ec2_metadata_token=get_token(strict, "60")
    )
    assert response.status == 200
    assert dict(response.headers) == {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


def test_token_answer_bears_hop_limit_and_ttl() -> None:
    for limit, sent in ((1, 1), (2, 2), (64, 64), (0, 1), (900, 64)):
        response = ask(
            "/latest/api/token",
            make_subject(token_hop_limit=limit),
            "PUT",
            x_aws_ec2_metadata_token_ttl_seconds="21600",
        )
        assert response.hop_limit == sent
        assert dict(response.headers) == {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
    assert ask("/latest/meta-data/ami-id").hop_limit == 0


@pytest.mark.parametrize("ttl", ["", "0", "-1", "21601", "1.5", "1e3", "60, 60", "９", "9" * 400])
def test_bad_ttl(ttl: str) -> None:
    response = ask("/latest/api/token", method="PUT", x_aws_ec2_metadata_token_ttl_seconds=ttl)
    assert response.status == 400


def test_token_is_not_given_through_a_proxy() -> None:
    for value in ("10.1.2.2", ""):
        response = ask(
            "/latest/api/token",
            method="PUT",
            x_aws_ec2_metadata_token_ttl_seconds="60",
            x_forwarded_for=value,
        )
        assert response.status == 403


def test_token_needs_put() -> None:
    assert ask("/latest/api/token").status == 405
    assert ask("/latest/api/token", None, "PUT").status == 404


def test_token_belongs_to_one_instance_in_one_network() -> None:
    one, two = make_subject(1), make_subject(2)
    far = make_subject(1, network_id="subnet-2")
    token = get_token(one)
    target = "/latest/meta-data/ami-id"
    assert ask(target, one, x_aws_ec2_metadata_token=token).status == 200
    assert ask(target, two, source="10.64.0.6", x_aws_ec2_metadata_token=token).status == 401
    assert ask(target, far, network_id="subnet-2", x_aws_ec2_metadata_token=token).status == 401


def test_token_ends() -> None:
    token = get_token(RICH, "60")
    target = "/latest/meta-data/ami-id"
    assert ask(target, now=NOW + 59, x_aws_ec2_metadata_token=token).status == 200
    assert ask(target, now=NOW + 60, x_aws_ec2_metadata_token=token).status == 401


def test_token_of_another_key_is_refused() -> None:
    token = Tokens(b"x" * 32).issue("subnet-1", "i-1", now=NOW, ttl_s=60)
    assert ask("/latest/meta-data/ami-id", x_aws_ec2_metadata_token=token).status == 401
    with pytest.raises(ValueError, match="shorter"):
        Tokens(b"short")


def test_tokens_differ() -> None:
    assert len({get_token() for _ in range(100)}) == 100


@given(st.data())
def test_changed_token_is_refused(data: st.DataObject) -> None:
    token = Tokens(KEY).issue("subnet-1", "i-1", now=NOW, ttl_s=LONGEST_TTL_S)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda one: one != token[place]))
    changed = token[:place] + other + token[place + 1 :]
    assert Tokens(KEY).remaining_s(changed, "subnet-1", "i-1", now=NOW) == 0


def test_a_token_is_written_in_one_way() -> None:
    """What decodes to the same is another token: alphabets of base64 differ in two characters."""
    tokens = Tokens(KEY)
    for number in range(40):
        token = tokens.issue("subnet-1", f"i-{number}", now=NOW, ttl_s=60)
        for other in (token.replace("-", "+"), token.replace("_", "/"), f"{token}="):
            is_same = other == token
            left_s = tokens.remaining_s(other, "subnet-1", f"i-{number}", now=NOW)
            assert left_s == (60 if is_same else 0)


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_target_or_token_breaks_it(target: str, token: str) -> None:
    response = ask(target, x_aws_ec2_metadata_token=token)
    assert response.status in (400, 401, 405)
    assert ask(f"/{target}").status in (200, 404, 405)


def test_a_hostname_that_is_full_stays() -> None:
    assert text("/latest/meta-data/hostname", make_subject(hostname="a.example")) == "a.example"


def test_subject_travels_as_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(RICH), type=Subject) == RICH
