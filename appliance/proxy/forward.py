"""Handing a call on to one of several APIs, without ever carrying out a change twice."""

from __future__ import annotations

import http.client
import itertools
import logging
import select
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from appliance.api import policy
from appliance.cluster.certificates import server_name
from appliance.errors import InputError, Unavailable
from appliance.model import HttpRequest, Member
from appliance.proxy import NOT_TAKEN, PREFIX, SOURCE
from appliance.world import Clock

log = logging.getLogger(__name__)

CONNECT_S = 3.0
"""Seconds that a node may take to accept a call before the next one is tried."""

ANSWER_S = 60.0
"""Seconds of silence after which an answer is given up."""

AVOID_S = 10.0
"""Seconds for which a node that has failed is asked after all others."""

_PIECE = 64 * 1024
_KEPT = 4
_IDLE_S = 5.0
_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "server", "date"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an API has answered; ``pieces`` must be read to its end or closed."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    pieces: Iterator[bytes]


@dataclass(kw_only=True)
class _Line:
    """A connection to one node."""

    member: Member
    connection: http.client.HTTPSConnection
    used_at: float


@dataclass
class _Kept:
    """Connections that wait for the next call."""

    lines: dict[str, list[_Line]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Connection(http.client.HTTPSConnection):
    """A connection to one member, which its certificate must name: others' are as good as its own.

    :param name: by which the member's certificate is met, wherever the member is.
    """

    def __init__(self, host: str, port: int, name: str, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=CONNECT_S, context=context)
        self._name = name
        self._tls = context

    def connect(self) -> None:
        """Connect, and see that it is the member."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


class _UnansweredError(Exception):
    """A member gave no answer; ``was_sent`` says whether it may have got the call."""

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class Forwarder:
    """Hands calls on to the nodes that answer EC2.

    :param doors: returns the members that have the ``api`` role, those that are down included.
    :param context: returns what this node proves its membership with, and checks that of others.
    """

    def __init__(
        self,
        doors: Callable[[], Sequence[Member]],
        context: Callable[[], ssl.SSLContext],
        clock: Clock,
    ) -> None:
        self._doors = doors
        self._context = context
        self._clock = clock
        self._turn = itertools.count()
        self._failed: dict[str, float] = {}
        self._kept = _Kept()

    def send(self, request: HttpRequest) -> Answer:
        """Hand a call on and return the answer, as soon as it begins.

        A call that only reads is tried on each node in turn. One that may change something goes to
        the next node only while nothing of it has been sent.

        :raises Unavailable: no node took it; or the one that did gave no answer.
        :raises InputError: it cannot be written down again as it came.
        """
        is_read = only_reads(request)
        doors = self._in_order()
        for member in doors:
            try:
                return self._ask_member(member, request, is_read)
            except _UnansweredError as error:
                self._note_failure(member, error)
                if error.was_sent and not is_read:
                    raise Unavailable(
                        f"{member.name} took the call and gave no answer; whether it was carried "
                        "out is unknown."
                    ) from error
        raise Unavailable("No node that answers EC2 can be reached now.")

    def _ask_member(self, member: Member, request: HttpRequest, is_read: bool) -> Answer:
        """Ask one member: a question on a connection that there is, if that one still answers."""
        kept = self._take(member) if is_read else None
        if kept:
            try:
                return self._ask(kept, request)
            except (OSError, http.client.HTTPException) as error:
                log.debug("a connection to %s had ended: %s", member.name, error)
                kept.connection.close()
        try:
            line = self._line_to(member)
        except (OSError, http.client.HTTPException) as error:
            raise _UnansweredError(str(error), was_sent=False) from error
        try:
            return self._ask(line, request)
        except (OSError, http.client.HTTPException) as error:
            line.connection.close()
            raise _UnansweredError(str(error), was_sent=True) from error

    def _in_order(self) -> list[Member]:
        """Return the doors, each in turn the first; those with which something is wrong last."""
        doors = list(self._doors())
        if not doors:
            return doors
        start = next(self._turn) % len(doors)
        turned = doors[start:] + doors[:start]
        now = self._clock.monotonic()
        return sorted(turned, key=lambda one: (self._has_failed(one.node_id, now), not one.is_up))

    def _has_failed(self, node_id: str, now: float) -> bool:
        failed_at = self._failed.get(node_id)
        return failed_at is not None and now - failed_at < AVOID_S

    def _note_failure(self, member: Member, error: Exception) -> None:
        log.warning("%s at %s does not answer: %s", member.name, member.address, error)
        self._failed[member.node_id] = self._clock.monotonic()
        self._close_lines(member.node_id)

    def _line_to(self, member: Member) -> _Line:
        """Return a new connection.

        Changes always get one: the other side may be closing one that was used before, and then
        nobody can tell whether what was sent has arrived.
        """
        host, _, port = member.address.rpartition(":")
        connection = _Connection(
            host.strip("[]"), int(port), server_name(member.node_id), self._context()
        )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(ANSWER_S)
        self._failed.pop(member.node_id, None)
        return _Line(member=member, connection=connection, used_at=0.0)

    def _take(self, member: Member) -> _Line | None:
        now = self._clock.monotonic()
        while True:
            with self._kept.lock:
                lines = self._kept.lines.get(member.node_id)
                line = lines.pop() if lines else None
            if line is None:
                return None
            is_same = line.member.address == member.address
            if is_same and now - line.used_at < _IDLE_S and not _has_news(line.connection):
                return line
            line.connection.close()

    def _give_back(self, line: _Line) -> None:
        line.used_at = self._clock.monotonic()
        with self._kept.lock:
            lines = self._kept.lines.setdefault(line.member.node_id, [])
            if len(lines) < _KEPT:
                lines.append(line)
                return
        line.connection.close()

    def _close_lines(self, node_id: str) -> None:
        with self._kept.lock:
            lines = self._kept.lines.pop(node_id, [])
        for line in lines:
            line.connection.close()

    def close(self) -> None:
        """Close the connections that wait for a call."""
        for node_id in list(self._kept.lines):
            self._close_lines(node_id)

    def _ask(self, line: _Line, request: HttpRequest) -> Answer:
        _write(line.connection, request)
        response = line.connection.getresponse()
        not_taken = response.getheader(NOT_TAKEN)
        if not_taken is not None:
            # A list of members is older than what it tells of: the role may have moved on.
            line.connection.close()
            raise _UnansweredError(not_taken, was_sent=False)
        headers = tuple(
            (name, value)
            for name, value in response.getheaders()
            if name.lower() not in _OF_THE_CONNECTION
        )
        return Answer(
            status=response.status,
            reason=response.reason,
            headers=headers,
            pieces=self._pieces(line, response),
        )

    def _pieces(self, line: _Line, response: http.client.HTTPResponse) -> Iterator[bytes]:
        is_whole = False
        try:
            while piece := response.read(_PIECE):
                yield piece
            is_whole = not response.length
        finally:
            if is_whole and not response.will_close:
                self._give_back(line)
            else:
                line.connection.close()
        if not is_whole:
            raise Unavailable(f"The answer of {line.member.name} broke off.")


def only_reads(request: HttpRequest) -> bool:
    """Say whether a call can be sent again without harm: each action it names only reads."""
    query = request.target.partition("?")[2]
    try:
        pairs = parse_qsl(query) + parse_qsl(request.body.decode("ascii"))
    except ValueError:
        return False
    actions = [value for name, value in pairs if name == "Action"]
    return all(one in policy.NEEDED and not policy.is_change(one) for one in actions)


def _write(connection: http.client.HTTPSConnection, request: HttpRequest) -> None:
    try:
        connection.putrequest(
            request.method, PREFIX + request.target, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers:
            if name != SOURCE:
                connection.putheader(name, value)
        connection.putheader(SOURCE, request.source)
    except (ValueError, http.client.InvalidURL) as error:
        connection.close()
        raise InputError(f"The request cannot be handed on: {error}.") from error
    connection.endheaders(request.body)


def _has_news(connection: http.client.HTTPSConnection) -> bool:
    """Say whether the other side has something to say unasked: that it is closing, mostly."""
    with suppress(OSError, ValueError):
        return bool(select.select([connection.sock], [], [], 0)[0])
    return True
