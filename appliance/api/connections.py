"""Connections that take in a whole request before a thread is given to it.

What comes slowly, or never, costs a little memory and no thread: however many senders trickle,
requests that are there are answered.
"""

from __future__ import annotations

import io
import logging
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from cheroot import connections, server

log = logging.getLogger(__name__)

LARGEST_HEAD = 16 * 1024
LARGEST_BODY = 64 * 1024
MOST_WAITING = 400
"""Connections whose request has not come in yet; beyond, those that wait longest are closed."""

READ_S = 30.0
"""Seconds within which a request must have come in, however it trickles."""

IDLE_S = 10.0
"""Seconds for which a connection may be silent."""

_LARGEST_DISCARD = 16 * 1024 * 1024
_PIECE = 64 * 1024
_LONGEST_LENGTH = 12
_BARE_FEED = re.compile(rb"(?<!\r)\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Inbox:
    """What has come in of one request.

    The body's length is read by the same rules as the header reader's, which refuses whatever
    could be read in two ways.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.is_over = False
        self.expects_word = False
        self._bytes = bytearray()
        self._head: int | None = None
        self._body = 0
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def is_whole(self) -> bool:
        """Whether the request can be served, or refused, without anything more."""
        if self._head is None:
            return self.is_over
        there = len(self._bytes) + self._dropped
        return self.is_over or there >= self._head + self._body

    @property
    def is_last(self) -> bool:
        """Whether nothing that follows can be told from the rest of this request."""
        return self.is_over or self._dropped > 0

    def add(self, piece: bytes) -> None:
        """Add what came; of a body that is too large only a little more than allowed is kept."""
        if not self._bytes:
            self.began = time.monotonic()
        known = len(self._bytes)
        self._bytes += piece
        if self._head is None:
            self._find_head(max(0, known - 3))
        if self._head is not None and self._body > LARGEST_BODY:
            kept = self._head + LARGEST_BODY + 1
            self._dropped += max(0, len(self._bytes) - kept)
            del self._bytes[kept:]

    def _find_head(self, start: int) -> None:
        end = self._bytes.find(b"\r\n\r\n", start)
        if end >= 0:
            self._head = end + 4
            self._read_head(bytes(self._bytes[: self._head]))
        elif len(self._bytes) > LARGEST_HEAD or _BARE_FEED.search(self._bytes, start):
            self.is_over = True

    def _read_head(self, head: bytes) -> None:
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            word, value = name.strip().lower(), value.strip()
            if word == b"content-length" and value.isdigit():
                self._body = int(value) if len(value) <= _LONGEST_LENGTH else 10**_LONGEST_LENGTH
            self.expects_word |= word == b"expect" and value.lower() == b"100-continue"
        self.expects_word &= 0 < self._body <= LARGEST_BODY
        self.is_over = self._body > _LARGEST_DISCARD

    def take(self) -> tuple[bytes, bytes]:
        """Return the request and what follows it; what is too large ends the connection."""
        if self._head is None or self._dropped:
            return bytes(self._bytes), b""
        size = self._head + self._body
        return bytes(self._bytes[:size]), bytes(self._bytes[size:])


class RequestFile(io.BytesIO):
    """One request, as cheroot reads it."""

    bytes_read = 0

    def has_data(self) -> bool:
        """Say that nothing more is in here: what follows waits in the connection's inbox."""
        return False


class Connection(server.HTTPConnection):
    """A connection that reads without waiting, and serves what is there."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # They hold the connection, so that its socket would stay open until a garbage collection.
        del self.resolve_peer_creds, self.get_peer_creds
        self.rfile.close()
        self.rfile = RequestFile()
        self.inbox = Inbox()
        self.waits_since = time.monotonic()
        self.spoke_at = self.waits_since

    def receive(self) -> bool:
        """Take what has come; return whether there is something to do: a request, or the end."""
        if self.inbox.is_whole:
            return True
        self.socket.setblocking(False)
        try:
            piece = self.read_some()
        except OSError as error:
            log.debug("lost %s: %s", self.remote_addr, error)
            piece = b""
        if piece is None:
            return False
        if piece:
            self.spoke_at = time.monotonic()
            self.inbox.add(piece)
            self._give_word()
        else:
            self.inbox.is_over = True
        return self.inbox.is_whole

    def read_some(self) -> bytes | None:
        """Return what has come, nothing at the end; ``None`` when nothing has come."""
        try:
            return bytes(self.socket.recv(_PIECE))
        except BlockingIOError:
            return None

    def _give_word(self) -> None:
        if self.inbox.expects_word and not self.inbox.is_whole:
            self.inbox.expects_word = False
            try:
                self.socket.send(_CONTINUE)
            except OSError as error:
                log.debug("could not ask %s for the body: %s", self.remote_addr, error)

    def communicate(self) -> Any:
        """Serve the request that has come in; return whether another may come."""
        self.socket.settimeout(self.server.timeout)
        request, rest = self.inbox.take()
        is_late, is_last = not self.inbox.is_whole, self.inbox.is_last
        self.inbox = Inbox()
        if is_late:
            self.RequestHandlerClass(self.server, self).simple_response("408 Request Timeout")
            return False
        self.rfile = RequestFile(request)
        goes_on = super().communicate()  # type: ignore[no-untyped-call]
        self.rfile = RequestFile()
        self.waits_since = self.spoke_at = time.monotonic()
        if rest:
            self.inbox.add(rest)
        return goes_on and not is_last

    def is_due(self, now: float) -> bool:
        """Whether the time is up in which the next request should have come."""
        return self.spoke_at + IDLE_S < now or (
            len(self.inbox) > 0 and self.inbox.began + READ_S < now
        )


class Connections(connections.ConnectionManager):
    """All connections that wait for a request, watched by one thread.

    Others than this thread only add connections: see cheroot's own class.
    """

    # What cheroot keeps to itself, and does not describe.
    _selector: Any
    _stop_requested: bool
    _num_connections: int
    _remove_invalid_sockets: Callable[[], None]
    _from_server_socket: Callable[[socket.socket], Connection | None]

    def put(self, conn: Connection) -> None:
        """Let a connection wait for its next request, or be served if that is in."""
        if not conn.receive():
            self._selector.register(conn.socket.fileno(), selectors.EVENT_READ, data=conn)
        elif len(conn.inbox):
            self.server.requests.put(conn)
        else:
            conn.close()

    def _run(self, expiration_interval: float) -> None:
        looked_at = 0.0
        while not self._stop_requested:
            try:
                ready = list(self._selector.select(timeout=expiration_interval))
            except OSError:
                self._remove_invalid_sockets()
                continue
            for number, conn in ready:
                if conn is self.server:
                    self._accept()
                else:
                    self._selector.unregister(number)
                    self.put(conn)
            now = time.monotonic()
            if now - looked_at > expiration_interval or self._num_connections > MOST_WAITING:
                self._expire(now)
                looked_at = now

    def _accept(self) -> None:
        conn = self._from_server_socket(self.server.socket)
        if conn is not None:
            self.put(conn)

    def _expire(self, threshold: float) -> None:
        """Close connections whose time is up, and the oldest of too many.

        :param threshold: what the monotonic clock says now.
        """
        waiting = sorted(self._waiting(), key=lambda each: each[1].waits_since)
        surplus = len(waiting) - MOST_WAITING
        for place, (number, conn) in enumerate(waiting):
            if place < surplus or conn.is_due(threshold):
                self._selector.unregister(number)
                if len(conn.inbox):
                    self.server.requests.put(conn)
                else:
                    conn.close()

    def _waiting(self) -> Iterator[tuple[int, Connection]]:
        for number, conn in self._selector.connections:
            if conn is not self.server:
                yield number, conn
