"""Both ends of handing a call on, as WSGI applications: where it comes in, and where it goes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from http.client import responses
from ipaddress import ip_address
from typing import Any

from appliance.api.connections import LARGEST_BODY
from appliance.api.ec2 import errors
from appliance.api.ec2.protocol.serializer import serialize_error
from appliance.api.server import RAW_HEADERS
from appliance.errors import InputError, Unavailable
from appliance.model import HttpRequest, Member
from appliance.proxy import MEMBER_ID, PREFIX, SOURCE
from appliance.proxy.forward import Forwarder

log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

RETRY_AFTER_S = 2
LONGEST_ADDRESS = 45
LONGEST_SOURCE = 64
"""Characters that the audit log has room for."""


def proxy_app(forwarder: Forwarder) -> WsgiApp:
    """Return the application that hands every call on."""

    def app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read() if _length(environ) <= LARGEST_BODY else None
        if body is None:
            return _refuse(start, errors.request_entity_too_large())
        try:
            answer = forwarder.send(_request(environ, body))
        except Unavailable as error:
            return _refuse(start, errors.Ec2Error("Unavailable", error.message))
        except InputError as error:
            return _refuse(start, errors.Ec2Error("InvalidRequest", error.message))
        start(f"{answer.status} {answer.reason}", list(answer.headers))
        return answer.pieces

    return app


def from_members(app: WsgiApp, find: Callable[[str], Member | None]) -> WsgiApp:
    """Return an API as members reach it under ``PREFIX``: with the call as it was first made.

    The source that a control node names is believed; what a hypervisor names stays its word. For
    the peer service alone, where every caller has proven to be a member.

    :param find: returns the member of an id.
    """

    def peer_app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        headers = environ[RAW_HEADERS]
        return app(
            {
                **environ,
                "PATH_INFO": environ["PATH_INFO"].removeprefix(PREFIX) or "/",
                "REQUEST_URI": environ["REQUEST_URI"].removeprefix(PREFIX),
                "REMOTE_ADDR": _source(environ, find(environ[MEMBER_ID])),
                RAW_HEADERS: [pair for pair in headers if pair[0] != SOURCE],
            },
            start,
        )

    return peer_app


def _source(environ: Environ, member: Member | None) -> str:
    """Return where a call came from, and by whose word if that is a hypervisor's.

    Wrong signatures are counted by it: else a hypervisor could spend somebody else's.
    """
    named = [value for name, value in environ[RAW_HEADERS] if name == SOURCE]
    address = _address(named[-1]) if named else ""
    source = address or str(environ["REMOTE_ADDR"])
    if member is not None and member.is_control:
        return source
    return f"{source} via {member.name if member else 'a stranger'}"[:LONGEST_SOURCE]


def _address(text: str) -> str:
    """Return an address in its usual form; empty when the text is none."""
    try:
        return str(ip_address(text)) if len(text) <= LONGEST_ADDRESS else ""
    except ValueError:
        return ""


def _length(environ: Environ) -> int:
    return int(environ.get("CONTENT_LENGTH") or 0)


def _request(environ: Environ, body: bytes) -> HttpRequest:
    return HttpRequest(
        method=environ["REQUEST_METHOD"],
        target=environ["REQUEST_URI"],
        headers=tuple(environ[RAW_HEADERS]),
        body=body,
        source=environ.get("REMOTE_ADDR", ""),
    )


def _refuse(start: StartResponse, error: errors.Ec2Error) -> Iterable[bytes]:
    request_id = str(uuid.uuid4())
    body = serialize_error(error.exact_code, error.message, request_id=request_id)
    headers = [
        ("Content-Type", "text/xml;charset=UTF-8"),
        ("Content-Length", str(len(body))),
        ("x-amzn-RequestId", request_id),
        ("Cache-Control", "no-store"),
    ]
    if error.http_status == 503:
        headers.append(("Retry-After", str(RETRY_AFTER_S)))
    log.info("refused: %s request=%s", error.message, request_id)
    start(f"{error.http_status} {responses[error.http_status]}", headers)
    return [body]
