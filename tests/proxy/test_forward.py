"""Handing calls on: what arrives, where it goes next, and what is never sent twice."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import InputError, Unavailable
from appliance.model import HttpRequest, Member
from appliance.proxy import forward
from appliance.proxy.forward import Forwarder, only_reads
from appliance.world import SystemClock
from tests.proxy.certificates import TestAuthority

CHANGE = b"Action=RunInstances&MinCount=1"
READ = b"Action=DescribeInstances"


class Door:
    """A TLS server that does with each request what a test tells it to."""

    def __init__(self, authority: TestAuthority, node_id: str, certificate_of: str = "") -> None:
        self.node_id = node_id
        self.requests: list[bytes] = []
        self.connections = 0
        self.behave: Callable[[ssl.SSLSocket, bytes], bool] = self.answer
        self._context = authority.context(certificate_of or node_id, is_server=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def member(self) -> Member:
        return Member(
            node_id=self.node_id,
            name=self.node_id,
            zone="z",
            address=f"127.0.0.1:{self.port}",
            roles=("api",),
            is_control=True,
            certificate="",
        )

    def answer(self, connection: ssl.SSLSocket, request: bytes) -> bool:
        body = b"<ok/>" + self.node_id.encode()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nX-Thing: here\r\n"
            b"Connection: Keep-Alive\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        return True

    def break_off(self, connection: ssl.SSLSocket, request: bytes) -> bool:
        return False

    def answer_half(self, connection: ssl.SSLSocket, request: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return False

    def refuse(self, connection: ssl.SSLSocket, request: bytes) -> bool:
        connection.sendall(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n"
            b"x-anynode-not-taken: 404 Not Found\r\n\r\n{}"
        )
        return True

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as connection:
                while request := _read_request(connection):
                    self.requests.append(request)
                    if not self.behave(connection, request):
                        return
        except OSError:
            plain.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _read_request(connection: ssl.SSLSocket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        piece = connection.recv(65536)
        if not piece:
            return b""
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class Place:
    """A node without an API, and nodes with one."""

    def __init__(self, folder: Path) -> None:
        self.authority = TestAuthority(folder)
        self.doors: list[Door] = []
        self.context = self.authority.context("caller", is_server=False)
        self.forwarder = Forwarder(
            lambda: [door.member for door in self.doors], lambda: self.context, SystemClock()
        )

    def door(self, node_id: str, **more: str) -> Door:
        self.doors.append(Door(self.authority, node_id, **more))
        return self.doors[-1]

    def send(self, body: bytes, **more: Any) -> bytes:
        answer = self.forwarder.send(request(body, **more))
        return b"".join(answer.pieces)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.forwarder.close()
    for door in made.doors:
        door.close()


def request(body: bytes, target: str = "/", **headers: str) -> HttpRequest:
    return HttpRequest(
        method="POST",
        target=target,
        headers=(
            ("host", "cloud.example:8773"),
            ("authorization", "AWS4-HMAC-SHA256 …".encode("latin-1", "replace").decode("latin-1")),
            *((name.replace("_", "-"), value) for name, value in headers.items()),
            ("content-length", str(len(body))),
        ),
        body=body,
        source="192.0.2.7",
    )


def test_a_call_arrives_as_it_came(place: Place) -> None:
    door = place.door("one")
    answer = place.forwarder.send(
        request(READ, "/services/Cloud?a=%2F+b", x_amz_date="2026", x_anynode_source="1.2.3.4")
    )
    assert b"".join(answer.pieces) == b"<ok/>one"
    assert answer.status == 200
    assert dict(answer.headers)["X-Thing"] == "here"
    assert "Connection" not in dict(answer.headers)
    head, _, body = door.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /ec2/services/Cloud?a=%2F+b HTTP/1.1",
        b"host: cloud.example:8773",
        b"authorization: AWS4-HMAC-SHA256 ?",
        b"x-amz-date: 2026",
        b"content-length: %d" % len(READ),
        b"x-anynode-source: 192.0.2.7",
    ]
    assert body == READ


def test_doors_take_turns(place: Place) -> None:
    for name in ("one", "two"):
        place.door(name)
    assert {place.send(READ), place.send(READ)} == {b"<ok/>one", b"<ok/>two"}


@pytest.mark.parametrize("body", [READ, CHANGE])
def test_a_door_that_is_shut_is_passed_over(place: Place, body: bytes) -> None:
    for name in ("one", "two", "three"):
        place.door(name)
    place.doors[0].close()
    place.doors[2].close()
    assert [place.send(body) for _ in range(6)] == [b"<ok/>two"] * 6


def test_a_door_that_has_failed_is_asked_last(place: Place) -> None:
    broken, _ = place.door("one"), place.door("two")
    broken.behave = broken.break_off
    for _ in range(2):
        place.send(READ)
    assert [place.send(CHANGE) for _ in range(4)] == [b"<ok/>two"] * 4


def test_a_door_that_hangs_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CONNECT_S", 0.3)
    hanging, _ = place.door("one"), place.door("two")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hanging.port = silent.getsockname()[1]
        assert {place.send(CHANGE) for _ in range(3)} == {b"<ok/>two"}


def test_a_change_is_never_sent_twice(place: Place) -> None:
    for name in ("one", "two"):
        door = place.door(name)
        door.behave = door.break_off
    with pytest.raises(Unavailable, match="whether it was carried out is unknown"):
        place.send(CHANGE)
    assert sum(len(door.requests) for door in place.doors) == 1


@pytest.mark.parametrize("body", [READ, CHANGE])
def test_a_door_that_is_no_longer_there_is_passed_over(place: Place, body: bytes) -> None:
    gone, _ = place.door("one"), place.door("two")
    gone.behave = gone.refuse
    assert [place.send(body) for _ in range(3)] == [b"<ok/>two"] * 3


def test_a_question_is_asked_again(place: Place) -> None:
    broken, _ = place.door("one"), place.door("two")
    broken.behave = broken.break_off
    assert {place.send(READ) for _ in range(3)} == {b"<ok/>two"}
    assert len(broken.requests) == 1


def test_connections_serve_questions_again_and_changes_once(place: Place) -> None:
    door = place.door("one")
    for _ in range(3):
        place.send(READ)
    assert door.connections == 1
    for _ in range(3):
        place.send(CHANGE)
    assert door.connections == 4


def test_a_connection_that_was_closed_meanwhile_is_not_used(place: Place) -> None:
    door = place.door("one")

    def answer_and_close(connection: ssl.SSLSocket, request: bytes) -> bool:
        door.answer(connection, request)
        return False

    door.behave = answer_and_close
    assert [place.send(READ) for _ in range(3)] == [b"<ok/>one"] * 3


def test_an_answer_that_breaks_off_is_not_taken_for_whole(place: Place) -> None:
    door = place.door("one")
    door.behave = door.answer_half
    with pytest.raises(Unavailable, match="broke off"):
        place.send(READ)


def test_another_member_is_not_taken_for_the_door(place: Place) -> None:
    place.door("one", certificate_of="mallory")
    with pytest.raises(Unavailable, match="No node"):
        place.send(READ)
    assert place.doors[0].requests == []


def test_a_stranger_is_not_told_anything(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    door = Door(TestAuthority(folder), "one")
    place.doors.append(door)
    with pytest.raises(Unavailable, match="No node"):
        place.send(READ)
    assert door.requests == []


def test_without_doors_there_is_no_answer(place: Place) -> None:
    with pytest.raises(Unavailable, match="No node"):
        place.send(READ)


def test_what_cannot_be_written_is_refused(place: Place) -> None:
    place.door("one")
    with pytest.raises(InputError):
        place.send(READ, target="/a b")
    assert place.doors[0].requests == []


@pytest.mark.parametrize(
    ("target", "body", "is_so"),
    [
        ("/", READ, True),
        ("/?Action=DescribeInstances", b"", True),
        ("/", b"", True),
        ("/", CHANGE, False),
        ("/?Action=DescribeInstances", CHANGE, False),
        ("/", READ + b"&" + CHANGE, False),
        ("/", b"Action=DescribeTheUnknown", False),
        ("/", b"Action=%44escribeInstances", True),
        ("/", b"\xff", False),
    ],
)
def test_what_only_reads_is_known(target: str, body: bytes, is_so: bool) -> None:
    assert only_reads(request(body, target)) is is_so
