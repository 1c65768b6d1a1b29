"""A client that signs whatever bytes it is given, cheaply; botocore reads what it is answered."""

from __future__ import annotations

import hashlib
import hmac
import http.client
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

import botocore.session
import msgspec
from botocore.parsers import create_parser

from tests.faults.hostile import Hostile

ANSWER_S = 30.0
_ALGORITHM = "AWS4-HMAC-SHA256"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A reply, and what botocore makes of it; ``code`` is empty for a success."""

    status: int
    body: bytes
    code: str
    message: str
    request_id: str
    result: dict[str, Any]


class HostileClient:
    """Sends requests one after the other over a connection that it keeps.

    :param environment: the variables of a sandbox.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        place = urlsplit(environment["AWS_ENDPOINT_URL"])
        self._host = f"{place.hostname}:{place.port}"
        self._connection = http.client.HTTPConnection(self._host, timeout=ANSWER_S)
        self._key_id = environment["AWS_ACCESS_KEY_ID"]
        self._secret = environment["AWS_SECRET_ACCESS_KEY"]
        self._region = environment["AWS_DEFAULT_REGION"]
        self._signing_keys: dict[str, bytes] = {}
        self._model = botocore.session.Session().get_service_model("ec2")
        self._parser = create_parser("ec2")

    def send(self, request: Hostile, moment: str) -> Answer:
        """Sign, send, and read the answer; ``moment`` is the time in ISO's basic form.

        :raises AssertionError: botocore could not read it, or it has no request id.
        """
        is_get = request.method == "GET"
        query, body = (request.form, b"") if is_get else (b"", request.form)
        query = quote_from_bytes(query, safe="%=&;+-_.~:@,!$'()*/?").encode()
        target = request.path + (f"?{query.decode()}" if query else "")
        headers = self._sign(request, query, body, moment)
        self._connection.putrequest(
            request.method, target, skip_host=True, skip_accept_encoding=True
        )
        for name, value in headers:
            self._connection.putheader(name, value)
        self._connection.endheaders(body)
        with self._connection.getresponse() as reply:
            content = reply.read()
        return self._read(request.action, reply.status, dict(reply.headers), content)

    def _sign(
        self, request: Hostile, query: bytes, body: bytes, moment: str
    ) -> list[tuple[str, str]]:
        signed = {"host": self._host, "x-amz-date": moment, "content-type": request.content_type}
        signed |= {name.lower(): value for name, value in request.headers}
        names = ";".join(sorted(signed))
        scope = f"{moment[:8]}/{self._region}/ec2/aws4_request"
        canonical = "\n".join(
            (
                request.method,
                request.path,
                _canonical_query(query),
                *(f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)),
                "",
                names,
                hashlib.sha256(body).hexdigest(),
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}"
        signature = hmac.digest(self._signing_key(scope), to_sign.encode(), "sha256").hex()
        claim = f"Credential={self._key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        return [
            *signed.items(),
            ("Content-Length", str(len(body))),
            ("Authorization", f"{_ALGORITHM} {claim}"),
        ]

    def _signing_key(self, scope: str) -> bytes:
        if scope not in self._signing_keys:
            key = f"AWS4{self._secret}".encode()
            for part in scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._signing_keys[scope] = key
        return self._signing_keys[scope]

    def _read(self, action: str, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
        shape = None
        if status < 300 and action in self._model.operation_names:
            shape = self._model.operation_model(action).output_shape
        lowered = {name.lower(): value for name, value in headers.items()}
        response = {"body": content, "status_code": status, "headers": lowered}
        parsed = self._parser.parse(response, shape)
        error = parsed.get("Error", {})
        answer = Answer(
            status=status,
            body=content,
            code=error.get("Code", ""),
            message=error.get("Message", ""),
            request_id=parsed["ResponseMetadata"].get("RequestId", ""),
            result=parsed,
        )
        assert content.startswith((b"<?xml", b"<GetCallerIdentity", b"<ErrorResponse")), content
        assert (answer.code == "") == (status < 300), content
        # botocore takes STS's reply for EC2's where the request asked for it by an odd name.
        assert lowered["x-amzn-requestid"].encode() in content, content
        return answer


def _canonical_query(query: bytes) -> str:
    pairs = []
    for segment in query.split(b"&"):
        if segment:
            name, _, value = segment.replace(b"+", b" ").partition(b"=")
            pairs.append((_quoted(name), _quoted(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _quoted(text: bytes) -> str:
    return quote_from_bytes(unquote_to_bytes(text), safe="")
