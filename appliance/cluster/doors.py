"""The doors of a control node's peer service: joining, settings and certificates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from appliance.api.tls import PEER_CERTIFICATE
from appliance.cluster import certificates
from appliance.cluster.admission import Admission
from appliance.cluster.certificates import Identity
from appliance.cluster.logins import Logins
from appliance.cluster.management import Management
from appliance.cluster.membership import WsgiApp
from appliance.cluster.peer_messages import (
    BUS_LOGIN,
    JOIN,
    MEMBERSHIP,
    RENEW,
    SETTINGS,
    SETTLED,
    BusLoginRequest,
    JoinRequest,
    MembershipRequest,
    PeerMessage,
    RenewRequest,
    Trouble,
)
from appliance.errors import AnynodeError, Denied, InputError, LimitExceeded, NotFound
from appliance.throttle import Buckets
from appliance.world import Clock

if TYPE_CHECKING:
    from appliance.node import NodeParts

log = logging.getLogger(__name__)
R = TypeVar("R", bound=PeerMessage)

OPEN = (JOIN, MEMBERSHIP)
"""Doors that look into the store for whom they answer, whatever the list of members here says."""

_LARGEST = 16 * 1024
_PEM = "application/x-pem-file"

StartResponse = Callable[..., Any]


def open_doors(parts: NodeParts) -> None:
    """Answer at this node's peer service what concerns membership; nothing on a lone node."""
    if parts.cluster is None:
        return
    store = parts.need_store()
    doors = Doors(
        Admission(store, parts.config, lambda access: Logins(Management(access))),
        parts.world.clock,
    )
    parts.cluster.doors.update(doors.apps())
    parts.cluster.open_doors.update(OPEN)


def close_doors(parts: NodeParts) -> None:
    """Answer no more. Safe to repeat."""
    if parts.cluster is None:
        return
    parts.cluster.open_doors.difference_update(OPEN)
    for path in (JOIN, MEMBERSHIP, SETTINGS, BUS_LOGIN, RENEW, SETTLED):
        parts.cluster.doors.pop(path, None)


class Doors:
    """What a control node answers at its peer service about membership."""

    def __init__(self, admission: Admission, clock: Clock) -> None:
        self._admission = admission
        self._clock = clock
        self._attempts = Buckets(size=20, refill_s=1.0, most=1000)

    def apps(self) -> dict[str, WsgiApp]:
        """Return what answers, by the beginning of the path."""
        return {
            JOIN: self.join,
            MEMBERSHIP: door("POST", self._membership),
            SETTINGS: door("GET", self._settings),
            BUS_LOGIN: door("POST", self._bus_login),
            RENEW: door("POST", self._renew),
            SETTLED: door("POST", self._settled),
        }

    def join(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        """Show the authority's certificate to whoever asks, and let in who has a token."""
        if environ["REQUEST_METHOD"] == "GET":
            return _answered(start, _PEM, lambda: self._admission.authority().encode())
        return door("POST", self._join)(environ, start)

    def _join(self, environ: dict[str, Any]) -> PeerMessage:
        source = environ.get("REMOTE_ADDR", "")
        if not self._attempts.take(source, self._clock.monotonic()):
            raise LimitExceeded(f"Too many attempts to join from {source}; wait a moment.")
        request = _body(environ, JoinRequest)
        try:
            return self._admission.join(request)
        except AnynodeError as error:
            log.warning(
                "%r at %s may not join with token %r: %s",
                request.name[:64],
                source,
                request.token_id[:16],
                error.message,
            )
            raise

    def _membership(self, environ: dict[str, Any]) -> PeerMessage:
        return self._admission.membership(caller(environ), _body(environ, MembershipRequest))

    def _settings(self, environ: dict[str, Any]) -> PeerMessage:
        return self._admission.settings(caller(environ))

    def _bus_login(self, environ: dict[str, Any]) -> PeerMessage:
        return self._admission.bus_login(caller(environ), _body(environ, BusLoginRequest))

    def _renew(self, environ: dict[str, Any]) -> PeerMessage:
        return self._admission.renew(caller(environ), _body(environ, RenewRequest))

    def _settled(self, environ: dict[str, Any]) -> PeerMessage:
        self._admission.settled(caller(environ))
        return PeerMessage()


def caller(environ: dict[str, Any]) -> Identity:
    """Return who calls, by the certificate that TLS has checked.

    :raises Denied: it is no node's.
    """
    shown = environ.get(PEER_CERTIFICATE) or {}
    pairs = [pair for part in shown.get("subject", ()) for pair in part]
    names = [value for name, value in pairs if name == "commonName"]
    units = [value for name, value in pairs if name == "organizationalUnitName"]
    kinds = {certificates.CONTROL: True, certificates.HYPERVISOR: False}
    if len(names) != 1 or len(units) != 1 or units[0] not in kinds:
        raise Denied("The certificate is no node's.")
    return Identity(
        node_id=names[0],
        is_control=kinds[units[0]],
        serial=certificates.serial_text(int(shown["serialNumber"], 16)),
        begins_at=0.0,
        ends_at=0.0,
    )


def _body(environ: dict[str, Any], kind: type[R]) -> R:
    """Return what was asked.

    :raises InputError: it is too long, or not of that form; the message does not show it.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdigit() or int(length) > _LARGEST:
        raise InputError("The question is too long.")
    try:
        return msgspec.json.decode(environ["wsgi.input"].read(int(length)), type=kind)
    except (msgspec.DecodeError, RecursionError):
        raise InputError("The question cannot be read.") from None


def door(
    method: str, answer: Callable[[dict[str, Any]], PeerMessage]
) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    """Return an application that answers one method with a message or with what is wrong."""

    def app(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        def work() -> bytes:
            if environ["REQUEST_METHOD"] != method:
                raise NotFound(f"This is asked with {method}.")
            return msgspec.json.encode(answer(environ))

        return _answered(start, "application/json", work)

    return app


def _answered(
    start: StartResponse, content_type: str, work: Callable[[], bytes]
) -> Iterable[bytes]:
    try:
        body, status = work(), "200 OK"
    except AnynodeError as error:
        told = Trouble(message=error.message, code=error.exact_code, hint=error.hint)
        body, status = msgspec.json.encode(told), f"{error.http_status} Refused"
        content_type = "application/json"
    start(
        status,
        [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ],
    )
    return [body]
