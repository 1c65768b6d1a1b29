"""Questions to the peer services of other nodes: it is them, or nothing is said."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.cluster import certificates
from appliance.cluster.peer_messages import PeerMessage, Trouble
from appliance.errors import (
    AnynodeError,
    Conflict,
    Denied,
    InputError,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from appliance.model import Member

A = TypeVar("A", bound=PeerMessage)
T = TypeVar("T")

CONNECT_S = 5.0
ANSWER_S = 30.0
"""Seconds of silence after which an answer is given up."""

LARGEST_ANSWER = 16 << 20
"""Bytes of an answer that is a message; lists of members are the longest."""

_ERRORS: Mapping[int, type[AnynodeError]] = {
    400: InputError,
    403: Denied,
    404: NotFound,
    409: Conflict,
}


class Line(http.client.HTTPSConnection):
    """A connection to one peer service, made by :func:`connect`."""

    def __init__(self, host: str, port: int, sock: ssl.SSLSocket) -> None:
        super().__init__(host, port)
        self.sock = sock
        # A line that was closed is not opened again: nobody would look who answers then.
        self.auto_open = 0


def connect(
    address: str, context: ssl.SSLContext, node_id: str, *, timeout_s: float = ANSWER_S
) -> Line:
    """Connect to a node, once its certificate has shown that it is that node.

    :param address: ``host:port`` of its peer service.
    :param context: what this node proves its membership with, and checks that of others.
    :raises Unavailable: it is not there, or another answers.
    """
    host, port = _split(address)
    try:
        raw = socket.create_connection((host, port), CONNECT_S)
    except OSError as error:
        raise Unavailable(f"No node answers at {address}: {_why(error)}.") from error
    try:
        # Whatever checks the name is the one of this node and no address: those move.
        wrapped = context.wrap_socket(raw, server_hostname=certificates.server_name(node_id))
    except (OSError, ssl.SSLError) as error:
        raw.close()
        raise Unavailable(
            f"Who answers at {address} is not node {node_id}: {_why(error)}."
        ) from error
    wrapped.settimeout(timeout_s)
    return Line(host, port, wrapped)


def ask(
    member: Member,
    context: ssl.SSLContext,
    method: str,
    path: str,
    question: PeerMessage | None,
    answer: type[A],
) -> A:
    """Ask a member and return its answer.

    :raises Unavailable: it is not there, or did not answer; whether it took effect is unknown.
    :raises AnynodeError: the error that the one asked has raised.
    """
    line = connect(member.address, context, member.node_id)
    try:
        return asked(line, method, path, question, answer)
    finally:
        line.close()


def asked(line: Line, method: str, path: str, question: PeerMessage | None, answer: type[A]) -> A:
    """Ask over a line and return the answer; see :func:`ask`."""
    body = None if question is None else msgspec.json.encode(question)
    with _talking(line):
        line.request(method, path, body, {"Content-Type": "application/json"})
        reply = line.getresponse()
        text = reply.read(LARGEST_ANSWER + 1)
    if reply.status != 200:
        raise trouble_of(reply.status, text)
    if len(text) > LARGEST_ANSWER:
        raise Unavailable(f"The answer of {line.host} is too long.")
    try:
        return msgspec.json.decode(text, type=answer)
    except msgspec.DecodeError:
        raise Unavailable(f"The answer of {line.host} cannot be read.") from None


@contextmanager
def _talking(line: Line) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{line.host} did not answer: {_why(error)}.") from error


def trouble_of(status: int, text: bytes) -> AnynodeError:
    """Return the error that a peer service has told of."""
    try:
        told = msgspec.json.decode(text[:65536], type=Trouble)
    except msgspec.DecodeError:
        told = Trouble(message=f"The node asked answered with HTTP status {status}.")
    if told.code == LimitExceeded.code:
        return LimitExceeded(told.message, hint=told.hint)
    kind = _ERRORS.get(status, Unavailable)
    return kind(told.message, hint=told.hint, code=told.code if kind is not Unavailable else "")


def first_answer(members: list[Member], work: Callable[[Member], T]) -> T:
    """Return the answer of the first of several members that gives one.

    :raises Unavailable: none is there.
    :raises AnynodeError: what the last of them has raised.
    """
    problem: AnynodeError = Unavailable("No control node of the cluster is known.")
    for member in members:
        try:
            return work(member)
        except (Unavailable, NotFound, Denied) as error:
            problem = error
    raise problem


# -- strangers ------------------------------------------------------------------------------------


def read_authority(address: str) -> str:
    """Return the certificate of the authority, PEM, of the cluster at an address.

    Whoever answers is not known yet, and learns nothing: see whether this is the certificate meant.

    :raises Unavailable: nobody answers there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is believed, and nothing said
    try:
        line = _connect_as_stranger(address, context)
    except ssl.SSLError as error:
        raise Unavailable(f"What answers at {address} is no node: {_why(error)}.") from error
    try:
        with _talking(line):
            line.request("GET", "/join")
            reply = line.getresponse()
            text = reply.read(65536)
    finally:
        line.close()
    if reply.status != 200:
        raise trouble_of(reply.status, text)
    return text.decode("ascii", "replace")


def connect_to_control(
    address: str, authority: str, papers: Path | None = None
) -> tuple[Line, str]:
    """Connect to a control node of the cluster with that authority, PEM; return its id, too.

    :param papers: a folder with a node's certificate and key, to be shown; else none is.
    :raises Unavailable: nobody answers there.
    :raises Denied: who answers is no control node of that cluster; nothing was sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # which of the control nodes it is does not matter
    context.load_verify_locations(cadata=authority)
    if papers:
        context.load_cert_chain(papers / "node.pem", papers / "node.key")
    try:
        line = _connect_as_stranger(address, context)
        shown = line.sock.getpeercert(binary_form=True)
        identity = certificates.identity_of(certificates.read_der(shown or b""))
        if not identity.is_control:
            line.close()
            raise Denied(f"Node {identity.node_id}, which answers at {address}, lets nobody in.")
    except ssl.SSLError as error:
        raise Denied(
            f"Who answers at {address} is no node of the cluster that the token is from.",
            hint="Somebody may be between; nothing was sent.",
        ) from error
    return line, identity.node_id


def _connect_as_stranger(address: str, context: ssl.SSLContext) -> Line:
    host, port = _split(address)
    try:
        raw = socket.create_connection((host, port), CONNECT_S)
        try:
            wrapped = context.wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise
    except ssl.SSLError:
        raise
    except OSError as error:
        raise Unavailable(
            f"No node answers at {address}: {_why(error)}.",
            hint="Look whether that node runs, and whether this machine reaches it.",
        ) from error
    wrapped.settimeout(ANSWER_S)
    return Line(host, port, wrapped)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
