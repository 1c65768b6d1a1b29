"""T56: metadata tokens, their key and user data are in no line that the metadata server logs."""

from __future__ import annotations

import logging

import pytest

from appliance.datapath.metadata_server import Bounds, MetadataServer
from tests.datapath.test_metadata_server import INSTANCE_ID, exchange, free_port, get, lookup

pytestmark = pytest.mark.faults("secrets: canaries", quick=True)

KEY = b"CanaryKeyOfTokens000000000000001"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


def test_t56_no_failure_shows_a_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = MetadataServer(lookup, KEY, bounds=Bounds(connection_s=0.5, per_source=4))
    port = free_port()
    server.listen("subnet-1", "lo", "127.0.0.1", port)
    try:
        status, answer = exchange(port, get("/latest/api/token", "PUT", f"{TTL}: 60"))
        token = answer.decode()
        assert status == 200
        with_token = f"{TOKEN}: {token}"
        failures = (
            ("127.0.0.2", get("/latest/user-data", "GET", with_token)),
            ("127.0.0.9", get("/latest/user-data", "GET", with_token)),
            ("127.0.0.66", get("/latest/user-data", "GET", with_token)),
            ("127.0.0.1", get("/latest/user-data", "POST", with_token)),
            ("127.0.0.1", get(f"/{token}", "GET", with_token)),
            ("127.0.0.1", get("/latest/user-data", "GET", f"{TOKEN}: {token[:-2]}")),
            ("127.0.0.1", get("/latest/api/token", "PUT", f"{TTL}: {token}")),
            ("127.0.0.1", f"{token} / HTTP/1.1\r\n\r\n".encode()),
            ("127.0.0.1", f"GET / HTTP/1.1\r\n{with_token}".encode()),
        )
        for source, request in failures:
            status, body = exchange(port, request, source)
            assert status != 200
            assert token.encode() not in body
        assert exchange(port, INSTANCE_ID)[0] == 200
    finally:
        server.stop()
    assert caplog.records
    for canary in (token, token[:-2], KEY.decode(), "xxxxxxxx"):
        assert canary not in caplog.text
