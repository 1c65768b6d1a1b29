"""The metadata service: what an instance asks at 169.254.169.254, and who may ask.

An instance is known by the network whose listener it reached and by its source address, which the
firewall guarantees, and by nothing that it says. A version 2 token is bound to both.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import html
import re
import secrets
import struct
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from appliance.datapath.metadata_tree import VERSIONS, Subject, find, listing, render
from appliance.model import Value

TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
LONGEST_TTL_S = 21600

_TOKEN = "x-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
_TTL = re.compile(r"[0-9]{1,5}")
# With time and seal a multiple of three bytes: then a token has one spelling only.
_NONCE_BYTES = 17


class Request(Value, frozen=True, kw_only=True):
    """A request as it came in. Header names are in lower case; a repeated one is joined by commas.

    ``network_id`` is that of the listener, ``source`` the peer's own address.
    """

    network_id: str
    source: str
    method: str
    target: str
    headers: dict[str, str]


class Response(Value, frozen=True, kw_only=True):
    """An answer. ``hop_limit`` is the IP time to live that it must leave with, 0 for the usual."""

    status: int
    body: bytes
    content_type: str = "text/plain"
    headers: tuple[tuple[str, str], ...] = ()
    hop_limit: int = 0


class Tokens:
    """Version 2 tokens: checked by the node's key alone, so that they outlive a restart."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("The key of metadata tokens is shorter than 32 bytes.")
        self._key = key

    def issue(self, network_id: str, instance_id: str, *, now: float, ttl_s: int) -> str:
        """Return a new token of that instance in that network."""
        nonce = secrets.token_bytes(_NONCE_BYTES) + struct.pack(">Q", int(now) + ttl_s)
        return base64.urlsafe_b64encode(nonce + self._seal(nonce, network_id, instance_id)).decode()

    def remaining_s(self, token: str, network_id: str, instance_id: str, *, now: float) -> int:
        """Return for how many seconds a token is still good; 0 when it is not, for any reason."""
        try:
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            return 0
        if base64.urlsafe_b64encode(raw).decode() != token:
            return 0  # another way to write the same
        nonce, seal = raw[: _NONCE_BYTES + 8], raw[_NONCE_BYTES + 8 :]
        if not hmac.compare_digest(seal, self._seal(nonce, network_id, instance_id)):
            return 0
        return max(0, int(struct.unpack(">Q", nonce[_NONCE_BYTES:])[0]) - int(now))

    def _seal(self, nonce: bytes, network_id: str, instance_id: str) -> bytes:
        said = b"\0".join((b"metadata-token", network_id.encode(), instance_id.encode(), nonce))
        return hmac.digest(self._key, said, "sha256")


def answer(request: Request, subject: Subject | None, tokens: Tokens, now: float) -> Response:
    """Return the answer to a request of the instance that the journal knows at its source.

    :param subject: what the journal found; ``None``, or an instance that does not have that
        address in that network, is answered like an unknown path.
    """
    if subject is None or not _is_at_source(subject, request):
        return error(HTTPStatus.NOT_FOUND)
    path = _path(request.target)
    if path is None:
        return error(HTTPStatus.BAD_REQUEST)
    if path[1:] == ("api", "token") and path[0] in VERSIONS:
        return _answer_token(request, subject, tokens, now)
    if request.method not in ("GET", "HEAD"):
        return error(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
    headers: tuple[tuple[str, str], ...] = ()
    about = subject.metadata
    token = request.headers.get(_TOKEN)
    if token is not None:
        remaining_s = tokens.remaining_s(token, request.network_id, about.instance_id, now=now)
        if not remaining_s:
            return error(HTTPStatus.UNAUTHORIZED)
        headers = ((TTL_HEADER, str(remaining_s)),)
    elif about.requires_token:
        return error(HTTPStatus.UNAUTHORIZED)
    return _answer_path(path, subject, headers, is_directory=request.target.endswith("/"))


def error(status: HTTPStatus, *headers: tuple[str, str]) -> Response:
    """Return an error in the page form that EC2 uses."""
    title = html.escape(f"{status.value} - {status.phrase}")
    page = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n'
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"\n'
        '\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n'
        f" <head>\n  <title>{title}</title>\n </head>\n"
        f" <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )
    return Response(
        status=status.value, body=page.encode(), content_type="text/html", headers=headers
    )


def _is_at_source(subject: Subject, request: Request) -> bool:
    return any(
        port.network_id == request.network_id and request.source in port.addresses
        for port in subject.ports
    )


def _path(target: str) -> tuple[str, ...] | None:
    """Return the names in a target; ``None`` when it is no path. Doubled slashes count once."""
    if target.startswith("/"):
        raw = target.partition("?")[0]
    elif target.startswith(("http://", "https://")):
        try:
            raw = urlsplit(target).path
        except ValueError:
            return None
    else:
        return None
    return tuple(name for name in unquote(raw).split("/") if name)


def _answer_token(request: Request, subject: Subject, tokens: Tokens, now: float) -> Response:
    if request.method != "PUT":
        return error(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "PUT"))
    if "x-forwarded-for" in request.headers:
        # It came through a proxy of the instance: whoever asked the proxy must not get a token.
        return error(HTTPStatus.FORBIDDEN)
    wanted = request.headers.get(TTL_HEADER.lower(), "")
    if not _TTL.fullmatch(wanted) or not 1 <= int(wanted) <= LONGEST_TTL_S:
        return error(HTTPStatus.BAD_REQUEST)
    about = subject.metadata
    token = tokens.issue(request.network_id, about.instance_id, now=now, ttl_s=int(wanted))
    return Response(
        status=HTTPStatus.OK.value,
        body=token.encode(),
        headers=((TTL_HEADER, wanted),),
        hop_limit=min(max(about.token_hop_limit, 1), 64),
    )


def _answer_path(
    path: tuple[str, ...],
    subject: Subject,
    headers: tuple[tuple[str, str], ...],
    *,
    is_directory: bool,
) -> Response:
    if not path:
        body = "\n".join(VERSIONS).encode()
        return Response(status=HTTPStatus.OK.value, body=body, headers=headers)
    tree = render(subject)
    item = find(tree, path[1:]) if path[0] in VERSIONS else None
    if isinstance(item, dict):
        body = listing(item, path[1:], subject.metadata.key_name)
        return Response(status=HTTPStatus.OK.value, body=body, headers=headers)
    if item is None or is_directory:
        return error(HTTPStatus.NOT_FOUND)
    is_user_data = path[1:] == ("user-data",)
    return Response(
        status=HTTPStatus.OK.value,
        body=item,
        content_type="application/octet-stream" if is_user_data else "text/plain",
        headers=headers,
    )
