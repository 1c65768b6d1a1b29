"""T54: too much, too slowly, or in two ways at once: refused, and nobody else waits for it."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.api import connections
from appliance.api import server as server_module
from tests.api.front import Front
from tests.api.test_server import exchange, post, raw_of, refused, signed
from tests.rig import wait_for

pytestmark = pytest.mark.faults("hostile: sizes and slowness", quick=True)

OF_EACH = 10
CALLS = 60


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One API for all: what one sender does must not harm the next."""
    made = Front(tmp_path_factory.mktemp("t54"))
    try:
        yield made
    finally:
        made.close()


def connect(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.server.port), timeout=20)


def is_cut(peer: socket.socket) -> bool:
    """Read until the other side has ended the connection."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def p99(front: Front) -> float:
    """Return the 99th percentile of the seconds that signed calls take."""
    raw = raw_of(signed(front), front)
    spent = []
    for _ in range(CALLS):
        began = time.monotonic()
        assert exchange(front, raw)[0] == 200
        spent.append(time.monotonic() - began)
    return statistics.quantiles(spent, n=100)[-1]


def post_of(size: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


SLOWNESS: dict[str, bytes] = {
    "a request line": b"GET /?Action=",
    "headers": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ",
    "a body": post_of(1000) + b"Action=",
    "a body that is too large": post_of(10 << 20) + b"Name=",
    "an announced body": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n"
    ),
    "nothing": b"",
}


@contextmanager
def trickle(front: Front, starts: Sequence[bytes]) -> Iterator[list[socket.socket]]:
    """Hold a connection for each start, on which a byte comes now and then after it."""
    peers = [connect(front) for _ in starts]
    is_over = threading.Event()

    def send() -> None:
        while not is_over.wait(0.1):
            for peer, start in zip(peers, starts, strict=True):
                try:
                    peer.sendall(b"a" if start else b"")
                except OSError:
                    continue

    for peer, start in zip(peers, starts, strict=True):
        peer.sendall(start)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield peers
    finally:
        is_over.set()
        thread.join()
        for peer in peers:
            peer.close()


def test_t54_slow_senders_hold_nobody_up(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = p99(front)
    monkeypatch.setattr(connections, "READ_S", 3.0)
    monkeypatch.setattr(connections, "IDLE_S", 3.0)
    with trickle(front, list(SLOWNESS.values()) * OF_EACH) as peers:
        # If they had threads, there would be none for others before the 3 s are over.
        assert p99(front) < max(2 * alone, 1.0)
        assert all(is_cut(peer) for peer in peers)
    assert exchange(front, raw_of(signed(front), front))[0] == 200
    wait_for(lambda: len(front.server.writing) == 0, 5, "the replies to end")


def test_t54_who_is_late_is_told(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.5)
    assert refused(front, b"POST / HTTP/1.1\r\nHost") == (408, "RequestTimeout")


def test_t54_of_too_many_that_wait_the_oldest_go(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_WAITING", 20)
    with trickle(front, [b"GET /"] * 40) as peers:
        assert p99(front) < 2
        assert all(is_cut(peer) for peer in peers[:10])


def test_t54_slow_readers_are_cut(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WRITE_S", 0.3)
    large = front.server.wsgi_app
    body = b"x" * (64 << 20)

    def answer(environ: dict[str, Any], start: Any) -> Any:
        if environ["PATH_INFO"] == "/large":
            start("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        return large(environ, start)

    monkeypatch.setattr(front.server, "wsgi_app", answer)
    peers = [connect(front) for _ in range(10)]
    try:
        for peer in peers:
            peer.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(front.server.writing) > 0, 10, "a reply to begin")
        assert exchange(front, raw_of(signed(front), front))[0] == 200
        wait_for(lambda: len(front.server.writing) == 0, 20, "the replies to be cut")
    finally:
        for peer in peers:
            peer.close()


def test_t54_a_name_of_ten_megabytes(front: Front) -> None:
    before = front.snapshot()
    form = b"Action=CreateKeyPair&KeyName=" + b"a" * (10 << 20)
    assert refused(front, post(form)) == (413, "RequestEntityTooLarge")
    within = "Action=CreateKeyPair&KeyName=" + "a" * 60_000
    assert refused(front, raw_of(signed(front, within), front))[0] == 400
    assert front.snapshot() == before


@pytest.mark.parametrize("count", [1_001, 10_000, 100_000])
def test_t54_too_many_parameters(front: Front, count: int) -> None:
    form = "Action=DescribeInstances" + "&a=b" * count
    expected = (413, "RequestEntityTooLarge") if count > 16_000 else (400, "MalformedQueryString")
    assert refused(front, raw_of(signed(front, form), front)) == expected


def test_t54_the_deepest_and_sparsest_names_cost_nothing(front: Front) -> None:
    names = ("Filter.1" + ".1" * 30_000, "Filter." + "9" * 60_000, "." * 60_000)
    for name in names:
        began = time.monotonic()
        raw = raw_of(signed(front, f"Action=DescribeInstances&{name}=x"), front)
        assert exchange(front, raw)[0] in (200, 400)
        assert time.monotonic() - began < 2


IN_TWO_WAYS: dict[str, bytes] = {
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nG"
    ),
    "chunks and length": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n"
        b"0\r\n\r\nG"
    ),
    "chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "chunks without an end": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nabc"
    ),
    "chunks by another name": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": post_of(1)[:-2] + b"Content-Length: 9\r\n\r\n123456789",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "a length of 5000 digits": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabcd"
    ),
    "a length of other digits": (
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ４\r\n\r\nabcd".encode()
    ),
    "a length after a tab": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length\t: 4\r\n\r\nabcd",
    "a bare carriage return": b"POST / HTTP/1.1\r\nHost: x\rContent-Length: 4\r\n\r\nabcd",
    "a bare feed in a header": b"POST / HTTP/1.1\r\nHost: x\nContent-Length: 4\r\n\r\nabcd",
}
IN_TWO_WAYS["too much of nothing that is here"] = post_of(20 << 20).replace(b"/ ", b"/latest ", 1)
NEXT = b"GET /latest HTTP/1.1\r\nHost: smuggled\r\n\r\n"


@pytest.mark.parametrize("name", IN_TWO_WAYS)
def test_t54_what_can_be_read_in_two_ways_is_refused_and_the_end(front: Front, name: str) -> None:
    with connect(front) as peer:
        peer.sendall(IN_TWO_WAYS[name] + NEXT)
        received = b""
        try:
            while piece := peer.recv(65536):
                received += piece
        except ConnectionError:
            pass
    assert received.count(b"HTTP/1.1 ") == 1, received
    assert received.startswith(b"HTTP/1.1 4"), received


def test_t54_what_is_sent_at_once_is_answered_in_turn(front: Front) -> None:
    good = raw_of(signed(front, "Action=DescribeRegions&X=1"), front)
    other = raw_of(signed(front, "Action=DescribeRegions&Version=x"), front)
    with connect(front) as peer:
        peer.sendall(good + other + b"\x00\xff garbage\r\n\r\n" + good)
        received = b""
        while piece := peer.recv(65536):
            received += piece
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"400"]


def test_t54_a_client_that_asks_first_is_told_to_send(front: Front) -> None:
    raw = raw_of(signed(front), front)
    head, _, body = raw.partition(b"\r\n\r\n")
    with connect(front) as peer:
        peer.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body)
        assert peer.recv(100).startswith(b"HTTP/1.1 200")


HEADERS = (
    *(b"X: " + b"a" * length for length in (16_400, 70_000, 10 << 20)),
    *(b"\r\n".join(b"X-%d: y" % each for each in range(count)) for count in (101, 1000, 100_000)),
)


@pytest.mark.parametrize("headers", HEADERS, ids=lambda each: f"{len(each)} bytes")
def test_t54_many_and_long_headers(front: Front, headers: bytes) -> None:
    with connect(front) as peer:
        try:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n")
            assert peer.recv(100)[:10] in (b"HTTP/1.1 4", b"")
        except ConnectionError:
            pass  # closed in the middle of it
    assert exchange(front, raw_of(signed(front), front))[0] == 200


def test_t54_short_connections_leave_nothing_open(front: Front) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    raw = raw_of(signed(front), front)
    exchange(front, raw)
    before = opened()
    for number in range(100):
        exchange(front, raw if number % 2 else b"hello\r\n\r\n")
    wait_for(lambda: opened() <= before + 2, 5, "the connections to be closed")
