"""The web application: EC2 at ``/`` and ``/services/Cloud``, in front of whatever else is added."""

from __future__ import annotations

from flask import Flask, Response, request

from appliance.api.connections import LARGEST_BODY
from appliance.api.ec2 import errors
from appliance.api.ec2.front_door import FrontDoor, Reply
from appliance.api.server import RAW_HEADERS
from appliance.model import HttpRequest

EC2_PATHS = ("/", "/services/Cloud", "/services/Cloud/")

_GREETING = """Anynode answers the EC2 API here (version 2016-11-15, signature version 4).
Point a client at it: aws ec2 describe-instances --endpoint-url %s
"""


def create_app(door: FrontDoor) -> Flask:
    """Return the application; ``Reply`` becomes HTTP here and nowhere else."""
    app = Flask("anynode", static_folder=None)

    def ec2() -> Response:
        if _is_visitor():
            return Response(_GREETING % request.url_root.rstrip("/"), mimetype="text/plain")
        body = _read_body()
        if body is None:
            return _response(
                door.refuse(errors.request_entity_too_large(), request.remote_addr or "")
            )
        return _response(door.answer(_http_request(body)))

    for path in EC2_PATHS:
        app.add_url_rule(
            path,
            endpoint=f"ec2{path}",
            view_func=ec2,
            methods=["GET", "POST"],
            provide_automatic_options=False,
        )
    app.register_error_handler(404, lambda error: _not_here(door, 404))
    app.register_error_handler(405, lambda error: _not_here(door, 405))
    return app


def _is_visitor() -> bool:
    """Whether somebody looks with a browser rather than asks with a client."""
    return request.method == "GET" and not request.query_string and not request.authorization


def _read_body() -> bytes | None:
    """Return the body; ``None`` when it is too large."""
    if (request.content_length or 0) > LARGEST_BODY:
        return None  # what came of it was thrown away
    return bytes(request.environ["wsgi.input"].read())


def _http_request(body: bytes) -> HttpRequest:
    environ = request.environ
    return HttpRequest(
        method=request.method,
        target=environ["REQUEST_URI"],
        headers=tuple(environ[RAW_HEADERS]),
        body=body,
        source=request.remote_addr or "",
    )


def _not_here(door: FrontDoor, status: int) -> Response:
    code, text = {
        404: ("InvalidRequest", "There is no API at this path; EC2 is at / and /services/Cloud."),
        405: ("InvalidRequest", "The method is not allowed; use GET or POST."),
    }[status]
    return _response(door.refuse(errors.Ec2Error(code, text, status), request.remote_addr or ""))


def _response(reply: Reply) -> Response:
    return Response(
        reply.body,
        status=reply.status,
        headers={
            "x-amzn-RequestId": reply.request_id,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
        content_type=reply.content_type,
    )
