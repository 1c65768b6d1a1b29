"""The listeners of the metadata service: one per network, all served by one thread.

A connection carries one request and must end within a deadline, however slowly its peer drips; an
instance has only so many at a time. So no instance can keep another one from its metadata.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from appliance.datapath.metadata import Request, Response, Tokens, answer, error
from appliance.datapath.metadata_tree import Subject
from appliance.ending import end_threads
from appliance.errors import ConfigError, Unavailable
from appliance.firewall import METADATA_ADDRESS
from appliance.lanes import Lanes
from appliance.world import Clock, SystemClock

log = logging.getLogger(__name__)
R = TypeVar("R")

Lookup = Callable[[str, str], Subject | None]
"""Takes a network's id and a source address; returns whose it is on this node.

It is called from several threads and may take as long as a look into a journal takes.
"""

_HEAD_BYTES = 16384
_BODY_BYTES = 16384
_IP_FREEBIND = 15
_LOOKUP_THREADS = 4
_LOOP_S = 10.0
_END_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much the service gives: seconds a connection, connections an instance, and in all."""

    connection_s: float = 10.0
    per_source: int = 16
    in_all: int = 512


@dataclass(eq=False, kw_only=True)
class _Listener:
    network_id: str
    device: str
    device_index: int
    place: tuple[str, int]
    server: asyncio.Server | None = None
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    sources: Counter[str] = field(default_factory=Counter)


class _BadRequest(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class MetadataServer:
    """Serves the metadata of this node's instances; may be called from any thread.

    :param token_key: at least 32 bytes, of this node alone, and the same after a restart.
    """

    def __init__(
        self,
        lookup: Lookup,
        token_key: bytes,
        clock: Clock | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self._lookup = lookup
        self._tokens = Tokens(token_key)
        self._clock = clock or SystemClock()
        self._bounds = bounds or Bounds()
        self._lock = threading.Lock()
        self._listeners: dict[str, _Listener] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._workers = Lanes("metadata", _LOOKUP_THREADS)

    def listen(
        self, network_id: str, device: str, address: str = METADATA_ADDRESS, port: int = 80
    ) -> None:
        """Serve a network at its bridge; the address need not be there yet, the bridge must.

        Safe to repeat; after the bridge was made anew the listener is, too.

        :raises ConfigError: there is no such link, or the port is taken; nothing was changed.
        :raises Unavailable: the service's own thread does not answer.
        """
        with self._lock:
            try:
                index = socket.if_nametoindex(device)
            except OSError as cause:
                raise ConfigError(f"Metadata of {network_id}: no link {device!r}.") from cause
            old = self._listeners.get(network_id)
            if old and (old.device_index, old.place) == (index, (address, port)):
                return
            if old:
                self._close(old)
            listener = _Listener(
                network_id=network_id, device=device, device_index=index, place=(address, port)
            )
            bound = _bind(listener)
            self._run(self._start(listener, bound))
            self._listeners[network_id] = listener

    def close(self, network_id: str) -> None:
        """Stop serving a network and cut what is being answered; not served is no error."""
        with self._lock:
            listener = self._listeners.get(network_id)
            if listener:
                self._close(listener)

    def stop(self) -> None:
        """Stop serving all networks and end the threads; safe to repeat.

        A look-up that goes on is left behind.

        :raises Unavailable: the service's own thread does not answer.
        """
        with self._lock:
            for listener in list(self._listeners.values()):
                self._close(listener)
            if self._loop and self._thread:
                self._loop.call_soon_threadsafe(self._loop.stop)
                if end_threads([self._thread], _END_S):
                    self._loop.close()
                self._workers.stop(_END_S)
                self._workers = Lanes("metadata", _LOOKUP_THREADS)
            self._loop = self._thread = None

    @property
    def network_ids(self) -> tuple[str, ...]:
        """Return the networks that are served."""
        with self._lock:
            return tuple(sorted(self._listeners))

    def _run(self, work: Coroutine[Any, Any, R]) -> R:
        if not self._loop:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="metadata", daemon=True
            )
            self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LOOP_S)
        except FutureTimeoutError as error:
            raise Unavailable("The metadata service does not answer.") from error

    async def _start(self, listener: _Listener, bound: socket.socket) -> None:
        listener.server = await asyncio.start_server(
            partial(self._serve, listener), sock=bound, limit=_HEAD_BYTES
        )

    def _close(self, listener: _Listener) -> None:
        self._run(_shut(listener))
        del self._listeners[listener.network_id]

    async def _serve(
        self, listener: _Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = writer.get_extra_info("peername")
        source = peer[0] if peer else ""
        in_all = sum(len(one.connections) for one in self._listeners.values())
        if listener.sources[source] >= self._bounds.per_source or in_all >= self._bounds.in_all:
            writer.transport.abort()
            return
        listener.connections.add(writer)
        listener.sources[source] += 1
        try:
            async with asyncio.timeout(self._bounds.connection_s):
                await self._exchange(listener.network_id, source, reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as cause:
            log.debug("metadata: %s in %s: %s", source, listener.network_id, cause)
            writer.transport.abort()
        finally:
            writer.close()
            listener.connections.discard(writer)
            listener.sources[source] -= 1
            if not listener.sources[source]:
                del listener.sources[source]

    async def _exchange(
        self,
        network_id: str,
        source: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        method = "GET"
        try:
            request = await _read(network_id, source, reader)
            method = request.method
            response = await self._answer(request)
        except _BadRequest as bad:
            response = error(bad.status)
        if response.hop_limit:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, response.hop_limit)
        writer.write(_render(response, has_body=method != "HEAD"))
        await writer.drain()
        writer.write_eof()
        # Until the peer has read it all and closed: an early end of ours could cut the answer.
        while await reader.read(_BODY_BYTES):
            pass

    async def _answer(self, request: Request) -> Response:
        try:
            subject = await asyncio.wrap_future(
                self._workers.ask(partial(self._lookup, request.network_id, request.source))
            )
            return answer(request, subject, self._tokens, self._clock.now())
        except Exception:
            log.exception("metadata: no answer for %s in %s", request.source, request.network_id)
            return error(HTTPStatus.INTERNAL_SERVER_ERROR)


def _bind(listener: _Listener) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, listener.device.encode())
        bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        bound.bind(listener.place)
        bound.setblocking(False)
    except OSError as cause:
        bound.close()
        address, port = listener.place
        raise ConfigError(
            f"Could not serve metadata of {listener.network_id} at {address}:{port} on "
            f"{listener.device}: {cause.strerror}.",
            hint="Another program may listen there; binding needs CAP_NET_RAW and "
            "CAP_NET_BIND_SERVICE.",
        ) from cause
    return bound


async def _shut(listener: _Listener) -> None:
    if listener.server:
        listener.server.close()
    for writer in list(listener.connections):
        writer.transport.abort()


async def _read(network_id: str, source: str, reader: asyncio.StreamReader) -> Request:
    """Read one request with its body, which is thrown away."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as cause:
        raise _BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from cause
    request = parse_head(network_id, source, head)
    if request is None or "transfer-encoding" in request.headers:
        raise _BadRequest(HTTPStatus.BAD_REQUEST)
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _BadRequest(HTTPStatus.BAD_REQUEST)
    if len(length) > 6 or int(length) > _BODY_BYTES:
        raise _BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    await reader.readexactly(int(length))
    return request


def parse_head(network_id: str, source: str, head: bytes) -> Request | None:
    """Return the request that a head spells; ``None`` when it is not HTTP/1."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        key = name.lower()
        value = value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Request(
        network_id=network_id, source=source, method=words[0], target=words[1], headers=headers
    )


def _render(response: Response, *, has_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + response.body if has_body else head
