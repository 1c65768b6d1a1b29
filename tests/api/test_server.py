"""What a stranger can send: the answer is EC2's error, no traceback, and nothing is changed."""

from __future__ import annotations

import errno
import gc
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import pytest
from botocore import UNSIGNED
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config as ClientConfig
from botocore.credentials import Credentials

from appliance.api import connections
from appliance.api.server import Server
from appliance.errors import ConfigError, Unavailable
from appliance.store import identity, key_pairs
from tests.api.front import Front, code_of
from tests.rig import wait_for


def exchange(front: Front, raw: bytes, wait_s: float = 15.0) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and return status, headers and body of the answer."""
    with socket.create_connection(("127.0.0.1", front.server.port), timeout=wait_s) as peer:
        try:
            peer.sendall(raw)
        except ConnectionError:
            pass
        received = b""
        while True:
            head, found, rest = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if found and length and len(rest) >= int(length[1]):
                break
            piece = peer.recv(65536)
            if not piece:
                break
            received += piece
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, rest


def refused(front: Front, raw: bytes) -> tuple[int, str]:
    """Send raw bytes and return status and code of EC2's error, whose form is checked."""
    status, headers, body = exchange(front, raw)
    root = ElementTree.fromstring(body)
    assert root.tag == "Response"
    assert root.findtext("RequestID") == headers["x-amzn-requestid"]
    assert b"Traceback" not in body
    assert "/work" not in body.decode()
    return status, root.findtext("Errors/Error/Code") or ""


def post(form: bytes, *headers: str, path: str = "/") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(form)}", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + form


def signed(front: Front, form: str = "Action=DescribeInstances", **changes: Any) -> AWSRequest:
    """Return a request as botocore signs it; changes apply to what is signed."""
    request = AWSRequest(
        method=changes.get("method", "POST"),
        url=front.url + changes.get("path", "/"),
        data=form.encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    keys = Credentials(
        changes.get("key", front.keys.access_key_id), changes.get("secret", front.keys.secret)
    )
    SigV4Auth(keys, changes.get("service", "ec2"), changes.get("region", "local-1")).add_auth(
        request
    )
    return request


def raw_of(request: AWSRequest, front: Front, path: str = "/") -> bytes:
    prepared = request.prepare()
    lines = [f"{name}: {value}" for name, value in prepared.headers.items()]
    host = f"Host: 127.0.0.1:{front.server.port}"
    return "\r\n".join([f"POST {path} HTTP/1.1", host, *lines, "", ""]).encode() + bytes(
        prepared.body
    )


def test_the_signed_request_that_the_next_tests_spoil_is_good(front: Front) -> None:
    status, headers, body = exchange(front, raw_of(signed(front), front))
    assert status == 200
    assert b"<requestId>" in body
    assert headers["x-amzn-requestid"] in body.decode()


GARBAGE: dict[str, bytes] = {
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "bare feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "http 3": b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
    "absolute": b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT evil:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "space in name": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    ),
    "length and coding": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length of words": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n",
    "plus length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
    "long line": b"GET /?" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20000 + b"\r\n\r\n",
    "many headers": (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(200)) + b"\r\n"
    ),
    "put": b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "options": b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n",
    "other path": b"GET /latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
    "dots": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_request_gets_ec2s_error(
    front: Front, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    before = front.snapshot()
    status, code = refused(front, GARBAGE[name])
    assert 400 <= status < 506
    assert status != 500
    assert code in ("InvalidRequest", "RequestEntityTooLarge")
    assert front.snapshot() == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


UNSIGNED_REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "nothing": (post(b"Action=DescribeInstances"), 403, "MissingAuthenticationToken"),
    "no action": (post(b""), 403, "MissingAuthenticationToken"),
    "query": (
        b"GET /?Action=DescribeInstances HTTP/1.1\r\nHost: x\r\n\r\n",
        403,
        "MissingAuthenticationToken",
    ),
    "identity": (post(b"Action=GetCallerIdentity"), 403, "MissingAuthenticationToken"),
    "basic": (post(b"Action=X", "Authorization: Basic YTpi"), 400, "InvalidRequest"),
    "version 2": (
        post(b"Action=X&SignatureVersion=2&AWSAccessKeyId=a&Signature=b"),
        400,
        "InvalidRequest",
    ),
    "empty v4": (post(b"Action=X", "Authorization: AWS4-HMAC-SHA256"), 400, "InvalidRequest"),
    "half v4": (
        post(b"Action=X", "Authorization: AWS4-HMAC-SHA256 Credential=a"),
        400,
        "IncompleteSignature",
    ),
    "not ascii": (
        post(b"Action=X", "Authorization: AWS4-HMAC-SHA256 é"),
        400,
        "IncompleteSignature",
    ),
    "many parameters": (post(b"&".join([b"a=b"] * 2000)), 403, "MissingAuthenticationToken"),
    "not utf-8": (post(b"Action=%ff%fe"), 403, "MissingAuthenticationToken"),
}


@pytest.mark.parametrize("name", UNSIGNED_REQUESTS)
def test_unsigned_requests_are_refused(front: Front, name: str) -> None:
    raw, status, code = UNSIGNED_REQUESTS[name]
    before = front.snapshot()
    if name == "identity":
        found, _, body = exchange(front, raw)
        assert (found, b"MissingAuthenticationToken" in body) == (status, True)
    else:
        assert refused(front, raw) == (status, code)
    assert front.snapshot() == before


SPOILED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"key": "AKIAXXXXXXXXXXXXXXXX"}, "AuthFailure"),
    "wrong secret": ({"secret": "x" * 40}, "AuthFailure"),
    "another service": ({"service": "s3"}, "IncompleteSignature"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_badly_signed_requests_are_refused(front: Front, name: str) -> None:
    changes, code = SPOILED[name]
    _, found = refused(front, raw_of(signed(front, **changes), front))
    assert found == code


def test_a_changed_byte_is_refused(front: Front) -> None:
    raw = raw_of(signed(front, "Action=DescribeInstances&InstanceId.1=i-12345678"), front)
    changed = raw.replace(b"i-12345678", b"i-12345679")
    assert refused(front, changed) == (401, "AuthFailure")
    another_path = raw.replace(b"POST / ", b"POST /services/Cloud ")
    assert refused(front, another_path) == (401, "AuthFailure")
    more = raw.replace(b"POST / ", b"POST /?DryRun=true ")
    assert refused(front, more) == (401, "AuthFailure")


def test_an_unsigned_amz_header_is_refused(front: Front) -> None:
    raw = raw_of(signed(front), front).replace(b"\r\nHost", b"\r\nX-Amz-Target: evil\r\nHost", 1)
    assert refused(front, raw) == (400, "IncompleteSignature")


@pytest.mark.parametrize("minutes", [-16, 16, -60 * 24 * 3650, 60 * 24 * 3650])
def test_old_and_new_dates_are_refused(front: Front, minutes: int) -> None:
    front.clock.offset_s = 60.0 * minutes
    assert refused(front, raw_of(signed(front), front)) == (400, "RequestExpired")


def test_presigned_queries_work_until_they_expire(front: Front) -> None:
    request = AWSRequest(
        method="GET", url=f"{front.url}/?Action=DescribeRegions&Version=2016-11-15"
    )
    keys = Credentials(front.keys.access_key_id, front.keys.secret)
    SigV4QueryAuth(keys, "ec2", "local-1", expires=60).add_auth(request)
    target = request.url.removeprefix(front.url)
    host = f"Host: 127.0.0.1:{front.server.port}"
    status, _, body = exchange(front, f"GET {target} HTTP/1.1\r\n{host}\r\n\r\n".encode())
    assert (status, b"local-1" in body) == (200, True)
    stretched = target.replace("X-Amz-Expires=60", "X-Amz-Expires=600")
    assert (
        refused(front, f"GET {stretched} HTTP/1.1\r\n{host}\r\n\r\n".encode())[1] == "AuthFailure"
    )


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1 << 20, 5 << 20])
def test_an_oversized_body_is_refused(front: Front, size: int) -> None:
    before = front.snapshot()
    assert refused(front, post(b"a" * size)) == (413, "RequestEntityTooLarge")
    assert front.snapshot() == before


def test_a_body_of_64_kib_is_read(front: Front) -> None:
    form = "Action=DescribeRegions&X=" + "a" * (64 * 1024 - 25)
    assert len(form) == 64 * 1024
    status, _, _ = exchange(front, raw_of(signed(front, form), front))
    assert status == 200


def test_unknown_actions_are_named(front: Front) -> None:
    ec2 = front.client()
    code = code_of(ec2.describe_spot_price_history)
    assert code == "InvalidAction"
    with pytest.raises(ec2.exceptions.ClientError, match="is not valid for this web service"):
        ec2.describe_addresses_attribute()
    raw = raw_of(signed(front, "Action=<script>alert(1)</script>"), front)
    assert refused(front, raw) == (400, "InvalidAction")
    assert refused(front, raw_of(signed(front, "Version=2016-11-15"), front)) == (
        400,
        "MissingAction",
    )
    assert refused(front, raw_of(signed(front, "Action=DescribeRegions&Version=x"), front)) == (
        400,
        "NoSuchVersion",
    )


def test_the_reply_is_in_the_name_space_of_the_version_asked_for(front: Front) -> None:
    raw = raw_of(signed(front, "Action=DescribeRegions&Version=2013-02-01"), front)
    _, _, body = exchange(front, raw)
    assert b'xmlns="http://ec2.amazonaws.com/doc/2013-02-01/"' in body


def test_unknown_parameters_are_ignored(front: Front) -> None:
    raw = raw_of(signed(front, "Action=DescribeRegions&Colour.1.Name=red&Timestamp=now"), front)
    assert exchange(front, raw)[0] == 200


def test_an_unsigned_client_of_boto3_is_refused(front: Front) -> None:
    ec2 = boto3.client(
        "ec2",
        endpoint_url=front.url,
        region_name="local-1",
        config=ClientConfig(signature_version=UNSIGNED, retries={"max_attempts": 0}),
    )
    assert code_of(ec2.describe_instances) == "MissingAuthenticationToken"


def test_a_dead_key_is_dead_at_once(front: Front, ec2: Any) -> None:
    key_id = front.keys.access_key_id

    def refused_now() -> bool:
        return code_of(ec2.describe_regions) == "AuthFailure"

    for disable, enable in (
        (
            lambda tx: identity.enable_access_key(tx, key_id, is_enabled=False),
            lambda tx: identity.enable_access_key(tx, key_id, is_enabled=True),
        ),
        (
            lambda tx: identity.enable_user(tx, "demo-user", is_enabled=False),
            lambda tx: identity.enable_user(tx, "demo-user", is_enabled=True),
        ),
        (
            lambda tx: identity.enable_project(tx, "demo", is_enabled=False),
            lambda tx: identity.enable_project(tx, "demo", is_enabled=True),
        ),
    ):
        front.change(disable)
        assert refused_now()
        front.change(enable)
        ec2.describe_regions()
    front.change(lambda tx: identity.leave_project(tx, "demo-user", "demo"))
    assert refused_now()


def test_what_nobody_foresaw_is_an_internal_error_without_details(
    front: Front, ec2: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("canary: /var/lib/secret")

    monkeypatch.setattr(key_pairs, "list_all", fail)
    with pytest.raises(ec2.exceptions.ClientError) as caught:
        ec2.describe_key_pairs()
    response = caught.value.response
    assert response["Error"]["Code"] == "InternalError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert "canary" not in str(response)
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 1
    assert response["ResponseMetadata"]["RequestId"] in traces[0].getMessage()


def test_a_store_that_is_away_is_a_503(
    front: Front, ec2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(work: Any) -> None:
        raise Unavailable("The store failed: host db1 refused.")

    monkeypatch.setattr(front.store, "transaction", away)
    with pytest.raises(ec2.exceptions.ClientError) as caught:
        ec2.create_security_group(GroupName="a", Description="b")
    assert caught.value.response["Error"]["Code"] == "Unavailable"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_no_secret_is_in_a_log(front: Front, ec2: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="appliance")
    made = ec2.create_key_pair(KeyName="k")
    front.run(UserData="canary-data")
    refused(front, raw_of(signed(front, secret="y" * 40), front))
    text = caplog.text
    assert front.keys.secret not in text
    assert made["KeyMaterial"].splitlines()[3] not in text
    assert "canary-data" not in text
    assert not re.search(r"Signature=[0-9a-f]{64}", text)


def test_a_value_cannot_write_a_line_of_its_own_into_the_log(
    front: Front, ec2: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="appliance")
    code_of(ec2.create_key_pair, KeyName="a\nERROR forged\x1b[2J\u202e")
    line = caplog.records[-1].getMessage()
    assert "forged" in line
    assert line.isprintable()


def test_slow_senders_do_not_hold_the_server(
    front: Front, ec2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "READ_S", 1.0)
    address = ("127.0.0.1", front.server.port)
    peers = [socket.create_connection(address, timeout=20) for _ in range(12)]
    is_over = threading.Event()

    def trickle() -> None:
        while not is_over.wait(0.2):
            for peer in peers:
                try:
                    peer.sendall(b"G")
                except OSError:
                    continue

    for peer in peers:
        peer.sendall(b"GET")
    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        begun = time.monotonic()
        ec2.describe_regions()
        assert time.monotonic() - begun < 15
    finally:
        is_over.set()
        thread.join()
        for peer in peers:
            peer.close()


def test_a_browser_is_told_what_this_is(front: Front) -> None:
    status, headers, body = exchange(front, b"GET / HTTP/1.1\r\nHost: n1:8773\r\n\r\n")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b"EC2 API" in body


def test_a_port_in_use_is_a_sentence(front: Front, tmp_path: Path) -> None:
    taken = Server("127.0.0.1", front.server.port, lambda *_: [], 1)
    with pytest.raises(ConfigError, match=rf"port {front.server.port}: Address already in use"):
        taken.open()
    taken.close()


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"api\.address"):
        Server("192.0.2.1", 8773, lambda *_: [], 1).open()


def test_a_port_without_permission_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Server, "bind_socket", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        Server("127.0.0.1", 80, lambda *_: [], 1).open()


def test_a_server_ends_and_its_port_is_free_again(tmp_path: Path) -> None:
    front = Front(tmp_path)
    port = front.server.port
    front.close()
    front.server.close()
    wait_for(
        lambda: not any(thread.name.startswith("anynode-api") for thread in threading.enumerate()),
        10,
        "the server's threads to end",
    )
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_closed_server_is_forgotten() -> None:
    server = Server("127.0.0.1", 0, lambda environ, start_response: [], 1)
    server.open()
    server.close()
    known = weakref.ref(server)
    del server
    gc.collect()
    assert known() is None


@contextmanager
def closing(app: Callable[..., Iterable[bytes]]) -> Iterator[socket.socket]:
    """A server that must have ended soon after the block, and a peer that sent it a request."""
    server = Server("127.0.0.1", 0, app, 1, name="closing")
    server.shutdown_timeout = 0.3
    server.open()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(10)
        peer.connect(("127.0.0.1", server.port))
        peer.sendall(b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n")
        yield peer
        ending = threading.Thread(target=server.close, daemon=True)
        ending.start()
        ending.join(5)
        assert not ending.is_alive()


def test_a_request_that_is_never_done_does_not_hold_up_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def dawdle(environ: object, start_response: object) -> Iterable[bytes]:
        begun.set()
        may_go_on.wait(60)
        return []

    with closing(dawdle):
        assert begun.wait(10)
    late = [one for one in threading.enumerate() if one.name.startswith("closing")]
    assert [one.daemon for one in late] == [True], "the interpreter would wait for it"
    assert f"the thread {late[0].name} does not end" in caplog.text
    may_go_on.set()
    late[0].join(10)


def test_a_reply_that_is_taken_slowly_is_cut_at_the_end() -> None:
    # Each of its pieces goes in time; it is the whole that would take for ever.
    sent: list[int] = []

    def endless(environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        while True:
            sent.append(1)
            yield b"x" * 4096

    with closing(endless) as peer:
        is_over = threading.Event()

        def sip() -> None:
            while not is_over.wait(0.05):
                try:
                    peer.recv(4096)
                except OSError:
                    return

        sipping = threading.Thread(target=sip)
        sipping.start()
        wait_for(lambda: len(sent) > 2, 10, "the reply to begin")
    is_over.set()
    sipping.join(10)
    wait_for(
        lambda: not any(one.name.startswith("closing") for one in threading.enumerate()),
        10,
        "the server's threads to end",
    )
