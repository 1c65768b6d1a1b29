"""boto3 itself, over a loopback connection: what it sends is verified, what we answer it reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import botocore.config
import botocore.exceptions
import pytest

from appliance.api.ec2.errors import Ec2Error, instances_not_found
from appliance.api.ec2.protocol.form import decode_form
from appliance.api.ec2.protocol.parser import Call, RequestParser
from appliance.api.ec2.protocol.serializer import ReplySerializer, serialize_error
from appliance.api.ec2.protocol.signature import SignedRequest, verify

RESULTS: dict[str, dict[str, Any]] = {
    "DescribeKeyPairs": {"KeyPairs": [{"KeyName": "é<b>", "CreateTime": datetime.now(UTC)}]},
    "ImportKeyPair": {"KeyName": "k"},
    "CreateTags": {},
    "DescribeVpcs": {"Vpcs": []},
    "GetConsoleOutput": {"InstanceId": "i-1", "Output": "aGVsbG8="},
    "RunInstances": {"Instances": [{"InstanceId": "i-1", "State": {"Code": 0, "Name": "pending"}}]},
}


class Door(HTTPServer):
    """Answers from ``RESULTS`` and remembers what was asked."""

    def __init__(self, parser: RequestParser, serializer: ReplySerializer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.parser, self.serializer = parser, serializer
        self.calls: list[Call] = []

    def answer(self, request: SignedRequest) -> bytes:
        secrets = {"AKID": "secret"}
        verify(request, secrets.get, datetime.now(UTC))
        call = self.parser.parse(decode_form(request.query) + decode_form(request.body))
        self.calls.append(call)
        if call.action not in RESULTS:
            raise instances_not_found(["i-1"])
        return self.serializer.serialize(
            call.action, RESULTS[call.action], request_id="req-1", version=call.version
        )


class Handler(BaseHTTPRequestHandler):
    server: Door

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        path, _, query = self.path.partition("?")
        request = SignedRequest(
            method=self.command,
            path=path,
            query=query.encode("latin-1"),
            headers=self.headers.items(),
            body=self.rfile.read(length),
        )
        try:
            status, reply = 200, self.server.answer(request)
        except Ec2Error as error:
            status = error.http_status
            reply = serialize_error(error.exact_code, error.message, request_id="req-2")
        self.send_response(status)
        self.send_header("Content-Type", "text/xml;charset=UTF-8")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def do_GET(self) -> None:
        self.do_POST()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@pytest.fixture
def door(parser: RequestParser, serializer: ReplySerializer) -> Iterator[Door]:
    with Door(parser, serializer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client(door: Door, secret: str = "secret") -> Any:
    return boto3.client(
        "ec2",
        endpoint_url=f"http://127.0.0.1:{door.server_port}/services/Cloud",
        region_name="anynode",
        aws_access_key_id="AKID",
        aws_secret_access_key=secret,
        config=botocore.config.Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def test_requests_arrive_and_replies_are_understood(door: Door) -> None:
    ec2 = client(door)
    filters = [{"Name": "tag:a b", "Values": ["x+y&z", "é*~%"]}]
    pairs = ec2.describe_key_pairs(Filters=filters)["KeyPairs"]
    assert pairs[0]["KeyName"] == "é<b>"
    assert door.calls[-1].params == {"Filters": filters}
    ec2.import_key_pair(KeyName="k", PublicKeyMaterial=b"ssh-ed25519 \xff")
    assert door.calls[-1].params["PublicKeyMaterial"] == b"ssh-ed25519 \xff"
    ec2.create_tags(Resources=["i-1"], Tags=[{"Key": "k", "Value": ""}])
    assert door.calls[-1].params["Tags"] == [{"Key": "k", "Value": ""}]
    assert ec2.get_console_output(InstanceId="i-1")["Output"] == "hello"
    ran = ec2.run_instances(MinCount=1, MaxCount=1, ImageId="ami-1", UserData="#!/bin/sh\n")
    assert ran["Instances"][0]["State"]["Code"] == 0
    assert door.calls[-1].params["UserData"] == "IyEvYmluL3NoCg=="
    assert len(door.calls[-1].params["ClientToken"]) == 36


def test_errors_reach_the_client(door: Door) -> None:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        client(door).stop_instances(InstanceIds=["i-1"])
    assert caught.value.response["Error"]["Code"] == "InvalidInstanceID.NotFound"
    assert caught.value.response["ResponseMetadata"]["RequestId"] == "req-2"
    with pytest.raises(botocore.exceptions.ClientError, match="AuthFailure"):
        client(door, secret="wrong").describe_vpcs()
    with pytest.raises(botocore.exceptions.ClientError, match="not valid for this web service"):
        client(door).describe_spot_price_history()


def test_a_presigned_url_works_once_it_is_fetched_as_it_was_signed(door: Door) -> None:
    url = client(door).generate_presigned_url(
        "describe_vpcs", {"Filters": [{"Name": "is-default", "Values": ["true"]}]}, ExpiresIn=60
    )
    with urlopen(Request(url, method="POST"), timeout=10) as reply:
        assert b"<vpcSet></vpcSet>" in reply.read()
    assert door.calls[-1].params["Filters"][0]["Values"] == ["true"]
    with pytest.raises(HTTPError) as caught:
        urlopen(url.replace("true", "false"), timeout=10)
    assert caught.value.code == 401
