"""The peer service: members are known by their certificate, strangers get no further."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cluster import peer_service
from appliance.cluster.membership import Membership, folder_of
from appliance.config import ClusterSettings, Config
from appliance.messages import Members
from appliance.model import HttpRequest, Member
from appliance.proxy import PREFIX
from appliance.proxy.app import from_members
from appliance.proxy.forward import Forwarder
from appliance.world import SystemClock
from tests.proxy.certificates import TestAuthority
from tests.services.postgresql import free_port


def member(node_id: str, port: int = 1) -> Member:
    return Member(
        node_id=node_id,
        name=node_id,
        zone="z",
        address=f"127.0.0.1:{port}",
        roles=("api",),
        is_control=True,
        certificate="",
    )


class Service:
    """The peer service of a node ``one``, with members ``one`` and ``two``."""

    def __init__(self, folder: Path) -> None:
        self.authority = TestAuthority(folder)
        self.port = free_port()
        cluster = folder_of(folder / "state")
        self.authority.write_node(cluster, "one")
        self.cluster = Membership(cluster)
        self.members = (member("one", self.port), member("two"))
        self.cluster.members.take(Members(revision=1, members=self.members))
        self.asked: list[dict[str, Any]] = []
        self.cluster.doors["/images"] = self.answer
        config = Config(cluster=ClusterSettings(address="127.0.0.1", port=self.port))
        self.server = peer_service.make_server(self.cluster, config)
        self.server.open()

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        environ["body"] = environ["wsgi.input"].read()
        self.asked.append(environ)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def ask(self, context: ssl.SSLContext, path: str = "/images/x") -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.server.close()


def test_a_member_is_known(service: Service) -> None:
    assert service.ask(service.authority.context("two", is_server=False)) == 200
    assert service.asked[0][peer_service.MEMBER_ID] == "two"


def test_a_node_that_is_no_member_is_refused(service: Service) -> None:
    assert service.ask(service.authority.context("three", is_server=False)) == 403


def test_a_revoked_certificate_is_refused(service: Service) -> None:
    context = service.authority.context("two", is_server=False)
    assert service.ask(context) == 200
    serial = service.authority.serials["two"]
    service.cluster.members.take(Members(revision=2, members=service.members, revoked=(serial,)))
    assert service.ask(context) == 403


def test_who_shows_nothing_comes_to_open_doors_only(service: Service) -> None:
    context = ssl.create_default_context(cafile=str(service.authority.path))
    service.cluster.doors["/join"] = service.answer
    service.cluster.open_doors.add("/join")
    assert service.ask(context, "/join") == 200
    assert service.asked[-1][peer_service.MEMBER_ID] == ""
    assert service.ask(context) == 403
    assert service.ask(context, "/joiner") == 403


def test_another_authority_gets_no_answer(service: Service, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = TestAuthority(tmp_path / "other").context("two", is_server=False)
    other.load_verify_locations(service.authority.path)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        service.ask(other)
    assert service.asked == []


def test_what_is_not_answered_here_is_not_found(service: Service) -> None:
    assert service.ask(service.authority.context("two", is_server=False), "/none") == 404


def test_silent_connections_hold_up_nobody(service: Service) -> None:
    import socket

    silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
    try:
        assert service.ask(service.authority.context("two", is_server=False)) == 200
    finally:
        for one in silent:
            one.close()


def test_a_call_comes_through_unchanged(service: Service) -> None:
    """The proxy at one end, the API's door at the other, the real TLS server between."""
    service.cluster.doors[PREFIX] = from_members(service.answer, service.cluster.members.get)
    context = service.authority.context("two", is_server=False)
    forwarder = Forwarder(lambda: service.members[:1], lambda: context, SystemClock())
    body = b"Action=DescribeInstances&x=%20y+z" + b"a" * 40_000
    headers = (("host", "h:1"), ("x-thing", "a  b"), ("content-length", str(len(body))))
    call = HttpRequest(
        method="POST", target="/?q=%2F", headers=headers, body=body, source="192.0.2.9"
    )
    for _ in range(3):
        answer = forwarder.send(call)
        assert (answer.status, b"".join(answer.pieces)) == (200, b"ok")
    forwarder.close()
    seen = service.asked[-1]
    assert seen["anynode.headers"] == list(headers)
    assert (seen["REQUEST_URI"], seen["PATH_INFO"]) == ("/?q=%2F", "/")
    assert seen["REMOTE_ADDR"] == "192.0.2.9"
    assert seen["body"] == body


@pytest.mark.faults("hostile: hypervisor", quick=True)
@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("192.0.2.9", "192.0.2.9 via two"),
        ("2001:DB8::9", "2001:db8::9 via two"),
        ("the operator", "127.0.0.1 via two"),
        ("", "127.0.0.1 via two"),
        ("fe80::1%" + "x" * 2000, "127.0.0.1 via two"),
        ("192.0.2.9 via one", "127.0.0.1 via two"),
    ],
)
def test_where_a_call_came_from_is_a_hypervisors_word(
    service: Service, said: str, written: str
) -> None:
    """Else it could have a user refused at the address that he calls from, for wrong signatures."""
    two = msgspec.structs.replace(member("two"), is_control=False)
    service.cluster.members.take(Members(revision=2, members=(service.members[0], two)))
    service.cluster.doors[PREFIX] = from_members(service.answer, service.cluster.members.get)
    context = service.authority.context("two", is_server=False)
    forwarder = Forwarder(lambda: service.members[:1], lambda: context, SystemClock())
    call = HttpRequest(
        method="GET", target="/?q", headers=(("host", "h:1"),), body=b"", source=said
    )
    assert b"".join(forwarder.send(call).pieces) == b"ok"
    forwarder.close()
    assert service.asked[-1]["REMOTE_ADDR"] == written


def test_the_list_outlives_the_process(service: Service) -> None:
    again = Membership(service.cluster.folder)
    assert msgspec.structs.asdict(again.members.current)["members"] == service.members
