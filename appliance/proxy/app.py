"""Both ends of handing a call on, as WSGI applications: where it comes in, and where it goes."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from http.client import responses
from typing import Any

from appliance.api.connections import LARGEST_BODY
from appliance.api.ec2 import errors
from appliance.api.ec2.protocol.serializer import serialize_error
from appliance.api.server import RAW_HEADERS
from appliance.errors import InputError, Unavailable
from appliance.model import HttpRequest
from appliance.proxy import PREFIX, SOURCE
from appliance.proxy.forward import Forwarder

log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

RETRY_AFTER_S = 2


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


def from_members(app: WsgiApp) -> WsgiApp:
    """Return an API as members reach it under ``PREFIX``: with the call as it was first made.

    The source that the other member names is believed. For the peer service alone, where every
    caller has proven to be a member.
    """

    def peer_app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        headers = environ[RAW_HEADERS]
        named = [value for name, value in headers if name == SOURCE]
        return app(
            {
                **environ,
                "PATH_INFO": environ["PATH_INFO"].removeprefix(PREFIX) or "/",
                "REQUEST_URI": environ["REQUEST_URI"].removeprefix(PREFIX),
                "REMOTE_ADDR": named[-1] if named else environ["REMOTE_ADDR"],
                RAW_HEADERS: [pair for pair in headers if pair[0] != SOURCE],
            },
            start,
        )

    return peer_app


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
