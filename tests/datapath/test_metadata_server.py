"""The metadata listeners with real sockets: who is answered, how long, and how far."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from appliance.datapath import metadata_server
from appliance.datapath.metadata_server import Bounds, MetadataServer, parse_head
from appliance.datapath.metadata_tree import Subject
from appliance.errors import ConfigError
from appliance.model import InstanceMetadata, NetworkSpec, PortSpec
from appliance.testing.namespaces import Namespace, set_up

KEY = b"k" * 32
USER_DATA = b"x" * 16384


def subject(network_id: str, instance_id: str, address: str, hop_limit: int = 1) -> Subject:
    network = NetworkSpec(
        network_id=network_id,
        vpc_id="vpc-1",
        type="flatdhcp",
        cidr="10.64.0.0/24",
        gateway="10.64.0.1",
        bridge="anbr0",
    )
    port = PortSpec(
        port_id="eni-1",
        instance_id=instance_id,
        device_index=0,
        mac="06:a0:00:00:00:01",
        network_id=network_id,
        addresses=(address,),
        hostname="host",
        group_ids=(),
    )
    metadata = InstanceMetadata(
        instance_id=instance_id,
        project_id="1",
        reservation_id="r-1",
        launch_index=0,
        image_id="ami-1",
        instance_type="m1.small",
        zone="z",
        region="r",
        hostname="host",
        user_data_base64=base64.b64encode(USER_DATA).decode(),
        token_hop_limit=hop_limit,
    )
    return Subject(metadata=metadata, ports=(port,), networks=(network,))


JOURNAL = {
    ("subnet-1", "127.0.0.1"): subject("subnet-1", "i-1", "127.0.0.1"),
    ("subnet-1", "127.0.0.2"): subject("subnet-1", "i-2", "127.0.0.2"),
    ("subnet-2", "127.0.0.1"): subject("subnet-2", "i-3", "127.0.0.1"),
    ("subnet-1", "127.0.0.9"): subject("subnet-1", "i-1", "127.0.0.1"),
}


def lookup(network_id: str, source: str) -> Subject | None:
    if source == "127.0.0.66":
        raise RuntimeError("the journal is broken")
    return JOURNAL.get((network_id, source))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def exchange(
    port: int, request: bytes, source: str = "127.0.0.1", address: str = "127.0.0.1"
) -> tuple[int, bytes]:
    """Send a request and return the status and the whole body; 0 when it was cut."""
    place = (address, port)
    with socket.create_connection(place, timeout=20, source_address=(source, 0)) as connection:
        received = b""
        try:
            connection.sendall(request)
            while more := connection.recv(65536):
                received += more
        except ConnectionError:
            return 0, received
    if not received:
        return 0, b""
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def is_cut(connection: socket.socket) -> bool:
    """Wait until the other side has ended the connection without an answer."""
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def get(path: str, method: str = "GET", *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


INSTANCE_ID = get("/latest/meta-data/instance-id")


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    server = MetadataServer(lookup, KEY, bounds=Bounds(connection_s=1.0, per_source=4))
    yield server
    server.stop()


@pytest.fixture
def port(server: MetadataServer) -> int:
    port = free_port()
    server.listen("subnet-1", "lo", "127.0.0.1", port)
    return port


def test_each_source_gets_its_own(server: MetadataServer, port: int) -> None:
    other = free_port()
    server.listen("subnet-2", "lo", "127.0.0.1", other)
    assert exchange(port, INSTANCE_ID) == (200, b"i-1")
    assert exchange(port, INSTANCE_ID, "127.0.0.2") == (200, b"i-2")
    assert exchange(other, INSTANCE_ID) == (200, b"i-3")
    assert exchange(other, INSTANCE_ID, "127.0.0.2")[0] == 404
    assert exchange(port, INSTANCE_ID, "127.0.0.3")[0] == 404


def test_a_journal_that_errs_shows_nothing(port: int) -> None:
    assert exchange(port, INSTANCE_ID, "127.0.0.9")[0] == 404
    status, body = exchange(port, INSTANCE_ID, "127.0.0.66")
    assert status == 500
    assert b"journal" not in body
    assert exchange(port, INSTANCE_ID) == (200, b"i-1")


def test_token_end_to_end(port: int) -> None:
    wanted = get("/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds: 60")
    status, token = exchange(port, wanted)
    assert status == 200
    with_token = get(
        "/latest/meta-data/instance-id", "GET", f"X-AWS-EC2-Metadata-Token: {token.decode()}"
    )
    assert exchange(port, with_token) == (200, b"i-1")
    assert exchange(port, with_token, "127.0.0.2")[0] == 401


def test_token_outlives_a_restart(server: MetadataServer, port: int) -> None:
    wanted = get("/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds: 60")
    token = exchange(port, wanted)[1].decode()
    server.stop()
    server.listen("subnet-1", "lo", "127.0.0.1", port)
    with_token = get("/latest/meta-data/instance-id", "GET", f"X-aws-ec2-metadata-token: {token}")
    assert exchange(port, with_token) == (200, b"i-1")


def test_large_answer_and_head(port: int) -> None:
    assert exchange(port, get("/latest/user-data")) == (200, USER_DATA)
    assert exchange(port, get("/latest/user-data", "HEAD")) == (200, b"")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 40000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
    ],
)
def test_odd_requests(port: int, request_bytes: bytes, status: int) -> None:
    assert exchange(port, request_bytes)[0] == status
    assert exchange(port, INSTANCE_ID) == (200, b"i-1")


def test_a_slow_peer_is_cut_and_holds_nobody_up(port: int) -> None:
    begun = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(4)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        # Its own share is used up, another instance's is not.
        assert exchange(port, INSTANCE_ID, "127.0.0.2") == (200, b"i-2")
        assert exchange(port, INSTANCE_ID)[0] == 0
        for connection in slow:
            assert is_cut(connection)
        assert 0.5 < time.monotonic() - begun < 8
        assert exchange(port, INSTANCE_ID) == (200, b"i-1")
    finally:
        for connection in slow:
            connection.close()


def test_listen_and_close_are_safe_to_repeat(server: MetadataServer, port: int) -> None:
    server.listen("subnet-1", "lo", "127.0.0.1", port)
    assert server.network_ids == ("subnet-1",)
    other = free_port()
    server.listen("subnet-1", "lo", "127.0.0.1", other)
    assert exchange(other, INSTANCE_ID) == (200, b"i-1")
    with pytest.raises(ConnectionRefusedError):
        exchange(port, INSTANCE_ID)
    server.close("subnet-1")
    server.close("subnet-1")
    with pytest.raises(ConnectionRefusedError):
        exchange(other, INSTANCE_ID)
    assert len(server.network_ids) == 0
    server.stop()
    server.stop()


def test_close_cuts_what_is_being_answered(server: MetadataServer, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as waiting:
        waiting.sendall(b"GET ")
        assert exchange(port, INSTANCE_ID) == (200, b"i-1")
        begun = time.monotonic()
        server.close("subnet-1")
        assert waiting.recv(1) == b""
        assert time.monotonic() - begun < 0.9


def test_a_look_up_that_never_ends_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata_server, "_END_S", 0.2)
    begun, may_go_on = threading.Event(), threading.Event()

    def dawdle(network_id: str, address: str) -> None:
        begun.set()
        may_go_on.wait(60)

    server = MetadataServer(dawdle, KEY)
    try:
        port = free_port()
        server.listen("subnet-1", "lo", "127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
            peer.sendall(INSTANCE_ID)
            assert begun.wait(10)
            ending = threading.Thread(target=server.stop, daemon=True)
            ending.start()
            ending.join(10)
            assert not ending.is_alive()
            late = [one for one in threading.enumerate() if one.name.startswith("metadata")]
            assert late
            assert all(one.daemon for one in late), "the interpreter would wait for them"
    finally:
        may_go_on.set()


def test_what_cannot_be_served_is_said(server: MetadataServer, port: int) -> None:
    with pytest.raises(ConfigError, match="no link"):
        server.listen("subnet-2", "an-none", "127.0.0.1", free_port())
    with pytest.raises(ConfigError, match="in use"):
        server.listen("subnet-2", "lo", "127.0.0.1", port)
    assert server.network_ids == ("subnet-1",)


def test_repeated_header_is_seen_whole() -> None:
    request = parse_head("subnet-1", "10.0.0.1", b"GET / HTTP/1.1\r\nA: 1\r\na: 2\r\n\r\n")
    assert request is not None
    assert request.headers == {"a": "1, 2"}


def received_ttl(request: bytes, source: str) -> tuple[bytes, set[int]]:
    """Return the body, and the IP times to live of the segments that carried data."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sniffer:
        sniffer.settimeout(10)
        sniffer.bind(("eth0", 0))
        _, body = exchange(80, request, source, "169.254.169.254")
        ttls: set[int] = set()
        while True:
            frame = sniffer.recv(65536)
            ip = frame[14:]
            tcp = ip[(ip[0] & 15) * 4 :]
            if ip[9] != 6 or tcp[:2] != (80).to_bytes(2, "big"):
                continue
            if tcp[(tcp[12] >> 4) * 4 :]:
                ttls.add(ip[8])
            if tcp[13] & 1 and ttls:
                return body, ttls


@pytest.mark.node
def test_two_networks_with_equal_addresses_and_hop_limit() -> None:
    """Two instances with one address in two networks of one node each get their own."""
    journal = {
        ("subnet-1", "10.64.0.5"): subject("subnet-1", "i-1", "10.64.0.5", hop_limit=1),
        ("subnet-2", "10.64.0.5"): subject("subnet-2", "i-2", "10.64.0.5", hop_limit=3),
    }
    server = MetadataServer(lambda network_id, source: journal.get((network_id, source)), KEY)
    wanted = get("/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds: 60")
    with Namespace() as node, Namespace() as one, Namespace() as two:
        try:
            for number, instance in enumerate((one, two), 1):
                link = f"br{number}"
                node.connect(instance, here=link, there="eth0")
                # Before the address is there: the listener must not need it.
                node.call(server.listen, f"subnet-{number}", link)
                node.call(set_up, link, "10.64.0.1/24", "169.254.169.254/32")
                instance.call(set_up, "eth0", "10.64.0.5/16", "169.254.1.1/16")
            tokens = []
            for number, instance, hop_limit in ((1, one, 1), (2, two, 3)):
                answered = instance.call(received_ttl, INSTANCE_ID, "10.64.0.5")
                assert answered == (f"i-{number}".encode(), {64})
                token, ttls = instance.call(received_ttl, wanted, "10.64.0.5")
                assert ttls == {hop_limit}
                tokens.append(token.decode())
            foreign = get("/", "GET", f"X-aws-ec2-metadata-token: {tokens[0]}")
            show = partial(exchange, 80, foreign, "10.64.0.5", "169.254.169.254")
            assert two.call(show)[0] == 401
            assert one.call(show)[0] == 200
        finally:
            server.stop()
