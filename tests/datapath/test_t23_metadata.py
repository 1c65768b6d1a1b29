"""T23: whatever an instance says about itself, it reads its own metadata and nobody else's.

Real packets between namespaces. That an instance cannot send from another's address is the
firewall's duty, which its contract holds it to.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from functools import partial
from urllib.parse import quote

import msgspec
import pytest

from appliance.datapath.metadata_server import MetadataServer
from appliance.datapath.metadata_tree import Subject
from appliance.testing.namespaces import Namespace, set_up
from tests.datapath.test_metadata_server import KEY, exchange, get, subject

pytestmark = [pytest.mark.node, pytest.mark.faults("hostile: metadata", quick=True)]

A, B, NOBODY = "10.64.0.5", "10.64.0.6", "10.64.0.7"
HERE, THERE = "subnet-1", "subnet-2"
PATH = "/latest/meta-data/instance-id"
TOKEN = "X-aws-ec2-metadata-token"
FORGED = hmac.new(b"unset", b"i-a", hashlib.sha256).hexdigest()


def known(network_id: str, instance_id: str, address: str) -> Subject:
    found = subject(network_id, instance_id, address)
    data = base64.b64encode(f"secret of {instance_id}".encode()).decode()
    return msgspec.structs.replace(
        found, metadata=msgspec.structs.replace(found.metadata, user_data_base64=data)
    )


JOURNAL = {
    (HERE, A): known(HERE, "i-a", A),
    (HERE, B): known(HERE, "i-b", B),
    (THERE, A): known(THERE, "i-c", A),
}

CLAIMS: dict[str, tuple[str, ...]] = {
    "forwarded for": (f"X-Forwarded-For: {A}",),
    "forwarded for several": (f"X-Forwarded-For: {B}, {A}", f"X-Forwarded-For: {A}"),
    "forwarded": (f"Forwarded: for={A};by=10.64.0.1",),
    "real address": (f"X-Real-IP: {A}", f"True-Client-IP: {A}", f"X-Client-IP: {A}"),
    "instance": ("X-Instance-ID: i-a", "X-Tenant-ID: 1"),
    "forged signature": ("X-Instance-ID: i-a", f"X-Instance-ID-Signature: {FORGED}"),
    "network": (f"X-Network-ID: {THERE}", f"X-Neutron-Network-ID: {THERE}"),
    "header of WSGI": (f"REMOTE_ADDR: {A}", f"REMOTE-ADDR: {A}", f"HTTP_X_FORWARDED_FOR: {A}"),
    "other host": (f"Host: {A}",),
    "upgrade": ("Connection: Upgrade, X-Forwarded-For", "Upgrade: h2c"),
}
TARGETS = (
    *(f"http://{A}{PATH}", f"{PATH}?source={A}&instance-id=i-a", f"/i-a{PATH}", f"{PATH}/../i-a"),
    *(quote("/latest/../i-a/user-data"), "//10.64.0.5/latest/user-data", "/latest/user-data;i-a"),
)


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Namespace, Namespace, MetadataServer]]:
    """Two places in networks of their own, and the server behind both."""
    server = MetadataServer(lambda network, source: JOURNAL.get((network, source)), KEY)
    with Namespace() as node, Namespace() as here, Namespace() as there:
        try:
            for number, place in enumerate((here, there), 1):
                link = f"br{number}"
                node.connect(place, here=link, there="eth0")
                node.call(set_up, link, "10.64.0.1/24", "169.254.169.254/32")
                node.call(server.listen, f"subnet-{number}", link)
                addresses = [f"{each}/16" for each in (A, B, NOBODY)]
                place.call(set_up, "eth0", *addresses, "169.254.1.1/16")
            yield here, there, server
        finally:
            server.stop()


Places = tuple[Namespace, Namespace, MetadataServer]


def ask(place: Namespace, source: str, request: bytes) -> tuple[int, str]:
    status, body = place.call(partial(exchange, 80, request, source, "169.254.169.254"))
    return status, body.decode()


def token_of(place: Namespace, source: str) -> str:
    wanted = get("/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds: 60")
    status, token = ask(place, source, wanted)
    assert status == 200
    return token


@pytest.mark.parametrize("name", CLAIMS)
def test_t23_what_is_said_counts_for_nothing(places: Places, name: str) -> None:
    here, there, _ = places
    for path, before in ((PATH, ""), ("/latest/user-data", "secret of ")):
        request = get(path, "GET", *CLAIMS[name])
        assert ask(here, B, request) == (200, f"{before}i-b")
        assert ask(there, A, request) == (200, f"{before}i-c")
        assert ask(here, NOBODY, request)[0] == 404


@pytest.mark.parametrize("target", TARGETS)
def test_t23_no_path_leads_to_another(places: Places, target: str) -> None:
    status, body = ask(places[0], B, get(target))
    assert status in (200, 400, 404)
    assert status != 200 or body in ("i-b", "secret of i-b")
    assert "i-a" not in body


def test_t23_an_equal_address_of_another_network_is_another(places: Places) -> None:
    here, there, _ = places
    assert ask(here, A, get(PATH)) == (200, "i-a")
    assert ask(there, A, get(PATH)) == (200, "i-c")
    assert ask(there, B, get(PATH))[0] == 404


def test_t23_a_token_of_another_opens_nothing(places: Places) -> None:
    here, there, _ = places
    token = token_of(here, A)
    assert ask(here, A, get(PATH, "GET", f"{TOKEN}: {token}")) == (200, "i-a")
    assert ask(here, B, get(PATH, "GET", f"{TOKEN}: {token}"))[0] == 401
    assert ask(there, A, get(PATH, "GET", f"{TOKEN}: {token}"))[0] == 401
    claims = (f"{TOKEN}: {token}", f"X-Forwarded-For: {A}", "X-Instance-ID: i-a")
    assert ask(here, B, get(PATH, "GET", *claims))[0] == 401


def test_t23_what_follows_in_one_connection_is_no_other_source(places: Places) -> None:
    smuggled = get(PATH, "GET", f"X-Forwarded-For: {A}", "Connection: close")
    head = get(PATH, "GET", f"Content-Length: {len(smuggled)}")
    status, text = ask(places[0], B, head + smuggled)
    assert status in (200, 400)
    assert "i-a" not in text
