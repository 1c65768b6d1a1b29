"""The HTTP server: bounded in threads, bytes and seconds; its own errors are EC2's, too."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from cheroot import server as cheroot_server
from cheroot import wsgi
from cheroot.workers import threadpool

from appliance.api.connections import IDLE_S, LARGEST_HEAD, Connection, Connections
from appliance.api.ec2.protocol.serializer import serialize_error
from appliance.ending import Countdown, end_threads
from appliance.errors import ConfigError

log = logging.getLogger(__name__)

RAW_HEADERS = "anynode.headers"
"""Where the WSGI environment has the headers as they came: lower case, in order, none dropped."""

MOST_HEADERS = 100
WRITE_S = 60.0
"""Seconds within which a reply must have been taken, however it is read."""

_CUT_S = 1.0
_BACKLOG = 128
_KEPT_CONNECTIONS = 200
_CODES = {
    "408": ("RequestTimeout", "The request did not come in within the time allowed."),
    "413": ("RequestEntityTooLarge", "The request is too large."),
    "414": ("RequestEntityTooLarge", "The request line is too long."),
    "500": ("InternalError", "An internal error has occurred"),
}


class _Headers(dict[bytes, bytes]):
    """Headers as cheroot wants them, and as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []


class _HeaderReader:
    """Reads headers strictly: what could be read in two ways is refused."""

    def __call__(self, rfile: Any, found: _Headers) -> _Headers:
        while True:
            line = rfile.readline()
            if line == b"\r\n":
                return found
            if not line.endswith(b"\r\n"):
                raise ValueError("Illegal end of headers.")
            name, colon, value = line[:-2].partition(b":")
            if b"\0" in line or b"\r" in line[:-2]:
                raise ValueError("Illegal character in a header.")
            if not colon or not name or name != name.strip():
                raise ValueError("Illegal header line.")
            self._add(found, name.decode("latin-1").lower(), value.strip())

    def _add(self, found: _Headers, name: str, value: bytes) -> None:
        if len(found.lines) >= MOST_HEADERS:
            raise ValueError("Too many headers.")
        key = name.title().encode("latin-1")
        if key in found and name in ("content-length", "host", "authorization"):
            raise ValueError(f"The header {name} is given twice.")
        if name == "transfer-encoding":
            raise ValueError("Send the body with a Content-Length.")
        if name == "content-length" and not value.isdigit():
            raise ValueError("Malformed Content-Length Header.")
        found.lines.append((name, value.decode("latin-1")))
        # WSGI cannot tell X_Y from X-Y, so that only one of them may reach it.
        # A client that asked whether to send its body has had its answer: the body is here.
        if "_" not in name and name != "expect":
            found[key] = value


class _Request(cheroot_server.HTTPRequest):
    header_reader = _HeaderReader()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.inheaders = _Headers()

    def send_headers(self) -> None:
        """Begin the reply, which must be taken within ``WRITE_S`` seconds."""
        self.server.writing[self.conn] = time.monotonic() + WRITE_S
        super().send_headers()

    def simple_response(self, status: str, msg: str = "") -> None:
        """Write one of the server's own errors in EC2's form and close."""
        status = str(status)
        request_id = str(uuid.uuid4())
        code, text = _CODES.get(status[:3], ("InvalidRequest", msg or status[4:]))
        body = serialize_error(code, text, request_id=request_id)
        log.info("refused %s: %s request=%s", self.conn.remote_addr, status, request_id)
        head = (
            f"{self.server.protocol} {status}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: text/xml;charset=UTF-8\r\nConnection: close\r\n"
            f"x-amzn-RequestId: {request_id}\r\n\r\n"
        )
        self.close_connection = True
        try:
            self.conn.wfile.write(head.encode("latin-1") + body)
        except OSError as error:
            log.debug("could not answer %s: %s", self.conn.remote_addr, error)


class ServerConnection(Connection):
    """A connection of a client, from its first request to its last."""

    RequestHandlerClass = _Request

    def communicate(self) -> Any:
        """Serve the request that has come in; return whether another may come."""
        try:
            return super().communicate()
        finally:
            self.server.writing.pop(self, None)


class ServerGateway(wsgi.Gateway_10):
    """What turns a request into the call of an application."""

    def get_environ(self) -> Any:
        """Return the WSGI environment with the raw headers."""
        environ = super().get_environ()  # type: ignore[no-untyped-call]
        environ[RAW_HEADERS] = self.req.inheaders.lines
        return environ


class _Workers(threadpool.ThreadPool):
    """The threads that serve requests; one that never ends holds up neither stop nor process."""

    # What cheroot keeps to itself, and does not describe.
    _threads: list[Any]
    _queue: Any

    def _spawn_worker(self) -> Any:
        worker = threadpool.WorkerThread(self.server)  # type: ignore[no-untyped-call]
        worker.name = f"{self.server.name}-{worker.name}"
        worker.daemon = True
        worker.start()
        return worker

    def stop(self, timeout: float = 5) -> None:
        """Serve what waits, cut what is not served in time, and leave what goes on even then."""
        workers = [one for one in self._threads if one is not threading.current_thread()]
        self._threads.clear()
        for _ in workers:
            self._queue.put(threadpool._SHUTDOWNREQUEST)  # type: ignore[attr-defined]
        countdown = Countdown(timeout)
        for worker in workers:
            worker.join(countdown.left_s())
            _cut(worker.conn)
        end_threads(workers, _CUT_S)


def _cut(connection: Connection | None) -> None:
    """End a connection in both directions: whoever reads or writes there goes on."""
    if connection is None:
        return
    try:
        connection.socket.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("could not cut %s: %s", connection.remote_addr, error)


class Server(wsgi.Server):
    """An HTTP server for one WSGI application.

    :param port: 0 for one that is free, see :attr:`port`.
    """

    ConnectionClass = ServerConnection
    _connections: Any
    expiration_interval = 0.2
    keep_alive_conn_limit = _KEPT_CONNECTIONS

    def __init__(
        self,
        address: str,
        port: int,
        app: Callable[..., Iterable[bytes]],
        threads: int,
        *,
        name: str = "anynode-api",
    ) -> None:
        super().__init__(
            (address, port),
            app,
            numthreads=threads,
            max=threads,
            server_name="anynode",
            request_queue_size=_BACKLOG,
            timeout=int(IDLE_S),
        )
        self.requests = _Workers(self, min=threads, max=threads)
        self.gateway = ServerGateway
        self.max_request_header_size = LARGEST_HEAD
        self.writing: dict[ServerConnection, float] = {}
        self.name = name
        self._bind_error: OSError | None = None
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.bind_addr[1])

    def clear_stats(self) -> None:
        """Begin to count anew, and only here: cheroot's own list would keep every server."""
        super().clear_stats()  # type: ignore[no-untyped-call]
        statistics = getattr(logging, "statistics", {})
        statistics.pop(f"Cheroot HTTPServer {id(self)}", None)

    def prepare(self) -> None:
        """Listen, with connections that wait for whole requests."""
        super().prepare()
        self._connections.close()
        self._connections = Connections(self)

    def process_conn(self, conn: Connection) -> None:
        """Take in a connection."""
        self._connections.put(conn)

    def open(self) -> None:
        """Listen and serve in threads of its own until :meth:`close`.

        :raises ConfigError: the address cannot be listened on.
        """
        address, port = self.bind_addr
        try:
            self.prepare()
        except OSError as error:
            raise _cannot_listen(address, port, self._bind_error or error) from error
        for work in (self.serve, self._watch):
            thread = threading.Thread(target=work, name=f"{self.name}-{len(self._threads)}")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Serve what is under way, for some seconds, and end. Safe to repeat."""
        self._ended.set()
        self.stop()
        end_threads(self._threads, self.shutdown_timeout)
        self._threads.clear()

    def bind(self, family: int, kind: int, proto: int = 0) -> Any:
        """Bind the socket, and keep the error that cheroot turns into a text."""
        try:
            return super().bind(family, kind, proto)
        except OSError as error:
            self._bind_error = error
            raise

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log what cheroot has to say."""
        log.log(level, "%s", msg, exc_info=traceback)

    def _watch(self) -> None:
        """Cut connections whose reply is not taken: a slow reader holds a whole thread."""
        while not self._ended.wait(1.0):
            now = time.monotonic()
            for connection, deadline in list(self.writing.items()):
                if deadline < now:
                    self.writing.pop(connection, None)
                    _cut(connection)


def _cannot_listen(address: str, port: int, error: OSError) -> ConfigError:
    hints = {
        errno.EADDRINUSE: "Another program listens there: end it, or set api.port.",
        errno.EACCES: "Run as root, or set api.port to one above 1023.",
        errno.EADDRNOTAVAIL: "Set api.address to an address of this machine.",
    }
    return ConfigError(
        f"Could not listen on {address} port {port}: {error.strerror or error}.",
        hint=hints.get(error.errno or 0, "Set api.address and api.port."),
    )
