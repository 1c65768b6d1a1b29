"""A postman between nodes and their broker, who loses, doubles, keeps and mixes up what he is told.

He reads the frames of AMQP that the broker sends, so that all else is as it would be without him.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum

import pika

from tests.services.postgresql import free_port

DELAY_S = 1.0
LONGEST_HELD_S = 3.0
_FRAME = struct.Struct(">BHL")
_METHOD, _HEADER = 1, 2
_ACK, _REJECT, _RETURN, _DELIVER = (60, 80), (60, 90), (60, 50), (60, 60)
_GREETING_BYTES = 8


class Fault(Enum):
    """What the postman does to a message that the broker has handed out."""

    DUPLICATE = "doubled"
    DROP = "dropped"
    DELAY = "delayed"
    REORDER = "overtaken"


@dataclass
class _Parcel:
    """A message with its method, as frames; complete when nothing of its body is missing."""

    method: tuple[int, int]
    channel: int
    tag: int
    raw: bytes
    missing: int = -1
    kind: str = ""


@dataclass
class _Line:
    """A connection of a client's, and what is held of it."""

    client: socket.socket
    server: socket.socket
    open: dict[int, _Parcel] = field(default_factory=dict)
    held: list[tuple[float, int, bytes]] = field(default_factory=list)
    doubled: dict[tuple[int, int], int] = field(default_factory=dict)
    delivered: int = 0
    is_greeted: bool = False


class Postman:
    """Passes connections on to a broker, from a port of loopback."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.port = free_port()
        self.met: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._kind, self._fault, self._left = "", Fault.DROP, 0
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def arm(self, kind: str, fault: Fault, times: int) -> None:
        """Do this to so many messages of a kind from now on, and to no others."""
        self.done.clear()
        self._kind, self._fault, self._left = kind, fault, times

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                return
            self._start(self._serve, _Line(client, server))

    def _serve(self, line: _Line) -> None:
        buffers = {line.client: bytearray(), line.server: bytearray()}
        with line.client, line.server, suppress(OSError):
            while not self._is_over.is_set():
                for source in select.select([*buffers], [], [], 0.05)[0]:
                    piece = source.recv(1 << 16)
                    if not piece:
                        return
                    buffers[source] += piece
                    if source is line.client:
                        self._from_client(line, buffers[source])
                    else:
                        self._from_server(line, buffers[source])
                self._let_go(line)

    # -- from the client ----------------------------------------------------------------------

    def _from_client(self, line: _Line, buffer: bytearray) -> None:
        if not line.is_greeted:
            if len(buffer) < _GREETING_BYTES:
                return
            line.server.sendall(bytes(buffer[:_GREETING_BYTES]))
            del buffer[:_GREETING_BYTES]
            line.is_greeted = True
        for raw in _frames(buffer):
            if not self._is_second_answer(line, raw):
                line.server.sendall(raw)

    def _is_second_answer(self, line: _Line, raw: bytes) -> bool:
        """Say whether it settles a message that was settled already: the broker knows of one."""
        kind, channel, _ = _FRAME.unpack_from(raw)
        if kind != _METHOD or struct.unpack_from(">HH", raw, _FRAME.size) not in (_ACK, _REJECT):
            return False
        (tag,) = struct.unpack_from(">Q", raw, _FRAME.size + 4)
        if (channel, tag) not in line.doubled:
            return False
        line.doubled[channel, tag] += 1
        return line.doubled[channel, tag] > 1

    # -- from the broker ----------------------------------------------------------------------

    def _from_server(self, line: _Line, buffer: bytearray) -> None:
        for raw in _frames(buffer):
            kind, channel, size = _FRAME.unpack_from(raw)
            if kind == _METHOD:
                method = struct.unpack_from(">HH", raw, _FRAME.size)
                if method in (_RETURN, _DELIVER):
                    tag = _tag(raw) if method == _DELIVER else 0
                    line.open[channel] = _Parcel(method, channel, tag, raw)
                    continue
            parcel = line.open.get(channel)
            if parcel is None or kind not in (_HEADER, 3):
                line.client.sendall(raw)
                continue
            parcel.raw += raw
            if kind == _HEADER:
                payload = raw[_FRAME.size : -1]
                (parcel.missing,) = struct.unpack_from(">Q", payload, 4)
                properties = pika.BasicProperties()
                properties.decode(payload, 12)
                parcel.kind = properties.type or ""
            else:
                parcel.missing -= size
            if parcel.missing == 0:
                del line.open[channel]
                self._deliver(line, parcel)

    def _deliver(self, line: _Line, parcel: _Parcel) -> None:
        if parcel.method != _DELIVER:
            line.client.sendall(parcel.raw)
            return
        self.met[parcel.kind] += 1
        line.delivered += 1
        if parcel.kind != self._kind or self._left <= 0:
            line.client.sendall(parcel.raw)
            return
        self._left -= 1
        self.done[parcel.kind] += 1
        now = time.monotonic()
        if self._fault is Fault.DROP:
            acknowledged = pika.frame.Method(parcel.channel, pika.spec.Basic.Ack(parcel.tag))
            line.server.sendall(acknowledged.marshal())
        elif self._fault is Fault.DUPLICATE:
            line.doubled[parcel.channel, parcel.tag] = 0
            line.client.sendall(parcel.raw * 2)
        elif self._fault is Fault.DELAY:
            line.held.append((now + DELAY_S, 1 << 30, parcel.raw))
        else:
            line.held.append((now + LONGEST_HELD_S, line.delivered, parcel.raw))

    def _let_go(self, line: _Line) -> None:
        now = time.monotonic()
        for one in [*line.held]:
            due, before, raw = one
            if now >= due or line.delivered > before:
                line.held.remove(one)
                line.client.sendall(raw)

    def close(self) -> None:
        """Cut everybody off."""
        self._is_over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """Take the whole frames off a buffer."""
    while len(buffer) >= _FRAME.size:
        _, _, size = _FRAME.unpack_from(buffer)
        end = _FRAME.size + size + 1
        if len(buffer) < end:
            return
        raw = bytes(buffer[:end])
        del buffer[:end]
        yield raw


def _tag(raw: bytes) -> int:
    """Return the tag of a delivery, which is after the consumer's name."""
    at = _FRAME.size + 4
    (tag,) = struct.unpack_from(">Q", raw, at + 1 + raw[at])
    return int(tag)


@contextmanager
def postman(server_port: int) -> Iterator[Postman]:
    """Let one work for a while."""
    made = Postman(server_port)
    try:
        yield made
    finally:
        made.close()
